// Package origin is the configurable Go upstream and the main witness of a
// run: real net/http servers, a port each, that journal every connection and
// request and can read the id of a request which lost the keep-alive race. Of
// this module it must import record, spec, wire, origin/link and origin/netem
// only.
package origin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"idlerace/harness/origin/link"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Defaults of a Config.
const (
	DefaultLinger      = 2 * time.Second
	DefaultSize        = 3
	DefaultJournalSize = 1 << 18
)

// Limits of a Config.
const (
	maxSize        = 64 << 20
	maxJournalSize = 1 << 24
)

// stopGrace is how long requests in work, and then readers of the journal, may
// each take to finish when the origin is told to stop.
const stopGrace = 5 * time.Second

// maxHold bounds what record.HeaderHold may ask for.
const maxHold = time.Minute

// connHeader is the response header with the journal's number of the
// connection.
const connHeader = "X-Idlerace-Conn"

// Run listens on every address of cfg, calls ready once with the addresses
// bound (server name to "ip:port", and "admin"), and serves until ctx is done.
// Then it shuts down in order: idle connections are closed, requests in work
// are answered within 5 s, sockets still read for late requests are closed,
// readers that follow the journal get its last events and an EOF; it returns
// nil. Before that it returns an error only for an invalid cfg, an address it
// cannot bind (naming server and address) or a listener that breaks. ready may
// be nil. No goroutine or socket outlives Run.
func Run(ctx context.Context, cfg Config, ready func(addrs map[string]string)) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	cfg = cfg.withDefaults()
	o := newOrigin(cfg.JournalSize)

	shaper, err := shape(cfg.Servers)
	if err != nil {
		return fmt.Errorf("origin: %w", err)
	}
	defer shaper.Close()

	addrs := make(map[string]string, len(cfg.Servers)+1)
	var listeners []net.Listener
	listen := func(who, name, addr string) error {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			closeAll(listeners)
			return fmt.Errorf("origin: %s: %w", who, err)
		}
		listeners = append(listeners, ln)
		addrs[name] = ln.Addr().String()
		return nil
	}
	if err := listen("admin", adminName, cfg.Admin); err != nil {
		return err
	}
	for _, s := range cfg.Servers {
		if err := listen("server "+s.Name, s.Name, s.Listen); err != nil {
			return err
		}
	}

	var serverAddrs []string
	for i, s := range cfg.Servers {
		serverAddrs = append(serverAddrs, addrs[s.Name])
		if s.Link == nil || s.Link.Netem {
			continue
		}
		l, err := link.New(listeners[i+1], s.Link.config())
		if err != nil {
			closeAll(listeners)
			return fmt.Errorf("origin: server %s: %w", s.Name, err)
		}
		defer l.Shutdown()
		listeners[i+1] = l
	}
	pk, err := capture(cfg.Capture, serverAddrs)
	if err != nil {
		closeAll(listeners)
		return err
	}
	defer pk.close()
	admin := &http.Server{Handler: adminHandler(o.journal, pk, cfg, addrs, o.recycle)}
	var servers []*http.Server
	var serving sync.WaitGroup
	broken := make(chan error, len(listeners))
	serve := func(hs *http.Server, ln net.Listener, who string) {
		serving.Go(func() {
			if err := hs.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
				broken <- fmt.Errorf("origin: %s: %w", who, err)
			}
		})
	}
	serve(admin, listeners[0], "admin")
	for i, s := range cfg.Servers {
		hs, ln := o.server(s, listeners[i+1])
		servers = append(servers, hs)
		serve(hs, ln, "server "+s.Name)
	}
	if ready != nil {
		ready(addrs)
	}

	select {
	case <-ctx.Done():
	case err = <-broken:
	}
	o.stop(servers)
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if admin.Shutdown(grace) != nil {
		admin.Close()
	}
	serving.Wait()
	return err
}

func closeAll(listeners []net.Listener) {
	for _, ln := range listeners {
		ln.Close()
	}
}

// Config is what one origin process serves.
type Config struct {
	Admin       string   `json:"admin"`                 // listen address of the admin endpoint, "ip:port"
	Servers     []Server `json:"servers"`               // at least one
	JournalSize int      `json:"journal_size,omitzero"` // events kept; 0: 262144
	Capture     bool     `json:"capture,omitzero"`      // record the packets of all servers' ports, where the right is there; see /capture
	Contained   bool     `json:"contained,omitzero"`    // it runs in a container with a network of its own, which a Link may shape
}

// Server is one upstream setting with a port of its own.
type Server struct {
	Name   string `json:"name"`   // unique; not "admin"
	Listen string `json:"listen"` // "ip:port"; port 0 picks one

	// IdleTimeout is http.Server.IdleTimeout, but 0 means that an idle
	// connection is never closed. As in net/http it begins after a response: a
	// connection that never sent a request is kept.
	IdleTimeout Duration `json:"idle_timeout"`
	// Close is how a connection ends whose idle timer fired, and how a Trap
	// ends one; every other close is a plain one. Empty: fin.
	Close spec.Close `json:"close"`
	// Linger is how long a socket is read on after its FIN under the styles
	// fin and half-close. 0: 2 s.
	Linger Duration `json:"linger,omitzero"`

	KeepAliveHint int      `json:"keep_alive_hint,omitzero"` // N of "Keep-Alive: timeout=N" in seconds; 0: no such header
	Delay         Duration `json:"delay,omitzero"`           // request read to response begun
	Size          int      `json:"size,omitzero"`            // bytes of the response body; 0: 3

	MaxRequests int  `json:"max_requests,omitzero"` // requests answered per connection before it is closed; 0: no limit
	Announce    bool `json:"announce,omitzero"`     // the last of MaxRequests carries "Connection: close"

	Trap *Trap `json:"trap,omitempty"` // nil: every request is answered
	Link *Link `json:"link,omitempty"` // the network in front; nil: none
}

// Link is the emulated network between the proxies and a server; see
// link.Config. With Netem it is the kernel's, and delays what leaves the server's
// port; the zero fields are then those that it cannot do.
type Link struct {
	Netem      bool        `json:"netem,omitzero"`
	Up         Duration    `json:"up,omitzero"` // one-way delay to the server
	Down       Duration    `json:"down,omitzero"`
	JitterUp   Duration    `json:"jitter_up,omitzero"` // added to it, from 0 to this
	JitterDown Duration    `json:"jitter_down,omitzero"`
	Idle       Duration    `json:"idle,omitzero"`    // a middlebox gives a connection up that was idle for so long; 0: never
	OnIdle     spec.Expiry `json:"on_idle,omitzero"` // in this way
	HalfClosed Duration    `json:"half_closed,omitzero"`
	Seed       uint64      `json:"seed,omitzero"` // of the jitter
}

func (l Link) config() link.Config {
	return link.Config{
		Up:   link.Path{Delay: time.Duration(l.Up), Jitter: time.Duration(l.JitterUp)},
		Down: link.Path{Delay: time.Duration(l.Down), Jitter: time.Duration(l.JitterDown)},
		Idle: time.Duration(l.Idle), OnIdle: string(l.OnIdle), HalfClosed: time.Duration(l.HalfClosed), Seed: l.Seed,
	}
}

// Trap makes a server read a request in full and end the connection instead of
// answering.
type Trap struct {
	After    int  `json:"after"`    // requests answered on a connection before the trapped one
	Executed bool `json:"executed"` // the journal counts the trapped request as executed
	// Unread leaves the request in the socket: when its first bytes are there,
	// FIN and, because they are never read, RST right behind it, whatever Close
	// says. The journal counts it as a request, with the id as far as it had
	// arrived.
	Unread bool `json:"unread,omitzero"`
}

// Duration is a time.Duration that JSON writes as a Go duration string.
type Duration time.Duration

// String is spec.FormatDuration.
func (d Duration) String() string { return spec.FormatDuration(time.Duration(d)) }

// MarshalJSON writes a string such as "1.5s".
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads a string such as "1.5s" and nothing else: a number would
// leave the unit to a guess. The error is a *json.UnmarshalTypeError, the one
// type that encoding/json completes with the name of the field.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if len(b) > 0 && b[0] == '"' && json.Unmarshal(b, &s) == nil {
		if v, err := time.ParseDuration(s); err == nil {
			*d = Duration(v)
			return nil
		}
	}
	return &json.UnmarshalTypeError{Value: string(b), Type: reflect.TypeFor[Duration]()}
}

// ReadConfig reads one JSON object and validates it. Unknown fields, anything
// after the object and durations that are not strings are errors, which name
// the line (syntax) or the field.
func ReadConfig(r io.Reader) (Config, error) {
	text, err := io.ReadAll(r)
	if err != nil {
		return Config{}, fmt.Errorf("origin config: %w", err)
	}
	var doc struct {
		Admin       string            `json:"admin"`
		Servers     []json.RawMessage `json:"servers"` // read one by one: an error can say which
		JournalSize int               `json:"journal_size"`
		Capture     bool              `json:"capture"`
		Contained   bool              `json:"contained"`
	}
	if err := decode(text, &doc); err != nil {
		return Config{}, fmt.Errorf("origin config: %s", describe(err, text, ""))
	}
	cfg := Config{Admin: doc.Admin, JournalSize: doc.JournalSize, Capture: doc.Capture, Contained: doc.Contained, Servers: make([]Server, len(doc.Servers))}
	for i, raw := range doc.Servers {
		if err := decode(raw, &cfg.Servers[i]); err != nil {
			return Config{}, fmt.Errorf("origin config: %s", describe(err, raw, fmt.Sprintf("servers[%d]", i)))
		}
	}
	if err := cfg.Validate(); err != nil {
		return Config{}, fmt.Errorf("origin config: %w", err)
	}
	return cfg, nil
}

// decode reads text into v, strictly.
func decode(text []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if rest := bytes.TrimSpace(text[dec.InputOffset():]); len(rest) > 0 {
		line := 1 + bytes.Count(text[:len(text)-len(rest)], []byte("\n"))
		return fmt.Errorf("line %d: something follows the object", line)
	}
	return nil
}

// describe says what is wrong with text, in whose field where.
func describe(err error, text []byte, where string) string {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		line := 1 + bytes.Count(text[:min(int(syntax.Offset), len(text))], []byte("\n"))
		return fmt.Sprintf("line %d: %v", line, err)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return "the file ends before the object does"
	}
	var msg string
	if typ, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if typ.Field != "" {
			where = strings.TrimPrefix(where+"."+typ.Field, ".")
		}
		switch {
		case typ.Type == reflect.TypeFor[Duration]():
			msg = fmt.Sprintf(`%s is not a duration such as "1.5s"`, typ.Value)
		case typ.Type.Kind() == reflect.Struct:
			msg = fmt.Sprintf("want an object, not %s", typ.Value)
		case typ.Type.Kind() == reflect.Slice:
			msg = fmt.Sprintf("want a list, not %s", typ.Value)
		default:
			msg = fmt.Sprintf("want %s, not %s", typ.Type.Kind(), typ.Value)
		}
	} else {
		msg = strings.TrimPrefix(err.Error(), "json: ")
	}
	if where == "" {
		return msg
	}
	return where + ": " + msg
}

// Validate returns every fault of c, joined, or nil.
func (c Config) Validate() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	address := func(who, addr string) {
		if addr == "" {
			bad("%s: no listen address", who)
		} else if _, _, err := net.SplitHostPort(addr); err != nil {
			bad("%s: listen address %q is not host:port", who, addr)
		}
	}

	address(adminName, c.Admin)
	if c.JournalSize < 0 || c.JournalSize > maxJournalSize {
		bad("journal_size: %d is not between 0 and %d", c.JournalSize, maxJournalSize)
	}
	if len(c.Servers) == 0 {
		bad("servers: none")
	}
	seen := make(map[string]bool)
	for i, s := range c.Servers {
		who := "server " + s.Name
		switch {
		case s.Name == "":
			who = fmt.Sprintf("servers[%d]", i)
			bad("%s: no name", who)
		case s.Name == adminName:
			bad("%s: the name is taken by the admin endpoint", who)
		case seen[s.Name]:
			bad("%s: the name is used twice", who)
		}
		seen[s.Name] = true
		address(who, s.Listen)
		if s.Close != "" && !slices.Contains(spec.Closes(), s.Close) {
			bad("%s: close: %q is none of %v", who, s.Close, spec.Closes())
		}
		for _, d := range []struct {
			field string
			value Duration
		}{{"idle_timeout", s.IdleTimeout}, {"linger", s.Linger}, {"delay", s.Delay}} {
			if d.value < 0 {
				bad("%s: %s: %v is negative", who, d.field, d.value)
			}
		}
		for _, n := range []struct {
			field string
			value int
		}{{"keep_alive_hint", s.KeepAliveHint}, {"size", s.Size}, {"max_requests", s.MaxRequests}} {
			if n.value < 0 {
				bad("%s: %s: %d is negative", who, n.field, n.value)
			}
		}
		if s.Size > maxSize {
			bad("%s: size: %d is above %d", who, s.Size, maxSize)
		}
		if s.Announce && s.MaxRequests == 0 {
			bad("%s: announce without max_requests", who)
		}
		if t := s.Trap; t != nil && t.After < 0 {
			bad("%s: trap: after: %d is negative", who, t.After)
		} else if t != nil && s.MaxRequests > 0 && t.After >= s.MaxRequests {
			bad("%s: trap: after %d requests is never reached with max_requests %d", who, t.After, s.MaxRequests)
		}
		if s.Link != nil {
			if err := s.Link.config().Validate(); err != nil {
				bad("%s: link: %w", who, err)
			}
			if s.Trap != nil && s.Trap.Unread {
				bad("%s: trap: unread works without a link only", who)
			}
			if s.Link.Netem {
				for _, fault := range s.Link.beyondNetem(s.Listen, c.Contained) {
					bad("%s: link: netem: %s", who, fault)
				}
			}
		}
		if t := s.Trap; t != nil && t.Unread && t.Executed {
			bad("%s: trap: what is unread is not executed", who)
		}
	}
	return errors.Join(errs...)
}

// withDefaults is c with every default filled in; c itself stays as it is.
func (c Config) withDefaults() Config {
	if c.JournalSize == 0 {
		c.JournalSize = DefaultJournalSize
	}
	c.Servers = slices.Clone(c.Servers)
	for i := range c.Servers {
		s := &c.Servers[i]
		if s.Close == "" {
			s.Close = spec.CloseFIN
		}
		if s.Linger == 0 {
			s.Linger = Duration(DefaultLinger)
		}
		if s.Size == 0 {
			s.Size = DefaultSize
		}
	}
	return c
}

// origin is what all servers of a process share.
type origin struct {
	journal  *journal
	lastConn atomic.Uint64
	stopping atomic.Bool

	mu    sync.Mutex
	conns map[*conn]struct{} // accepted and not yet closed for good

	// running counts accepted connections until net/http has let go of them,
	// and sockets read on after their FIN.
	running sync.WaitGroup
}

func newOrigin(journalSize int) *origin {
	return &origin{journal: newJournal(journalSize), conns: make(map[*conn]struct{})}
}

// server is an http.Server for s, and ln wrapped for it.
func (o *origin) server(s Server, ln net.Listener) (*http.Server, net.Listener) {
	h := &server{Server: s, origin: o, length: strconv.Itoa(s.Size)}
	h.body = bytes.Repeat([]byte("ok\n"), s.Size/3+1)[:s.Size]
	if s.KeepAliveHint > 0 {
		h.hint = fmt.Sprintf("timeout=%d", s.KeepAliveHint)
	}
	return &http.Server{
		Handler:     h,
		IdleTimeout: time.Duration(s.IdleTimeout), // ReadTimeout stays 0: net/http would take it where this is 0
		ConnState: func(nc net.Conn, state http.ConnState) {
			nc.(*conn).changed(state)
		},
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, nc)
		},
		DisableGeneralOptionsHandler: true, // "OPTIONS *" is a request like any other
	}, &listener{Listener: ln, server: h}
}

// stop shuts servers down and waits for everything they started. After it the
// journal is complete and closed.
func (o *origin) stop(servers []*http.Server) {
	o.stopping.Store(true) // before the list is read: a later connection sees it
	o.mu.Lock()
	open := make([]*conn, 0, len(o.conns))
	for c := range o.conns {
		open = append(open, c)
	}
	o.mu.Unlock()
	for _, c := range open {
		c.stop()
	}
	grace, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	var stopped sync.WaitGroup
	for _, hs := range servers {
		stopped.Go(func() {
			if hs.Shutdown(grace) != nil {
				hs.Close()
			}
		})
	}
	stopped.Wait()
	o.running.Wait()
	o.journal.close()
}

// server is the handler of one Server.
type server struct {
	Server
	origin *origin
	body   []byte
	length string // of body, in decimal
	hint   string // value of Keep-Alive; empty: none
	holds  holds
}

// connKey is the context key of a request's *conn.
type connKey struct{}

// ServeHTTP reads the request to its end, journals it, and answers or springs
// the trap. http.ErrAbortHandler makes net/http end the connection without a
// response; conn.Close then says why.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c := r.Context().Value(connKey{}).(*conn)
	c.begin()
	_, err := io.Copy(io.Discard, r.Body)
	trapped := s.Trap != nil && c.answered >= s.Trap.After
	c.request(r, err == nil && (!trapped || s.Trap.Executed))
	switch {
	case err != nil:
		c.blame(record.WhyError, fmt.Errorf("request body: %w", err))
		panic(http.ErrAbortHandler)
	case trapped:
		c.blame(record.WhyTrap, nil)
		panic(http.ErrAbortHandler)
	case !sleep(r.Context(), time.Duration(s.Delay)), !s.holds.wait(r):
		panic(http.ErrAbortHandler) // the peer is gone
	}

	h := w.Header()
	h.Set("Content-Type", "text/plain; charset=utf-8")
	h.Set("Content-Length", s.length)
	h.Set(connHeader, c.number)
	switch {
	case s.Announce && c.answered+1 >= s.MaxRequests:
		h.Set("Connection", "close")
	case s.hint != "":
		h.Set("Connection", "keep-alive")
		h.Set("Keep-Alive", s.hint)
	}
	if _, err := w.Write(s.body); err != nil && !errors.Is(err, http.ErrBodyNotAllowed) {
		panic(http.ErrAbortHandler)
	}
	c.finish()
}

// holds are the answers a server holds back, by request id's first half.
type holds struct {
	mu   sync.Mutex
	open map[string]chan struct{} // closed when the answers go out
}

// wait holds r back as record.HeaderHold asks and reports whether its context let
// it. A header that is no duration up to maxHold asks for nothing.
func (h *holds) wait(r *http.Request) bool {
	d, err := time.ParseDuration(r.Header.Get(record.HeaderHold))
	if err != nil || d <= 0 || d > maxHold {
		return true
	}
	cell := r.Header.Get(record.HeaderCell)
	h.mu.Lock()
	out := h.open[cell]
	if out == nil {
		if h.open == nil {
			h.open = map[string]chan struct{}{}
		}
		out = make(chan struct{})
		h.open[cell] = out
		time.AfterFunc(d, func() {
			h.mu.Lock()
			defer h.mu.Unlock()
			delete(h.open, cell)
			close(out)
		})
	}
	h.mu.Unlock()
	select {
	case <-out:
		return true
	case <-r.Context().Done():
		return false
	}
}

// sleep waits for d and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
