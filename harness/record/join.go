package record

import "slices"

// Joiner puts the witnesses' lines together, request by request, in one pass.
// Its memory is bounded by what is in flight: a burst or two of every cell, and
// the connections that are open; and the run's disturbances.
//
// A request is complete when a Settled line covers it. With Grace set, it is
// given out one Settled line later, so that a witness that spoke late is still
// heard; a judge of a stored run wants that, a loop that decides while the run
// goes on does not.
type Joiner struct {
	Grace bool
	// Observe is called with every completed request, in order of Seq within a
	// cell.
	Observe func(Observation)
	// Close is called with every close of a connection that served a request,
	// unless a disturbance may have had a hand in its moment.
	Close func(Event)
	// Orphan is called with a statement about a request that was given out
	// before, unless the run was disturbed. May be nil.
	Orphan func(Event)

	cells map[string]*joinCell
	conns map[uint64]*joinConn
	peers map[peer]*joinConn

	disturbances disturbances
}

// peer is a proxy's end of a connection. Its address alone would not do: the
// kernel gives one local port to connections to several servers.
type peer struct{ server, addr string }

type joinCell struct {
	server  string // the origin's server behind it; empty until the journal says
	pending map[uint64]*Observation
	upto    uint64 // every seq below has been given out
	grace   uint64 // seqs below are complete, kept for one more Settled
	conns   []*joinConn
}

// joinConn is what is remembered of one upstream connection: the begin of its
// last idle period and, if the idle timer or a restart ended it, that close.
type joinConn struct {
	id     uint64
	peer   peer
	idle   *Event
	closed *Event
}

// Add takes one line.
func (j *Joiner) Add(l Line) {
	if j.cells == nil {
		j.cells, j.conns, j.peers = map[string]*joinCell{}, map[uint64]*joinConn{}, map[peer]*joinConn{}
	}
	switch {
	case l.Shot != nil:
		if o := j.request(l.Shot.Cell, l.Shot.Seq); o != nil {
			o.Shot = *l.Shot
		}
	case l.Log != nil:
		if l.Log.Cell == "" {
			return
		}
		if o := j.request(l.Log.Cell, l.Log.Seq); o != nil {
			o.Logs = append(o.Logs, *l.Log)
		}
	case l.Event != nil:
		j.event(*l.Event)
	case l.Packets != nil:
		if o := j.request(l.Packets.Cell, l.Packets.Seq); o != nil {
			o.Packets = append(o.Packets, *l.Packets)
			j.remember(o, l.Packets.Conn)
		}
	case l.Disturbance != nil:
		j.disturbances.add(*l.Disturbance)
	case l.Settled != nil:
		j.settle(*l.Settled)
	}
}

// Flush gives out all that is pending, settled or not: the end of the stream.
func (j *Joiner) Flush() {
	names := make([]string, 0, len(j.cells))
	for name := range j.cells {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		j.giveOut(j.cells[name], ^uint64(0))
	}
}

func (j *Joiner) cell(name string) *joinCell {
	c := j.cells[name]
	if c == nil {
		c = &joinCell{pending: map[uint64]*Observation{}}
		j.cells[name] = c
	}
	return c
}

// request is the pending observation of a request id; nil when it was given
// out already.
func (j *Joiner) request(cell string, seq uint64) *Observation {
	c := j.cell(cell)
	if seq < c.upto {
		return nil
	}
	o := c.pending[seq]
	if o == nil {
		o = &Observation{}
		c.pending[seq] = o
	}
	return o
}

func (j *Joiner) event(e Event) {
	switch e.Kind {
	case EventAccept:
		k := &joinConn{id: e.Conn, peer: peer{e.Server, e.Peer}}
		j.conns[e.Conn], j.peers[k.peer] = k, k
	case EventIdle:
		if k := j.conns[e.Conn]; k != nil {
			k.idle = &e
		}
	case EventRequest, EventLate:
		if e.Cell == "" {
			return
		}
		j.cell(e.Cell).server = e.Server
		o := j.request(e.Cell, e.Seq)
		if o == nil {
			if j.Orphan != nil && len(j.Disturbed(e.At, e.At)) == 0 {
				j.Orphan(e)
			}
			return
		}
		if e.Kind == EventRequest {
			o.Requests = append(o.Requests, e)
		} else {
			o.Late = append(o.Late, e)
		}
		j.remember(o, e.Conn)
	case EventClose:
		if e.Cell != "" && j.Close != nil && len(j.Disturbed(e.At-int64(e.Idle), e.At)) == 0 {
			j.Close(e)
		}
		k := j.conns[e.Conn]
		if k == nil {
			return
		}
		if !e.IdleClosed() && !e.Restarted() || e.Cell == "" {
			j.forget(k)
			return
		}
		// A late request, or a proxy's log line, may still name it.
		k.closed = &e
		c := j.cell(e.Cell)
		c.conns = append(c.conns, k)
	}
}

// remember adds the last idle period of a connection that o met.
func (j *Joiner) remember(o *Observation, conn uint64) {
	k := j.conns[conn]
	if k == nil || k.idle == nil || named(o.Before, conn) {
		return
	}
	o.Before = append(o.Before, *k.idle)
	if k.closed != nil {
		o.Before = append(o.Before, *k.closed)
	}
}

func (j *Joiner) forget(k *joinConn) {
	delete(j.conns, k.id)
	if j.peers[k.peer] == k {
		delete(j.peers, k.peer)
	}
}

func (j *Joiner) settle(s Settled) {
	c := j.cell(s.Cell)
	if !j.Grace {
		j.giveOut(c, s.Seq+1)
		return
	}
	j.giveOut(c, c.grace)
	c.grace = s.Seq + 1
}

// giveOut hands on the requests of c below upto and forgets the closed
// connections that only they could have named.
func (j *Joiner) giveOut(c *joinCell, upto uint64) {
	var seqs []uint64
	for seq := range c.pending {
		if seq < upto {
			seqs = append(seqs, seq)
		}
	}
	slices.Sort(seqs)
	var newest int64
	for _, seq := range seqs {
		o := c.pending[seq]
		delete(c.pending, seq)
		if o.Shot.Cell == "" {
			continue // a witness named a request whose shot was never recorded
		}
		newest = max(newest, o.Shot.Sent)
		j.nameByLog(c.server, o)
		o.Disturbed = j.disturbances.of(o)
		j.Observe(*o)
	}
	if upto > c.upto && upto != ^uint64(0) {
		c.upto = upto
	}
	kept := c.conns[:0]
	for _, k := range c.conns {
		if k.closed.At >= newest-int64(keepClosed) {
			kept = append(kept, k)
		} else {
			j.forget(k)
		}
	}
	c.conns = kept
}

// keepClosed is how long before a shot the idle timer may have closed a
// connection and the proxy still have chosen it, in ns: far above any linger.
const keepClosed = 10_000_000_000

// nameByLog adds the close, by idle timer or restart, of a connection that the proxy's log
// names by its own address: proof for a request that never left the proxy.
func (j *Joiner) nameByLog(server string, o *Observation) {
	for _, l := range o.Logs {
		for _, a := range l.Attempts {
			if a.Local == "" || a.Err == "" {
				continue
			}
			k := j.peers[peer{server, a.Local}]
			if k == nil || k.closed == nil || named(o.Before, k.id) {
				continue
			}
			if k.closed.Cell != o.Shot.Cell {
				continue // the address was used again since, by another pool
			}
			if k.idle != nil {
				o.Before = append(o.Before, *k.idle)
			}
			o.Before = append(o.Before, *k.closed)
		}
	}
}

func named(events []Event, conn uint64) bool {
	for _, e := range events {
		if e.Conn == conn && e.Kind == EventClose {
			return true
		}
	}
	return false
}
