package origin

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

const (
	maxLateHeader = 64 << 10               // bytes of a late request that are read for its id
	lateHeader    = 250 * time.Millisecond // time a late request may take from its first byte to the end of its header
)

// past is a deadline that has passed.
var past = time.Unix(1, 0)

// socket is what a connection must be able to do besides net.Conn:
// *net.TCPConn, or a fake of it.
type socket interface {
	net.Conn
	CloseWrite() error
	SetLinger(sec int) error
}

// listener journals what it accepts and wraps it.
type listener struct {
	net.Listener
	server *server
}

func (l *listener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	o := l.server.origin
	c := &conn{socket: nc.(socket), server: l.server, id: o.lastConn.Add(1), peer: nc.RemoteAddr().String()}
	c.number = strconv.FormatUint(c.id, 10)
	o.running.Add(1) // done when net/http reports StateClosed
	o.journal.append(c.event(record.EventAccept), 0)
	o.mu.Lock()
	o.conns[c] = struct{}{}
	o.mu.Unlock()
	if o.stopping.Load() {
		c.Close()
	}
	return c, nil
}

// phase is what a connection is doing.
type phase int

const (
	fresh  phase = iota // accepted, no request yet
	active              // a request is being read or answered
	idle                // a response is out, net/http waits for the next request
)

// conn is one accepted connection. It sits below net/http, sees what each read
// and close was about, and so knows who ended it and why.
type conn struct {
	socket
	server *server
	id     uint64
	number string // id in decimal
	peer   string

	nth int // requests read; of the serving goroutine alone

	// mu guards the rest: net/http reads in the background while a handler
	// runs, and Shutdown closes from outside.
	mu        sync.Mutex
	phase     phase
	replied   bool   // active: the handler wrote its response
	idleSince int64  // when the last idle phase began; 0: never
	first     int64  // when the first byte since then (or since accept) was read; 0: none yet
	early     []byte // idle: what was read of a request so far, less than net/http waits for
	cause     cause  // what will have ended the connection; zero while nothing did
	cell      string // id of the last request
	seq       uint64
	method    string
	answered  int  // requests; written by the serving goroutine alone, which may read it without mu
	ended     bool // Close was called
	recycled  bool // to be closed after the answer under way
}

// cause is who ends a connection and why.
type cause struct {
	by, why string
	at      int64 // when it was seen, 0: when it is acted on
	err     error
}

// event is an event of c with the last request's id. Accept, late and close
// carry the peer's address, so that each can be found by it alone.
func (c *conn) event(kind record.EventKind) record.Event {
	e := record.Event{Server: c.server.Name, Conn: c.id, Kind: kind, Cell: c.cell, Seq: c.seq}
	switch kind {
	case record.EventAccept, record.EventRequest, record.EventLate, record.EventClose:
		e.Peer = c.peer
	}
	return e
}

// Read notes when a request begins and what a failed read means for the
// connection. A deadline that passes outside the idle phase is net/http
// calling back its background read and means nothing.
func (c *conn) Read(p []byte) (int, error) {
	if t := c.server.Trap; t != nil && t.Unread && c.unread(t.After) {
		return 0, io.EOF // net/http closes without a word
	}
	n, err := c.socket.Read(p)
	at := c.server.origin.journal.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if n > 0 {
		if c.first == 0 {
			c.first = at
		}
		// net/http takes an idle connection for active from the fourth byte on.
		if c.phase == idle && len(c.early)+n < 4 {
			c.early = append(c.early, p[:n]...)
		}
	}
	switch {
	case err == nil:
	case errors.Is(err, os.ErrDeadlineExceeded):
		if c.phase == idle && c.cause.why == "" {
			c.cause = cause{by: record.ByUpstream, why: record.WhyIdleTimeout}
		}
	default:
		c.failed(err, at)
	}
	return n, err
}

// unread waits for the peer's next bytes, without taking them, and reports
// whether a trap after that many answers leaves them unread. The first time it
// does, it journals them as a request.
func (c *conn) unread(after int) bool {
	raw, err := c.socket.(syscall.Conn).SyscallConn()
	if err != nil {
		return false // it is closed, as the read will say
	}
	buf := make([]byte, 4<<10)
	n := 0
	raw.Read(func(fd uintptr) bool {
		var err error
		n, _, err = syscall.Recvfrom(int(fd), buf, syscall.MSG_PEEK)
		return !errors.Is(err, syscall.EAGAIN)
	}) // an end, an error and a deadline are the read's to tell
	if n <= 0 {
		return false
	}
	j := c.server.origin.journal
	at := j.now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause.why != "" || c.answered < after {
		return c.cause.why == record.WhyTrap
	}
	c.cause = cause{by: record.ByUpstream, why: record.WhyTrap}
	c.phase = active
	c.method, c.cell, c.seq = requestID(buf[:n])
	e := c.event(record.EventRequest)
	e.At, e.Method, e.Nth = at, c.method, c.answered+1
	j.append(e, c.idleSince)
	return true
}

// Write notes a peer that is gone.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.socket.Write(p)
	if err != nil {
		at := c.server.origin.journal.now()
		c.mu.Lock()
		c.failed(err, at)
		c.mu.Unlock()
	}
	return n, err
}

// failed notes what err of a read or write at that moment says. Of several the
// last counts, the one net/http acts on; but the kernel reports a reset once
// and then an EOF, so a reset stays one. The caller holds mu.
func (c *conn) failed(err error, at int64) {
	switch {
	case c.ended || c.cause.by == record.ByUpstream:
	case c.cause.why == record.WhyPeerReset:
		c.cause.at = at
	case errors.Is(err, io.EOF):
		c.cause = cause{by: record.ByPeer, why: record.WhyPeerClosed, at: at}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		c.cause = cause{by: record.ByPeer, why: record.WhyPeerReset, at: at}
	case !errors.Is(err, os.ErrDeadlineExceeded) && c.cause.why == "":
		c.cause = cause{by: record.ByUpstream, why: record.WhyError, err: err}
	}
}

// blame makes the upstream end the connection for why, unless it ended or is
// ending for another reason.
func (c *conn) blame(why string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause.why == "" {
		c.cause = cause{by: record.ByUpstream, why: why, err: err}
	}
}

// changed is the http.Server.ConnState hook.
func (c *conn) changed(state http.ConnState) {
	switch state {
	case http.StateActive:
		c.mu.Lock()
		c.phase = active
		c.mu.Unlock()
	case http.StateIdle:
		// net/http arms the idle timer when this returns.
		j := c.server.origin.journal
		now := j.now()
		c.mu.Lock()
		c.phase, c.idleSince = idle, now
		c.replied, c.first, c.early = false, 0, nil
		e, recycled := c.event(record.EventIdle), c.recycled
		c.mu.Unlock()
		e.At = now
		j.append(e, 0)
		if recycled {
			c.blame(record.WhyShutdown, nil)
			c.Close()
		}
		if limit := c.server.MaxRequests; limit > 0 && c.answered >= limit {
			c.blame(record.WhyRequestLimit, nil)
			c.Close()
		}
	case http.StateClosed:
		c.server.origin.running.Done()
	}
}

// begin opens a request. net/http does not report a pipelined request as
// active when all of it was read along with the one before.
func (c *conn) begin() {
	c.nth++
	c.mu.Lock()
	c.phase = active
	c.mu.Unlock()
}

// request journals r, whose body has been read. Its moment is that of its
// first byte.
func (c *conn) request(r *http.Request, executed bool) {
	seq, _ := strconv.ParseUint(r.Header.Get(record.HeaderSeq), 10, 64)
	c.mu.Lock()
	// The strings of the request before are kept where they are equal, so that
	// a journal of one cell does not hold its id once per event.
	if cell := r.Header.Get(record.HeaderCell); cell != c.cell {
		c.cell = cell
	}
	if r.Method != c.method {
		c.method = strings.Clone(r.Method)
	}
	c.seq = seq
	e := c.event(record.EventRequest)
	e.At, e.Method = c.first, c.method
	idleSince := c.idleSince
	c.mu.Unlock()
	e.Nth, e.Executed = c.nth, executed
	c.server.origin.journal.append(e, idleSince)
}

// finish notes that the handler wrote its response.
func (c *conn) finish() {
	c.mu.Lock()
	c.replied = true
	c.answered++
	c.mu.Unlock()
}

// Close is called by net/http, whatever the reason, and may be called more
// than once. It settles who ended the connection and why, journals that, and
// then ends it: what a peer has seen of the end is in the journal already.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.ended {
		c.mu.Unlock()
		return nil
	}
	c.ended = true
	cause := c.cause
	if cause.why == "" {
		cause = c.infer()
	}
	e := c.event(record.EventClose)
	e.At, e.By, e.Why, e.Nth = cause.at, cause.by, cause.why, c.answered
	if cause.err != nil {
		e.Err = cause.err.Error()
	}
	var idleSince int64
	if c.phase == idle {
		idleSince = c.idleSince
	}
	c.mu.Unlock()

	style := spec.ClosePlain
	switch cause.why {
	case record.WhyIdleTimeout:
		style = c.server.Close
	case record.WhyTrap:
		if style = c.server.Close; style == spec.CloseFIN {
			style = spec.ClosePlain // a trapped connection has no late request to witness
		}
	}
	c.server.origin.journal.append(e, idleSince)
	if cause.why == record.WhyTrap && c.server.Trap.Unread {
		c.socket.CloseWrite()
		return c.release() // a RST: there are bytes to read
	}

	switch style {
	case spec.CloseRST:
		c.socket.SetLinger(0)
	case spec.CloseFIN, spec.CloseHalfClose:
		if c.socket.CloseWrite() != nil {
			break
		}
		// The deadline is set before stopping is read, and stop sets both the
		// other way round: one of the two ends the lingering.
		c.socket.SetReadDeadline(time.Now().Add(time.Duration(c.server.Linger)))
		if c.server.origin.stopping.Load() {
			break
		}
		c.server.origin.running.Go(func() {
			if cause.why == record.WhyIdleTimeout {
				c.witness(style)
			} else {
				io.Copy(io.Discard, c.socket)
			}
			c.release()
		})
		return nil
	}
	return c.release()
}

// infer is the cause of a close that no read, write, limit or trap explains.
// The caller holds mu.
func (c *conn) infer() cause {
	stopping := c.server.origin.stopping.Load()
	switch {
	case c.phase == active && c.replied:
		// net/http keeps a connection after a response unless that said
		// "Connection: close", for either side or in a shutdown.
		return cause{by: record.ByUpstream, why: record.WhyAnnounced}
	case stopping && c.phase != active:
		return cause{by: record.ByUpstream, why: record.WhyShutdown}
	case stopping:
		return cause{by: record.ByUpstream, why: record.WhyError, err: errors.New("shut down during a request")}
	default:
		return cause{by: record.ByUpstream, why: record.WhyError, err: errors.New("no request that the server could read")}
	}
}

// release closes the socket for good.
func (c *conn) release() error {
	o := c.server.origin
	o.mu.Lock()
	delete(o.conns, c)
	o.mu.Unlock()
	return c.socket.Close()
}

// stop ends what http.Server.Shutdown does not: a socket that is read on, and
// a connection without a first byte, which net/http would keep for 5 s.
func (c *conn) stop() {
	c.mu.Lock()
	ended, unused := c.ended, c.phase == fresh && c.first == 0
	c.mu.Unlock()
	if ended {
		c.socket.SetReadDeadline(past)
	} else if unused {
		c.Close()
	}
}

// witness reads on after the FIN until the peer closes or Linger is over. A
// request that arrives lost the race: its id is journaled. Under fin the
// connection is then reset, as the kernel would have done had the socket been
// closed; under half-close it is never answered and never reset.
func (c *conn) witness(style spec.Close) {
	j := c.server.origin.journal
	buf := append(make([]byte, 0, 1<<10), c.early...)
	var at int64
	for {
		n, err := c.socket.Read(buf[len(buf):cap(buf)])
		if n > 0 && at == 0 {
			at = j.now()
			if style == spec.CloseFIN {
				c.socket.SetReadDeadline(time.Now().Add(lateHeader))
			}
		}
		buf = buf[:len(buf)+n]
		if at != 0 && (err != nil || bytes.Contains(buf, []byte("\r\n\r\n")) || len(buf) >= maxLateHeader) {
			break
		}
		if err != nil {
			return
		}
		if len(buf) == cap(buf) {
			buf = append(make([]byte, 0, min(4*cap(buf), maxLateHeader)), buf...)
		}
	}
	e := c.event(record.EventLate)
	e.At = at
	e.Method, e.Cell, e.Seq = requestID(buf)
	j.append(e, c.idleSince)
	if style == spec.CloseFIN {
		c.socket.SetLinger(0)
		return
	}
	io.Copy(io.Discard, c.socket)
}

// requestID finds the method and the id in the beginning of a request, as far
// as its lines are complete. What is not there stays zero.
func requestID(b []byte) (method, cell string, seq uint64) {
	line, rest, ok := bytes.Cut(b, []byte("\r\n"))
	if !ok {
		return "", "", 0
	}
	if m, _, ok := bytes.Cut(line, []byte(" ")); ok && len(m) <= 32 {
		method = string(m)
	}
	for {
		if line, rest, ok = bytes.Cut(rest, []byte("\r\n")); !ok || len(line) == 0 {
			return method, cell, seq
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		switch {
		case bytes.EqualFold(name, []byte(record.HeaderCell)):
			cell = string(bytes.TrimSpace(value))
		case bytes.EqualFold(name, []byte(record.HeaderSeq)):
			seq, _ = strconv.ParseUint(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
}
