package wire

import "encoding/binary"

const (
	protoTCP  = 6
	minTCP    = 20 // bytes of a TCP header without options
	minIPv4   = 20
	ipv6Bytes = 40
)

// addr is an IP address in 16 bytes; IPv4 as ::ffff:a.b.c.d.
type addr [16]byte

// header is what is read of a packet. Sequence numbers are absolute.
type header struct {
	src, dst         addr
	srcPort, dstPort uint16
	id               uint16 // IPv4: identification
	seq, ack         uint32
	flags            Flags
	window           uint16
	size             int    // bytes of the packet on the wire, from the IP header on
	data             int    // offset of the payload in the packet
	raw              []byte // the packet without link padding, as far as it was kept
}

// decode reads an IP packet, which may be cut anywhere behind the fixed part of
// its TCP header. ok is false for everything else: other protocols, later
// fragments, IPv6 extension headers, lengths that contradict each other. raw
// shares its memory with b.
func decode(b []byte) (h header, ok bool) {
	if len(b) < minIPv4 {
		return h, false
	}
	var tcp int // offset of the TCP header
	switch b[0] >> 4 {
	case 4:
		tcp = int(b[0]&0xf) * 4
		if tcp < minIPv4 || b[9] != protoTCP || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
			return h, false
		}
		h.size = int(binary.BigEndian.Uint16(b[2:]))
		h.id = binary.BigEndian.Uint16(b[4:])
		h.src, h.dst = mapped(b[12:16]), mapped(b[16:20])
	case 6:
		tcp = ipv6Bytes
		if len(b) < tcp || b[6] != protoTCP {
			return h, false
		}
		if n := int(binary.BigEndian.Uint16(b[4:])); n > 0 {
			h.size = tcp + n
		}
		h.src, h.dst = addr(b[8:24]), addr(b[24:40])
	default:
		return h, false
	}
	if h.size == 0 { // more than 64 KiB, before the interface splits it
		h.size = len(b)
	}
	h.raw = b[:min(len(b), h.size)]
	if len(h.raw) < tcp+minTCP {
		return h, false
	}
	t := b[tcp:]
	h.srcPort, h.dstPort = binary.BigEndian.Uint16(t), binary.BigEndian.Uint16(t[2:])
	h.seq, h.ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	h.flags, h.window = Flags(t[13]), binary.BigEndian.Uint16(t[14:])
	options := int(t[12]>>4) * 4
	h.data = tcp + options
	return h, options >= minTCP && h.data <= h.size
}

// length is the payload's on the wire, in bytes.
func (h *header) length() int { return h.size - h.data }

// payload is what raw holds of the payload; nil for nothing.
func (h *header) payload() []byte {
	if len(h.raw) <= h.data {
		return nil
	}
	return h.raw[h.data:]
}

func mapped(b []byte) addr {
	return addr{10: 0xff, 11: 0xff, 12: b[0], 13: b[1], 14: b[2], 15: b[3]}
}

// key is Conn in the form that packets have.
type key struct {
	peer           addr
	peerPort, port uint16
}

func (c Conn) key() key {
	return key{c.Peer.Addr().As16(), c.Peer.Port(), c.Port}
}
