package gohttp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds every wait for something that must happen. No test passes or
// fails by how long it took.
const patience = 10 * time.Second

// seen is a request as it reached the upstream.
type seen struct {
	peer   string // the proxy's address
	nth    int    // on its connection, from 1
	req    *http.Request
	header string // as it stood on the wire
	body   string
}

// upstream is a server that does to the nth request of a connection what it is
// told to, and nothing by itself.
type upstream struct {
	t    *testing.T
	addr string
	do   func(nc net.Conn, s seen) (keep bool)

	mu     sync.Mutex
	all    []seen
	closed int // connections that the proxy closed
}

// serve starts an upstream that ends with the test.
func serve(t *testing.T, do func(nc net.Conn, s seen) (keep bool)) *upstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &upstream{t: t, addr: l.Addr().String(), do: do}
	var wg sync.WaitGroup
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			u.mu.Lock()
			conns[nc] = true
			u.mu.Unlock()
			wg.Go(func() { u.handle(nc) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		u.mu.Lock()
		for nc := range conns {
			nc.Close()
		}
		u.mu.Unlock()
		wg.Wait()
	})
	return u
}

func (u *upstream) handle(nc net.Conn) {
	defer nc.Close()
	var wire bytes.Buffer
	br := bufio.NewReader(io.TeeReader(nc, &wire))
	for nth := 1; ; nth++ {
		wire.Reset()
		req, err := http.ReadRequest(br)
		if err != nil {
			if err == io.EOF {
				u.mu.Lock()
				u.closed++
				u.mu.Unlock()
			}
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		header, _, _ := strings.Cut(wire.String(), "\r\n\r\n")
		s := seen{nc.RemoteAddr().String(), nth, req, header, string(body)}
		u.mu.Lock()
		u.all = append(u.all, s)
		u.mu.Unlock()
		if !u.do(nc, s) {
			return
		}
	}
}

func (u *upstream) seen() []seen {
	u.mu.Lock()
	defer u.mu.Unlock()
	return append([]seen(nil), u.all...)
}

func (u *upstream) closedByProxy() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.closed
}

// answer is a 200 with the request's body.
func answer(nc net.Conn, s seen) bool {
	body := s.body
	if s.req.Method == http.MethodHead {
		body = ""
	}
	fmt.Fprintf(nc, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(s.body), body)
	return true
}

// answerOnce loses every second request of a connection: it reads it, and
// closes instead of answering.
func answerOnce(nc net.Conn, s seen) bool { return s.nth == 1 && answer(nc, s) }

// proxy is a running Run with one route.
type proxy struct {
	t    *testing.T
	addr string
	logs *lockedBuffer
	stop func() error // ends Run and gives its error
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// free gives an address that nobody listens on.
func free(t *testing.T) string {
	t.Helper()
	p, err := local.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	return p.Addrs[0]
}

func start(t *testing.T, upstream, idle string, retry spec.Retry) *proxy {
	t.Helper()
	p := &proxy{t: t, addr: free(t), logs: &lockedBuffer{}}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = Run(ctx, Config{PoolSize: 10, Routes: []Route{{p.addr, upstream, idle, retry}}}, p.logs)
	}()
	p.stop = func() error {
		cancel()
		select {
		case <-done:
		case <-time.After(patience):
			t.Fatal("Run does not return")
		}
		return err
	}
	t.Cleanup(func() {
		if err := p.stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	eventually(t, "the proxy", func() bool {
		c, err := net.Dial("tcp", p.addr)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	return p
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// do sends a request over a connection of its own, so that the client replays
// nothing, and gives status and body.
func (p *proxy) do(method string, seq int, body string, header ...string) (int, string) {
	p.t.Helper()
	tr := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	defer tr.CloseIdleConnections()
	var r io.Reader
	if body != "" {
		r = strings.NewReader(body)
	}
	req, err := http.NewRequest(method, "http://"+p.addr+"/path?q=1", r)
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("X-Vegeta-Attack", "cell")
	req.Header.Set("X-Vegeta-Seq", strconv.Itoa(seq))
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := (&http.Client{Transport: tr, Timeout: patience}).Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// line waits for the nth line of the log, from 0.
func (p *proxy) line(n int) record.LogLine {
	p.t.Helper()
	var lines []string
	eventually(p.t, fmt.Sprintf("line %d of the log", n), func() bool {
		lines = strings.SplitAfter(p.logs.String(), "\n")
		return len(lines) > n+1
	})
	dec := json.NewDecoder(strings.NewReader(lines[n]))
	dec.DisallowUnknownFields()
	var l record.LogLine
	if err := dec.Decode(&l); err != nil {
		p.t.Fatalf("%q: %v", lines[n], err)
	}
	return l
}

func TestForwards(t *testing.T) {
	u := serve(t, func(nc net.Conn, s seen) bool {
		fmt.Fprintf(nc, "HTTP/1.1 404 Not Found\r\nX-From: upstream\r\nContent-Length: 3\r\n\r\nno\n")
		return true
	})
	p := start(t, u.addr, "1m", spec.RetryDefault)
	for i, tt := range []struct{ method, body string }{{"GET", ""}, {"POST", "a=1\n"}} {
		status, body := p.do(tt.method, i, tt.body, "X-Mine", "here")
		if status != 404 || body != "no\n" {
			t.Errorf("%s: %d %q", tt.method, status, body)
		}
		s := u.seen()[i]
		if s.req.Method != tt.method || s.req.RequestURI != "/path?q=1" || s.body != tt.body || s.req.Host != p.addr ||
			s.req.Header.Get("X-Mine") != "here" || s.req.Header["Accept-Encoding"] != nil || s.req.Header.Get("X-Vegeta-Seq") != strconv.Itoa(i) {
			t.Errorf("the upstream got %s with %q", s.header, s.body)
		}
		want := record.LogLine{Cell: "cell", Seq: uint64(i), Status: 404,
			Attempts: []record.Attempt{{Upstream: u.addr, Local: s.peer, Status: 404, Reused: i > 0}}}
		if diff := cmp.Diff(want, p.line(i)); diff != "" {
			t.Errorf("%s: %s", tt.method, diff)
		}
	}
}

// An answer of 5xx is an answer: the proxy had no failure to tell of.
func TestForwards5xx(t *testing.T) {
	u := serve(t, func(nc net.Conn, s seen) bool {
		fmt.Fprintf(nc, "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
		return true
	})
	p := start(t, u.addr, "1m", spec.RetryOn)
	if status, _ := p.do("GET", 0, ""); status != 502 {
		t.Errorf("status %d", status)
	}
	want := record.LogLine{Cell: "cell", Status: 502, Attempts: []record.Attempt{{Upstream: u.addr, Local: u.seen()[0].peer, Status: 502}}}
	if diff := cmp.Diff(want, p.line(0)); diff != "" {
		t.Error(diff)
	}
}

func TestReuse(t *testing.T) {
	u := serve(t, answer)
	p := start(t, u.addr, "1m", spec.RetryDefault)
	for i := range 5 {
		p.do("GET", i, "")
		p.line(i) // by then the connection is in the pool again
	}
	for i, s := range u.seen() {
		if s.nth != i+1 {
			t.Errorf("request %d is number %d on %s", i, s.nth, s.peer)
		}
	}
}

// The pool keeps as many connections as it may, not net/http's two.
func TestPoolSize(t *testing.T) {
	const n = 10 // start's PoolSize
	var burst sync.WaitGroup
	u := serve(t, func(nc net.Conn, s seen) bool {
		burst.Done()
		burst.Wait() // all at once, each on a connection of its own
		return answer(nc, s)
	})
	p := start(t, u.addr, "1m", spec.RetryDefault)
	for i := range 2 {
		burst.Add(n)
		var clients sync.WaitGroup
		for range n {
			clients.Go(func() { p.do("GET", i, "") })
		}
		clients.Wait()
		p.line(n*(i+1) - 1)
	}
	for i, s := range u.seen() {
		if want := 1 + i/n; s.nth != want {
			t.Errorf("request %d is number %d on %s, want %d", i, s.nth, s.peer, want)
		}
	}
}

func TestKeepAliveOff(t *testing.T) {
	u := serve(t, answer)
	p := start(t, u.addr, "off", spec.RetryDefault)
	for i := range 3 {
		p.do("GET", i, "")
		s := u.seen()[i]
		if s.nth != 1 || !s.req.Close {
			t.Errorf("request %d is number %d on its connection: %s", i, s.nth, s.header)
		}
		if got := p.line(i).Attempts; len(got) != 1 || got[0].Reused {
			t.Errorf("request %d: attempts %+v", i, got)
		}
	}
	eventually(t, "the proxy's close", func() bool { return u.closedByProxy() == 3 })
}

func TestIdleTimeout(t *testing.T) {
	u := serve(t, answer)
	p := start(t, u.addr, "5ms", spec.RetryDefault)
	for i := range 2 {
		p.do("GET", i, "")
		if s := u.seen()[i]; s.nth != 1 || s.req.Close {
			t.Errorf("request %d is number %d on its connection: %s", i, s.nth, s.header)
		}
		eventually(t, "the idle close", func() bool { return u.closedByProxy() == i+1 })
	}
}

func TestRetry(t *testing.T) {
	for _, tt := range []struct {
		method   string
		retry    spec.Retry
		replayed bool
	}{
		{"GET", spec.RetryDefault, true},
		{"HEAD", spec.RetryDefault, true},
		{"OPTIONS", spec.RetryDefault, true},
		{"POST", spec.RetryDefault, false},
		{"PUT", spec.RetryDefault, false},
		{"PATCH", spec.RetryDefault, false},
		{"DELETE", spec.RetryDefault, false},
		{"GET", spec.RetryOff, false},
		{"HEAD", spec.RetryOff, false},
		{"OPTIONS", spec.RetryOff, false},
		{"POST", spec.RetryOff, false},
		{"DELETE", spec.RetryOff, false},
		{"GET", spec.RetryOn, true},
		{"POST", spec.RetryOn, true},
		{"PUT", spec.RetryOn, true},
		{"PATCH", spec.RetryOn, true},
		{"DELETE", spec.RetryOn, true},
	} {
		t.Run(tt.method+" "+string(tt.retry), func(t *testing.T) {
			u := serve(t, answerOnce)
			p := start(t, u.addr, "1m", tt.retry)
			body := ""
			if strings.HasPrefix(tt.method, "P") {
				body = strings.Repeat("body ", 5000) // more than fits one segment
			}
			if status, got := p.do(tt.method, 0, body); status != 200 || tt.method != "HEAD" && got != body {
				t.Fatalf("the first request: %d with %d bytes", status, len(got))
			}
			p.line(0)
			status, got := p.do(tt.method, 1, body)
			log, reqs := p.line(1), u.seen()

			want := record.LogLine{Cell: "cell", Seq: 1, Attempts: []record.Attempt{{Upstream: u.addr, Local: reqs[0].peer, Reused: true}}}
			if tt.replayed {
				if status != 200 || tt.method != "HEAD" && got != body {
					t.Errorf("%d with %d bytes", status, len(got))
				}
				if len(reqs) != 3 || reqs[2].peer == reqs[1].peer {
					t.Fatalf("%d requests reached the upstream", len(reqs))
				}
				want.Status = 200
				want.Attempts = append(want.Attempts, record.Attempt{Upstream: u.addr, Local: reqs[2].peer, Status: 200})
			} else {
				if status != 502 || got != "" {
					t.Errorf("%d %q", status, got)
				}
				if len(reqs) != 2 {
					t.Errorf("%d requests reached the upstream", len(reqs))
				}
				if !strings.HasSuffix(log.Text, "EOF") {
					t.Errorf("text %q", log.Text)
				}
				want.Status, want.Cause, want.Text, want.Attempts[0].Err = 502, record.CauseClosedEarly, log.Text, log.Text
			}
			if diff := cmp.Diff(want, log); diff != "" {
				t.Error(diff)
			}
			for _, s := range reqs {
				if s.body != body || s.req.Method != tt.method {
					t.Errorf("the upstream got %s with %d bytes of body, want %d", s.req.Method, len(s.body), len(body))
				}
				if strings.Contains(strings.ToLower(s.header), "idempotency-key") {
					t.Errorf("on the wire: %s", s.header)
				}
				if s.nth > 2 {
					t.Errorf("request number %d on a connection", s.nth)
				}
			}
		})
	}
}

// The client's own key is the client's to send.
func TestIdempotencyKeyOfClient(t *testing.T) {
	for _, retry := range spec.Retries() {
		u := serve(t, answer)
		p := start(t, u.addr, "1m", retry)
		p.do("POST", 0, "a=1", "Idempotency-Key", "mine")
		if got := u.seen()[0].req.Header["Idempotency-Key"]; !cmp.Equal(got, []string{"mine"}) {
			t.Errorf("retry %s: the upstream got %q", retry, got)
		}
	}
}

func TestCause(t *testing.T) {
	reset := func(nc net.Conn, s seen) bool {
		nc.(*net.TCPConn).SetLinger(0)
		return false
	}
	say := func(text string) func(net.Conn, seen) bool {
		return func(nc net.Conn, s seen) bool {
			io.WriteString(nc, text)
			return false
		}
	}
	for _, tt := range []struct {
		name string
		do   func(net.Conn, seen) bool // nil: nobody listens
		want record.Cause
		text string
	}{
		{"refused", nil, record.CauseRefused, "connection refused"},
		{"reset", reset, record.CauseReset, "connection reset by peer"},
		{"closed", func(net.Conn, seen) bool { return false }, record.CauseClosedEarly, "EOF"},
		{"half a header", say("HTTP/1.1 200 OK\r\nA: b\r\n"), record.CauseClosedEarly, "unexpected EOF"},
		{"ssh", say("SSH-2.0-OpenSSH_9.6\r\n"), record.CauseNotHTTP, "malformed HTTP response"},
		{"http2", say("\x00\x00\x12\x04\x00\x00\x00\x00\x00\r\n"), record.CauseNotHTTP, "malformed HTTP response"},
		{"bad status", say("HTTP/1.1 OK 200\r\n\r\n"), record.CauseNotHTTP, "malformed HTTP status code"},
		{"bad header", say("HTTP/1.1 200 OK\r\nnonsense\r\n\r\n"), record.CauseNotHTTP, "malformed MIME header"},
		{"a long line", say(strings.Repeat("ü", 50_000) + "\r\n"), record.CauseNotHTTP, "malformed HTTP response"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			addr := free(t)
			if tt.do != nil {
				addr = serve(t, tt.do).addr
			}
			p := start(t, addr, "1m", spec.RetryDefault)
			if status, _ := p.do("GET", 3, ""); status != http.StatusBadGateway {
				t.Errorf("status %d", status)
			}
			l := p.line(0)
			if l.Cell != "cell" || l.Seq != 3 || l.Status != 502 || l.Cause != tt.want || !strings.Contains(l.Text, tt.text) {
				t.Errorf("%+v", l)
			}
			if len(l.Text) > 300 {
				t.Errorf("the text has %d bytes", len(l.Text))
			}
			if tt.do == nil {
				if len(l.Attempts) != 0 {
					t.Errorf("attempts %+v without a connection", l.Attempts)
				}
			} else if len(l.Attempts) != 1 || l.Attempts[0].Err != l.Text || l.Attempts[0].Status != 0 {
				t.Errorf("attempts %+v", l.Attempts)
			}
		})
	}
}

// The errors are those of a Transport whose timeouts do not take a test's time.
func TestCauseTimeout(t *testing.T) {
	hang := make(chan struct{})
	u := serve(t, func(net.Conn, seen) bool { <-hang; return false })
	defer close(hang)
	noTime, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	for name, tt := range map[string]struct {
		tr  *http.Transport
		ctx context.Context
	}{
		"response": {&http.Transport{ResponseHeaderTimeout: time.Millisecond}, t.Context()},
		"dial":     {&http.Transport{DialContext: (&net.Dialer{Timeout: time.Nanosecond}).DialContext}, t.Context()},
		"deadline": {&http.Transport{}, noTime},
	} {
		req, err := http.NewRequestWithContext(tt.ctx, "GET", "http://"+u.addr, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := tt.tr.RoundTrip(req)
		if err == nil {
			resp.Body.Close()
			t.Fatalf("%s: no error", name)
		}
		if got := cause(err); got != record.CauseTimeout {
			t.Errorf("%s: %v is %q", name, err, got)
		}
		tt.tr.CloseIdleConnections()
	}
}

func TestCauseUnknown(t *testing.T) {
	if got := cause(errors.New("something else")); got != record.CauseUnknown {
		t.Errorf("%q", got)
	}
	if got := cause(errors.New("http: server closed idle connection")); got != record.CauseClosedEarly {
		t.Errorf("%q", got)
	}
}

func TestClientGoesAway(t *testing.T) {
	asked := make(chan struct{})
	hang := make(chan struct{})
	u := serve(t, func(net.Conn, seen) bool { close(asked); <-hang; return false })
	defer close(hang)
	p := start(t, u.addr, "1m", spec.RetryDefault)
	c, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nX-Vegeta-Attack: cell\r\nX-Vegeta-Seq: 9\r\n\r\n")
	<-asked
	c.Close()
	if l := p.line(0); l.Cause != record.CauseClient || l.Seq != 9 || l.Cell != "cell" {
		t.Errorf("%+v", l)
	}
}

func TestRunPortTaken(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	first := free(t)
	err = Run(t.Context(), Config{PoolSize: 1, Routes: []Route{
		{first, "127.0.0.1:1", "1s", spec.RetryDefault},
		{taken.Addr().String(), "127.0.0.1:1", "1s", spec.RetryDefault},
	}}, io.Discard)
	if want := "gohttp: listen tcp " + taken.Addr().String() + ": bind: address already in use"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	l, err := net.Listen("tcp", first)
	if err != nil {
		t.Fatalf("the other route's port is still held: %v", err)
	}
	l.Close()
}

// Run ends with a request under way and a connection in the pool.
func TestRunEnds(t *testing.T) {
	hang := make(chan struct{})
	asked := make(chan struct{})
	u := serve(t, func(nc net.Conn, s seen) bool {
		if s.req.Header.Get("X-Vegeta-Seq") == "1" {
			close(asked)
			<-hang
		}
		return answer(nc, s)
	})
	defer close(hang)
	before := goleak.IgnoreCurrent()
	p := start(t, u.addr, "1h", spec.RetryDefault)
	idle, err := net.Dial("tcp", p.addr) // a client that keeps its connection
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	p.do("GET", 0, "")
	p.line(0)
	busy, err := net.Dial("tcp", p.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	// Over a second upstream connection, so that the first stays in the pool.
	io.WriteString(busy, "POST / HTTP/1.1\r\nHost: x\r\nX-Vegeta-Attack: cell\r\nX-Vegeta-Seq: 1\r\nContent-Length: 0\r\n\r\n")
	<-asked
	p.do("GET", 2, "")
	p.line(1)
	if err := p.stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	for _, c := range []net.Conn{idle, busy} {
		c.SetReadDeadline(time.Now().Add(patience))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a client's connection outlives Run: %v", err)
		}
	}
	eventually(t, "the end of the pooled connections", func() bool { return u.closedByProxy() >= 1 })
	// The upstream's side of the request under way is the test's own.
	if err := goleak.Find(before, goleak.IgnoreAnyFunction("idlerace/harness/gohttp.(*upstream).handle")); err != nil {
		t.Error(err)
	}
}

// One line per write, whole, whoever else writes.
func TestLogLines(t *testing.T) {
	u := serve(t, answer)
	p := start(t, u.addr, "1m", spec.RetryDefault)
	const n = 40
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { p.do("GET", i, "") })
	}
	wg.Wait()
	got := map[uint64]bool{}
	for i := range n {
		l := p.line(i)
		if got[l.Seq] || l.Status != 200 || len(l.Attempts) != 1 {
			t.Errorf("%+v", l)
		}
		got[l.Seq] = true
	}
}

func TestReadConfig(t *testing.T) {
	got, err := ReadConfig(strings.NewReader(`{"pool_size": 80, "routes": [
		{"listen": "127.0.0.1:8080", "upstream": "127.0.0.1:9000", "idle": "1s", "retry": "default"},
		{"listen": ":8081", "upstream": "[::1]:9000", "idle": "off", "retry": "on"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{80, []Route{
		{"127.0.0.1:8080", "127.0.0.1:9000", "1s", spec.RetryDefault},
		{":8081", "[::1]:9000", "off", spec.RetryOn},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadConfigErrors(t *testing.T) {
	route := func(listen, upstream, idle, retry string) string {
		return fmt.Sprintf(`{"pool_size": 1, "routes": [{"listen": ":1", "upstream": "h:1", "idle": "1s", "retry": "off"},
			{"listen": %q, "upstream": %q, "idle": %q, "retry": %q}]}`, listen, upstream, idle, retry)
	}
	for _, tt := range []struct{ in, want string }{
		{``, `EOF`},
		{`{"pool_size": 1`, `unexpected EOF`},
		{`{"pool": 1}`, `json: unknown field "pool"`},
		{`{"pool_size": 0, "routes": []}`, `pool_size is 0, 1 or more is needed`},
		{`{"pool_size": 1, "routes": []}`, `routes is empty`},
		{`{"pool_size": 1}`, `routes is empty`},
		{route(":1", "h:1", "1s", "off") + " x", `something follows the object`},
		{route(":1", "h:1", "", "off"), `route 1: idle: time: invalid duration ""`},
		{route(":1", "h:1", "5", "off"), `route 1: idle: time: missing unit in duration "5"`},
		{route(":1", "h:1", "0s", "off"), `route 1: idle: 0s is not positive; "off" turns keep-alive off`},
		{route(":1", "h:1", "-1s", "off"), `route 1: idle: -1s is not positive; "off" turns keep-alive off`},
		{route(":1", "h:1", "1s", ""), `route 1: retry is "", one of [default off on] is needed`},
		{route(":1", "h:1", "1s", "yes"), `route 1: retry is "yes", one of [default off on] is needed`},
		{route("1", "h:1", "1s", "on"), `route 1: address 1: missing port in address`},
		{route(":1", "h", "1s", "on"), `route 1: address h: missing port in address`},
	} {
		_, err := ReadConfig(strings.NewReader(tt.in))
		if want := "gohttp: config: " + tt.want; err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", tt.in, err, want)
		}
	}
}
