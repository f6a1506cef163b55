package origin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must happen. No test passes or
// fails by how long it took.
const patience = 10 * time.Second

// long is an idle timeout that no test outlives.
const long = Duration(time.Hour)

// upstream is an origin under test, in this process, on real sockets.
type upstream struct {
	t      testing.TB
	addrs  map[string]string
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned err
	err    error
}

// start runs an origin with servers, on ports of its own choice, and stops it
// at the end of the test.
func start(t testing.TB, servers ...Server) *upstream {
	t.Helper()
	return startConfig(t, Config{Servers: servers})
}

func startConfig(t testing.TB, cfg Config) *upstream {
	t.Helper()
	cfg.Admin = "127.0.0.1:0"
	for i := range cfg.Servers {
		cfg.Servers[i].Listen = "127.0.0.1:0"
		if cfg.Servers[i].Name == "" {
			cfg.Servers[i].Name = "s"
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	u := &upstream{t: t, cancel: cancel, done: make(chan struct{})}
	ready := make(chan map[string]string, 1)
	go func() {
		defer close(u.done)
		u.err = Run(ctx, cfg, func(addrs map[string]string) { ready <- addrs })
	}()
	select {
	case u.addrs = <-ready:
	case <-u.done:
		t.Fatalf("Run: %v", u.err)
	}
	t.Cleanup(func() {
		u.stop()
		http.DefaultClient.CloseIdleConnections()
	})
	return u
}

// stop ends the origin and waits for Run to return.
func (u *upstream) stop() {
	u.t.Helper()
	u.cancel()
	u.wait()
}

func (u *upstream) wait() {
	u.t.Helper()
	select {
	case <-u.done:
	case <-time.After(patience):
		u.t.Fatal("Run did not return")
	}
	if u.err != nil {
		u.t.Errorf("Run: %v", u.err)
	}
}

// get reads path from the admin endpoint, which must answer 200.
func (u *upstream) get(path string) string {
	u.t.Helper()
	code, body := u.fetch(path)
	if code != http.StatusOK {
		u.t.Fatalf("GET %s: %d %s", path, code, body)
	}
	return body
}

func (u *upstream) fetch(path string) (int, string) {
	u.t.Helper()
	resp, err := http.Get("http://" + u.addrs["admin"] + path)
	if err != nil {
		u.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		u.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// events is the whole journal.
func (u *upstream) events() []record.Event {
	u.t.Helper()
	return parse(u.t, u.get("/journal"))
}

func parse(t testing.TB, lines string) []record.Event {
	t.Helper()
	var events []record.Event
	for line := range strings.Lines(lines) {
		var e record.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		events = append(events, e)
	}
	return events
}

// await returns the first event of that kind on connection conn, once there is
// one.
func (u *upstream) await(conn uint64, kind record.EventKind) record.Event {
	u.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		for _, e := range u.events() {
			if e.Conn == conn && e.Kind == kind {
				return e
			}
		}
	}
	u.t.Fatalf("no %s event on connection %d in %+v", kind, conn, u.events())
	panic("unreachable")
}

// count is the number of events of that kind.
func count(events []record.Event, kind record.EventKind) (n int) {
	for _, e := range events {
		if e.Kind == kind {
			n++
		}
	}
	return n
}

// client is a client that owns its connection.
type client struct {
	t  testing.TB
	nc *net.TCPConn
	br *bufio.Reader
}

func (u *upstream) dial(server string) *client {
	u.t.Helper()
	nc, err := net.Dial("tcp", u.addrs[server])
	if err != nil {
		u.t.Fatal(err)
	}
	u.t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(patience))
	return &client{u.t, nc.(*net.TCPConn), bufio.NewReader(nc)}
}

// text is a request with an id.
func text(method, cell string, seq int, body string) string {
	return fmt.Sprintf("%s / HTTP/1.1\r\nHost: x\r\nX-Vegeta-Attack: %s\r\nX-Vegeta-Seq: %d\r\nContent-Length: %d\r\n\r\n%s",
		method, cell, seq, len(body), body)
}

// write fails only when the connection is gone.
func (c *client) write(s string) error {
	_, err := io.WriteString(c.nc, s)
	return err
}

func (c *client) response(method string) (*http.Response, string, error) {
	resp, err := http.ReadResponse(c.br, &http.Request{Method: method})
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

// do sends a request, which must be answered 200, and returns the number of
// the connection.
func (c *client) do(method, cell string, seq int) uint64 {
	c.t.Helper()
	if err := c.write(text(method, cell, seq, "")); err != nil {
		c.t.Fatal(err)
	}
	return c.answer(method)
}

func (c *client) answer(method string) uint64 {
	c.t.Helper()
	resp, _, err := c.response(method)
	if err != nil {
		c.t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		c.t.Fatalf("status %s", resp.Status)
	}
	conn, err := strconv.ParseUint(resp.Header.Get(connHeader), 10, 64)
	if err != nil {
		c.t.Fatalf("%s: %v", connHeader, err)
	}
	return conn
}

// end is how the connection ends for the client: "fin", "rst" or something
// unwanted.
func (c *client) end() string {
	_, err := c.br.ReadByte()
	switch {
	case errors.Is(err, io.EOF):
		return "fin"
	case gone(err):
		return "rst"
	default:
		return fmt.Sprintf("not the end: %v", err)
	}
}

func gone(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// reset writes until the connection turns out to be reset.
func (c *client) reset() bool {
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if gone(c.write("x")) {
			return true
		}
	}
	return false
}

// equal compares events in everything but numbers and times.
func equal(t *testing.T, got, want record.Event) {
	t.Helper()
	got.At, got.N, got.Conn, got.Idle, got.Peer = 0, 0, 0, 0, ""
	if want.Server == "" {
		want.Server = "s"
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("event (-want +got):\n%s", diff)
	}
}

// idleClose is the close event of a connection whose last request was cell, 7.
func idleClose(served int) record.Event {
	return record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: served, By: record.ByUpstream, Why: record.WhyIdleTimeout}
}

func TestIdleClose(t *testing.T) {
	const timeout = Duration(60 * time.Millisecond)
	for _, style := range spec.Closes() {
		t.Run(string(style), func(t *testing.T) {
			t.Parallel()
			u := start(t, Server{IdleTimeout: timeout, Close: style, Linger: long})
			c := u.dial("s")
			conn := c.do("POST", "cell", 7)

			want := "fin"
			if style == spec.CloseRST {
				want = "rst"
			}
			if got := c.end(); got != want {
				t.Fatalf("the idle connection ended with %s, want %s", got, want)
			}
			closed := u.await(conn, record.EventClose)
			equal(t, closed, idleClose(1))
			if !closed.IdleClosed() || closed.Idle < time.Duration(timeout) {
				t.Errorf("idle for %v, IdleClosed %v", closed.Idle, closed.IdleClosed())
			}
			if closed.Peer != c.nc.LocalAddr().String() {
				t.Errorf("peer %s, want %s", closed.Peer, c.nc.LocalAddr())
			}
			if style == spec.CloseRST {
				return
			}

			if err := c.write(text("PUT", "cell", 8, "body")); err != nil && !gone(err) {
				t.Fatal(err)
			}
			switch style {
			case spec.ClosePlain:
				if !c.reset() {
					t.Error("the late request was not reset")
				}
			case spec.CloseFIN:
				if !c.reset() {
					t.Error("the late request was not reset")
				}
			case spec.CloseHalfClose:
				u.await(conn, record.EventLate)
				// A second one is read too, and neither journaled nor reset.
				if err := c.write(text("PUT", "cell", 9, "body")); err != nil {
					t.Fatal(err)
				}
				c.nc.CloseWrite()
				if got := c.end(); got != "fin" {
					t.Errorf("after the late request: %s, want fin", got)
				}
			}
			events := u.events()
			if !style.Witnessed() {
				if n := count(events, record.EventLate); n != 0 {
					t.Errorf("%d late events", n)
				}
				return
			}
			if n := count(events, record.EventLate); n != 1 {
				t.Fatalf("%d late events, want 1: %+v", n, events)
			}
			late := u.await(conn, record.EventLate)
			equal(t, late, record.Event{Kind: record.EventLate, Cell: "cell", Seq: 8, Method: "PUT"})
			if late.At < closed.At || late.Idle-closed.Idle != time.Duration(late.At-closed.At) {
				t.Errorf("late at %d after %v idle, closed at %d after %v", late.At, late.Idle, closed.At, closed.Idle)
			}
			if late.Peer != closed.Peer {
				t.Errorf("late from %s, want %s", late.Peer, closed.Peer)
			}
		})
	}
}

func TestHalfCloseNeverResets(t *testing.T) {
	u := start(t, Server{IdleTimeout: Duration(20 * time.Millisecond), Close: spec.CloseHalfClose, Linger: long})
	c := u.dial("s")
	conn := c.do("GET", "cell", 7)
	if got := c.end(); got != "fin" {
		t.Fatal(got)
	}
	if err := c.write(text("GET", "cell", 8, "")); err != nil {
		t.Fatal(err)
	}
	u.await(conn, record.EventLate)
	u.stop() // closes the socket, all of it read
	if got := c.end(); got != "fin" {
		t.Errorf("after the socket was closed: %s, want fin", got)
	}
}

func TestPeerEnds(t *testing.T) {
	u := start(t, Server{IdleTimeout: long})
	for _, tt := range []struct {
		name, why string
		end       func(*net.TCPConn) error
	}{
		{"close", record.WhyPeerClosed, (*net.TCPConn).Close},
		{"half-close", record.WhyPeerClosed, (*net.TCPConn).CloseWrite},
		{"reset", record.WhyPeerReset, func(nc *net.TCPConn) error { nc.SetLinger(0); return nc.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := u.dial("s")
			conn := c.do("GET", "cell", 6)
			c.do("GET", "cell", 7)
			if err := tt.end(c.nc); err != nil {
				t.Fatal(err)
			}
			e := u.await(conn, record.EventClose)
			equal(t, e, record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 2, By: record.ByPeer, Why: tt.why})
			if e.Idle <= 0 {
				t.Errorf("idle for %v", e.Idle)
			}
		})
	}
	t.Run("unused", func(t *testing.T) {
		c := u.dial("s")
		c.nc.Close()
		var conn uint64
		for _, e := range u.awaitAccepts(4) {
			conn = max(conn, e.Conn)
		}
		equal(t, u.await(conn, record.EventClose), record.Event{Kind: record.EventClose, By: record.ByPeer, Why: record.WhyPeerClosed})
	})
}

// awaitAccepts returns the events once n connections were accepted.
func (u *upstream) awaitAccepts(n int) []record.Event {
	u.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if events := u.events(); count(events, record.EventAccept) >= n {
			return events
		}
	}
	u.t.Fatalf("fewer than %d connections accepted", n)
	panic("unreachable")
}

func TestPeerEndsDuringRequest(t *testing.T) {
	whole := text("POST", "cell", 7, "body")
	for _, tt := range []struct {
		name, send, why string
		delay           Duration
		executed        bool
		end             func(*net.TCPConn) error
	}{
		{"body cut", whole[:len(whole)-2], record.WhyPeerClosed, 0, false, (*net.TCPConn).CloseWrite},
		{"answer not awaited", whole, record.WhyPeerClosed, long, true, (*net.TCPConn).Close},
		{"answer reset", whole, record.WhyPeerReset, long, true,
			func(nc *net.TCPConn) error { nc.SetLinger(0); return nc.Close() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := start(t, Server{IdleTimeout: long, Delay: tt.delay})
			c := u.dial("s")
			if err := c.write(tt.send); err != nil {
				t.Fatal(err)
			}
			if tt.executed {
				u.await(1, record.EventRequest)
			}
			tt.end(c.nc)
			equal(t, u.await(1, record.EventClose), record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, By: record.ByPeer, Why: tt.why})
			equal(t, u.await(1, record.EventRequest),
				record.Event{Kind: record.EventRequest, Cell: "cell", Seq: 7, Method: "POST", Nth: 1, Executed: tt.executed})
		})
	}
}

func TestRequestLimit(t *testing.T) {
	for _, tt := range []struct {
		name     string
		announce bool
		why      string
	}{
		{"silent", false, record.WhyRequestLimit},
		{"announced", true, record.WhyAnnounced},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := start(t, Server{IdleTimeout: long, MaxRequests: 3, Announce: tt.announce, KeepAliveHint: 5})
			c := u.dial("s")
			for i := 1; i <= 3; i++ {
				if err := c.write(text("GET", "cell", i+4, "")); err != nil {
					t.Fatal(err)
				}
				resp, _, err := c.response("GET")
				if err != nil {
					t.Fatal(err)
				}
				if want := tt.announce && i == 3; resp.Close != want {
					t.Errorf("response %d: close %v, want %v", i, resp.Close, want)
				}
				if hint := resp.Header.Get("Keep-Alive"); (hint == "timeout=5") == resp.Close {
					t.Errorf("response %d: Keep-Alive: %q", i, hint)
				}
			}
			if got := c.end(); got != "fin" {
				t.Errorf("ended with %s", got)
			}
			equal(t, u.await(1, record.EventClose),
				record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 3, By: record.ByUpstream, Why: tt.why})
			if idles, want := count(u.events(), record.EventIdle), map[bool]int{false: 3, true: 2}[tt.announce]; idles != want {
				t.Errorf("%d idle events, want %d", idles, want)
			}
		})
	}
}

func TestAnnouncedByPeer(t *testing.T) {
	u := start(t, Server{IdleTimeout: long})
	for conn, request := range []string{
		"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nX-Vegeta-Attack: cell\r\nX-Vegeta-Seq: 7\r\n\r\n",
		"GET / HTTP/1.0\r\nX-Vegeta-Attack: cell\r\nX-Vegeta-Seq: 7\r\n\r\n",
	} {
		c := u.dial("s")
		c.write(request)
		c.answer("GET")
		if got := c.end(); got != "fin" {
			t.Errorf("ended with %s", got)
		}
		equal(t, u.await(uint64(conn+1), record.EventClose),
			record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 1, By: record.ByUpstream, Why: record.WhyAnnounced})
	}
}

func TestNotHTTP(t *testing.T) {
	u := start(t, Server{IdleTimeout: long})
	c := u.dial("s")
	c.do("GET", "cell", 7)
	c.write("what is this\r\n\r\n")
	if resp, _, err := c.response("GET"); err != nil || resp.StatusCode != http.StatusBadRequest {
		t.Errorf("%v, %v", resp, err)
	}
	equal(t, u.await(1, record.EventClose), record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 1,
		By: record.ByUpstream, Why: record.WhyError, Err: "no request that the server could read"})
}

func TestTrap(t *testing.T) {
	for _, style := range spec.Closes() {
		for _, executed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s executed %v", style, executed), func(t *testing.T) {
				t.Parallel()
				u := start(t, Server{IdleTimeout: long, Close: style, Linger: long, Trap: &Trap{After: 1, Executed: executed}})
				c := u.dial("s")
				c.do("GET", "cell", 6)
				if err := c.write(text("POST", "cell", 7, strings.Repeat("body", 1000))); err != nil {
					t.Fatal(err)
				}
				want := "fin"
				if style == spec.CloseRST {
					want = "rst"
				}
				if got := c.end(); got != want {
					t.Errorf("ended with %s, want %s", got, want)
				}
				closed := u.await(1, record.EventClose)
				equal(t, closed, record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 1, By: record.ByUpstream, Why: record.WhyTrap})
				if closed.Idle != 0 {
					t.Errorf("idle for %v in the middle of a request", closed.Idle)
				}
				for _, e := range u.events() {
					if e.Kind == record.EventRequest && e.Nth == 2 {
						equal(t, e, record.Event{Kind: record.EventRequest, Cell: "cell", Seq: 7, Method: "POST", Nth: 2, Executed: executed})
					}
				}
				if style == spec.CloseHalfClose {
					for range 3 {
						if err := c.write(text("POST", "cell", 8, "")); err != nil {
							t.Errorf("half-closed, yet: %v", err)
						}
					}
					c.nc.CloseWrite()
				}
				u.stop()
			})
		}
	}
}

// TestTrapUnread: FIN first, then RST; the request is journaled once, with its
// id, and not executed, however long it is.
func TestTrapUnread(t *testing.T) {
	for _, style := range spec.Closes() {
		for _, after := range []int{0, 1, 3} {
			for _, body := range []int{0, 1, 1 << 20} {
				t.Run(fmt.Sprintf("%s after %d body %d", style, after, body), func(t *testing.T) {
					t.Parallel()
					u := start(t, Server{IdleTimeout: long, Close: style, Linger: long, Trap: &Trap{After: after, Unread: true}})
					c := u.dial("s")
					for seq := range after {
						c.do("GET", "cell", seq)
					}
					c.write(text("POST", "trapped", 7, strings.Repeat("x", body))) // fails when the reset is faster
					if body < 1<<20 && !c.isReset() {                              // else the writer met it
						t.Error("not reset")
					}
					if got := c.end(); body < 1<<20 && got != "fin" {
						t.Errorf("ended with %s, want fin before the reset", got)
					}
					equal(t, u.await(1, record.EventClose), record.Event{Kind: record.EventClose, Cell: "trapped", Seq: 7, Nth: after,
						By: record.ByUpstream, Why: record.WhyTrap})
					n := 0
					for _, e := range u.events() {
						if e.Kind == record.EventRequest && e.Cell == "trapped" {
							n++
							equal(t, e, record.Event{Kind: record.EventRequest, Cell: "trapped", Seq: 7, Method: "POST", Nth: after + 1})
						}
					}
					if n != 1 {
						t.Errorf("journaled %d times", n)
					}
				})
			}
		}
	}
}

// isReset waits for the kernel to know of a reset, without writing anything
// that could provoke one.
func (c *client) isReset() bool {
	raw, err := c.nc.SyscallConn()
	if err != nil {
		c.t.Fatal(err)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(time.Millisecond) {
		var errno int
		raw.Control(func(fd uintptr) { errno, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_ERROR) })
		if err != nil {
			c.t.Fatal(err)
		}
		if gone(syscall.Errno(errno)) {
			return true
		}
	}
	return false
}

func TestResponse(t *testing.T) {
	const delay = 30 * time.Millisecond
	u := start(t,
		Server{Name: "default", IdleTimeout: long},
		Server{Name: "odd", IdleTimeout: long, Size: 10_000, Delay: Duration(delay), KeepAliveHint: 5},
	)
	for _, method := range spec.Methods() {
		c := u.dial("default")
		c.write(text(method, "cell", 7, ""))
		resp, body, err := c.response(method)
		want := "ok\n"
		if method == "HEAD" {
			want = ""
		}
		if err != nil || resp.StatusCode != 200 || body != want {
			t.Errorf("%s: %v %q %v", method, resp, body, err)
			continue
		}
		if resp.Header.Get(connHeader) == "" || resp.Header.Get("Keep-Alive") != "" {
			t.Errorf("%s: header %v", method, resp.Header)
		}
	}
	c := u.dial("odd")
	begin := time.Now()
	c.write("OPTIONS * HTTP/1.1\r\nHost: x\r\nX-Vegeta-Seq: nonsense\r\n\r\n")
	resp, body, err := c.response("OPTIONS")
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Since(begin); d < delay {
		t.Errorf("answered after %v", d)
	}
	if len(body) != 10_000 || resp.ContentLength != 10_000 || !strings.HasPrefix(body, "ok\nok\n") {
		t.Errorf("%d bytes, Content-Length %d", len(body), resp.ContentLength)
	}
	if h := resp.Header; h.Get("Keep-Alive") != "timeout=5" || h.Get("Connection") != "keep-alive" {
		t.Errorf("header %v", h)
	}
	conn, _ := strconv.ParseUint(resp.Header.Get(connHeader), 10, 64)
	equal(t, u.await(conn, record.EventRequest),
		record.Event{Server: "odd", Kind: record.EventRequest, Method: "OPTIONS", Nth: 1, Executed: true})
	equal(t, u.await(conn, record.EventIdle), record.Event{Server: "odd", Kind: record.EventIdle})
}

func TestPipelined(t *testing.T) {
	u := start(t, Server{IdleTimeout: long, Delay: Duration(5 * time.Millisecond)})
	c := u.dial("s")
	const n = 5
	var all strings.Builder
	for i := range n {
		all.WriteString(text("GET", "cell", i+1, ""))
	}
	c.write(all.String())
	for range n {
		c.answer("GET")
	}
	c.nc.Close()
	u.await(1, record.EventClose)
	var got []uint64
	for _, e := range u.events() {
		if e.Idle < 0 {
			t.Errorf("negative idle: %+v", e)
		}
		if e.Kind == record.EventRequest {
			got = append(got, e.Seq, uint64(e.Nth))
		}
	}
	if diff := cmp.Diff([]uint64{1, 1, 2, 2, 3, 3, 4, 4, 5, 5}, got); diff != "" {
		t.Error(diff)
	}
}

func TestShutdown(t *testing.T) {
	u := start(t, Server{IdleTimeout: long, Close: spec.CloseFIN},
		Server{Name: "lingers", IdleTimeout: Duration(time.Millisecond), Close: spec.CloseFIN, Linger: long})
	idle, unused, busy, lingers := u.dial("s"), u.dial("s"), u.dial("s"), u.dial("lingers")
	idleConn := idle.do("GET", "cell", 7)
	lingers.do("GET", "cell", 8)
	if got := lingers.end(); got != "fin" {
		t.Fatal(got)
	}
	busy.write("POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	if resp, _, err := busy.response("POST"); err != nil || resp.StatusCode != http.StatusContinue {
		t.Fatal(resp, err) // a 100 shows that the handler waits for the body
	}
	u.awaitAccepts(4)
	stream := follow(t, u, "follow=1")
	busyConn := uint64(0)

	u.cancel()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		nc, err := net.Dial("tcp", u.addrs["s"])
		if err != nil {
			break // the listener is closed: the shutdown has begun
		}
		nc.Close()
		if time.Now().After(end) {
			t.Fatal("still listening")
		}
	}
	if got := idle.end(); got != "fin" {
		t.Errorf("idle connection: %s", got)
	}
	if got := unused.end(); got != "fin" {
		t.Errorf("unused connection: %s", got)
	}
	busy.write("body")
	resp, body, err := busy.response("POST")
	if err != nil || body != "ok\n" || !resp.Close {
		t.Errorf("request in work: %v %q %v", resp, body, err)
	} else {
		busyConn, _ = strconv.ParseUint(resp.Header.Get(connHeader), 10, 64)
	}

	events := stream.all()
	u.wait()
	whys := make(map[uint64]string)
	for _, e := range events {
		if e.Kind == record.EventClose {
			whys[e.Conn] += e.By + " " + e.Why
		}
	}
	if got := whys[idleConn]; got != "upstream shutdown" {
		t.Errorf("idle connection: %q", got)
	}
	if got := whys[busyConn]; got != "upstream announced" {
		t.Errorf("request in work: %q", got)
	}
	if accepts := count(events, record.EventAccept); accepts != len(whys) {
		t.Errorf("%d accepts, %d closes", accepts, len(whys))
	}
	numbered(t, events)
}

func TestRunErrors(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	free := Server{Name: "a", Listen: "127.0.0.1:0"}
	for _, tt := range []struct {
		cfg  Config
		want string
	}{
		{Config{Admin: "127.0.0.1:0", Servers: []Server{free, {Name: "b", Listen: addr}}},
			"origin: server b: listen tcp " + addr + ": bind: address already in use"},
		{Config{Admin: addr, Servers: []Server{free}},
			"origin: admin: listen tcp " + addr + ": bind: address already in use"},
		{Config{Admin: "127.0.0.1:0"}, "origin: servers: none"},
	} {
		err := Run(t.Context(), tt.cfg, func(map[string]string) { t.Error("ready") })
		if err == nil || err.Error() != tt.want {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
}

// TestLoad drives all kinds of endings at once and checks what must hold of
// any journal.
func TestLoad(t *testing.T) {
	u := start(t,
		Server{Name: "plain", IdleTimeout: Duration(3 * time.Millisecond), Close: spec.ClosePlain},
		Server{Name: "fin", IdleTimeout: Duration(3 * time.Millisecond), Close: spec.CloseFIN},
		Server{Name: "rst", IdleTimeout: Duration(3 * time.Millisecond), Close: spec.CloseRST, MaxRequests: 9},
		Server{Name: "half", IdleTimeout: Duration(3 * time.Millisecond), Close: spec.CloseHalfClose, Linger: Duration(20 * time.Millisecond)},
		Server{Name: "trap", IdleTimeout: long, Trap: &Trap{After: 4}, Size: 20_000},
	)
	stream := follow(t, u, "follow=1&after=0")
	var wg sync.WaitGroup
	for name := range u.addrs {
		if name == "admin" {
			continue
		}
		for lane := range 8 {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(1, uint64(lane)))
				for seq := 1; seq <= 60; {
					nc, err := net.Dial("tcp", u.addrs[name])
					if err != nil {
						t.Error(err)
						return
					}
					nc.SetDeadline(time.Now().Add(patience))
					c := &client{t, nc.(*net.TCPConn), bufio.NewReader(nc)}
					for ; seq <= 60; seq++ {
						if c.write(text("POST", fmt.Sprint(name, lane), seq, "body")) != nil {
							seq++
							break
						}
						if _, _, err := c.response("POST"); err != nil {
							if errors.Is(err, os.ErrDeadlineExceeded) {
								t.Errorf("%s: %v", name, err)
							}
							seq++
							break
						}
						if rng.IntN(10) == 0 {
							c.nc.SetLinger(rng.IntN(2) - 1) // close or reset
							break
						}
						time.Sleep(time.Duration(rng.IntN(4500)) * time.Microsecond)
					}
					nc.Close()
				}
			})
		}
	}
	wg.Wait()
	u.cancel()
	events := stream.all()
	u.wait()

	numbered(t, events)
	type life struct{ accepts, requests, idles, lates, closes int }
	lives := make(map[uint64]*life)
	whys := make(map[string]int)
	for _, e := range events {
		l := lives[e.Conn]
		if l == nil {
			l = new(life)
			lives[e.Conn] = l
		}
		if l.accepts == 0 && e.Kind != record.EventAccept || l.closes > 0 && e.Kind != record.EventLate {
			t.Errorf("out of place: %+v", e)
		}
		if e.Idle < 0 {
			t.Errorf("negative idle: %+v", e)
		}
		switch e.Kind {
		case record.EventAccept:
			l.accepts++
		case record.EventRequest:
			if l.requests++; e.Nth != l.requests {
				t.Errorf("request %d of connection %d is numbered %d", l.requests, e.Conn, e.Nth)
			}
		case record.EventIdle:
			l.idles++
		case record.EventLate:
			l.lates++
		case record.EventClose:
			l.closes++
			whys[e.Server+" "+e.Why]++
			if e.Nth != l.requests && e.Nth != l.requests-1 {
				t.Errorf("connection %d: %d requests, %d served", e.Conn, l.requests, e.Nth)
			}
		}
	}
	for conn, l := range lives {
		if l.accepts != 1 || l.closes != 1 || l.lates > 1 || l.idles > l.requests {
			t.Errorf("connection %d: %+v", conn, *l)
		}
	}
	if whys["trap trap"] == 0 {
		t.Errorf("closes: %v", whys)
	}
	t.Log(whys)
}

// numbered fails unless events are numbered from 1 without holes.
func numbered(t *testing.T, events []record.Event) {
	t.Helper()
	for i, e := range events {
		if e.N != uint64(i+1) {
			t.Fatalf("event %d is numbered %d", i+1, e.N)
		}
	}
}

func BenchmarkRoundtrip(b *testing.B) {
	u := start(b, Server{IdleTimeout: long})
	request := text("POST", "gohttp_go_p1s_u600ms_POST_default_fin_rtt0s", 7, "")
	c := u.dial("s")
	c.nc.SetDeadline(time.Time{})
	b.ReportAllocs()
	for b.Loop() {
		if err := c.write(request); err != nil {
			b.Fatal(err)
		}
		c.answer("POST")
	}
}
