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
	dial  time.Duration // what a new connection takes
	held  time.Duration // the upstream's timers of the next burst are late by this
	now   int64         // when conns went idle, to the upstream
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
	closes := map[uint64]record.Event{}
	for _, conn := range idle {
		after := w.cell.UpstreamIdle + w.held + time.Duration(w.rng.IntN(1500))*time.Microsecond
		closes[conn] = record.Event{At: w.now + int64(after), Conn: conn, Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: after}
	}
	w.held = 0
	for i := range n {
		// The client's ages are the proxy's, but for what passes in between.
		a := age + time.Duration(i)*50*time.Microsecond
		shot := aimedShot(uint64(w.n))
		w.n++
		shot.Burst, shot.Age, shot.Edge = b, a-100*time.Microsecond, w.cell.UpstreamIdle-w.cell.RTT
		o := record.Observation{Shot: shot}
		arrives := a + half + half // idle since half a round trip before the proxy knew, and half to get there
		// The pool gives what it believes to be open.
		idle = slices.DeleteFunc(idle, func(conn uint64) bool {
			noticed := a > closes[conn].Idle+blind
			if noticed {
				t.Close(closes[conn])
			}
			return noticed
		})
		if len(idle) == 0 {
			w.last++
			o.Requests = []record.Event{{At: w.now + int64(arrives+w.dial), Conn: w.last, Nth: 1, Executed: true}}
			w.conns = append(w.conns, w.last)
			t.Observe(o)
			continue
		}
		conn := idle[len(idle)-1]
		idle = idle[:len(idle)-1]
		if c := closes[conn]; arrives > c.Idle {
			o.Late = []record.Event{{At: w.now + int64(arrives), Conn: conn, Kind: record.EventLate, Idle: arrives}}
			o.Before = []record.Event{c}
			o.Shot.Status = 502
			t.Close(c)
		} else {
			o.Requests = []record.Event{{At: w.now + int64(arrives), Conn: conn, Nth: 2, Idle: arrives, Executed: true}}
			w.conns = append(w.conns, conn)
		}
		t.Observe(o)
	}
	for _, conn := range idle {
		t.Close(closes[conn])
	}
	w.now += int64(age) + int64(time.Second)
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
		if d := time.Duration(f.Lower.At) + rtt; d.Abs() > msec/4 {
			t.Errorf("rtt %s: lower edge %s", rtt, f.Lower.At)
		}
		if d := time.Duration(f.Upper.At); d.Abs() > msec/4 {
			t.Errorf("rtt %s: upper edge %s", rtt, f.Upper.At)
		}
		// The client does not know that its requests are 100 µs on their way, nor
		// the round trip.
		if e := f.ClientLower; e == nil || (time.Duration(e.At)+rtt+100*time.Microsecond).Abs() > msec {
			t.Errorf("rtt %s: lower edge by the client's clock: %+v", rtt, e)
		}
		if f.Plateau < 0.95 {
			t.Errorf("rtt %s: plateau %.2f: requests that found no idle connection were counted", rtt, f.Plateau)
		}
		if !slices.ContainsFunc(f.Curve, func(b Bin) bool { return b.Stale == b.Shots }) || f.Curve[0].Stale > 0 {
			t.Errorf("rtt %s: curve %+v", rtt, f.Curve)
		}
	}
}

// TestWindowBelowTCP: with netem a new connection takes a round trip, which is no
// lateness of the proxy's.
func TestWindowBelowTCP(t *testing.T) {
	const rtt = 20 * msec
	for _, netem := range []bool{true, false} {
		c := racing
		c.RTT = rtt
		s := tell(c)
		s.t.s.RTT, s.t.s.Window, s.t.s.Link.Netem = rtt, true, netem
		w := &world{cell: c, rng: rand.New(rand.NewPCG(1, 1)), dial: rtt}
		for b := range 200 {
			w.burst(s.t, b, 20, time.Second-rtt-4*msec+time.Duration(w.rng.Int64N(int64(rtt+8*msec))))
		}
		f := s.t.Verdict().Fit
		if f == nil || f.Lower == nil || (time.Duration(f.Lower.At)+rtt).Abs() > msec/4 {
			t.Fatalf("netem %v: %+v", netem, f)
		}
		if at := f.Upper != nil && time.Duration(f.Upper.At).Abs() <= msec/4; at != netem {
			t.Errorf("netem %v: upper edge %+v", netem, f.Upper)
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

// TestLateTimers: bursts in which the upstream's timers were held up move no
// edge, for every age stands against its own connection's close.
func TestLateTimers(t *testing.T) {
	c := racing
	c.RTT = 20 * msec
	s := tell(c)
	s.t.s.RTT, s.t.s.Window = c.RTT, true
	w := &world{cell: c, rng: rand.New(rand.NewPCG(1, 2))}
	for b := range 100 {
		if b%10 == 9 {
			w.held = time.Duration(w.rng.Int64N(int64(30 * msec)))
		}
		w.burst(s.t, b, 20, time.Second-24*msec+time.Duration(w.rng.Int64N(int64(28*msec))))
	}
	f := s.t.Verdict().Fit
	if f.Lower == nil || (time.Duration(f.Lower.At)+c.RTT).Abs() > msec/4 || f.Upper == nil || time.Duration(f.Upper.At).Abs() > msec/4 {
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
	// A cell that raced before a shot was aimed has no aimed ones, and raced.
	early := append(cells[:3:3], cell(940*msec, 0, spec.Races, 0, 35), cell(930*msec, 0, spec.Safe, 600, 0))
	if m := margins(early)[0]; m.Failed == nil || time.Duration(*m.Failed) != 60*msec || time.Duration(*m.Least) != 70*msec || m.Shots != 600 {
		t.Errorf("a race before any aim is lost: %+v", m)
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
		s.t.s.Link.Idle = expiry
		v := s.answered(300, 2).upstreamCloses(40).observe(named).t.Verdict()
		if v.State != want || (v.Causes[string(record.CauseReset)] == 1) != (want == spec.Inconclusive) {
			t.Errorf("expiry %s: %s %v, want %s", expiry, v.State, v.Causes, want)
		}
	}
}
