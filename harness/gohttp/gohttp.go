// Package gohttp is the embedded proxy: net/http/httputil.ReverseProxy over
// net/http.Transport, the forwarding core of Traefik, Caddy and many gateways,
// with one listener and one connection pool per route. It imports of this
// module only record and spec.
package gohttp

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Config is the proxy's configuration file (JSON).
type Config struct {
	PoolSize int     `json:"pool_size"` // idle upstream connections a route may hold
	Routes   []Route `json:"routes"`
}

// Route is one listener with a pool of its own.
type Route struct {
	Listen   string     `json:"listen"`   // host:port
	Upstream string     `json:"upstream"` // host:port
	Idle     string     `json:"idle"`     // Transport.IdleConnTimeout as a Go duration; "off": DisableKeepAlives
	Retry    spec.Retry `json:"retry"`    // see replaying
}

// ReadConfig reads a configuration strictly.
func ReadConfig(r io.Reader) (Config, error) {
	var c Config
	dec := json.NewDecoder(r)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&c); err != nil {
		return c, fmt.Errorf("gohttp: config: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return c, errors.New("gohttp: config: something follows the object")
	}
	if c.PoolSize < 1 {
		return c, fmt.Errorf("gohttp: config: pool_size is %d, 1 or more is needed", c.PoolSize)
	}
	if len(c.Routes) == 0 {
		return c, errors.New("gohttp: config: routes is empty")
	}
	for i, rt := range c.Routes {
		if _, err := rt.idle(); err != nil {
			return c, fmt.Errorf("gohttp: config: route %d: idle: %w", i, err)
		}
		switch rt.Retry {
		case spec.RetryOff, spec.RetryDefault, spec.RetryOn:
		default:
			return c, fmt.Errorf("gohttp: config: route %d: retry is %q, one of %v is needed", i, rt.Retry, spec.Retries())
		}
		for _, a := range []string{rt.Listen, rt.Upstream} {
			if _, _, err := net.SplitHostPort(a); err != nil {
				return c, fmt.Errorf("gohttp: config: route %d: %w", i, err)
			}
		}
	}
	return c, nil
}

func (r Route) idle() (time.Duration, error) {
	if r.Idle == spec.Off.String() {
		return 0, nil
	}
	d, err := time.ParseDuration(r.Idle)
	if err == nil && d <= 0 {
		err = fmt.Errorf("%s is not positive; %q turns keep-alive off", r.Idle, spec.Off.String())
	}
	return d, err
}

// Run serves until ctx is done, and then breaks off what is under way. Each
// proxied request becomes one line on logs: the JSON of a record.LogLine.
func Run(ctx context.Context, c Config, logs io.Writer) error {
	out := &lineLog{w: logs}
	var servers []*http.Server
	var pools []*http.Transport
	var serving sync.WaitGroup
	errs := make(chan error, len(c.Routes))
	defer func() {
		for _, s := range servers {
			s.Close()
		}
		for _, p := range pools {
			p.CloseIdleConnections()
		}
		serving.Wait()
	}()
	for _, r := range c.Routes {
		l, err := net.Listen("tcp", r.Listen)
		if err != nil {
			return fmt.Errorf("gohttp: %w", err)
		}
		// No server timeout: the client side must outlive every gap.
		pool := newTransport(r, c.PoolSize)
		s := &http.Server{Handler: newHandler(r, replaying(pool, r.Retry), out), ErrorLog: log.New(io.Discard, "", 0)}
		servers, pools = append(servers, s), append(pools, pool)
		serving.Go(func() { errs <- s.Serve(l) })
	}
	select {
	case <-ctx.Done():
		return nil
	case err := <-errs:
		return fmt.Errorf("gohttp: %w", err)
	}
}

// newHandler makes a route's proxy.
func newHandler(r Route, transport http.RoundTripper, logs *lineLog) http.Handler {
	target := &url.URL{Scheme: "http", Host: r.Upstream}
	p := &httputil.ReverseProxy{
		Rewrite:   func(pr *httputil.ProxyRequest) { pr.SetURL(target); pr.Out.Host = pr.In.Host },
		Transport: transport,
		ErrorLog:  log.New(io.Discard, "", 0),
	}
	p.ErrorHandler = func(w http.ResponseWriter, req *http.Request, err error) {
		if e, ok := req.Context().Value(entryKey{}).(*entry); ok {
			e.fail(err)
		}
		w.WriteHeader(http.StatusBadGateway)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		e := &entry{upstream: r.Upstream}
		e.line.Cell = req.Header.Get(record.HeaderCell)
		e.line.Seq, _ = strconv.ParseUint(req.Header.Get(record.HeaderSeq), 10, 64)
		ctx := context.WithValue(req.Context(), entryKey{}, e)
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: e.gotConn})
		sw := &statusWriter{ResponseWriter: w, status: http.StatusOK}
		defer func() { logs.write(e.finish(sw.status)) }()
		p.ServeHTTP(sw, req.WithContext(ctx))
	})
}

// newTransport is the pool of a route.
func newTransport(r Route, poolSize int) *http.Transport {
	idle, _ := r.idle() // checked by ReadConfig
	return &http.Transport{
		IdleConnTimeout:       idle,
		DisableKeepAlives:     r.Idle == spec.Off.String(),
		MaxIdleConns:          0,
		MaxIdleConnsPerHost:   poolSize,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		DisableCompression:    true,
		ResponseHeaderTimeout: 30 * time.Second,
	}
}

// replaying sets how t replays a request that met a dead pooled connection
// (net/http, Request.isReplayable and persistConn.shouldRetryRequest):
//
//   - default: as net/http does it, GET, HEAD, OPTIONS and TRACE only;
//   - off: never, by handing over a body that cannot be rewound;
//   - on: every method, by a rewindable body and an Idempotency-Key that is
//     present but, having no value, not sent.
func replaying(t *http.Transport, retry spec.Retry) http.RoundTripper {
	switch retry {
	case spec.RetryOff:
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			if req.Body == nil {
				req = req.Clone(req.Context())
				req.Body = io.NopCloser(strings.NewReader(""))
			}
			return t.RoundTrip(req)
		})
	case spec.RetryOn:
		return roundTripper(func(req *http.Request) (*http.Response, error) {
			req = req.Clone(req.Context())
			if _, ok := req.Header["Idempotency-Key"]; !ok {
				req.Header["Idempotency-Key"] = []string{}
			}
			if req.Body != nil {
				body, err := io.ReadAll(req.Body)
				req.Body.Close()
				if err != nil {
					return nil, err
				}
				req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
				req.Body, _ = req.GetBody()
			}
			return t.RoundTrip(req)
		})
	}
	return t
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

type entryKey struct{}

// entry collects what the proxy knows of one request.
type entry struct {
	upstream string
	mu       sync.Mutex
	line     record.LogLine
}

// gotConn is called once per attempt.
func (e *entry) gotConn(info httptrace.GotConnInfo) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a := record.Attempt{Upstream: e.upstream, Reused: info.Reused}
	if info.Conn != nil {
		a.Local = info.Conn.LocalAddr().String()
	}
	e.line.Attempts = append(e.line.Attempts, a)
}

func (e *entry) fail(err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.line.Text = record.Short(err.Error())
	e.line.Cause = cause(err)
	if n := len(e.line.Attempts); n > 0 {
		e.line.Attempts[n-1].Err = e.line.Text
	}
}

// finish gives the line of a request answered with status.
func (e *entry) finish(status int) record.LogLine {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.line.Status = status
	if n := len(e.line.Attempts); n > 0 && e.line.Attempts[n-1].Err == "" {
		e.line.Attempts[n-1].Status = status
	}
	return e.line
}

// cause classifies an error of Transport.RoundTrip.
func cause(err error) record.Cause {
	var netErr net.Error
	switch {
	case errors.Is(err, context.Canceled):
		return record.CauseClient
	case errors.Is(err, syscall.ECONNREFUSED):
		return record.CauseRefused
	case errors.Is(err, syscall.ECONNRESET):
		return record.CauseReset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed),
		strings.Contains(err.Error(), "server closed idle connection"):
		return record.CauseClosedEarly
	case errors.As(err, &netErr) && netErr.Timeout(), errors.Is(err, os.ErrDeadlineExceeded),
		strings.Contains(err.Error(), "timeout awaiting response headers"):
		return record.CauseTimeout
	case strings.Contains(err.Error(), "malformed HTTP"), strings.Contains(err.Error(), "malformed MIME header"):
		return record.CauseNotHTTP
	}
	return record.CauseUnknown
}

// statusWriter notes the status it passes on.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// lineLog writes whole lines, one write each, so that a reader of a growing
// file never waits for a buffer.
type lineLog struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lineLog) write(line record.LogLine) {
	var b bytes.Buffer
	if json.NewEncoder(&b).Encode(line) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.w.Write(b.Bytes())
}
