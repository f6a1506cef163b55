package wire

// Order is how a late request and the server's close met, as the packets at
// the server's side show it.
type Order string

// The orders. Unclear is not a finding but the lack of one.
const (
	RequestFirst Order = "request before FIN"
	Crossing     Order = "crossing"
	Unnoticed    Order = "FIN delivered, not noticed"
	Reset        Order = "reset"
	Silence      Order = "silence"
	Unclear      Order = ""
)

// Explain is the order in one sentence.
func (o Order) Explain() string {
	switch o {
	case RequestFirst:
		return "The request had reached the server's kernel before the server closed, but was not read any more."
	case Crossing:
		return "The server's FIN was sent before the request arrived, and had not reached the proxy's kernel when the request left it."
	case Unnoticed:
		return "The proxy's kernel had the server's FIN before the proxy wrote the request: the proxy did not look."
	case Reset:
		return "The server had reset the connection without a FIN before the request arrived."
	case Silence:
		return "After the request no packet came from the server."
	default:
		return "The packets do not show how the request and a close met."
	}
}

// Late names the request that got no answer.
type Late struct {
	Cell string // request id; empty where it is not known
	Seq  uint64
	At   int64 // Unix ns when the server had it; used where no packet shows the request id

	// Closed is from when on (Unix ns) a request that passes the capture finds the
	// server closed, although an emulated network between server and capture may
	// still hold back the FIN or RST that says so. 0: there is no such network.
	Closed int64
}

// OrderOf says how a late request and the server's close met. The packets are
// those of one connection, oldest first, with nothing of the server's close
// missing: from the last response on, or from before it.
//
// A FIN before the request decides, whatever came after: by its own
// acknowledgement the request tells whether the proxy's kernel had the FIN when
// the request left it. A request that was sent again is judged by the packet
// that arrived first. Where the end was held back (Late.Closed) it came first all
// the same.
func OrderOf(packets []Packet, late Late) Order {
	at := request(packets, late)
	if at < 0 {
		return Unclear
	}
	before, req, after := packets[:at], packets[at], packets[at+1:]
	var fin *Packet
	var reset, noticed bool
	for i := range before {
		switch p := &before[i]; {
		case p.FromPeer:
			noticed = noticed || fin != nil && covers(*p, *fin)
		case p.Flags&FIN != 0 && fin == nil:
			fin = p
		case p.Flags&RST != 0:
			reset = true
		}
	}
	switch {
	case fin != nil && (noticed || covers(req, *fin)):
		return Unnoticed
	case fin != nil:
		return Crossing
	case reset:
		return Reset
	}
	closed := late.Closed != 0 && req.At >= late.Closed
	silent := true
	for _, p := range after {
		switch {
		case p.FromPeer:
		case p.Len > 0:
			return Unclear // an answer
		case closed && p.Flags&FIN != 0:
			return Crossing
		case closed && p.Flags&RST != 0:
			return Reset
		case p.Flags&(FIN|RST) != 0:
			return RequestFirst
		default:
			silent = false
		}
	}
	if silent {
		return Silence
	}
	return Unclear
}

// covers reports whether p acknowledges the FIN.
func covers(p, fin Packet) bool { return p.Flags&ACK != 0 && int32(p.Ack-fin.after()) >= 0 }

// request is the index of the first packet with the late request's id; without
// one, of the first with data that follows the server's last data before
// late.At. -1 for neither.
func request(packets []Packet, late Late) int {
	for i, p := range packets {
		if !p.FromPeer || late.Cell == "" {
			continue
		}
		if cell, seq, ok := p.RequestID(); ok && cell == late.Cell && seq == late.Seq {
			return i
		}
	}
	found := -1
	for i, p := range packets {
		switch {
		case p.At > late.At || p.Len == 0:
		case !p.FromPeer:
			found = -1
		case found < 0:
			found = i
		}
	}
	return found
}
