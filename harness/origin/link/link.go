// Package link is the emulated network between a proxy and a server: a
// net.Listener whose connections have a delay each way and a middlebox on
// them, as seen from both ends. Of this module it must import nothing.
package link

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// What a middlebox does with a connection that was idle for too long.
const (
	// Drop forgets it: nothing is passed any more in either direction, FIN and
	// RST included, and no end is told (Azure's load balancer by default, most
	// firewalls and NATs).
	Drop = "drop"
	// Reset sends an RST to both ends when the time is over (Azure's load
	// balancer with "TCP reset on idle").
	Reset = "reset"
	// ResetLate tells no end, but answers each later packet with an RST to its
	// sender; the other end never learns of it (AWS NLB).
	ResetLate = "reset-late"
)

// maxTime bounds each duration of a Config.
const maxTime = 24 * time.Hour

// Config is one link. Its middlebox sits at the proxy's end: it sees a packet
// of the proxy when that is sent, and one of the server when that arrives.
type Config struct {
	Up   Path `json:"up,omitzero"`   // proxy to server
	Down Path `json:"down,omitzero"` // server to proxy; the round trip is Up + Down

	// Idle is how long a connection may pass no packet with data, FIN or RST,
	// either way, from when it is accepted on. 0: for ever. TCP keep-alive
	// probes of the real socket do not count.
	Idle   time.Duration `json:"idle,omitzero"`
	OnIdle string        `json:"on_idle,omitempty"` // Drop, Reset or ResetLate; set if and only if Idle is

	// HalfClosed takes the place of Idle once a FIN has passed one way and none
	// the other: after that long without a packet the connection is forgotten
	// as under Drop, like connection tracking's close_wait timeout. 0: Idle
	// goes on.
	HalfClosed time.Duration `json:"half_closed,omitzero"`

	Seed uint64 `json:"seed,omitzero"` // of the jitter; each connection draws from a stream of its own
}

// Path is one direction of a link. Nothing overtakes: a packet whose turn
// comes before its predecessor's waits for that.
type Path struct {
	Delay  time.Duration `json:"delay,omitzero"`
	Jitter time.Duration `json:"jitter,omitzero"` // uniform in [0, Jitter], added to Delay
}

// Validate returns every fault of c, joined, or nil. A Config that emulates
// nothing is a fault: what needs no link must use none.
func (c Config) Validate() error {
	var errs []error
	for _, d := range []struct {
		field string
		value time.Duration
	}{
		{"up: delay", c.Up.Delay}, {"up: jitter", c.Up.Jitter},
		{"down: delay", c.Down.Delay}, {"down: jitter", c.Down.Jitter},
		{"idle", c.Idle}, {"half_closed", c.HalfClosed},
	} {
		if d.value < 0 || d.value > maxTime {
			errs = append(errs, fmt.Errorf("%s: %v is not between 0 and %v", d.field, d.value, maxTime))
		}
	}
	switch c.OnIdle {
	case Drop, Reset, ResetLate:
		if c.Idle == 0 {
			errs = append(errs, fmt.Errorf("on_idle: %s without idle", c.OnIdle))
		}
	case "":
		if c.Idle != 0 {
			errs = append(errs, fmt.Errorf("idle without on_idle: want %s, %s or %s", Drop, Reset, ResetLate))
		}
	default:
		errs = append(errs, fmt.Errorf("on_idle: %q is none of %s, %s, %s", c.OnIdle, Drop, Reset, ResetLate))
	}
	if (c == Config{Seed: c.Seed}) {
		errs = append(errs, errors.New("nothing to emulate"))
	}
	return errors.Join(errs...)
}

// Socket is what the connections of a link are, and what those it accepts must
// be: *net.TCPConn, or a fake of it.
type Socket interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// Listener accepts the server's ends of a link's connections. They are
// Sockets with the addresses of the real one. Setting up a connection takes no
// time. Close ends no connection.
type Listener struct {
	net.Listener
	cfg     Config
	waker   *waker // nil: timers of the runtime alone
	running sync.WaitGroup

	mu       sync.Mutex
	accepted uint64
	conns    map[*conn]struct{}
	stopping bool
}

// New puts a link in front of ln, whose connections must be Sockets. It is
// ended with Shutdown. The error is cfg's, or the system's that has no timer.
func New(ln net.Listener, cfg Config) (*Listener, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	w, err := newWaker()
	if err != nil {
		return nil, fmt.Errorf("link: %w", err)
	}
	return newListener(ln, cfg, w), nil
}

func newListener(ln net.Listener, cfg Config, w *waker) *Listener {
	return &Listener{Listener: ln, cfg: cfg, waker: w, conns: make(map[*conn]struct{})}
}

// Accept waits for the next connection.
func (l *Listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	sock, ok := nc.(Socket)
	if !ok {
		nc.Close()
		return nil, fmt.Errorf("link: %T has no CloseWrite or SetLinger", nc)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopping {
		nc.Close()
		return nil, net.ErrClosed
	}
	l.accepted++
	c := newConn(l, sock, rand.New(rand.NewPCG(l.cfg.Seed, l.accepted)))
	l.conns[c] = struct{}{}
	c.start()
	return c, nil
}

// Shutdown closes the listener, lets what is in flight arrive, for at most
// both delays and jitters, then closes every real socket, whoever still uses
// it. After it no goroutine or socket of the link is left.
func (l *Listener) Shutdown() {
	l.Listener.Close()
	l.mu.Lock()
	l.stopping = true
	conns := make([]*conn, 0, len(l.conns))
	for c := range l.conns {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	end := time.Now().Add(l.cfg.Up.Delay + l.cfg.Up.Jitter + l.cfg.Down.Delay + l.cfg.Down.Jitter)
	for _, c := range conns {
		c.drain(end)
	}
	for _, c := range conns {
		c.kill()
	}
	l.running.Wait()
	l.waker.close()
}

// forget is called when c's goroutines have ended.
func (l *Listener) forget(c *conn) {
	l.mu.Lock()
	delete(l.conns, c)
	l.mu.Unlock()
}
