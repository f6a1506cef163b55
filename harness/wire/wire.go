// Package wire is the packet witness: it captures the TCP packets of the
// origin's ports, finds those of one connection, says in which order request
// and close met, and writes them as evidence. It must not import anything of
// this module but record.
package wire

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"net/textproto"
	"strconv"
	"strings"

	"idlerace/harness/record"
)

// Conn names a connection as the origin's journal does: the server's port and
// the peer's address. A later connection may have the same name.
type Conn struct {
	Port uint16         `json:"port"`
	Peer netip.AddrPort `json:"peer"`
}

// Packet is one TCP packet of a connection.
type Packet struct {
	At       int64  `json:"at"`                  // Unix time in ns, of the kernel that saw the packet
	FromPeer bool   `json:"from_peer,omitempty"` // sent to the server; false: by the server
	Flags    Flags  `json:"flags"`
	Seq      uint32 `json:"seq"`           // relative: the sender's SYN is 0, its first byte 1
	Ack      uint32 `json:"ack,omitempty"` // relative to the receiver's SYN; 0 without the ACK flag
	Len      int    `json:"len,omitempty"` // bytes of payload on the wire
	Window   uint16 `json:"window"`        // as sent, not scaled
	Payload  []byte `json:"-"`             // what Raw holds of it
	Raw      []byte `json:"raw"`           // from the IP header on, cut to the snap length; base64 in JSON
}

// errNotTCP is the error of a Raw that is no IP packet with a TCP header.
var errNotTCP = errors.New("not a TCP packet over IPv4 or IPv6")

// UnmarshalJSON reads what json.Marshal made of a Packet and cuts Payload out
// of Raw.
func (p *Packet) UnmarshalJSON(b []byte) error {
	type plain Packet
	var v plain
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	h, ok := decode(v.Raw)
	if !ok {
		return errNotTCP
	}
	v.Raw, v.Payload = h.raw, h.payload()
	*p = Packet(v)
	return nil
}

// after is the sequence number behind p: SYN and FIN count one each.
func (p Packet) after() uint32 {
	n := p.Seq + uint32(p.Len)
	if p.Flags&SYN != 0 {
		n++
	}
	if p.Flags&FIN != 0 {
		n++
	}
	return n
}

// RequestID is the request id in the head of a request, as far as the packet
// was kept. ok is false without a complete pair of headers.
func (p Packet) RequestID() (cell string, seq uint64, ok bool) {
	head, _, _ := bytes.Cut(p.Payload, []byte("\r\n\r\n"))
	lines := bytes.Split(head, []byte("\r\n"))
	if len(head) == len(p.Payload) {
		lines = lines[:len(lines)-1] // the last line may be cut
	}
	var haveSeq bool
	for _, line := range lines {
		name, value, found := strings.Cut(string(line), ":")
		if !found {
			continue
		}
		switch textproto.CanonicalMIMEHeaderKey(name) {
		case record.HeaderCell:
			cell = strings.TrimSpace(value)
		case record.HeaderSeq:
			n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 64)
			seq, haveSeq = n, err == nil
		}
	}
	if cell == "" || !haveSeq {
		return "", 0, false
	}
	return cell, seq, true
}

// Flags are the flags of a TCP header.
type Flags uint8

// The flags of RFC 9293, section 3.1.
const (
	FIN Flags = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

var flagNames = [8]string{"FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"}

// String gives the names with commas between them: "FIN,ACK".
func (f Flags) String() string {
	var names []string
	for i, name := range flagNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// MarshalText is String.
func (f Flags) MarshalText() ([]byte, error) { return []byte(f.String()), nil }

// UnmarshalText reads what String wrote. An unknown name is an error.
func (f *Flags) UnmarshalText(b []byte) error {
	*f = 0
next:
	for _, s := range strings.FieldsFunc(string(b), func(r rune) bool { return r == ',' }) {
		for i, name := range flagNames {
			if s == name {
				*f |= 1 << i
				continue next
			}
		}
		return fmt.Errorf("%q is no TCP flag", s)
	}
	return nil
}
