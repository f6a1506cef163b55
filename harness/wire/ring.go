package wire

import (
	"cmp"
	"slices"
	"time"
)

const (
	segments = 32 // parts in which the ring forgets
	overhead = 64 // bytes counted for a packet besides its own
)

// ring holds the newest packets, in segments of one size: the oldest segment
// goes as a whole, and with it its index. All methods need the owner's lock.
type ring struct {
	ports   [1 << 16]bool
	segment int // bytes a segment may have
	age     time.Duration
	list    []*segment // oldest first

	captured, duplicates, evicted uint64
}

type segment struct {
	buf     []byte
	entries []entry
	last    map[key]int32 // newest entry of a connection
	newest  int64
}

// entry is one packet: buf[off:off+n].
type entry struct {
	at       int64
	off, n   int
	prev     int32 // entry before it of the same connection, -1: none in this segment
	iface    int32
	fromPeer bool
}

func newRing(ports []uint16, bytes int, age time.Duration) *ring {
	r := &ring{segment: bytes / segments, age: age}
	for _, p := range ports {
		r.ports[p] = true
	}
	return r
}

// add takes a packet that an interface saw at a time (Unix ns), and copies it.
// What belongs to none of the ports is left out.
func (r *ring) add(at int64, iface int32, raw []byte) {
	h, ok := decode(raw)
	if !ok {
		return
	}
	e := entry{at: at, n: len(h.raw), iface: iface, prev: -1, fromPeer: true}
	k := key{h.src, h.srcPort, h.dstPort}
	if !r.ports[h.dstPort] {
		if !r.ports[h.srcPort] {
			return
		}
		k, e.fromPeer = key{h.dst, h.dstPort, h.srcPort}, false
	}
	s := r.current(at, len(h.raw)+overhead)
	if i, ok := s.last[k]; ok {
		if s.twice(i, e, h) {
			r.duplicates++
			return
		}
		e.prev = i
	}
	e.off = len(s.buf)
	s.buf = append(s.buf, h.raw...)
	s.last[k] = int32(len(s.entries))
	s.entries = append(s.entries, e)
	s.newest = max(s.newest, at)
	r.captured++
}

// current is the segment that takes n bytes more.
func (r *ring) current(at int64, n int) *segment {
	for len(r.list) > 1 && r.list[0].newest < at-int64(r.age) {
		r.drop()
	}
	if len(r.list) > 0 {
		s := r.list[len(r.list)-1]
		if len(s.buf)+len(s.entries)*overhead+n <= r.segment {
			return s
		}
	}
	s := &segment{last: map[key]int32{}}
	if len(r.list) == segments {
		s = r.drop()
		s.buf, s.entries, s.newest = s.buf[:0], s.entries[:0], 0
		clear(s.last)
	}
	r.list = append(r.list, s)
	return s
}

// drop takes the oldest segment out.
func (r *ring) drop() *segment {
	s := r.list[0]
	r.list = slices.Delete(r.list, 0, 1)
	r.evicted += uint64(len(s.entries))
	return s
}

// twice reports whether another interface saw the packet before: a bridge's
// member and the bridge both see what passes through them. Entry i is the
// newest of the connection. A packet sent again is another packet: it comes by
// the same interface.
func (s *segment) twice(i int32, e entry, h header) bool {
	for range 4 {
		o := &s.entries[i]
		if o.iface != e.iface && o.fromPeer == e.fromPeer {
			oh, _ := decode(s.raw(o))
			if oh.seq == h.seq && oh.ack == h.ack && oh.flags == h.flags && oh.size == h.size && oh.id == h.id {
				return true
			}
		}
		if i = o.prev; i < 0 {
			return false
		}
	}
	return false
}

func (s *segment) raw(e *entry) []byte { return s.buf[e.off : e.off+e.n : e.off+e.n] }

// find gives the packets of c from one time to another (Unix ns, both
// included), oldest first, as copies; nil for none. Of several connections of
// that name it takes the one with most packets in that time, the later of two
// alike.
func (r *ring) find(c Conn, from, to int64) []Packet {
	all := r.all(c.key())
	var best []Packet
	for len(all) > 0 {
		n := 1
		for n < len(all) && !begins(all[:n], all[n]) {
			n++
		}
		relate(all[:n])
		begin, _ := slices.BinarySearchFunc(all[:n], from, byTime)
		end, _ := slices.BinarySearchFunc(all[:n], to+1, byTime)
		if begin < end && end-begin >= len(best) {
			best = all[begin:end]
		}
		all = all[n:]
	}
	for i := range best {
		p := &best[i]
		h, _ := decode(p.Raw)
		h.raw = slices.Clone(h.raw)
		p.Raw, p.Payload = h.raw, h.payload()
	}
	return slices.Clip(best)
}

func byTime(p Packet, at int64) int { return cmp.Compare(p.At, at) }

// all gives every packet of k, oldest first, with absolute sequence numbers. Raw
// is the ring's.
func (r *ring) all(k key) []Packet {
	var list []Packet
	for _, s := range r.list {
		begin := len(list)
		i, ok := s.last[k]
		for ; ok && i >= 0; i = s.entries[i].prev {
			e := &s.entries[i]
			h, _ := decode(s.raw(e))
			list = append(list, Packet{
				At: e.at, FromPeer: e.fromPeer, Flags: h.flags, Seq: h.seq, Ack: h.ack,
				Len: h.length(), Window: h.window, Raw: h.raw,
			})
		}
		slices.Reverse(list[begin:])
	}
	// Two processors may give in their packets in another order than the
	// kernel saw them.
	slices.SortStableFunc(list, func(a, b Packet) int { return cmp.Compare(a.At, b.At) })
	return list
}

// begins reports whether p opens a new connection after the packets of an old
// one: a SYN of the peer that is not the old one's sent again.
func begins(old []Packet, p Packet) bool {
	if !p.FromPeer || p.Flags&(SYN|ACK) != SYN {
		return false
	}
	return !slices.ContainsFunc(old, func(o Packet) bool {
		return o.FromPeer && o.Flags&SYN != 0 && o.Seq == p.Seq
	})
}

// relate makes the sequence numbers of one connection relative. Without a SYN
// the first byte seen, or acknowledged, counts as byte 1.
func relate(packets []Packet) {
	type base struct {
		seq   uint32
		known bool
	}
	var peer, server base
	for i := range packets {
		p := &packets[i]
		from, to := &server, &peer
		if p.FromPeer {
			from, to = to, from
		}
		if p.Flags&SYN != 0 {
			*from = base{p.Seq, true}
		}
		if !from.known {
			*from = base{p.Seq - 1, true}
		}
		p.Seq -= from.seq
		if p.Flags&ACK == 0 {
			p.Ack = 0
			continue
		}
		if !to.known {
			*to = base{p.Ack - 1, true}
		}
		p.Ack -= to.seq
	}
}
