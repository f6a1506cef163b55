package origin

import "idlerace/harness/record"

// Recycled is the answer to POST /recycle.
type Recycled struct {
	Closed  int `json:"closed"`  // connections that were idle, or had no request yet
	Closing int `json:"closing"` // connections with a request in work: they are closed after its answer
}

// recycle ends every connection of every server as a rolling deploy does which
// tells nobody: idle ones at once by a plain close, the others after their
// answer, without "Connection: close". The listeners stay.
func (o *origin) recycle() (r Recycled) {
	o.mu.Lock()
	open := make([]*conn, 0, len(o.conns))
	for c := range o.conns {
		open = append(open, c)
	}
	o.mu.Unlock()
	for _, c := range open {
		closed, closing := c.recycle()
		if closed {
			r.Closed++
		}
		if closing {
			r.Closing++
		}
	}
	return r
}

// recycle reports whether it closed c, or c will be. One that ends for another
// reason is left to it.
func (c *conn) recycle() (closed, closing bool) {
	c.mu.Lock()
	switch {
	case c.ended || c.cause.why != "":
	case c.phase == active || c.first != 0:
		c.recycled, closing = true, true
	default:
		c.cause, closed = cause{by: record.ByUpstream, why: record.WhyShutdown}, true
	}
	c.mu.Unlock()
	if closed {
		c.Close()
	}
	return closed, closing
}
