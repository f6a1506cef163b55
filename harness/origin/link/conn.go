package link

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	maxQueue = 1 << 20 // bytes of payload held per direction; then back-pressure
	minRead  = 4 << 10 // bytes of a first read of the real socket
	maxRead  = 64 << 10
)

// orphan is how long the real socket of a connection that the middlebox forgot
// is kept when the server has closed it and the proxy has sent its FIN: whether
// the proxy still reads cannot be seen. It is reset then.
const orphan = time.Minute

// kind is what a packet is.
type kind int

const (
	data kind = iota
	fin
	rst
)

type packet struct {
	due  time.Time // when it arrives
	kind kind
	data []byte
}

// line is one direction of a connection: packets in order. conn.mu guards it.
type line struct {
	Path
	rand    *rand.Rand // shared by both lines of a connection
	packets []packet   // in flight; the first stays until it has been delivered
	size    int        // bytes of their data
	last    time.Time  // due of the packet put last
	cut     bool       // an RST was put: nothing follows it
	timer   *time.Timer
	armed   time.Time // what timer is set to
}

func (l *line) put(kind kind, data []byte) {
	if l.cut {
		return
	}
	l.cut = kind == rst
	due := time.Now().Add(l.Delay)
	if l.Jitter > 0 {
		due = due.Add(time.Duration(l.rand.Int64N(int64(l.Jitter) + 1)))
	}
	if due.Before(l.last) {
		due = l.last
	}
	l.last = due
	l.packets = append(l.packets, packet{due, kind, data})
	l.size += len(data)
}

// pop removes the first packet.
func (l *line) pop() {
	l.size -= len(l.packets[0].data)
	l.packets[0] = packet{}
	if l.packets = l.packets[1:]; len(l.packets) == 0 {
		l.packets = nil
	}
}

// deadline is a read or write deadline.
type deadline struct {
	at    time.Time // zero: none
	timer *time.Timer
}

func (d *deadline) passed() bool { return !d.at.IsZero() && !time.Now().Before(d.at) }

// conn is the server's end of a connection. Three goroutines carry it: pull
// reads the real socket, deliver brings what was read to the server, push
// brings what the server wrote to the real socket. An RST passes behind the
// data sent before it, though a kernel may discard that.
type conn struct {
	sock     Socket // to the proxy
	listener *Listener
	running  sync.WaitGroup // the goroutines

	mu     sync.Mutex
	change *sync.Cond // any of what follows changed, or a timer went off
	up     line
	down   line
	killed bool // by Shutdown

	// The server's end.
	unread        [][]byte // arrived
	unreadSize    int      // bytes
	eof           bool     // the proxy's FIN arrived
	reset         bool     // an RST arrived
	shut          bool     // CloseWrite was called
	closed        bool     // Close was called
	abort         bool     // SetLinger(0) was called
	read, written deadline

	// The middlebox.
	seen            time.Time // when the last packet passed
	finUp, finDown  bool      // passed
	forgotten, late bool      // late: packets are answered with an RST
	idle            *time.Timer

	// The real socket.
	pulled bool // its FIN or an error was read: pull has ended
	finned bool // ours was sent
	gone   bool // closed
	told   bool // an RST is on its way to the server, or has arrived
	orphan *time.Timer
}

func newConn(l *Listener, sock Socket, r *rand.Rand) *conn {
	c := &conn{sock: sock, listener: l, seen: time.Now()}
	c.change = sync.NewCond(&c.mu)
	c.up = line{Path: l.cfg.Up, rand: r, timer: c.newTimer()}
	c.down = line{Path: l.cfg.Down, rand: r, timer: c.newTimer()}
	c.read.timer, c.written.timer = c.newTimer(), c.newTimer()
	return c
}

// newTimer is a stopped timer that broadcasts change.
func (c *conn) newTimer() *time.Timer {
	t := time.AfterFunc(time.Hour, func() {
		c.mu.Lock()
		c.change.Broadcast()
		c.mu.Unlock()
	})
	t.Stop()
	return t
}

// start begins to carry the connection.
func (c *conn) start() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if cfg := c.listener.cfg; cfg.OnIdle == Reset {
		c.idle = time.AfterFunc(cfg.Idle, c.watch)
	}
	for _, carry := range []func(){c.pull, c.deliver, c.push} {
		c.running.Go(carry)
	}
	c.listener.running.Go(func() {
		c.running.Wait()
		c.listener.forget(c)
	})
}

// arrive waits until the first packet of l is due, or over says that none
// will be delivered any more. The caller holds mu.
func (c *conn) arrive(l *line, held, over func() bool) (packet, bool) {
	for {
		if over() {
			l.timer.Stop()
			return packet{}, false
		}
		if len(l.packets) > 0 && !held() {
			p := l.packets[0]
			wait := time.Until(p.due)
			if wait <= 0 {
				return p, true
			}
			if !l.armed.Equal(p.due) {
				l.armed = p.due
				l.timer.Reset(wait)
				c.listener.waker.at(p.due)
			}
		}
		c.change.Wait()
	}
}

// pull reads the real socket until its end. After the proxy's FIN a reset by
// it is noticed at the next write, as in a kernel.
func (c *conn) pull() {
	buf := make([]byte, minRead)
	for {
		n, err := c.sock.Read(buf)
		c.mu.Lock()
		if n > 0 && c.pass(true, data) {
			c.up.put(data, append([]byte(nil), buf[:n]...))
		}
		switch {
		case err == nil:
		case c.gone:
			c.pulled = true
		case err == io.EOF:
			c.pulled = true
			if c.pass(true, fin) {
				c.up.put(fin, nil)
			}
		default:
			c.pulled = true
			c.lost()
		}
		c.settle()
		for !c.pulled && !c.gone && !c.closed && !c.forgotten && c.up.size+c.unreadSize >= maxQueue {
			c.change.Wait()
		}
		done := c.pulled
		c.mu.Unlock()
		if done {
			return
		}
		if n == len(buf) && n < maxRead {
			buf = make([]byte, maxRead)
		}
	}
}

// deliver brings to the server what the proxy sent.
func (c *conn) deliver() {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := func() bool { return false }
	over := func() bool {
		return c.killed || c.reset || c.closed && c.pulled && len(c.up.packets) == 0
	}
	for {
		p, ok := c.arrive(&c.up, held, over)
		if !ok {
			return
		}
		c.up.pop()
		switch {
		case p.kind == rst:
			c.reset = true
		case p.kind == fin:
			c.eof = true
		case c.closed:
			c.down.put(rst, nil)
		default:
			c.unread = append(c.unread, p.data)
			c.unreadSize += len(p.data)
		}
		c.change.Broadcast()
	}
}

// push brings to the proxy what the server sent. What was forgotten under Drop
// stays queued, as data that is never acknowledged.
func (c *conn) push() {
	c.mu.Lock()
	defer c.mu.Unlock()
	held := func() bool { return c.forgotten && !c.late }
	over := func() bool { return c.killed || c.gone && (c.told || c.closed) }
	for {
		p, ok := c.arrive(&c.down, held, over)
		if !ok {
			break
		}
		if c.pass(false, p.kind) {
			switch p.kind {
			case data:
				c.mu.Unlock()
				_, err := c.sock.Write(p.data)
				c.mu.Lock()
				if err != nil && !c.gone {
					c.lost()
				}
			case fin:
				c.finned = true
				if c.sock.CloseWrite() != nil && !c.gone {
					c.lost()
				}
			case rst:
				c.end(true)
			}
		}
		if !held() {
			c.down.pop()
		}
		c.settle()
	}
	c.end(false)
	if c.idle != nil {
		c.idle.Stop()
	}
}

// pass reports whether the middlebox lets a packet through. The caller holds
// mu.
func (c *conn) pass(up bool, kind kind) bool {
	c.expire()
	if c.forgotten {
		switch {
		case !c.late || kind == rst:
		case up:
			c.end(true)
		default:
			c.tell()
		}
		return false
	}
	c.seen = time.Now()
	if kind == fin {
		c.finUp, c.finDown = c.finUp || up, c.finDown || !up
	}
	return true
}

// limit is how long no packet may pass now, 0 for ever, and what follows. The
// caller holds mu.
func (c *conn) limit() (time.Duration, string) {
	cfg := &c.listener.cfg
	if cfg.HalfClosed > 0 && c.finUp != c.finDown {
		return cfg.HalfClosed, Drop
	}
	return cfg.Idle, cfg.OnIdle
}

// expire forgets the connection if its time is over. The caller holds mu.
func (c *conn) expire() {
	limit, onIdle := c.limit()
	if c.forgotten || c.gone || limit == 0 || time.Since(c.seen) < limit {
		return
	}
	c.forgotten, c.late = true, onIdle == ResetLate
	if onIdle == Reset {
		c.tell()
		c.end(true)
	}
	c.change.Broadcast()
}

// watch is what the idle timer of Reset does.
func (c *conn) watch() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire()
	if !c.forgotten && !c.gone {
		limit, _ := c.limit()
		c.idle.Reset(time.Until(c.seen.Add(limit)))
		c.listener.waker.at(c.seen.Add(limit))
	}
}

// tell sends an RST to the server. The caller holds mu.
func (c *conn) tell() {
	c.up.put(rst, nil)
	c.told = true
	c.change.Broadcast()
}

// lost is the proxy's RST. The caller holds mu.
func (c *conn) lost() {
	if c.pass(true, rst) {
		c.tell()
	}
	c.end(false)
}

// end closes the real socket, once. The caller holds mu.
func (c *conn) end(reset bool) {
	if c.gone {
		return
	}
	c.gone = true
	if reset {
		c.sock.SetLinger(0)
	}
	c.sock.Close()
	if c.orphan != nil {
		c.orphan.Stop()
	}
	c.change.Broadcast()
}

// settle closes the real socket when both ends are done with it. The caller
// holds mu.
func (c *conn) settle() {
	switch {
	case !c.pulled || c.gone:
	case c.finned:
		c.end(false)
	case c.forgotten && c.closed && c.orphan == nil:
		c.orphan = time.AfterFunc(orphan, func() {
			c.mu.Lock()
			c.end(true)
			c.mu.Unlock()
		})
	}
	c.change.Broadcast()
}

// drain waits until nothing is in flight that would arrive, or until t.
func (c *conn) drain(t time.Time) {
	timer := c.newTimer()
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	timer.Reset(time.Until(t))
	for !c.gone && !(c.forgotten && !c.late) && len(c.up.packets)+len(c.down.packets) > 0 && time.Until(t) > 0 {
		c.change.Wait()
	}
}

func (c *conn) kill() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.killed = true
	c.end(false)
	c.read.timer.Stop()
	c.written.timer.Stop()
	c.change.Broadcast()
}

// Read reads what has arrived. After the last byte of a connection that the
// proxy reset it returns ECONNRESET, each time.
func (c *conn) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed || c.killed:
			return 0, c.fail("read", net.ErrClosed)
		case c.read.passed():
			return 0, c.fail("read", os.ErrDeadlineExceeded)
		case len(p) == 0:
			return 0, nil
		case len(c.unread) > 0:
			n := copy(p, c.unread[0])
			if c.unread[0] = c.unread[0][n:]; len(c.unread[0]) == 0 {
				c.unread[0] = nil
				c.unread = c.unread[1:]
			}
			c.unreadSize -= n
			c.change.Broadcast()
			return n, nil
		case c.eof && !c.reset:
			return 0, io.EOF
		case c.reset:
			return 0, c.fail("read", os.NewSyscallError("read", syscall.ECONNRESET))
		}
		c.change.Wait()
	}
}

// Write sends p. It waits while 1 MiB is on its way. After a reset it returns
// ECONNRESET, each time; after CloseWrite EPIPE.
func (c *conn) Write(p []byte) (n int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		switch {
		case c.closed || c.killed:
			return n, c.fail("write", net.ErrClosed)
		case c.written.passed():
			return n, c.fail("write", os.ErrDeadlineExceeded)
		case c.shut:
			return n, c.fail("write", os.NewSyscallError("write", syscall.EPIPE))
		case c.reset:
			return n, c.fail("write", os.NewSyscallError("write", syscall.ECONNRESET))
		case n == len(p):
			return n, nil
		}
		if room := min(maxQueue-c.down.size, len(p)-n); room > 0 {
			c.down.put(data, append([]byte(nil), p[n:n+room]...))
			n += room
			c.change.Broadcast()
			if n == len(p) {
				return n, nil
			}
			continue
		}
		c.change.Wait()
	}
}

// CloseWrite sends a FIN. Reading goes on.
func (c *conn) CloseWrite() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed || c.killed:
		return c.fail("close", net.ErrClosed)
	case c.reset:
		return c.fail("close", os.NewSyscallError("shutdown", syscall.ENOTCONN))
	case c.shut:
		return nil
	}
	c.shut = true
	c.down.put(fin, nil)
	c.change.Broadcast()
	return nil
}

// SetLinger with 0 makes Close send an RST; any other value a FIN, in the
// background.
func (c *conn) SetLinger(sec int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.killed {
		return c.fail("set", net.ErrClosed)
	}
	c.abort = sec == 0
	return nil
}

// Close returns at once. It sends a FIN, or an RST after SetLinger(0) or if
// data has arrived that was not read. Data that arrives later is answered with
// an RST.
func (c *conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return c.fail("close", net.ErrClosed)
	}
	c.closed = true
	switch {
	case c.abort || c.unreadSize > 0:
		c.down.put(rst, nil)
	case !c.shut:
		c.down.put(fin, nil)
	}
	c.unread, c.unreadSize = nil, 0
	c.read.timer.Stop()
	c.written.timer.Stop()
	c.settle()
	return nil
}

func (c *conn) LocalAddr() net.Addr  { return c.sock.LocalAddr() }
func (c *conn) RemoteAddr() net.Addr { return c.sock.RemoteAddr() }

func (c *conn) SetDeadline(t time.Time) error { return c.setDeadlines(t, &c.read, &c.written) }

func (c *conn) SetReadDeadline(t time.Time) error { return c.setDeadlines(t, &c.read) }

func (c *conn) SetWriteDeadline(t time.Time) error { return c.setDeadlines(t, &c.written) }

func (c *conn) setDeadlines(t time.Time, ds ...*deadline) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.killed {
		return c.fail("set", net.ErrClosed)
	}
	for _, d := range ds {
		d.at = t
		if t.IsZero() {
			d.timer.Stop()
		} else {
			d.timer.Reset(max(time.Until(t), 0))
		}
	}
	c.change.Broadcast()
	return nil
}

// fail is err as package net would return it.
func (c *conn) fail(op string, err error) error {
	return &net.OpError{Op: op, Net: "tcp", Source: c.LocalAddr(), Addr: c.RemoteAddr(), Err: err}
}
