package wire

import (
	"encoding/binary"
	"encoding/json"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// segmentOf describes a synthetic packet from the address src to dst.
type segmentOf struct {
	src, dst string
	id       uint16
	seq, ack uint32
	flags    Flags
	options  int // bytes of TCP options, a multiple of 4
	payload  string
}

// bytes is the IP packet.
func (s segmentOf) bytes() []byte {
	src, dst := netip.MustParseAddrPort(s.src), netip.MustParseAddrPort(s.dst)
	tcp := make([]byte, minTCP+s.options, minTCP+s.options+len(s.payload))
	binary.BigEndian.PutUint16(tcp, src.Port())
	binary.BigEndian.PutUint16(tcp[2:], dst.Port())
	binary.BigEndian.PutUint32(tcp[4:], s.seq)
	binary.BigEndian.PutUint32(tcp[8:], s.ack)
	tcp[12] = byte(len(tcp) / 4 << 4)
	tcp[13] = byte(s.flags)
	binary.BigEndian.PutUint16(tcp[14:], 512)
	tcp = append(tcp, s.payload...)
	if src.Addr().Is6() {
		ip := make([]byte, ipv6Bytes)
		ip[0], ip[6], ip[7] = 6<<4, protoTCP, 64
		binary.BigEndian.PutUint16(ip[4:], uint16(len(tcp)))
		copy(ip[8:], src.Addr().AsSlice())
		copy(ip[24:], dst.Addr().AsSlice())
		return append(ip, tcp...)
	}
	ip := make([]byte, minIPv4)
	ip[0], ip[8], ip[9] = 4<<4|minIPv4/4, 64, protoTCP
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)+len(tcp)))
	binary.BigEndian.PutUint16(ip[4:], s.id)
	copy(ip[12:], src.Addr().AsSlice())
	copy(ip[16:], dst.Addr().AsSlice())
	return append(ip, tcp...)
}

const (
	server4, peer4 = "10.0.0.1:8080", "10.0.0.2:40000"
	server6, peer6 = "[fd00::1]:8080", "[fd00::2]:40000"
)

const head = "POST / HTTP/1.1\r\nHost: x\r\nX-Vegeta-Attack: c\r\nX-Vegeta-Seq: 123\r\n\r\n"

// edit gives a copy of b with one byte changed.
func edit(b []byte, at int, v byte) []byte {
	b = append([]byte(nil), b...)
	b[at] = v
	return b
}

func TestDecode(t *testing.T) {
	v4 := segmentOf{src: peer4, dst: server4, id: 7, seq: 1, ack: 2, flags: PSH | ACK, options: 12, payload: "abcdef"}.bytes()
	v6 := segmentOf{src: peer6, dst: server6, seq: 1, ack: 2, flags: PSH | ACK, payload: "abcdef"}.bytes()
	for _, tt := range []struct {
		name    string
		in      []byte
		ok      bool
		length  int
		payload string
	}{
		{"IPv4", v4, true, 6, "abcdef"},
		{"IPv6", v6, true, 6, "abcdef"},
		{"IPv4 with link padding", append(v4[:len(v4):len(v4)], 0, 0, 0), true, 6, "abcdef"},
		{"IPv6 with link padding", append(v6[:len(v6):len(v6)], 0, 0, 0), true, 6, "abcdef"},
		{"payload cut", v4[:len(v4)-4], true, 6, "ab"},
		{"options cut", v4[:minIPv4+minTCP], true, 6, ""},
		{"TCP header cut", v4[:minIPv4+minTCP-1], false, 0, ""},
		{"IPv6 header cut", v6[:ipv6Bytes-1], false, 0, ""},
		{"nothing", nil, false, 0, ""},
		{"IPv4 without total length", edit(edit(v4, 2, 0), 3, 0), true, 6, "abcdef"},
		{"IPv6 without payload length", edit(v6, 5, 0), true, 6, "abcdef"},
		{"first fragment", edit(v4, 6, 0x20), true, 6, "abcdef"},
		{"later fragment", edit(v4, 7, 1), false, 0, ""},
		{"IPv4 header too short", edit(v4, 0, 0x44), false, 0, ""},
		{"UDP over IPv4", edit(v4, 9, 17), false, 0, ""},
		{"UDP over IPv6", edit(v6, 6, 17), false, 0, ""},
		{"ARP", edit(v4, 0, 0), false, 0, ""},
		{"TCP header too short", edit(v4, minIPv4+12, 4<<4), false, 0, ""},
		{"TCP header beyond the packet", edit(v6, ipv6Bytes+12, 15<<4), false, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h, ok := decode(tt.in)
			if ok != tt.ok {
				t.Fatalf("ok = %t, want %t", ok, tt.ok)
			}
			if !ok {
				return
			}
			if h.length() != tt.length || string(h.payload()) != tt.payload {
				t.Errorf("length %d payload %q, want %d %q", h.length(), h.payload(), tt.length, tt.payload)
			}
			if h.srcPort != 40000 || h.dstPort != 8080 || h.seq != 1 || h.ack != 2 || h.flags != PSH|ACK || h.window != 512 {
				t.Errorf("header %+v", h)
			}
		})
	}
}

// Whatever comes from a network: no panic, nothing beyond the input, and the
// kernel's filter lets pass what decode understands.
func FuzzDecode(f *testing.F) {
	f.Add(segmentOf{src: peer4, dst: server4, flags: SYN, options: 20}.bytes())
	f.Add(segmentOf{src: server4, dst: peer4, flags: PSH | ACK, payload: head}.bytes())
	f.Add(segmentOf{src: peer6, dst: server6, flags: FIN | ACK}.bytes())
	f.Add(segmentOf{src: server6, dst: peer6, flags: RST, payload: "x"}.bytes()[:ipv6Bytes+minTCP])
	vm := newVM(f, filter([]uint16{8080}, defaultSnap))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, ok := decode(b)
		kept, err := vm.Run(b)
		if err != nil {
			t.Fatal(err)
		}
		if want := ok && (h.srcPort == 8080 || h.dstPort == 8080); want && kept == 0 {
			t.Fatalf("the filter drops %+v", h)
		}
		if !ok {
			return
		}
		if len(h.raw) > len(b) || h.length() < 0 || len(h.payload()) > h.length() {
			t.Fatalf("%d bytes decoded as %+v", len(b), h)
		}
		r := newRing([]uint16{h.srcPort, h.dstPort}, defaultBytes, defaultAge)
		r.add(1, 1, b)
		c := Conn{h.dstPort, netip.AddrPortFrom(netip.AddrFrom16(h.src), h.srcPort)}
		if got := r.find(c, 0, 2); len(got) != 1 || len(got[0].Payload) > got[0].Len {
			t.Fatalf("ring gives %+v", got)
		}
	})
}

func TestPacketJSON(t *testing.T) {
	r := newRing([]uint16{8080}, defaultBytes, defaultAge)
	r.add(5, 1, segmentOf{src: peer4, dst: server4, seq: 100, ack: 200, flags: PSH | ACK, payload: "abc"}.bytes())
	r.add(6, 1, segmentOf{src: server4, dst: peer4, seq: 200, ack: 103, flags: FIN | ACK}.bytes())
	want := r.find(Conn{8080, netip.MustParseAddrPort(peer4)}, 0, 9)
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	const text = `[{"at":5,"from_peer":true,"flags":"PSH,ACK","seq":1,"ack":1,"len":3,"window":512,"raw":"RQAAKwAAAABABgAACgAAAgoAAAGcQB+QAAAAZAAAAMhQGAIAAAAAAGFiYw=="},` +
		`{"at":6,"flags":"FIN,ACK","seq":1,"ack":4,"window":512,"raw":"RQAAKAAAAABABgAACgAAAQoAAAIfkJxAAAAAyAAAAGdQEQIAAAAAAA=="}]`
	if diff := cmp.Diff(text, string(b)); diff != "" {
		t.Errorf("JSON (-want +got):\n%s", diff)
	}
	var got []Packet
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("read back (-want +got):\n%s", diff)
	}
	for in, want := range map[string]string{
		`{"raw":"RQAA"}`:            errNotTCP.Error(),
		`{"flags":"FIN,NO"}`:        `"NO" is no TCP flag`,
		`{"at":"x"}`:                "cannot unmarshal",
		`{"flags":"","raw":"####"}`: "illegal base64",
	} {
		if err := json.Unmarshal([]byte(in), new(Packet)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v, want %q", in, err, want)
		}
	}
}

func TestFlags(t *testing.T) {
	for f, want := range map[Flags]string{0: "", FIN: "FIN", SYN | ACK: "SYN,ACK", 0xff: "FIN,SYN,RST,PSH,ACK,URG,ECE,CWR"} {
		if got := f.String(); got != want {
			t.Errorf("%d: %q, want %q", f, got, want)
		}
		var back Flags
		if err := back.UnmarshalText([]byte(want)); err != nil || back != f {
			t.Errorf("%q: %d, %v", want, back, err)
		}
	}
}

func TestRequestID(t *testing.T) {
	for _, tt := range []struct {
		payload, cell string
		seq           uint64
		ok            bool
	}{
		{head, "c", 123, true},
		{strings.ToLower(head), "c", 123, true},
		{head + "X-Vegeta-Seq: 5\r\n", "c", 123, true},
		{"x-vegeta-seq:7\r\nx-vegeta-attack:nginx/a b \r\nmore", "nginx/a b", 7, true},
		{"X-Vegeta-Attack: c\r\nX-Vegeta-Seq: 12", "", 0, false},
		{"X-Vegeta-Attack: c\r\n\r\nX-Vegeta-Seq: 12\r\n", "", 0, false},
		{"X-Vegeta-Attack: c\r\nX-Vegeta-Seq: x\r\n\r\n", "", 0, false},
		{"X-Vegeta-Seq: 12\r\n\r\n", "", 0, false},
		{"", "", 0, false},
	} {
		cell, seq, ok := Packet{Payload: []byte(tt.payload)}.RequestID()
		if cell != tt.cell || seq != tt.seq || ok != tt.ok {
			t.Errorf("%q: %q %d %t, want %q %d %t", tt.payload, cell, seq, ok, tt.cell, tt.seq, tt.ok)
		}
	}
}
