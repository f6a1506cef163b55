package record

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func on(server string, e Event) Line {
	e.Server = server
	return Line{T: KindEvent, Event: &e}
}

// Statements about cell "c" behind server "s", in the shortest form.
func accept(conn uint64, peer string) Line {
	return on("s", Event{Kind: EventAccept, Conn: conn, Peer: peer})
}

func request(conn uint64, cell string, seq uint64) Line {
	return on("s", Event{Kind: EventRequest, Conn: conn, Cell: cell, Seq: seq, Executed: true})
}

func idle(conn uint64) Line { return on("s", Event{Kind: EventIdle, Conn: conn, Cell: "c"}) }

func late(conn uint64, cell string, seq uint64) Line {
	return on("s", Event{Kind: EventLate, Conn: conn, Cell: cell, Seq: seq})
}

func timedOut(conn uint64, cell string) Line {
	return on("s", Event{Kind: EventClose, Conn: conn, Cell: cell, By: ByUpstream, Why: WhyIdleTimeout})
}

func peerClosed(conn uint64, cell string) Line {
	return on("s", Event{Kind: EventClose, Conn: conn, Cell: cell, By: ByPeer, Why: WhyPeerClosed})
}

func shot(cell string, seq uint64) Line {
	return Line{T: KindShot, Shot: &Shot{Cell: cell, Seq: seq, Status: 502, Outcome: OutcomeResponse}}
}

func logged(cell string, seq uint64, attempts ...Attempt) Line {
	return Line{T: KindLog, Log: &LogLine{Cell: cell, Seq: seq, Attempts: attempts}}
}

func packets(conn uint64, cell string, seq uint64) Line {
	return Line{T: KindPackets, Packets: &Packets{Cell: cell, Seq: seq, Conn: conn, Server: "s", Order: "crossing"}}
}

func settled(cell string, seq uint64) Line {
	return Line{T: KindSettled, Settled: &Settled{Cell: cell, Seq: seq}}
}

// flush is no line; the tables below write it among lines.
var flush = Line{T: "flush"}

// join feeds a Joiner and tells what it gave out, a line of text each.
func join(grace bool, in ...Line) []string {
	var out []string
	say := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	j := Joiner{
		Grace:   grace,
		Observe: func(o Observation) { say("%s", summary(o)) },
		Close:   func(e Event) { say("close %d", e.Conn) },
		Orphan:  func(e Event) { say("orphan %s %s/%d", e.Kind, e.Cell, e.Seq) },
	}
	for _, l := range in {
		if l == flush {
			j.Flush()
		} else {
			j.Add(l)
		}
	}
	return out
}

// summary is an observation in short; the numbers are those of connections.
func summary(o Observation) string {
	out := []string{fmt.Sprintf("%s/%d", o.Shot.Cell, o.Shot.Seq)}
	list := func(events []Event) {
		for _, e := range events {
			out = append(out, fmt.Sprintf("%s%d", e.Kind, e.Conn))
		}
	}
	list(o.Requests)
	list(o.Late)
	if len(o.Logs) > 0 {
		out = append(out, fmt.Sprintf("logs=%d", len(o.Logs)))
	}
	for _, p := range o.Packets {
		out = append(out, fmt.Sprintf("%s%d", p.Order, p.Conn))
	}
	list(o.Before)
	return strings.Join(out, " ")
}

func TestJoiner(t *testing.T) {
	const p, q = "127.0.0.1:40001", "127.0.0.1:40002"
	reset := Attempt{Local: p, Err: "reset"}
	for _, tt := range []struct {
		name  string
		grace bool
		in    []Line
		want  []string
	}{
		{
			name: "no failure",
			in:   []Line{accept(1, p), request(1, "c", 0), idle(1), shot("c", 0), logged("c", 0), settled("c", 0)},
			want: []string{"c/0 request1 logs=1"},
		}, {
			name: "reuse",
			in:   []Line{accept(1, p), request(1, "c", 0), idle(1), request(1, "c", 1), idle(1), shot("c", 0), shot("c", 1), settled("c", 1)},
			want: []string{"c/0 request1", "c/1 request1 idle1"},
		}, {
			name: "raced",
			in:   []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), late(1, "c", 1), shot("c", 0), shot("c", 1), settled("c", 1)},
			want: []string{"close 1", "c/0 request1", "c/1 late1 idle1 close1"},
		}, {
			name: "packets of a close without a witness of its own",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), shot("c", 0), shot("c", 1),
				packets(1, "c", 1), packets(9, "c", 0), settled("c", 1)},
			want: []string{"close 1", "c/0 request1 crossing9", "c/1 crossing1 idle1 close1"},
		}, {
			name: "packets tell no past twice",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), late(1, "c", 1), shot("c", 0), shot("c", 1),
				packets(1, "c", 1), settled("c", 1)},
			want: []string{"close 1", "c/0 request1", "c/1 late1 crossing1 idle1 close1"},
		}, {
			name: "masked",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), late(1, "c", 1),
				accept(2, q), request(2, "c", 1), idle(2), shot("c", 0), shot("c", 1), settled("c", 1)},
			want: []string{"close 1", "c/0 request1", "c/1 request2 late1 idle1 close1"},
		}, {
			name: "late on a connection of a burst that was given out",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), shot("c", 0), settled("c", 0),
				timedOut(1, "c"), late(1, "c", 1), shot("c", 1), settled("c", 1)},
			want: []string{"c/0 request1", "close 1", "c/1 late1 idle1 close1"},
		}, {
			name: "late of two requests on two connections",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), accept(2, q), request(2, "c", 1), idle(2), timedOut(2, "c"),
				late(1, "c", 2), late(2, "c", 2), shot("c", 0), shot("c", 1), shot("c", 2), settled("c", 2)},
			want: []string{"close 1", "close 2", "c/0 request1", "c/1 request2", "c/2 late1 late2 idle1 close1 idle2 close2"},
		}, {
			name: "executed twice",
			in:   []Line{accept(1, p), request(1, "c", 0), accept(2, q), request(2, "c", 0), shot("c", 0), settled("c", 0)},
			want: []string{"c/0 request1 request2"},
		}, {
			name: "given out in order of seq, up to the settled one",
			in:   []Line{shot("c", 3), shot("c", 1), shot("c", 2), shot("c", 0), settled("c", 2)},
			want: []string{"c/0", "c/1", "c/2"},
		}, {
			name: "cells are settled one by one",
			in:   []Line{shot("a", 0), shot("b", 0), settled("b", 0), settled("a", 0)},
			want: []string{"b/0", "a/0"},
		}, {
			name: "a settled cell without a request",
			in:   []Line{settled("c", 5), shot("c", 6), settled("c", 6)},
			want: []string{"c/6"},
		}, {
			name: "a witness of a request without a shot",
			in:   []Line{accept(1, p), request(1, "c", 0), logged("c", 1), shot("c", 2), settled("c", 2), flush},
			want: []string{"c/2"},
		}, {
			name: "the reader of the journal came late",
			in:   []Line{idle(1), request(1, "c", 0), timedOut(1, "c"), late(1, "c", 1), shot("c", 0), shot("c", 1), settled("c", 1)},
			want: []string{"close 1", "c/0 request1", "c/1 late1"},
		}, {
			name: "no grace: a late word is an orphan",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), shot("c", 0), settled("c", 0),
				late(1, "c", 0), request(1, "c", 0), logged("c", 0), shot("c", 0), settled("c", 1), flush},
			want: []string{"close 1", "c/0 request1", "orphan late c/0", "orphan request c/0"},
		}, {
			name:  "grace: a late word is heard until the next burst is settled",
			grace: true,
			in:    []Line{shot("c", 0), settled("c", 0), logged("c", 0), shot("c", 1), settled("c", 1), logged("c", 1), late(1, "c", 0), settled("c", 2)},
			want:  []string{"c/0 logs=1", "orphan late c/0", "c/1 logs=1"},
		}, {
			name: "flush without settled, by cell and seq",
			in:   []Line{shot("b", 1), shot("b", 0), shot("a", 7), settled("b", 0), flush, flush},
			want: []string{"b/0", "a/7", "b/1"},
		}, {
			name: "the stream goes on after a flush",
			in:   []Line{shot("c", 0), flush, shot("c", 1), settled("c", 1)},
			want: []string{"c/0", "c/1"},
		}, {
			name:  "flush ends the grace",
			grace: true,
			in:    []Line{shot("c", 0), settled("c", 0), shot("c", 1), flush},
			want:  []string{"c/0", "c/1"},
		}, {
			name: "only closes of connections that served a request",
			in:   []Line{accept(1, p), timedOut(1, ""), accept(2, q), request(2, "c", 0), idle(2), peerClosed(2, "c")},
			want: []string{"close 2"},
		}, {
			name: "statements about no request of ours",
			in:   []Line{accept(1, p), request(1, "", 0), late(1, "", 0), logged("", 0), flush, {T: KindDirect, Direct: &Direct{}}, {T: KindEnd, End: &End{}}},
		}, {
			name: "named by the log alone",
			in:   []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), shot("c", 1), logged("c", 1, reset), settled("c", 1)},
			want: []string{"close 1", "c/1 logs=1 idle1 close1"},
		}, {
			name: "named by the log, in a later burst",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), shot("c", 0), settled("c", 0), timedOut(1, "c"),
				shot("c", 1), settled("c", 1), shot("c", 2), logged("c", 2, reset), settled("c", 2)},
			want: []string{"c/0 request1", "close 1", "c/1", "c/2 logs=1 idle1 close1"},
		}, {
			name: "named by the log and by the origin: once",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), late(1, "c", 1), shot("c", 1),
				logged("c", 1, reset, reset), logged("c", 1, reset), settled("c", 1)},
			want: []string{"close 1", "c/1 late1 logs=2 idle1 close1"},
		}, {
			name: "not named: the attempt got a response, or tells no address, or an unknown one",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), shot("c", 1),
				logged("c", 1, Attempt{Local: p, Status: 200}, Attempt{Err: "reset"}, Attempt{Local: q, Err: "reset"}), settled("c", 1)},
			want: []string{"close 1", "c/1 logs=1"},
		}, {
			name: "not named: the connection is open",
			in:   []Line{accept(1, p), request(1, "c", 0), idle(1), shot("c", 1), logged("c", 1, reset), settled("c", 1)},
			want: []string{"c/1 logs=1"},
		}, {
			name: "not named: its peer closed the connection",
			in:   []Line{accept(1, p), request(1, "c", 0), idle(1), peerClosed(1, "c"), shot("c", 1), logged("c", 1, reset), settled("c", 1)},
			want: []string{"close 1", "c/1 logs=1"},
		}, {
			name: "not named: the address belongs to a newer connection",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), accept(2, p), request(2, "c", 1), idle(2),
				shot("c", 2), logged("c", 2, reset), settled("c", 2)},
			want: []string{"close 1", "c/2 logs=1"},
		}, {
			name: "named: an older connection of that address was forgotten",
			in: []Line{
				accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"), accept(2, p), request(2, "c", 1), idle(2),
				on("s", Event{Kind: EventClose, Conn: 2, Cell: "c", At: keepClosed + 1, By: ByUpstream, Why: WhyIdleTimeout}),
				{T: KindShot, Shot: &Shot{Cell: "c", Seq: 2, Sent: keepClosed + 2}}, settled("c", 2),
				shot("c", 3), logged("c", 3, reset), settled("c", 3),
			},
			want: []string{"close 1", "close 2", "c/2", "c/3 logs=1 idle2 close2"},
		}, {
			// Linux gives one local port to connections to several addresses.
			name: "not named: the address is in use at another server as well",
			in: []Line{
				accept(1, p), request(1, "c", 0), idle(1),
				on("t", Event{Kind: EventAccept, Conn: 2, Peer: p}),
				on("t", Event{Kind: EventRequest, Conn: 2, Cell: "d", Seq: 0, Executed: true}),
				on("t", Event{Kind: EventIdle, Conn: 2, Cell: "d"}),
				on("t", Event{Kind: EventClose, Conn: 2, Cell: "d", By: ByUpstream, Why: WhyIdleTimeout}),
				shot("c", 1), logged("c", 1, reset), settled("c", 1),
				shot("d", 1), logged("d", 1, reset), settled("d", 1),
			},
			want: []string{"close 2", "c/1 logs=1", "d/1 logs=1 idle2 close2"},
		}, {
			name: "named: a newer connection at another server has the address",
			in: []Line{
				accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"),
				on("t", Event{Kind: EventAccept, Conn: 2, Peer: p}),
				on("t", Event{Kind: EventClose, Conn: 2, By: ByPeer, Why: WhyPeerClosed}),
				shot("c", 1), logged("c", 1, reset), settled("c", 1),
			},
			want: []string{"close 1", "c/1 logs=1 idle1 close1"},
		}, {
			name: "not named: another cell's pool had the address since",
			in: []Line{accept(1, p), request(1, "c", 0), idle(1), timedOut(1, "c"),
				accept(2, p), request(2, "d", 0), idle(2), timedOut(2, "d"), shot("c", 1), logged("c", 1, reset), settled("c", 1)},
			want: []string{"close 1", "close 2", "c/1 logs=1"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, join(tt.grace, tt.in...)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// The witnesses speak in any order; what is known of a request in the end is
// the same.
func TestJoinerOrder(t *testing.T) {
	begin := []Line{accept(1, "127.0.0.1:40001"), request(1, "c", 0), idle(1), timedOut(1, "c"), accept(2, "127.0.0.1:40002"), shot("c", 0)}
	said := []Line{
		shot("c", 1), late(1, "c", 1), request(2, "c", 1),
		logged("c", 1, Attempt{Local: "127.0.0.1:40001", Err: "reset"}, Attempt{Local: "127.0.0.1:40002", Status: 200}),
	}
	orders := 0
	permute(said, func(order []Line) {
		orders++
		for _, grace := range []bool{false, true} {
			in := append(slices.Clone(begin), order...)
			got := join(grace, append(in, settled("c", 1), flush)...)
			want := []string{"close 1", "c/0 request1", "c/1 request2 late1 logs=1 idle1 close1"}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("grace %v, order %s: %s", grace, kinds(order), diff)
			}
		}
	})
	if orders != 24 {
		t.Errorf("%d orders tried", orders)
	}
}

func permute(ls []Line, f func([]Line)) {
	var from func(int)
	from = func(k int) {
		if k == len(ls) {
			f(ls)
			return
		}
		for i := k; i < len(ls); i++ {
			ls[k], ls[i] = ls[i], ls[k]
			from(k + 1)
			ls[k], ls[i] = ls[i], ls[k]
		}
	}
	from(0)
}

func kinds(ls []Line) string {
	var out []string
	for _, l := range ls {
		if l.Event != nil {
			out = append(out, string(l.Event.Kind))
		} else {
			out = append(out, l.T)
		}
	}
	return strings.Join(out, " ")
}

func TestJoinerCallbacks(t *testing.T) {
	n := 0
	j := Joiner{Observe: func(Observation) { n++ }} // Close and Orphan are nil
	j.Flush()
	for _, l := range []Line{accept(1, "p"), request(1, "c", 0), idle(1), timedOut(1, "c"), shot("c", 0), settled("c", 0), late(1, "c", 0)} {
		j.Add(l)
	}
	if n != 1 {
		t.Errorf("%d observations, want 1", n)
	}
}

// racing feeds add the record of a cell that races, burst by burst, a second
// apart: the upstream closes every connection, each request arrives late and
// is replayed over a new one.
func racing(cell string, bursts, lanes int, add func(Line)) {
	var seq, conn uint64
	at := int64(1_700_000_000_000_000_000)
	event := func(e Event) {
		e.At, e.Server = at, "s"
		add(Line{T: KindEvent, Event: &e})
	}
	open := make([]uint64, lanes)
	for burst := range bursts {
		for lane := range lanes {
			if old := open[lane]; old != 0 {
				event(Event{Kind: EventClose, Conn: old, Cell: cell, Seq: seq - uint64(lanes), By: ByUpstream, Why: WhyIdleTimeout, Idle: time.Second, Nth: 1})
				event(Event{Kind: EventLate, Conn: old, Cell: cell, Seq: seq, Method: "GET", Idle: time.Second})
			}
			conn++
			open[lane] = conn
			peer := fmt.Sprintf("127.0.0.1:%d", 32768+conn%20000)
			event(Event{Kind: EventAccept, Conn: conn, Peer: peer})
			event(Event{Kind: EventRequest, Conn: conn, Cell: cell, Seq: seq, Method: "GET", Nth: 1, Executed: true})
			event(Event{Kind: EventIdle, Conn: conn, Cell: cell, Seq: seq})
			add(Line{T: KindShot, Shot: &Shot{Cell: cell, Seq: seq, Lane: lane, Burst: burst, Phase: PhaseAimed, Target: TargetUpstream,
				Planned: time.Second, Age: time.Second, Edge: time.Second, Sent: at, Latency: time.Millisecond, Status: 200, Outcome: OutcomeResponse}})
			add(Line{T: KindLog, Log: &LogLine{Cell: cell, Seq: seq, Status: 200, Attempts: []Attempt{{Local: peer, Status: 200}}}})
			seq++
		}
		add(Line{T: KindSettled, Settled: &Settled{Cell: cell, Burst: burst, Seq: seq - 1}})
		at += int64(time.Second)
	}
}

func TestJoinerMemory(t *testing.T) {
	const lanes = 40
	for grace, bursts := range map[bool]int{true: 5000, false: 500} {
		observed, named := 0, 0
		j := Joiner{Grace: grace, Observe: func(o Observation) {
			observed++
			if len(o.Before) == 2 {
				named++
			}
		}}
		// A burst of requests; the connections of keepClosed, of the bursts not
		// given out, and the open ones.
		const requests, conns = lanes, (keepClosed/1_000_000_000 + 5) * lanes
		racing("c", bursts, lanes, func(l Line) {
			j.Add(l)
			if l.Settled == nil {
				return
			}
			c := j.cells["c"]
			if len(c.pending) > requests || len(c.conns) > conns || len(j.conns) > conns || len(j.peers) > conns || cap(c.conns) > 4*conns {
				t.Fatalf("after %d requests: %d pending, %d closed connections (room for %d), %d connections, %d addresses",
					observed, len(c.pending), len(c.conns), cap(c.conns), len(j.conns), len(j.peers))
			}
		})
		j.Flush()
		if observed != lanes*bursts || named != lanes*(bursts-1) {
			t.Errorf("grace %v: %d observations, %d with the late connection's idle close", grace, observed, named)
		}
		if c := j.cells["c"]; len(c.pending) != 0 {
			t.Errorf("grace %v: %d pending after Flush", grace, len(c.pending))
		}
	}
}

// A proxy that closes first leaves nothing behind at all.
func TestJoinerForgetsClosed(t *testing.T) {
	j := Joiner{Observe: func(Observation) {}}
	for i := range uint64(1000) {
		for _, l := range []Line{accept(i, fmt.Sprint(i)), request(i, "c", i), idle(i), peerClosed(i, "c"), shot("c", i), settled("c", i)} {
			j.Add(l)
		}
	}
	for range 1000 { // somebody looks whether the proxy is there
		j.Add(logged("", 0))
		j.Add(request(7, "", 0))
	}
	if len(j.cells) != 1 {
		t.Errorf("%d cells", len(j.cells))
	}
	if len(j.conns) != 0 || len(j.peers) != 0 || len(j.cells["c"].pending) != 0 {
		t.Errorf("%d connections, %d addresses, %d pending", len(j.conns), len(j.peers), len(j.cells["c"].pending))
	}
}

// BenchmarkReadJoin is what judging a stored run costs per line before the
// judge.
func BenchmarkReadJoin(b *testing.B) {
	var text bytes.Buffer
	w := NewWriter(&text)
	n := 0
	racing("gohttp_go_p2s_u1s_GET_default_fin_rtt0s", 100, 40, func(l Line) { w.Write(l); n++ })
	if err := w.Flush(); err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(text.Len() / n))
	b.ReportAllocs()
	observed := 0
	j := Joiner{Grace: true, Observe: func(Observation) { observed++ }}
	for i := 0; i < b.N; {
		for l, err := range Read(bytes.NewReader(text.Bytes())) {
			if err != nil {
				b.Fatal(err)
			}
			j.Add(l)
			if i++; i == b.N {
				break
			}
		}
		j.Flush()
		j = Joiner{Grace: true, Observe: j.Observe}
	}
	if b.N > n && observed == 0 {
		b.Fatal("nothing was joined")
	}
}
