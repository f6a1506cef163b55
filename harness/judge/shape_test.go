package judge

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// world plays a proxy and an upstream with a network between them: what a
// request of some age meets, and what each side notes of it.
type world struct {
	cell  spec.Cell
	rng   *rand.Rand
	mood  time.Duration // each burst's closes are noticed later by up to this
	conns []uint64      // idle
	last  uint64
	n     int
}

// burst lets n requests of about one age go out, and tells the tally.
func (w *world) burst(t *Tally, b, n int, age time.Duration) {
	half := w.cell.RTT / 2
	idle := w.conns
	w.conns = nil
	blind := time.Duration(0)
	if w.mood > 0 {
		blind = time.Duration(w.rng.Int64N(int64(w.mood)))
	}
	for i := range n {
		// The client's ages are the proxy's, but for what passes in between.
		a := age + time.Duration(i)*50*time.Microsecond
		closes := w.cell.UpstreamIdle + time.Duration(w.rng.IntN(300))*time.Microsecond
		shot := aimedShot(uint64(w.n))
		w.n++
		shot.Burst, shot.Age, shot.Edge = b, a-100*time.Microsecond, w.cell.UpstreamIdle-w.cell.RTT
		o := record.Observation{Shot: shot}
		arrives := a + half + half // idle since half a round trip before the proxy knew, and half to get there
		switch {
		case len(idle) == 0 || a > closes+blind: // none, or the proxy has seen its FIN
			w.last++
			o.Requests = []record.Event{{Conn: w.last, Nth: 1, Executed: true}}
			w.conns = append(w.conns, w.last)
		case arrives > closes:
			o.Late = []record.Event{{Conn: idle[0], Kind: record.EventLate, Idle: arrives}}
			o.Before = []record.Event{{Conn: idle[0], Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: closes}}
			o.Shot.Status = 502
			idle = idle[1:]
		default:
			o.Requests = []record.Event{{Conn: idle[0], Nth: 2, Idle: arrives, Executed: true}}
			w.conns = append(w.conns, idle[0])
			idle = idle[1:]
		}
		t.Close(record.Event{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: closes})
		t.Observe(o)
	}
}

// TestWindow: the fitted edges are those of the world, whatever the round trip,
// although half of the bursts find the pool empty.
func TestWindow(t *testing.T) {
	for _, rtt := range []time.Duration{2 * msec, 20 * msec, 40 * msec} {
		c := racing
		c.RTT = rtt
		s := tell(c)
		s.t.s.RTT, s.t.s.Window = rtt, true
		w := &world{cell: c, rng: rand.New(rand.NewPCG(1, uint64(rtt)))}
		for b := range 200 {
			age := time.Second - rtt - 4*msec + time.Duration(w.rng.Int64N(int64(rtt+8*msec)))
			w.burst(s.t, b, 20, age)
		}
		f := s.t.Verdict().Fit
		if f == nil || f.Lower == nil || f.Upper == nil || f.Holds == nil || !*f.Holds {
			t.Errorf("rtt %s: %+v", rtt, f)
			continue
		}
		if d := time.Duration(f.Lower.At) + rtt; d.Abs() > msec {
			t.Errorf("rtt %s: lower edge %s", rtt, f.Lower.At)
		}
		if d := time.Duration(f.Upper.At); d.Abs() > msec {
			t.Errorf("rtt %s: upper edge %s", rtt, f.Upper.At)
		}
		if f.Plateau < 0.95 {
			t.Errorf("rtt %s: plateau %.2f: requests that found no idle connection were counted", rtt, f.Plateau)
		}
		if !slices.ContainsFunc(f.Curve, func(b Bin) bool { return b.Stale == b.Shots }) || f.Curve[0].Stale > 0 {
			t.Errorf("rtt %s: curve %+v", rtt, f.Curve)
		}
	}
}

// TestBurstsShareTheirMoment: where every burst has an edge of its own, the
// interval is one for their median, and much wider than its shots alone allow.
func TestBurstsShareTheirMoment(t *testing.T) {
	c := racing
	c.RTT = 10 * msec
	covered, seeds := 0, 12
	for seed := range seeds {
		s := tell(c)
		s.t.s.RTT, s.t.s.Window = c.RTT, true
		w := &world{cell: c, rng: rand.New(rand.NewPCG(3, uint64(seed))), mood: 4 * msec}
		for b := range 60 {
			w.burst(s.t, b, 20, time.Second-3*msec+time.Duration(w.rng.Int64N(int64(9*msec))))
		}
		f := s.t.Verdict().Fit
		if f == nil || f.Upper == nil {
			t.Fatalf("seed %d: %+v", seed, f)
		}
		if want := Duration(2 * msec); f.Upper.Low <= want && want <= f.Upper.High {
			covered++
		}
		if f.Upper.High-f.Upper.Low < Duration(200*time.Microsecond) {
			t.Errorf("seed %d: [%s, %s]", seed, f.Upper.Low, f.Upper.High)
		}
	}
	if covered < seeds*3/4 {
		t.Errorf("only %d of %d intervals have the median edge", covered, seeds)
	}
}

// TestLateTimers: a burst in which the upstream's timers were held up does not
// move an edge, and is told.
func TestLateTimers(t *testing.T) {
	c := racing
	c.RTT = 20 * msec
	s := tell(c)
	s.t.s.RTT, s.t.s.Window = c.RTT, true
	w := &world{cell: c, rng: rand.New(rand.NewPCG(1, 2))}
	for b := range 100 {
		w.burst(s.t, b, 20, time.Second-24*msec+time.Duration(w.rng.Int64N(int64(28*msec))))
	}
	for i := range 10 {
		shot := aimedShot(uint64(10000 + i))
		shot.Burst, shot.Age, shot.Status = 100, time.Second+15*msec, 502
		s.t.Observe(record.Observation{Shot: shot, Late: []record.Event{{Conn: 1, Idle: time.Second + 35*msec}},
			Before: []record.Event{{Conn: 1, Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: time.Second + 30*msec}}})
	}
	f := s.t.Verdict().Fit
	if f.Upper == nil || time.Duration(f.Upper.At).Abs() > msec || !strings.Contains(f.Why, "10 requests left out") {
		t.Errorf("%+v", f)
	}
}

func TestNoWindowWhereTheProxyEndsIt(t *testing.T) {
	for _, idle := range []spec.Idle{spec.Off, spec.Idle(500 * time.Millisecond), spec.Idle(time.Second)} {
		c := racing
		c.ProxyIdle = idle
		s := tell(c)
		s.t.s.Window = true
		s.answered(10, 2).upstreamCloses(3)
		if f := s.t.Verdict().Fit; f != nil {
			t.Errorf("proxy idle %s: %+v", idle, f)
		}
	}
}

func TestMargins(t *testing.T) {
	cell := func(idle time.Duration, rtt time.Duration, state spec.State, aimed, late int) Verdict {
		return Verdict{Proxy: "px", Version: "1", Runtime: "local", Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN,
			ProxyIdle: spec.Idle(idle).String(), UpstreamIdle: "1s", RTT: spec.FormatDuration(rtt), State: state, AimedShots: aimed, Late: late}
	}
	cells := []Verdict{
		cell(time.Second, 0, spec.Races, 40, 9),
		cell(990*msec, 0, spec.Inconclusive, 600, 0),
		cell(950*msec, 0, spec.Safe, 600, 0),
		cell(990*msec, 40*msec, spec.Races, 40, 40),
		cell(950*msec, 40*msec, spec.Safe, 600, 0),
		cell(950*msec, 40*msec, spec.Broken, 600, 600),
		cell(900*msec, 40*msec, spec.Safe, 600, 0),
		cell(0, 40*msec, spec.Safe, 600, 0), // off
		cell(950*msec, 40*msec, spec.Inconclusive, 600, 3),
	}
	got := margins(cells)
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	for i, want := range []struct {
		rtt           string
		least, failed time.Duration
		shots         int
	}{{"0s", 10 * msec, 0, 1200}, {"40ms", 50 * msec, 10 * msec, 1200}} {
		m := got[i]
		if m.RTT != want.rtt || m.Least == nil || time.Duration(*m.Least) != want.least || m.Failed == nil || time.Duration(*m.Failed) != want.failed ||
			m.Shots != want.shots || m.Bound <= 0 || m.Bound > 0.01 || m.Text == "" {
			t.Errorf("%+v, want %+v", m, want)
		}
	}
	if got := margins(cells[:2]); len(got) != 0 {
		t.Errorf("two differences are no study: %+v", got)
	}
}

// TestPackets: the wire is a witness where the close style leaves none.
func TestPackets(t *testing.T) {
	plain := racing
	plain.Close = spec.ClosePlain
	seen := func(o *record.Observation) {
		o.Packets = []record.Packets{{Order: "crossing"}}
		o.Before = []record.Event{{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout}}
	}
	v := tell(plain).answered(300, 2).upstreamCloses(40).observe(func(o *record.Observation) { failed502(o); seen(o) }).t.Verdict()
	if v.State != spec.Races || v.OnWire != 1 || v.Late != 1 || v.Orders["crossing"] != 1 || !strings.Contains(v.Why, "the packets of every one") {
		t.Errorf("%+v", v)
	}
	for _, captured := range []bool{false, true} {
		s := tell(plain).answered(300, 2).upstreamCloses(40)
		if captured {
			s.t.Captured()
		}
		if s.t.Done() == captured {
			t.Errorf("captured %v: done %v: more shots help where there is a witness", captured, !captured)
		}
	}
	v = tell(plain).answered(300, 2).upstreamCloses(40).observe(seen).t.Verdict()
	if v.State != spec.Masked || v.OnWire != 0 || v.Retried != 1 {
		t.Errorf("%+v", v)
	}
}

// TestMiddlebox: where a middlebox gave the connection up first, a log line that
// names a connection which the upstream closed as well proves nothing.
func TestMiddlebox(t *testing.T) {
	named := func(o *record.Observation) {
		failed502(o)
		o.Before = []record.Event{{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: time.Second}}
		o.Logs = []record.LogLine{{Cause: record.CauseReset, Text: "connection reset by peer"}}
	}
	for expiry, want := range map[time.Duration]spec.State{0: spec.Races, 500 * msec: spec.Inconclusive, 2 * time.Second: spec.Races} {
		s := tell(racing)
		s.t.s.Expiry = expiry
		v := s.answered(300, 2).upstreamCloses(40).observe(named).t.Verdict()
		if v.State != want || (v.Causes[string(record.CauseReset)] == 1) != (want == spec.Inconclusive) {
			t.Errorf("expiry %s: %s %v, want %s", expiry, v.State, v.Causes, want)
		}
	}
}
