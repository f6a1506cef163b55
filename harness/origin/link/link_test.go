package link

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

// The tests of this file are over TCP: by outcome, and no moment is compared.

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestValidate(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string // empty: valid
	}{
		{Config{Up: Path{Delay: 1}}, ""},
		{Config{Down: Path{Jitter: 1}}, ""},
		{Config{HalfClosed: 1}, ""},
		{Config{Idle: 1, OnIdle: Drop}, ""},
		{Config{}, "nothing to emulate"},
		{Config{Seed: 1}, "nothing to emulate"},
		{Config{Up: Path{Delay: -1}, Down: Path{Jitter: 25 * time.Hour}},
			"up: delay: -1ns is not between 0 and 24h0m0s\ndown: jitter: 25h0m0s is not between 0 and 24h0m0s"},
		{Config{Idle: 1}, "idle without on_idle: want drop, reset or reset-late"},
		{Config{HalfClosed: 1, OnIdle: Reset}, "on_idle: reset without idle"},
		{Config{Idle: 1, OnIdle: "rst"}, `on_idle: "rst" is none of drop, reset, reset-late`},
	} {
		var got string
		if err := tc.cfg.Validate(); err != nil {
			got = err.Error()
		}
		if diff := cmp.Diff(tc.want, got); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", tc.cfg, diff)
		}
	}
	if _, err := New(nil, Config{}); err == nil || err.Error() != "link: nothing to emulate" {
		t.Errorf("New = %v", err)
	}
}

func listen(t *testing.T, cfg Config) *Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l, err := New(ln, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Shutdown)
	return l
}

// dial gives the proxy's and the server's end of a connection.
func dial(t *testing.T, l *Listener) (*net.TCPConn, Socket) {
	t.Helper()
	p, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	p.SetDeadline(time.Now().Add(30 * time.Second))
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	s.SetDeadline(time.Now().Add(30 * time.Second))
	if s.RemoteAddr().String() != p.LocalAddr().String() || s.LocalAddr().String() != p.RemoteAddr().String() {
		t.Errorf("addresses %v, %v", s.LocalAddr(), s.RemoteAddr())
	}
	return p.(*net.TCPConn), s.(Socket)
}

var short = Config{Up: Path{Delay: 2 * ms, Jitter: 3 * ms}, Down: Path{Delay: 2 * ms, Jitter: 3 * ms}}

func TestTCPData(t *testing.T) {
	p, s := dial(t, listen(t, short))
	sent := make([]byte, 5<<20) // more than a queue holds
	for i := range sent {
		sent[i] = byte(i >> 8)
	}
	send := func(c Socket) {
		if _, err := c.Write(sent); err != nil {
			t.Error(err)
		}
		c.CloseWrite()
	}
	for _, way := range []struct{ from, to Socket }{{p, s}, {s, p}} {
		go send(way.from)
		got, err := io.ReadAll(way.to)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("%d bytes, %v; want the %d sent", len(got), err, len(sent))
		}
	}
}

func TestTCPReset(t *testing.T) {
	l := listen(t, short)
	buf := make([]byte, 10)
	t.Run("by the server", func(t *testing.T) {
		p, s := dial(t, l)
		s.SetLinger(0)
		s.Close()
		if _, err := p.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read = %v", err)
		}
	})
	t.Run("by the proxy", func(t *testing.T) {
		p, s := dial(t, l)
		p.SetLinger(0)
		p.Close()
		if _, err := s.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Read = %v", err)
		}
	})
	t.Run("of late data", func(t *testing.T) {
		p, s := dial(t, l)
		s.Close()
		if _, err := p.Read(buf); err != io.EOF {
			t.Errorf("Read = %v, want EOF", err)
		}
		p.Write([]byte("late"))
		for {
			if _, err := p.Write([]byte("x")); errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) {
				break
			} else if err != nil {
				t.Fatalf("Write = %v", err)
			}
			time.Sleep(ms)
		}
	})
	t.Run("when idle", func(t *testing.T) {
		p, s := dial(t, listen(t, Config{Idle: 20 * ms, OnIdle: Reset}))
		for _, c := range []net.Conn{p, s} {
			if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("Read = %v", err)
			}
		}
	})
}

func TestHTTP(t *testing.T) {
	l := listen(t, short)
	var accepted atomic.Int64
	srv := &http.Server{
		IdleTimeout: 200 * ms,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
		}),
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateNew {
				accepted.Add(1)
			}
		},
	}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	defer func() {
		srv.Close()
		if err := <-served; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("Serve = %v", err)
		}
	}()

	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	client := &http.Client{Transport: tr}
	for range 5 {
		resp, err := client.Post("http://"+l.Addr().String(), "text/plain", bytes.NewReader([]byte("hello")))
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || string(body) != "hello" {
			t.Fatalf("%q, %v", body, err)
		}
	}
	if n := accepted.Load(); n != 1 {
		t.Errorf("%d connections, want 1 that is kept alive", n)
	}

	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\n\r\n")
	if _, err := io.Copy(io.Discard, c); err != nil {
		t.Errorf("the idle timer's end = %v, want EOF", err)
	}
}
