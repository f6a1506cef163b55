package record

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ms = int64(time.Millisecond)

// begins and ends are the two lines of a disturbance, in ms.
func begins(what string, from int64) Line {
	return Line{T: KindDisturbance, Disturbance: &Disturbance{What: what, From: from * ms}}
}

func ends(what string, from, to int64) Line {
	return Line{T: KindDisturbance, Disturbance: &Disturbance{What: what, From: from * ms, To: to * ms}}
}

// aged is a shot sent at a moment, in ms, that took 5 ms and 1000 ms after its
// connection had gone idle.
func aged(seq uint64, sent int64) Line {
	return Line{T: KindShot, Shot: &Shot{Cell: "c", Seq: seq, Sent: sent * ms, Latency: 5 * time.Millisecond, Age: time.Second}}
}

// closed is the end of an idle period of a second, in ms.
func closed(by, why string, at int64) Line {
	return on("s", Event{Kind: EventClose, Conn: 1, Cell: "c", At: at * ms, Idle: time.Second, By: by, Why: why})
}

// TestDisturbed: at 10000 ms pause-proxy begins, at 10300 ms it ends.
func TestDisturbed(t *testing.T) {
	pause := []Line{begins("pause-proxy", 10_000), ends("pause-proxy", 10_000, 10_300)}
	restart := []Line{begins("restart-origin", 10_000), ends("restart-origin", 10_000, 10_001)}
	for _, tt := range []struct {
		name string
		in   []Line
		want string // kinds of the shot; "closed": the close was given out
	}{
		{"long before", append(pause, aged(1, 9_900)), ""},
		{"just before", append(pause, aged(1, 9_986)), "pause-proxy"},
		{"within", append(pause, aged(1, 10_150)), "pause-proxy"},
		{"in its grace", append(pause, aged(1, 10_400)), "pause-proxy"},
		{"after its grace", append(pause, aged(1, 10_401)), ""},
		{"while idle", append(pause, aged(1, 10_900)), ""},
		{"as it went idle", append(pause, aged(1, 11_200)), "pause-proxy"},
		{"went idle after its grace", append(pause, aged(1, 11_401)), ""},
		{"a restart while idle", append(restart, aged(1, 10_900)), "restart-origin"},
		{"a restart before it went idle", append(restart, aged(1, 11_102)), ""},
		{"under way, settled before it ends", []Line{pause[0], aged(1, 10_250), settled("c", 1), pause[1]}, "pause-proxy"},
		{"under way, for ever", []Line{pause[0], aged(1, 999_000)}, "pause-proxy"},
		{"before one under way", []Line{pause[0], aged(1, 9_900)}, ""},
		{"two kinds", append(append(restart, pause...), aged(1, 10_150)), "pause-proxy restart-origin"},
		{"one kind twice", append(append(pause, begins("pause-proxy", 10_400), ends("pause-proxy", 10_400, 10_500)), aged(1, 10_390)), "pause-proxy"},
		{"a later one ended", append(append(pause, begins("burn-cpu", 20_000), ends("burn-cpu", 20_000, 20_500)), aged(1, 10_150)), "pause-proxy"},
		{"an earlier one lasts on", []Line{begins("burn-cpu", 9_000), pause[0], pause[1], aged(1, 10_150)}, "burn-cpu pause-proxy"},
		{"a close within", append(pause, closed(ByPeer, WhyPeerClosed, 10_200)), ""},
		{"a close in its grace", append(pause, closed(ByUpstream, WhyIdleTimeout, 10_400)), ""},
		{"a close after it", append(pause, closed(ByPeer, WhyPeerClosed, 10_401)), "closed"},
		{"a close of what went idle within", append(pause, closed(ByPeer, WhyPeerClosed, 11_300)), ""},
		{"a close before the end is told", []Line{pause[0], closed(ByPeer, WhyPeerClosed, 10_200), pause[1]}, ""},
		{"a close that is told late", append(pause, closed(ByPeer, WhyPeerClosed, 9_000)), "closed"},
		{"its connection closed within", append(pause, accept(1, "p"), request(1, "c", 0), on("s", Event{Kind: EventIdle, Conn: 1, Cell: "c", At: 8_000 * ms}),
			closed(ByUpstream, WhyIdleTimeout, 10_100), late(1, "c", 1), aged(1, 10_500)), "pause-proxy"},
	} {
		for _, grace := range []bool{false, true} {
			var got []string
			j := Joiner{Grace: grace,
				Observe: func(o Observation) { got = append(got, o.Disturbed...) },
				Close:   func(Event) { got = append(got, "closed") }}
			for _, l := range tt.in {
				j.Add(l)
			}
			j.Flush()
			if got := strings.Join(got, " "); got != tt.want {
				t.Errorf("%s, grace %v: %q, want %q", tt.name, grace, got, tt.want)
			}
		}
	}
}

// TestOrphanOfDisturbance: what is told late because the origin was paused is no
// fault of the run.
func TestOrphanOfDisturbance(t *testing.T) {
	told := func(at int64) Line {
		l := late(1, "c", 1)
		l.Event.At = at * ms
		return l
	}
	in := []Line{accept(1, "p"), aged(1, 1_000), settled("c", 1), begins("pause-origin", 10_000), told(10_100), told(9_000)}
	want := []string{"c/1", "orphan late c/1"}
	if diff := cmp.Diff(want, join(false, in...)); diff != "" {
		t.Error(diff)
	}
}

// A connection that a restart closed is remembered for the log that names it.
func TestJoinerRestart(t *testing.T) {
	const p = "127.0.0.1:40001"
	restarted := on("s", Event{Kind: EventClose, Conn: 1, Cell: "c", By: ByUpstream, Why: WhyShutdown})
	in := []Line{accept(1, p), request(1, "c", 0), idle(1), restarted, shot("c", 0), shot("c", 1),
		logged("c", 1, Attempt{Local: p, Err: "EOF"}), settled("c", 1)}
	want := []string{"close 1", "c/0 request1", "c/1 logs=1 idle1 close1"}
	if diff := cmp.Diff(want, join(false, in...)); diff != "" {
		t.Error(diff)
	}
}

func BenchmarkDisturbed(b *testing.B) {
	j := Joiner{Observe: func(Observation) {}}
	for i := range int64(100_000) {
		j.Add(begins("burn-cpu", i*1000))
		j.Add(ends("burn-cpu", i*1000, i*1000+200))
	}
	if got := fmt.Sprint(j.Disturbed(99_999_500*ms, 99_999_600*ms)); got != "[]" {
		b.Fatal(got)
	}
	for b.Loop() {
		j.Disturbed(99_998_500*ms, 99_999_600*ms)
	}
}
