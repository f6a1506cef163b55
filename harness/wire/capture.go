package wire

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// Reasons for which Open may fail; to be told with errors.Is.
var (
	ErrNoRight  = errors.New("no right to capture packets (CAP_NET_RAW)")
	ErrNoSystem = errors.New("packets can be captured on Linux only")
)

// Options of a capture. The zero value has the defaults.
type Options struct {
	Snap  int           // bytes kept of a packet, from the IP header on; default 1024, at least 128: holds the head of our requests
	Bytes int           // for packets and their index; default 32 MiB, of which the heap may make a third more
	Age   time.Duration // packets older than this may go, memory or not; default 10 min
}

const (
	defaultSnap  = 1024
	defaultBytes = 32 << 20
	defaultAge   = 10 * time.Minute
	minSnap      = 128 // bytes of the longest headers
	maxSnap      = 1<<16 - 1
)

// fill puts in the defaults and reports what cannot be.
func (o *Options) fill() error {
	if o.Snap == 0 {
		o.Snap = defaultSnap
	}
	if o.Bytes == 0 {
		o.Bytes = defaultBytes
	}
	if o.Age == 0 {
		o.Age = defaultAge
	}
	switch least := segments * (o.Snap + overhead); {
	case o.Snap < minSnap || o.Snap > maxSnap:
		return fmt.Errorf("snap length of %d bytes: want %d to %d", o.Snap, minSnap, maxSnap)
	case o.Bytes < least:
		return fmt.Errorf("%d bytes for packets: want %d at least", o.Bytes, least)
	case o.Age < 0:
		return fmt.Errorf("packets of an age of %s: want more than 0", o.Age)
	}
	return nil
}

// Stats counts packets since Open.
type Stats struct {
	Captured   uint64 `json:"captured"`   // taken into the ring
	Dropped    uint64 `json:"dropped"`    // by the kernel: its buffer was full
	Duplicates uint64 `json:"duplicates"` // seen on a second interface too, left out
	Evicted    uint64 `json:"evicted"`    // captured and gone again: too old, or too many
}

// Capture records the packets of some ports of this machine, or network
// namespace, on all its interfaces. Its methods may be called by several
// goroutines.
type Capture struct {
	socket *socket
	done   chan struct{} // closed when the reader has ended

	mu   sync.Mutex
	ring *ring
	err  error // of the reader; nil while it reads
}

// Open begins a capture. The error is ErrNoRight, ErrNoSystem, or one of an
// option or a system call.
func Open(ports []uint16, o Options) (*Capture, error) {
	if len(ports) == 0 {
		return nil, errors.New("capture: no ports")
	}
	if err := o.fill(); err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	s, err := openSocket(ports, o.Snap)
	if err != nil {
		return nil, fmt.Errorf("capture: %w", err)
	}
	c := &Capture{socket: s, done: make(chan struct{}), ring: newRing(ports, o.Bytes, o.Age)}
	go func() {
		defer close(c.done)
		s.wait(c.drain)
	}()
	return c, nil
}

// drain takes what waits in the socket, and says how many packets. The lock is
// given back now and then, for a reader of the ring.
func (c *Capture) drain() int {
	for n := 0; ; {
		c.mu.Lock()
		got, more, err := c.socket.read(c.ring.add)
		if err != nil && c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
		if n += got; !more {
			return n
		}
	}
}

// Lookup gives the packets of one connection from one time to another (Unix
// ns, both included), oldest first, up to the newest that the kernel saw; nil
// for none. Where the peer used its port again in that time, it is the
// connection with most packets in it. Sequence numbers are counted from the
// connection's SYN, or from the first packet that is still known.
func (c *Capture) Lookup(conn Conn, from, to int64) []Packet {
	c.drain()
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ring.find(conn, from, to)
}

// Stats gives the counts, and the error that ended the reading, if one did.
func (c *Capture) Stats() (Stats, error) {
	c.drain()
	c.mu.Lock()
	defer c.mu.Unlock()
	dropped, err := c.socket.dropped()
	return Stats{c.ring.captured, dropped, c.ring.duplicates, c.ring.evicted}, errors.Join(c.err, err)
}

// Close ends the capture. What was captured can still be looked up. The error is
// the one that ended the reading, if one did, or os.ErrClosed the second time.
func (c *Capture) Close() error {
	_, err := c.Stats()
	closeErr := c.socket.close()
	<-c.done
	return errors.Join(err, closeErr)
}
