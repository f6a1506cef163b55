package run

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"idlerace/harness/origin"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/wire"
)

const (
	// before is how much of a connection's life before its last idle period is
	// evidence: the requests that it served.
	before = 2 * time.Second
	// readOn is how long after a close a late request may still come: longer than
	// the origin reads on.
	readOn = 5 * origin.DefaultLinger
	// mostPackets of one connection are recorded, the last ones, and no more
	// than mostRaw bytes of them: a line of the record has its limit.
	mostPackets = 60
	mostRaw     = 24 << 10
	// mostEvidence is the number of connections in a cell's evidence file.
	mostEvidence = 50
)

// suspect is an upstream connection that met a request after its idle close,
// or may have.
type suspect struct {
	conn   uint64
	server string
	peer   string
	idle   int64 // Unix ns, when it went idle
	cell   string
	seq    uint64 // of the late request, or where late is false of the last one served
	at     int64  // Unix ns, of the late request or of the close
	late   bool   // the origin has read the late request
	closed int64  // see wire.Late
}

// suspect keeps what e says of a connection that the idle timer closed. It needs
// the hub's lock.
func (c *cell) suspect(e record.Event) {
	witnessed := c.item.Cell.Close.Witnessed()
	if c.packets != nil && e.IdleClosed() {
		if at := c.seenClosed(e.At); at != 0 {
			c.closes[e.Conn] = at
		}
	}
	if c.packets == nil || e.Kind == record.EventLate != witnessed || !witnessed && !e.IdleClosed() {
		return
	}
	c.suspects = append(c.suspects, suspect{conn: e.Conn, server: e.Server, peer: e.Peer, idle: e.At - int64(e.Idle),
		cell: e.Cell, seq: e.Seq, at: e.At, late: witnessed, closed: c.closes[e.Conn]})
}

// seenClosed is from when on a request that passes the capture finds a server
// that closed at a moment; 0 where nothing lies between the two. The capture is
// at the proxies' end of the cell's network.
func (c *cell) seenClosed(at int64) int64 {
	up, down := c.link.Delays(c.item.Cell.RTT)
	if up+down+c.link.Up.Jitter+c.link.Down.Jitter == 0 {
		return 0
	}
	return at - int64(up+c.link.Up.Jitter)
}

// inspect records the packets of the connections under suspicion.
func (c *cell) inspect(ctx context.Context) {
	if c.packets == nil {
		return
	}
	var suspects []suspect
	c.hub.with(func() {
		suspects, c.suspects = c.suspects, nil
		newest := slices.Max(append(slices.Collect(maps.Values(c.closes)), 0))
		maps.DeleteFunc(c.closes, func(_ uint64, at int64) bool { return at < newest-int64(readOn) })
	})
	if len(suspects) == 0 {
		return
	}
	answers, err := c.packets.ask(ctx, suspects)
	if err != nil {
		if ctx.Err() == nil {
			c.packets.lose(err)
		}
		return
	}
	var lines []record.Line
	for i, s := range suspects {
		if p, ok := s.judge(answers[i]); ok {
			lines = append(lines, record.Line{T: record.KindPackets, Packets: &p})
			c.files.evidence(p.Cell, p.Seq, answers[i])
		}
	}
	c.hub.add(lines...)
}

// judge says what packets of the connection show of a late request; ok is false
// where they show none.
func (s suspect) judge(packets []wire.Packet) (record.Packets, bool) {
	cellID, seq := s.cell, s.seq
	if !s.late {
		cellID, seq = "", 0
		for _, p := range packets {
			if id, n, ok := p.RequestID(); ok && p.FromPeer {
				cellID, seq = id, n
			}
		}
		if cellID == "" || cellID == s.cell && seq == s.seq {
			return record.Packets{}, false // the last one on the wire was served
		}
	}
	order := wire.OrderOf(packets, wire.Late{Cell: cellID, Seq: seq, At: s.at, Closed: s.closed})
	if order == wire.Unclear {
		return record.Packets{}, false
	}
	raw, err := json.Marshal(lastOf(packets))
	if err != nil {
		return record.Packets{}, false
	}
	return record.Packets{Cell: cellID, Seq: seq, Conn: s.conn, Server: s.server, Order: string(order), List: raw}, true
}

// lastOf bounds what is recorded.
func lastOf(packets []wire.Packet) []wire.Packet {
	n, size := 0, 0
	for n < len(packets) && n < mostPackets {
		if size += len(packets[len(packets)-1-n].Raw); size > mostRaw {
			break
		}
		n++
	}
	return packets[len(packets)-n:]
}

// packetSource asks an origin for packets.
type packetSource struct {
	journal *journal
	ports   map[string]uint16 // by server name
	lose    func(error)
}

// newPacketSource is nil, with the reason, where the origin captures nothing.
func newPacketSource(ctx context.Context, sd *side, lose func(error)) (*packetSource, string, error) {
	resp, err := sd.journal.get(ctx, "/capture")
	if err != nil {
		return nil, "", err
	}
	defer resp.Body.Close()
	var st origin.CaptureStatus
	if err := json.NewDecoder(resp.Body).Decode(&st); err != nil {
		return nil, "", fmt.Errorf("origin: /capture: %w", err)
	}
	if !st.On {
		return nil, st.Why, nil
	}
	p := &packetSource{journal: sd.journal, ports: map[string]uint16{}, lose: lose}
	for name, addr := range sd.servers {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, "", err
		}
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return nil, "", err
		}
		p.ports[name] = uint16(n)
	}
	return p, "", nil
}

func (p *packetSource) ask(ctx context.Context, suspects []suspect) ([][]wire.Packet, error) {
	ctx, cancel := context.WithTimeout(ctx, journalBehind)
	defer cancel()
	questions := make([]origin.PacketQuestion, len(suspects))
	now := time.Now().Add(time.Minute).UnixNano() // the origin's clock may be another machine's
	for i, s := range suspects {
		peer, err := netip.ParseAddrPort(s.peer)
		if err != nil {
			return nil, err
		}
		questions[i] = origin.PacketQuestion{Conn: wire.Conn{Port: p.ports[s.server], Peer: peer}, From: s.idle - int64(before), To: now}
	}
	body, err := json.Marshal(questions)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, p.journal.base+"/packets", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	resp, err := p.journal.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("origin: POST /packets: %s", resp.Status)
	}
	var answers [][]wire.Packet
	if err := json.NewDecoder(resp.Body).Decode(&answers); err != nil {
		return nil, fmt.Errorf("origin: POST /packets: %w", err)
	}
	if len(answers) != len(suspects) {
		return nil, fmt.Errorf("origin: POST /packets: %d answers to %d questions", len(answers), len(suspects))
	}
	return answers, nil
}

// requestID names a request.
type requestID struct {
	cell string
	seq  uint64
}

// evidence keeps the packets of a connection that a request met too late for
// the cell's capture file.
func (c *cellFiles) evidence(cell string, seq uint64, packets []wire.Packet) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.late == nil {
		c.late = map[requestID]bool{}
	}
	if len(c.late) < mostEvidence {
		c.late[requestID{cell, seq}] = true
		c.packets = append(c.packets, packets...)
	}
}

// writeEvidence writes the capture file of a cell whose requests met closed
// connections.
func writeEvidence(f *results.Folder, path string, packets []wire.Packet, late map[requestID]bool) error {
	if len(packets) == 0 {
		return nil
	}
	slices.SortStableFunc(packets, func(a, b wire.Packet) int { return cmp.Compare(a.At, b.At) })
	var b bytes.Buffer
	err := wire.WritePcapng(&b, packets, func(p wire.Packet) string {
		cell, seq, ok := p.RequestID()
		switch {
		case ok && p.FromPeer && late[requestID{cell, seq}]:
			return fmt.Sprintf("request id %s/%d, on a connection that the idle timer has closed", cell, seq)
		case ok && p.FromPeer:
			return fmt.Sprintf("request id %s/%d", cell, seq)
		case p.FromPeer:
			return ""
		case p.Flags&wire.FIN != 0:
			return "FIN: idle timer"
		case p.Flags&wire.RST != 0:
			return "RST: the request came too late"
		}
		return ""
	})
	if err != nil {
		return err
	}
	file, err := f.CreateFile(path)
	if err != nil {
		return err
	}
	_, err = io.Copy(file, &b)
	if e := file.Close(); err == nil {
		err = e
	}
	return err
}
