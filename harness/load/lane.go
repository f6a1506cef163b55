package load

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"

	"idlerace/harness/record"
)

// shotTimeout bounds one request: dial, send, answer.
const shotTimeout = 15 * time.Second

// lane is one client connection to the proxy. It owns the connection, so that
// nothing is ever sent again behind its back (net/http's Transport replays an
// idempotent request on a dead reused connection; ClientConn does not).
type lane struct {
	n      int
	addr   string // of the proxy
	dialer *http.Transport
	conn   *http.ClientConn
}

// plannedShot is what a lane is to do in a burst.
type plannedShot struct {
	phase  record.Phase
	target string
	at     time.Time // when to send; zero: at once
	edge   time.Duration
	burst  int
	hold   time.Duration

	idleSince time.Time // ages count from here; zero: there was nothing before
}

func newLane(n int, addr string, dial dialFunc) *lane {
	if dial == nil {
		dial = (&net.Dialer{Timeout: 5 * time.Second}).DialContext
	}
	return &lane{n: n, addr: addr, dialer: &http.Transport{DisableCompression: true, DialContext: dial}}
}

type dialFunc func(ctx context.Context, network, addr string) (net.Conn, error)

// shoot waits for the planned moment, sends req and reads the whole response.
// The shot it returns lacks only the request id.
func (l *lane) shoot(ctx context.Context, a *Alarm, p plannedShot, req *http.Request) (record.Shot, *http.Response, error) {
	s := record.Shot{Lane: l.n, Burst: p.burst, Phase: p.phase, Target: p.target, Edge: p.edge}
	ctx, cancel := context.WithTimeout(ctx, max(time.Until(p.at), 0)+shotTimeout)
	defer cancel()
	if l.conn != nil && l.conn.Err() != nil {
		l.drop()
	}
	if l.conn == nil {
		conn, err := l.dialer.NewClientConn(ctx, "http", l.addr)
		if err != nil {
			s.Sent = time.Now().UnixNano()
			s.Outcome, s.Err = outcome(err), record.Short(err.Error())
			if s.Outcome != record.OutcomeRefused && s.Outcome != record.OutcomeTimeout {
				s.Outcome = record.OutcomeClient
			}
			return s, nil, err
		}
		l.conn, s.Fresh = conn, true
	}
	if !p.at.IsZero() {
		if err := a.Wait(ctx, p.at); err != nil {
			s.Sent = time.Now().UnixNano()
			s.Outcome, s.Err = record.OutcomeClient, record.Short(err.Error())
			return s, nil, err
		}
	}
	sent := time.Now()
	if !p.idleSince.IsZero() {
		s.Age = sent.Sub(p.idleSince)
		if !p.at.IsZero() {
			s.Planned = p.at.Sub(p.idleSince)
		}
	}
	s.Sent = sent.UnixNano()
	resp, err := l.conn.RoundTrip(req.WithContext(ctx))
	var body []byte
	if err == nil {
		body, err = io.ReadAll(resp.Body)
		resp.Body.Close()
		resp.Body = io.NopCloser(bytes.NewReader(body))
		s.Status = resp.StatusCode
	}
	s.Latency = time.Since(sent)
	switch {
	case err == nil:
		s.Outcome = record.OutcomeResponse
	case s.Status != 0:
		s.Outcome, s.Err = record.OutcomePartial, record.Short(err.Error())
	default:
		s.Outcome, s.Err = outcome(err), record.Short(err.Error())
	}
	if err != nil {
		l.drop()
	}
	return s, resp, err
}

func (l *lane) drop() {
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}

// outcome classifies the error of a request that got no response.
func outcome(err error) record.Outcome {
	var netErr net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return record.OutcomeRefused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return record.OutcomeReset
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &netErr) && netErr.Timeout():
		return record.OutcomeTimeout
	case errors.Is(err, context.Canceled):
		return record.OutcomeClient
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), closedIdle(err):
		return record.OutcomeClosed
	case strings.Contains(err.Error(), "malformed"):
		return record.OutcomeNotHTTP
	}
	return record.OutcomeClient
}

// closedIdle recognises net/http's unexported errServerClosedIdle.
func closedIdle(err error) bool {
	for ; err != nil; err = errors.Unwrap(err) {
		if err.Error() == "http: server closed idle connection" {
			return true
		}
	}
	return false
}

// prepared gives a copy of req whose path carries the request id as well, for
// proxies whose error log names a request by nothing else.
func prepared(req *http.Request, cell string, seq uint64, hold time.Duration) *http.Request {
	out := req.Clone(req.Context())
	out.Header.Set(record.HeaderHold, hold.String())
	out.URL = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: "/" + cell + "/" + strconv.FormatUint(seq, 10)}
	return out
}
