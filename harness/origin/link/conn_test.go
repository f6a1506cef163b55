package link

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The tests of this file run in a bubble, over a fake socket, so that moments
// can be compared exactly.

// fake is the real socket. It notes what is done to it and when.
type fake struct {
	net.Conn // nil
	in       chan any
	closed   chan struct{}
	start    time.Time

	mu     sync.Mutex
	linger int
	log    []string
}

func (f *fake) note(what string) {
	f.log = append(f.log, fmt.Sprintf("%v %s", time.Since(f.start), what))
}

func (f *fake) Read(b []byte) (int, error) {
	select {
	case <-f.closed:
		return 0, net.ErrClosed
	case v := <-f.in:
		if err, ok := v.(error); ok {
			return 0, err
		}
		return copy(b, v.(string)), nil
	}
}

func (f *fake) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(b) > 40 {
		f.note(fmt.Sprint(len(b), " bytes"))
	} else {
		f.note(string(b))
	}
	return len(b), nil
}

func (f *fake) CloseWrite() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.note("FIN")
	return nil
}

func (f *fake) SetLinger(sec int) error { f.linger = sec; return nil }

func (f *fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.linger == 0 {
		f.note("RST")
	} else {
		f.note("close")
	}
	close(f.closed)
	return nil
}

func (f *fake) LocalAddr() net.Addr  { return &net.TCPAddr{Port: 1} }
func (f *fake) RemoteAddr() net.Addr { return &net.TCPAddr{Port: 2} }

// accepts is a net.Listener of fakes.
type accepts chan net.Conn

func (a accepts) Accept() (net.Conn, error) { return <-a, nil }
func (a accepts) Close() error              { return nil }
func (a accepts) Addr() net.Addr            { return nil }

// open gives the proxy's and the server's end of a connection that ends with
// the test.
func open(t *testing.T, cfg Config) (*Listener, *fake, Socket) {
	t.Helper()
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	in := make(accepts, 1)
	l := newListener(in, cfg, nil)
	f := &fake{in: make(chan any, 100), closed: make(chan struct{}), start: time.Now(), linger: -1}
	in <- f
	nc, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Shutdown)
	return l, f, nc.(Socket)
}

// saw compares what happened at the proxy's end so far.
func (f *fake) saw(t *testing.T, want ...string) {
	t.Helper()
	synctest.Wait()
	f.mu.Lock()
	defer f.mu.Unlock()
	if diff := cmp.Diff(want, f.log); diff != "" {
		t.Errorf("the proxy's end (-want +got):\n%s", diff)
	}
}

// reads compares the server's next read.
func (f *fake) reads(t *testing.T, c net.Conn, at time.Duration, want string, wantErr error) {
	t.Helper()
	buf := make([]byte, 100)
	n, err := c.Read(buf)
	if got := time.Since(f.start); string(buf[:n]) != want || !errors.Is(err, wantErr) || got != at {
		t.Errorf("Read = %q, %v after %v, want %q, %v after %v", buf[:n], err, got, want, wantErr, at)
	}
}

const ms = time.Millisecond

var slow = Config{Up: Path{Delay: 10 * ms}, Down: Path{Delay: 30 * ms}}

func with(change func(*Config)) Config {
	c := slow
	change(&c)
	return c
}

// scenario is a test in a bubble of one connection.
func scenario(t *testing.T, name string, cfg Config, run func(t *testing.T, f *fake, c Socket)) {
	t.Run(name, func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			_, f, c := open(t, cfg)
			run(t, f, c)
		})
	})
}

func TestDelay(t *testing.T) {
	scenario(t, "data, FIN and close", slow, func(t *testing.T, f *fake, c Socket) {
		f.in <- "ping"
		f.reads(t, c, 10*ms, "ping", nil)
		c.Write([]byte("pong"))
		time.Sleep(5 * ms)
		c.CloseWrite()
		f.in <- "more"
		f.in <- io.EOF
		f.reads(t, c, 25*ms, "more", nil)
		f.reads(t, c, 25*ms, "", io.EOF)
		time.Sleep(100 * ms)
		f.saw(t, "40ms pong", "45ms FIN", "45ms close")
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.EPIPE) {
			t.Errorf("Write after CloseWrite: %v", err)
		}
		c.Close()
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("second Close: %v", err)
		}
	})
	scenario(t, "RST behind data", slow, func(t *testing.T, f *fake, c Socket) {
		c.Write([]byte("last"))
		c.SetLinger(0)
		c.Close()
		time.Sleep(time.Second)
		f.saw(t, "30ms last", "30ms RST")
	})
	scenario(t, "RST of the proxy", slow, func(t *testing.T, f *fake, c Socket) {
		f.in <- "last"
		f.in <- error(syscall.ECONNRESET)
		f.reads(t, c, 10*ms, "last", nil)
		f.reads(t, c, 10*ms, "", syscall.ECONNRESET)
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("Write after a reset: %v", err)
		}
		if err := c.CloseWrite(); !errors.Is(err, syscall.ENOTCONN) {
			t.Errorf("CloseWrite after a reset: %v", err)
		}
		f.saw(t, "0s close")
		c.Close()
	})
	scenario(t, "late data after Close", slow, func(t *testing.T, f *fake, c Socket) {
		c.Close()
		time.Sleep(20 * ms)
		f.in <- "late"
		time.Sleep(time.Second)
		f.saw(t, "30ms FIN", "60ms RST")
	})
	scenario(t, "data on its way at Close", slow, func(t *testing.T, f *fake, c Socket) {
		f.in <- "late"
		time.Sleep(5 * ms)
		c.Close()
		time.Sleep(time.Second)
		f.saw(t, "35ms FIN", "40ms RST")
	})
	scenario(t, "unread data at Close", slow, func(t *testing.T, f *fake, c Socket) {
		f.in <- "unread"
		time.Sleep(15 * ms)
		c.Close()
		time.Sleep(time.Second)
		f.saw(t, "45ms RST")
	})
	scenario(t, "the proxy closes first", slow, func(t *testing.T, f *fake, c Socket) {
		f.in <- io.EOF
		f.reads(t, c, 10*ms, "", io.EOF)
		c.Close()
		time.Sleep(time.Second)
		f.saw(t, "40ms FIN", "40ms close")
	})
}

func TestJitterKeepsOrder(t *testing.T) {
	runs := make([][]string, 2)
	for i := range runs {
		synctest.Test(t, func(t *testing.T) {
			_, f, c := open(t, Config{Down: Path{Delay: ms, Jitter: 20 * ms}, Seed: 7})
			want := make([]string, 50)
			for i := range want {
				want[i] = fmt.Sprint(i)
				c.Write([]byte(want[i]))
				time.Sleep(ms)
			}
			c.Close()
			time.Sleep(time.Second)
			f.mu.Lock()
			defer f.mu.Unlock()
			runs[i] = f.log
			got := make([]string, len(f.log))
			for i, line := range f.log {
				var at string
				fmt.Sscan(line, &at, &got[i])
				if d, _ := time.ParseDuration(at); i < 50 && (d < time.Duration(i+1)*ms || d > time.Duration(i+50)*ms) {
					t.Errorf("packet %d arrived after %v", i, d)
				}
			}
			if diff := cmp.Diff(append(want, "FIN"), got); diff != "" {
				t.Errorf("order (-want +got):\n%s", diff)
			}
		})
	}
	if !slices.Equal(runs[0], runs[1]) {
		t.Error("the same seed gave other times")
	}
}

func TestIdle(t *testing.T) {
	idle := func(on string) Config { return with(func(c *Config) { c.Idle, c.OnIdle = time.Second, on }) }
	scenario(t, "drop", idle(Drop), func(t *testing.T, f *fake, c Socket) {
		time.Sleep(900 * ms)
		c.Write([]byte("in time")) // passes at 930 ms
		time.Sleep(1030 * ms)
		f.in <- "too"
		c.Write([]byte("late"))
		c.SetReadDeadline(time.Now().Add(time.Hour))
		f.reads(t, c, time.Hour+1930*ms, "", os.ErrDeadlineExceeded)
		c.SetLinger(0)
		c.Close()
		f.in <- "still"
		f.in <- io.EOF
		time.Sleep(59 * time.Second)
		f.saw(t, "930ms in time")
		time.Sleep(time.Second)
		f.saw(t, "930ms in time", "1h1m1.93s RST")
	})
	scenario(t, "drop, the proxy sends first", idle(Drop), func(t *testing.T, f *fake, c Socket) {
		time.Sleep(time.Second)
		f.in <- "late"
		f.in <- error(syscall.ECONNRESET)
		c.SetReadDeadline(time.Now().Add(time.Hour))
		f.reads(t, c, time.Hour+time.Second, "", os.ErrDeadlineExceeded)
		f.saw(t, "1s close")
		c.Close()
	})
	scenario(t, "reset", idle(Reset), func(t *testing.T, f *fake, c Socket) {
		time.Sleep(500 * ms)
		f.in <- "x"
		f.reads(t, c, 510*ms, "x", nil)
		f.reads(t, c, 1510*ms, "", syscall.ECONNRESET)
		f.saw(t, "1.5s RST")
		c.Close()
	})
	scenario(t, "reset-late, the proxy sends", idle(ResetLate), func(t *testing.T, f *fake, c Socket) {
		time.Sleep(2 * time.Second)
		f.in <- "late"
		c.SetReadDeadline(time.Now().Add(time.Hour))
		f.reads(t, c, time.Hour+2*time.Second, "", os.ErrDeadlineExceeded)
		f.saw(t, "2s RST")
		c.SetReadDeadline(time.Time{})
		c.Write([]byte("late too"))
		f.reads(t, c, time.Hour+2040*ms, "", syscall.ECONNRESET)
		c.Close()
	})
	scenario(t, "reset-late, the server sends", idle(ResetLate), func(t *testing.T, f *fake, c Socket) {
		time.Sleep(2 * time.Second)
		c.Write([]byte("late"))
		f.reads(t, c, 2040*ms, "", syscall.ECONNRESET)
		c.Close()
		time.Sleep(time.Minute)
		f.saw(t)
		f.in <- io.EOF
		f.saw(t, "1m2.04s RST")
	})
}

func TestHalfClosed(t *testing.T) {
	cfg := with(func(c *Config) { c.HalfClosed = time.Second })
	scenario(t, "within the time", cfg, func(t *testing.T, f *fake, c Socket) {
		time.Sleep(time.Minute)
		c.CloseWrite()
		time.Sleep(time.Second)
		f.in <- "in time"
		f.reads(t, c, time.Minute+1010*ms, "in time", nil)
		c.Close()
	})
	scenario(t, "after it", cfg, func(t *testing.T, f *fake, c Socket) {
		c.Close()
		time.Sleep(1030 * ms)
		f.in <- "late"
		time.Sleep(time.Minute)
		f.saw(t, "30ms FIN")
	})
}

func TestDeadlines(t *testing.T) {
	scenario(t, "read", slow, func(t *testing.T, f *fake, c Socket) {
		c.SetReadDeadline(time.Now().Add(5 * ms))
		f.reads(t, c, 5*ms, "", os.ErrDeadlineExceeded)
		f.reads(t, c, 5*ms, "", os.ErrDeadlineExceeded)
		c.SetReadDeadline(time.Time{})
		time.AfterFunc(5*ms, func() { c.SetReadDeadline(time.Unix(1, 0)) })
		f.reads(t, c, 10*ms, "", os.ErrDeadlineExceeded)
		c.SetReadDeadline(time.Now().Add(time.Hour))
		f.in <- "x"
		f.reads(t, c, 20*ms, "x", nil)
		time.AfterFunc(ms, func() { c.Close() })
		f.reads(t, c, 21*ms, "", net.ErrClosed)
	})
	scenario(t, "write", Config{Down: Path{Delay: time.Second}}, func(t *testing.T, f *fake, c Socket) {
		c.SetWriteDeadline(time.Now().Add(5 * ms))
		n, err := c.Write(make([]byte, maxQueue+1))
		if n != maxQueue || !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(f.start) != 5*ms {
			t.Errorf("Write = %d, %v after %v", n, err, time.Since(f.start))
		}
		c.SetWriteDeadline(time.Time{})
		if n, err := c.Write([]byte("y")); n != 1 || err != nil || time.Since(f.start) != time.Second {
			t.Errorf("Write = %d, %v after %v", n, err, time.Since(f.start))
		}
		time.Sleep(time.Minute)
		f.saw(t, "1s 1048576 bytes", "2s y")
		c.Close()
	})
}

func TestShutdownDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, f, c := open(t, slow)
		c.Close()
		l.Shutdown()
		f.saw(t, "30ms FIN", "30ms close")
	})
	synctest.Test(t, func(t *testing.T) {
		l, f, c := open(t, slow)
		go l.Shutdown()
		f.reads(t, c, 0, "", net.ErrClosed)
		f.saw(t, "0s close")
	})
}
