package origin

import (
	"bufio"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// The tests of this file run in a bubble, over a fake network, so that moments
// and idle times can be compared exactly.

// end is one end of a fake connection: a pipe for each direction.
type end struct {
	in, out net.Conn

	mu     sync.Mutex
	linger bool      // SetLinger(0) was called
	closed time.Time // when Close was called first
}

func ends() (a, b *end) {
	ar, bw := net.Pipe()
	br, aw := net.Pipe()
	return &end{in: ar, out: aw}, &end{in: br, out: bw}
}

func (e *end) Read(b []byte) (int, error)        { return e.in.Read(b) }
func (e *end) Write(b []byte) (int, error)       { return e.out.Write(b) }
func (e *end) CloseWrite() error                 { return e.out.Close() }
func (e *end) LocalAddr() net.Addr               { return &net.TCPAddr{Port: 1} }
func (e *end) RemoteAddr() net.Addr              { return &net.TCPAddr{Port: 2} }
func (e *end) SetDeadline(t time.Time) error     { panic("not used") }
func (e *end) SetReadDeadline(t time.Time) error { return e.in.SetReadDeadline(t) }
func (e *end) SetWriteDeadline(t time.Time) error {
	return e.out.SetWriteDeadline(t)
}

func (e *end) SetLinger(sec int) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.linger = sec == 0
	return nil
}

func (e *end) Close() error {
	e.mu.Lock()
	if e.closed.IsZero() {
		e.closed = time.Now()
	}
	e.mu.Unlock()
	e.in.Close()
	return e.out.Close()
}

// state is how and when e was closed: zero while it is not.
func (e *end) state() (reset bool, closed time.Time) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.linger, e.closed
}

// bubble is an origin on the fake network.
type bubble struct {
	*origin
	t     *testing.T
	conns chan net.Conn
	http  *http.Server
}

// pipes is a net.Listener for connections made in the bubble.
type pipes struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}
func (p *pipes) Close() error   { p.once.Do(func() { close(p.done) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.TCPAddr{} }

func bubbled(t *testing.T, s Server) *bubble {
	b := &bubble{origin: newOrigin(100), t: t, conns: make(chan net.Conn)}
	s.Name = "s"
	var ln net.Listener
	b.http, ln = b.origin.server(Config{Servers: []Server{s}}.withDefaults().Servers[0],
		&pipes{conns: b.conns, done: make(chan struct{})})
	go b.http.Serve(ln)
	return b
}

// dial returns the client's end and the server's.
func (b *bubble) dial() (mine, theirs *end) {
	mine, theirs = ends()
	b.conns <- theirs
	return mine, theirs
}

// do sends a request over c and takes the answer.
func (b *bubble) do(c *end, request string) {
	b.t.Helper()
	if _, err := io.WriteString(c, request); err != nil {
		b.t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		b.t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	synctest.Wait()
}

// shutdown ends the origin.
func (b *bubble) shutdown() { b.stop([]*http.Server{b.http}) }

// last is the newest event.
func (b *bubble) last() record.Event {
	b.t.Helper()
	events := b.all()
	if len(events) == 0 {
		b.t.Fatal("no events")
	}
	return events[len(events)-1]
}

func (b *bubble) all() []record.Event {
	events, _ := b.journal.read(make([]record.Event, 0, 1000), 0)
	return events
}

func TestMoments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bubbled(t, Server{IdleTimeout: Duration(600 * time.Millisecond), Delay: Duration(10 * time.Millisecond), Linger: Duration(time.Second)})
		began := time.Now()
		at := func(d time.Duration) int64 { return began.Add(d).UnixNano() }
		c, theirs := b.dial()
		time.Sleep(5 * time.Millisecond)
		b.do(c, text("GET", "cell", 6, "")) // idle from 15 ms
		time.Sleep(100 * time.Millisecond)
		b.do(c, text("GET", "cell", 7, "")) // idle from 125 ms
		time.Sleep(900 * time.Millisecond)  // closed at 725 ms
		go io.WriteString(c, text("PUT", "cell", 8, ""))
		synctest.Wait()

		base := record.Event{Server: "s", Conn: 1}
		var want []record.Event
		add := func(e record.Event) {
			e.Server, e.Conn, e.N = base.Server, base.Conn, uint64(len(want)+1)
			want = append(want, e)
		}
		const peer = ":2"
		add(record.Event{At: at(0), Kind: record.EventAccept, Peer: peer})
		add(record.Event{At: at(5 * time.Millisecond), Kind: record.EventRequest, Cell: "cell", Seq: 6, Method: "GET", Peer: peer, Nth: 1, Executed: true})
		add(record.Event{At: at(15 * time.Millisecond), Kind: record.EventIdle, Cell: "cell", Seq: 6})
		add(record.Event{At: at(115 * time.Millisecond), Kind: record.EventRequest, Cell: "cell", Seq: 7, Method: "GET", Peer: peer, Nth: 2, Executed: true,
			Idle: 100 * time.Millisecond})
		add(record.Event{At: at(125 * time.Millisecond), Kind: record.EventIdle, Cell: "cell", Seq: 7})
		add(record.Event{At: at(725 * time.Millisecond), Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 2, Peer: peer,
			By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: 600 * time.Millisecond})
		add(record.Event{At: at(1025 * time.Millisecond), Kind: record.EventLate, Cell: "cell", Seq: 8, Method: "PUT", Peer: peer,
			Idle: 900 * time.Millisecond})
		if diff := cmp.Diff(want, b.all()); diff != "" {
			t.Error(diff)
		}
		if reset, closed := theirs.state(); !reset || !closed.Equal(began.Add(1025*time.Millisecond)) {
			t.Errorf("reset %v, closed after %v", reset, closed.Sub(began))
		}
		b.shutdown()
	})
}

// TestLinger: without a late request the socket is closed when the peer closes,
// or after Linger, and never reset.
func TestLinger(t *testing.T) {
	for _, style := range []spec.Close{spec.CloseFIN, spec.CloseHalfClose} {
		for _, peerCloses := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				b := bubbled(t, Server{IdleTimeout: Duration(time.Second), Close: style, Linger: Duration(3 * time.Second)})
				c, theirs := b.dial()
				b.do(c, text("GET", "cell", 7, ""))
				began := time.Now()
				if _, err := c.Read(make([]byte, 1)); err != io.EOF || time.Since(began) != time.Second {
					t.Errorf("%v after %v", err, time.Since(began))
				}
				want := 4 * time.Second
				if peerCloses {
					time.Sleep(time.Second)
					c.Close()
					want = 2 * time.Second
				}
				time.Sleep(10 * time.Second)
				if reset, closed := theirs.state(); reset || !closed.Equal(began.Add(want)) {
					t.Errorf("%s: reset %v, closed after %v, want %v", style, reset, closed.Sub(began), want)
				}
				if e := b.last(); !e.IdleClosed() {
					t.Errorf("%+v", e)
				}
				b.shutdown()
				if len(b.origin.conns) != 0 {
					t.Errorf("%d connections kept", len(b.origin.conns))
				}
			})
		}
	}
}

// TestNoIdleTimeout: with 0 an idle connection stays, and under any timeout one
// that never sent a request.
func TestNoIdleTimeout(t *testing.T) {
	for _, timeout := range []Duration{0, Duration(time.Second)} {
		synctest.Test(t, func(t *testing.T) {
			b := bubbled(t, Server{IdleTimeout: timeout})
			c, _ := b.dial()
			if timeout == 0 {
				b.do(c, text("GET", "cell", 6, ""))
			}
			time.Sleep(1000 * time.Hour)
			b.do(c, text("GET", "cell", 7, ""))
			if n := count(b.all(), record.EventClose); n != 0 {
				t.Errorf("%+v", b.all())
			}
			b.shutdown()
		})
	}
}

func TestLateHeader(t *testing.T) {
	request := text("POST", "cell", 8, "")
	id := strings.Index(request, "Content-Length")
	junk := strings.Repeat("X: y\r\n", maxLateHeader)
	for _, tt := range []struct {
		name         string
		early, late  string // before and after the close
		method, cell string
		seq          uint64
		reset        time.Duration // since the close; the late bytes come 100 ms after it
		none         bool
	}{
		{name: "whole", late: request, method: "POST", cell: "cell", seq: 8, reset: 100 * time.Millisecond},
		{name: "id and no end", late: request[:id], method: "POST", cell: "cell", seq: 8, reset: 100*time.Millisecond + lateHeader},
		{name: "cut in the id", late: request[:id-3], method: "POST", cell: "cell", reset: 100*time.Millisecond + lateHeader},
		{name: "not HTTP", late: "\x16\x03\x01", reset: 100*time.Millisecond + lateHeader},
		{name: "endless", late: "GET / HTTP/1.1\r\n" + junk, method: "GET", reset: 100 * time.Millisecond},
		{name: "begun before the close", early: request[:3], late: request[3:], method: "POST", cell: "cell", seq: 8, reset: 100 * time.Millisecond},
		{name: "only begun before the close", early: request[:3], none: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bubbled(t, Server{IdleTimeout: Duration(time.Second), Close: spec.CloseFIN})
				c, theirs := b.dial()
				b.do(c, text("GET", "cell", 7, ""))
				time.Sleep(500 * time.Millisecond)
				io.WriteString(c, tt.early)
				c.Read(make([]byte, 1))
				closed := time.Now()
				time.Sleep(100 * time.Millisecond)
				go io.WriteString(c, tt.late)
				time.Sleep(10 * time.Second)
				if tt.none {
					if e := b.last(); !e.IdleClosed() {
						t.Errorf("%+v", e)
					}
				} else {
					want := record.Event{At: closed.UnixNano() + 1e8, N: 5, Server: "s", Conn: 1, Kind: record.EventLate, Peer: ":2",
						Cell: tt.cell, Seq: tt.seq, Method: tt.method, Idle: 1100 * time.Millisecond}
					if diff := cmp.Diff(want, b.last()); diff != "" {
						t.Error(diff)
					}
					if reset, at := theirs.state(); !reset || at.Sub(closed) != tt.reset {
						t.Errorf("reset %v after %v, want %v", reset, at.Sub(closed), tt.reset)
					}
				}
				c.Close()
				b.shutdown()
			})
		})
	}
}

// TestCoincidence: whichever of the peer's FIN and the idle timer the server
// acts on, there is one close event, and it is one of the two.
func TestCoincidence(t *testing.T) {
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			b := bubbled(t, Server{IdleTimeout: Duration(time.Second)})
			c, _ := b.dial()
			b.do(c, text("GET", "cell", 7, ""))
			time.Sleep(time.Second)
			c.Close()
			synctest.Wait()
			e := b.last()
			if count(b.all(), record.EventClose) != 1 || !e.IdleClosed() && e.Why != record.WhyPeerClosed {
				t.Errorf("%+v", b.all())
			}
			if e.Idle != time.Second {
				t.Errorf("idle for %v", e.Idle)
			}
			b.shutdown()
		})
	}
}

// TestShutdownGrace: a request that never ends is cut off, and nothing that
// the shutdown has to wait for makes it wait longer than that.
func TestShutdownGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bubbled(t, Server{IdleTimeout: long, Delay: long})
		c, _ := b.dial()
		go io.WriteString(c, text("GET", "cell", 7, ""))
		unused, _ := b.dial()
		synctest.Wait()
		began := time.Now()
		b.shutdown()
		if d := time.Since(began); d != stopGrace {
			t.Errorf("took %v", d)
		}
		var whys []string
		for _, e := range b.all() {
			if e.Kind == record.EventClose {
				whys = append(whys, e.Why+" "+e.Err)
			}
		}
		if diff := cmp.Diff([]string{"shutdown ", "error shut down during a request"}, whys); diff != "" {
			t.Error(diff)
		}
		if _, err := unused.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Error(err)
		}
	})
}

func FuzzRequestID(f *testing.F) {
	f.Add([]byte(text("POST", "cell", 8, "")))
	f.Add([]byte("GET / HTTP/1.1\r\nx-vegeta-seq:1\r\n\r\nX-Vegeta-Seq: 2\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		method, cell, _ := requestID(b)
		if !strings.Contains(string(b), method) || !strings.Contains(string(b), cell) {
			t.Errorf("%q, %q", method, cell)
		}
	})
}
