package wire

import (
	"strings"
	"testing"
)

func TestOrderOf(t *testing.T) {
	p := func(at int64, fromPeer bool, flags Flags, seq, ack uint32, payload string) Packet {
		return Packet{At: at, FromPeer: fromPeer, Flags: flags, Seq: seq, Ack: ack, Len: len(payload), Payload: []byte(payload)}
	}
	const peer, server = true, false
	answer := p(1, server, PSH|ACK, 1, 70, strings.Repeat("x", 50))
	acked := p(2, peer, ACK, 70, 51, "")
	fin := p(10, server, FIN|ACK, 51, 70, "")
	request := func(at int64, ack uint32) Packet { return p(at, peer, PSH|ACK, 70, ack, head) }
	rst := func(at int64) Packet { return p(at, server, RST, 52, 0, "") }
	known := Late{Cell: "c", Seq: 123, At: 13}
	held := Late{Cell: "c", Seq: 123, At: 13, Closed: 8}
	for _, tt := range []struct {
		name string
		in   []Packet
		late Late
		want Order
	}{
		{"FIN in answer to nothing, request behind it", []Packet{answer, acked, fin, request(12, 51), rst(13)}, known, Crossing},
		{"acknowledged after the request left", []Packet{answer, acked, fin, request(12, 51), p(12, peer, ACK, 140, 52, ""), rst(13)}, known, Crossing},
		{"request acknowledges the FIN", []Packet{answer, acked, fin, request(12, 52), rst(13)}, known, Unnoticed},
		{"FIN acknowledged before", []Packet{answer, acked, fin, p(11, peer, ACK, 70, 52, ""), request(12, 52), rst(13)}, known, Unnoticed},
		{"FIN acknowledged before, packets in another order", []Packet{answer, acked, fin, p(11, peer, ACK, 70, 52, ""), request(12, 51), rst(13)}, known, Unnoticed},
		{"last answer carries the FIN", []Packet{p(1, server, FIN|PSH|ACK, 1, 70, strings.Repeat("x", 50)), request(12, 51), rst(13)}, known, Crossing},
		{"FIN, then a reset, then the request", []Packet{answer, acked, fin, rst(11), request(12, 51)}, known, Crossing},
		{"FIN and then nothing", []Packet{answer, acked, fin, request(12, 51)}, known, Crossing},
		{"sent again with a newer acknowledgement", []Packet{answer, acked, fin, request(12, 51), request(13, 52), rst(14)}, known, Crossing},
		{"unread, then RST", []Packet{answer, acked, request(9, 51), rst(10)}, known, RequestFirst},
		{"unread, then FIN", []Packet{answer, acked, request(9, 51), p(9, server, ACK, 51, 140, ""), fin, rst(11)}, known, RequestFirst},
		{"reset before", []Packet{answer, acked, rst(10), request(12, 51), rst(13)}, known, Reset},
		{"reset with ACK before", []Packet{answer, acked, p(10, server, RST|ACK, 51, 70, ""), request(12, 51)}, known, Reset},
		{"silence", []Packet{answer, acked, request(12, 51), request(15, 51)}, known, Silence},
		{"taken and neither answered nor closed", []Packet{answer, acked, request(12, 51), p(12, server, ACK, 51, 140, "")}, known, Unclear},
		{"answered", []Packet{answer, acked, request(12, 51), p(13, server, PSH|ACK, 51, 140, "HTTP"), fin}, known, Unclear},
		{"answered with the FIN", []Packet{answer, acked, request(12, 51), p(13, server, FIN|PSH|ACK, 51, 140, "HTTP")}, known, Unclear},
		{"no packet", nil, known, Unclear},
		{"request missing", []Packet{answer, acked, fin}, known, Unclear},
		{"by time, id unknown", []Packet{request(0, 1), answer, acked, fin, request(12, 51), rst(13)}, Late{At: 13}, Crossing},
		{"by time, id not in the packet", []Packet{p(0, peer, PSH|ACK, 1, 1, "GET"), answer, acked, fin, p(12, peer, PSH|ACK, 70, 52, "GET"), rst(13)}, known, Unnoticed},
		{"by time, head in two packets", []Packet{answer, acked, p(9, peer, PSH|ACK, 70, 51, "GET"), fin, p(12, peer, PSH|ACK, 73, 52, " /"), rst(13)}, known, RequestFirst},
		{"held back FIN behind the request", []Packet{answer, acked, request(9, 51), fin, rst(11)}, held, Crossing},
		{"held back FIN behind the request and its acknowledgement", []Packet{answer, acked, request(9, 51), p(9, server, ACK, 51, 140, ""), fin, rst(11)}, held, Crossing},
		{"held back FIN, request from before the close", []Packet{answer, acked, request(7, 51), fin, rst(11)}, held, RequestFirst},
		{"held back reset", []Packet{answer, acked, request(9, 51), rst(11)}, held, Reset},
		{"held back reset, request from before the close", []Packet{answer, acked, request(7, 51), rst(11)}, held, RequestFirst},
		{"held back FIN has arrived", []Packet{answer, acked, fin, request(12, 52), rst(32)}, held, Unnoticed},
		{"held back FIN and request in one moment", []Packet{answer, acked, fin, request(12, 51), rst(32)}, held, Crossing},
		{"by time, too early", []Packet{answer, acked, fin, p(12, peer, PSH|ACK, 70, 52, "GET"), rst(13)}, Late{At: 11}, Unclear},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := OrderOf(tt.in, tt.late); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

// Sequence numbers wrap.
func TestCoversWrap(t *testing.T) {
	fin := Packet{Flags: FIN | ACK, Seq: 1<<32 - 1}
	for ack, want := range map[uint32]bool{1<<32 - 1: false, 0: true, 1: true, 1<<32 - 9: false} {
		if got := covers(Packet{Flags: ACK, Ack: ack}, fin); got != want {
			t.Errorf("ack %d: %t, want %t", ack, got, want)
		}
	}
}

func TestExplain(t *testing.T) {
	texts := map[string]Order{}
	for _, o := range []Order{RequestFirst, Crossing, Unnoticed, Reset, Silence, Unclear} {
		s := o.Explain()
		if before, ok := texts[s]; ok || !strings.HasSuffix(s, ".") {
			t.Errorf("%q: %q, which %q has too", o, s, before)
		}
		texts[s] = o
	}
}
