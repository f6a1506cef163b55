package wire

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// show is the packets in a form to compare: "5> SYN 0 0 0" for time, direction,
// flags, seq, ack and len.
func show(packets []Packet) (lines []string) {
	for _, p := range packets {
		way := "<"
		if p.FromPeer {
			way = ">"
		}
		lines = append(lines, fmt.Sprintf("%d%s %s %d %d %d", p.At, way, p.Flags, p.Seq, p.Ack, p.Len))
	}
	return lines
}

// seen is a packet of the connection peer4 -> server4 as an interface saw it.
type seen struct {
	at       int64
	iface    int32
	fromPeer bool
	seq, ack uint32
	flags    Flags
	n        int
}

func (s seen) bytes() []byte {
	p := segmentOf{src: server4, dst: peer4, seq: s.seq, ack: s.ack, flags: s.flags, payload: strings.Repeat("x", s.n)}
	if s.fromPeer {
		p.src, p.dst = p.dst, p.src
	}
	return p.bytes()
}

func TestFind(t *testing.T) {
	whole := []seen{
		{1, 1, true, 1000, 0, SYN, 0},
		{2, 1, false, 1<<32 - 1, 1001, SYN | ACK, 0},
		{3, 1, true, 1001, 0, ACK, 0},
		{4, 1, true, 1001, 0, PSH | ACK, 100},
		{5, 1, false, 0, 1101, PSH | ACK, 50},
		{9, 1, false, 50, 1101, FIN | ACK, 0},
		{9, 1, true, 1101, 50, PSH | ACK, 100},
		{10, 1, false, 50, 0, RST, 0},
	}
	shown := []string{"1> SYN 0 0 0", "2< SYN,ACK 0 1 0", "3> ACK 1 1 0", "4> PSH,ACK 1 1 100", "5< PSH,ACK 1 101 50", "9< FIN,ACK 51 101 0", "9> PSH,ACK 101 51 100", "10< RST 51 0 0"}
	for _, tt := range []struct {
		name     string
		in       []seen
		from, to int64
		want     []string
	}{
		{"whole, sequence numbers wrap", whole, 0, 20, shown},
		{"numbers count from a SYN outside the time", whole, 5, 9, shown[4:7]},
		{"outside", whole, 11, 20, nil},
		{"no SYN known", whole[4:], 0, 20, []string{"5< PSH,ACK 1 1 50", "9< FIN,ACK 51 1 0", "9> PSH,ACK 1 51 100", "10< RST 51 0 0"}},
		{"SYN sent again", []seen{{1, 1, true, 7, 0, SYN, 0}, {2, 1, true, 7, 0, SYN, 0}, {3, 1, false, 9, 8, SYN | ACK, 0}}, 0, 20,
			[]string{"1> SYN 0 0 0", "2> SYN 0 0 0", "3< SYN,ACK 0 1 0"}},
		{"port used again: the later", append(whole[:8:8], seen{12, 1, true, 7, 0, SYN, 0}, seen{13, 1, false, 9, 8, SYN | ACK, 0}, seen{14, 1, true, 8, 10, ACK, 0}), 10, 20,
			[]string{"12> SYN 0 0 0", "13< SYN,ACK 0 1 0", "14> ACK 1 1 0"}},
		{"port used again: the earlier", append(whole[:8:8], seen{12, 1, true, 7, 0, SYN, 0}, seen{13, 1, false, 9, 8, SYN | ACK, 0}), 3, 12, shown[2:]},
		{"seen by a bridge and its member", []seen{{1, 4, true, 7, 1, ACK, 5}, {1, 2, true, 7, 1, ACK, 5}, {2, 2, false, 1, 12, ACK, 0}, {2, 4, false, 1, 12, ACK, 0}}, 0, 20,
			[]string{"1> ACK 1 1 5", "2< ACK 1 6 0"}},
		{"sent again", []seen{{1, 4, true, 7, 1, ACK, 5}, {2, 4, true, 7, 1, ACK, 5}}, 0, 20, []string{"1> ACK 1 1 5", "2> ACK 1 1 5"}},
		{"given in another order", []seen{{2, 1, false, 1, 12, ACK, 0}, {1, 1, true, 7, 1, ACK, 5}}, 0, 20, []string{"1> ACK 1 1 5", "2< ACK 1 6 0"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRing([]uint16{8080}, defaultBytes, defaultAge)
			for _, s := range tt.in {
				r.add(s.at, s.iface, s.bytes())
			}
			r.add(5, 1, segmentOf{src: "10.0.0.3:40000", dst: server4, flags: SYN}.bytes())
			r.add(5, 1, segmentOf{src: peer4, dst: "10.0.0.1:8081", flags: SYN}.bytes())
			got := r.find(Conn{8080, netip.MustParseAddrPort(peer4)}, tt.from, tt.to)
			if diff := cmp.Diff(tt.want, show(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			if want := uint64(len(tt.in)) + 1; r.captured+r.duplicates != want {
				t.Errorf("captured %d, duplicates %d of %d", r.captured, r.duplicates, want)
			}
		})
	}
}

// The journal may spell an IPv4 peer either way.
func TestFindMapped(t *testing.T) {
	r := newRing([]uint16{8080}, defaultBytes, defaultAge)
	r.add(1, 1, segmentOf{src: peer4, dst: server4, flags: SYN}.bytes())
	if got := r.find(Conn{8080, netip.MustParseAddrPort("[::ffff:10.0.0.2]:40000")}, 0, 2); len(got) != 1 {
		t.Errorf("%d packets, want 1", len(got))
	}
}

func TestRingForgets(t *testing.T) {
	const bytes = 64 << 10
	c := Conn{8080, netip.MustParseAddrPort(peer4)}
	add := func(r *ring, n int, every time.Duration) {
		for i := range n {
			r.add(int64(i)*int64(every), 1, seen{fromPeer: true, seq: uint32(i) * 100, flags: ACK, n: 100}.bytes())
		}
	}
	t.Run("bytes", func(t *testing.T) {
		r := newRing([]uint16{8080}, bytes, time.Hour)
		add(r, 5000, time.Millisecond)
		got := r.find(c, 0, int64(time.Hour))
		least, most := (bytes-bytes/segments)/(140+overhead)-segments, bytes/(140+overhead)
		if len(got) < least || len(got) > most || got[len(got)-1].At != int64(4999*time.Millisecond) {
			t.Errorf("%d packets to %d, want %d to %d of the newest", len(got), got[len(got)-1].At, least, most)
		}
		for i := 1; i < len(got); i++ {
			if got[i].At-got[i-1].At != int64(time.Millisecond) {
				t.Fatalf("hole at packet %d", i)
			}
		}
		if r.captured != 5000 || r.evicted != 5000-uint64(len(got)) {
			t.Errorf("captured %d evicted %d", r.captured, r.evicted)
		}
	})
	t.Run("age", func(t *testing.T) {
		r := newRing([]uint16{8080}, bytes, 10*time.Second)
		add(r, 100, time.Second)
		if got := r.find(c, 0, int64(time.Hour)); len(got) < 10 || len(got) > 10+2*bytes/segments/(140+overhead) {
			t.Errorf("%d packets", len(got))
		}
	})
	t.Run("copies", func(t *testing.T) {
		r := newRing([]uint16{8080}, bytes, time.Hour)
		add(r, 1, time.Second)
		got := r.find(c, 0, 1)[0]
		want := string(got.Raw)
		add(r, 5000, time.Second)
		if string(got.Raw) != want {
			t.Error("a packet that was given out has changed")
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	var packets [][]byte
	for i := range 512 {
		packets = append(packets, segmentOf{src: fmt.Sprintf("10.0.0.2:%d", 40000+i), dst: server4, flags: PSH | ACK, options: 12, payload: strings.Repeat("x", 300)}.bytes())
	}
	r := newRing([]uint16{8080}, defaultBytes, defaultAge)
	b.ReportAllocs()
	var at int64
	for b.Loop() {
		at++
		r.add(at, 1, packets[at%512])
	}
}

// A connection of 10 packets among 100,000 in the ring.
func BenchmarkFind(b *testing.B) {
	r := newRing([]uint16{8080}, 64<<20, defaultAge)
	for i := range 100_000 {
		r.add(int64(i), 1, segmentOf{src: fmt.Sprintf("10.0.0.2:%d", 40000+i%10_000), dst: server4, seq: uint32(i), flags: PSH | ACK, payload: strings.Repeat("x", 300)}.bytes())
	}
	c := Conn{8080, netip.MustParseAddrPort("10.0.0.2:40005")}
	b.ReportAllocs()
	for b.Loop() {
		if got := r.find(c, 0, 100_000); len(got) != 10 {
			b.Fatalf("%d packets", len(got))
		}
	}
}
