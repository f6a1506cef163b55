package load

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"idlerace/harness/record"
)

func newTestAim() *Aim { return NewAim(rand.New(rand.NewPCG(1, 2)), 0, false) }

func idleClose(by string, idle time.Duration) record.Event {
	e := record.Event{Kind: record.EventClose, By: by, Idle: idle, Why: record.WhyPeerClosed}
	if by == record.ByUpstream {
		e.Why = record.WhyIdleTimeout
	}
	return e
}

// burst lets an aim observe n requests of one kind.
func burst(a *Aim, phase record.Phase, n int, age, idle time.Duration, nth int) {
	for range n {
		a.Observe(record.Observation{Shot: record.Shot{Phase: phase, Target: record.TargetUpstream, Age: age, Outcome: record.OutcomeResponse, Status: 200},
			Requests: []record.Event{{Nth: nth, Idle: idle}}})
	}
	a.EndBurst(phase, record.TargetUpstream)
}

func TestAimLearnsTheOffset(t *testing.T) {
	a := newTestAim()
	if a.UpstreamKnown() || edge(a, record.TargetUpstream) != 0 {
		t.Error("knows an edge before it was measured")
	}
	a.Direct(1002 * time.Millisecond)
	if got := edge(a, record.TargetUpstream); got != 1002*time.Millisecond {
		t.Errorf("edge from the direct measurement: %s", got)
	}
	for range 10 {
		a.Close(idleClose(record.ByUpstream, 1000*time.Millisecond))
		a.Close(idleClose(record.ByPeer, 700*time.Millisecond))
	}
	if got := edge(a, record.TargetUpstream); got != time.Second {
		t.Errorf("edge from the cell's own closes: %s", got)
	}
	// The upstream's connections are 2 ms older than the client believes.
	burst(a, record.PhaseReuse, 40, 20*time.Millisecond, 22*time.Millisecond, 2)
	if got := edge(a, record.TargetUpstream); got != 998*time.Millisecond {
		t.Errorf("edge as a client age: %s", got)
	}
	if got := edge(a, record.TargetProxy); got != 698*time.Millisecond {
		t.Errorf("the proxy's edge: %s", got)
	}
	// A burst that came apart tells nothing.
	burst(a, record.PhaseReuse, 40, 20*time.Millisecond, 80*time.Millisecond, 2)
	if got := edge(a, record.TargetUpstream); got != 998*time.Millisecond {
		t.Errorf("after a burst that came apart: %s", got)
	}
	// A burst that met only living connections tells the offset anew...
	burst(a, record.PhaseAimed, 40, 990*time.Millisecond, 995*time.Millisecond, 3)
	if got := edge(a, record.TargetUpstream); got != 995*time.Millisecond {
		t.Errorf("after a burst before the edge: %s", got)
	}
	// ... connections given back within the burst say nothing ...
	burst(a, record.PhaseAimed, 40, 990*time.Millisecond, 3*time.Millisecond, 3)
	if got := edge(a, record.TargetUpstream); got != 995*time.Millisecond {
		t.Errorf("after a burst over its own connections: %s", got)
	}
	// ... and bursts behind the edge move the aim forward, faster each time.
	var steps []time.Duration
	for range 3 {
		before := edge(a, record.TargetUpstream)
		burst(a, record.PhaseAimed, 40, 999*time.Millisecond, 0, 1)
		steps = append(steps, before-edge(a, record.TargetUpstream))
	}
	if steps[0] <= 0 || steps[1] <= steps[0] || steps[2] <= steps[1] {
		t.Errorf("steps forward: %v", steps)
	}
	for range 100 {
		burst(a, record.PhaseAimed, 40, 999*time.Millisecond, 0, 1)
		if d := 995*time.Millisecond - edge(a, record.TargetUpstream); d < 0 || d > wideHalf {
			t.Fatalf("%s in front of the measured edge", d)
		}
	}
}

// TestFreshConnectionsMoveNoAim: where the proxy closes first, or pools
// nothing, every aimed shot goes over a new connection, and the aim must stay
// at the measured close.
func TestFreshConnectionsMoveNoAim(t *testing.T) {
	a := newTestAim()
	a.Direct(time.Second)
	a.Close(idleClose(record.ByPeer, 700*time.Millisecond))
	for range 100 {
		burst(a, record.PhaseAimed, 40, time.Second, 0, 1)
	}
	if got := edge(a, record.TargetUpstream); got != time.Second {
		t.Errorf("edge %s, measured 1s", got)
	}
}

func TestGapsStayWhereTheDangerIs(t *testing.T) {
	a := newTestAim()
	for i := range 100 {
		a.Close(idleClose(record.ByUpstream, time.Second+time.Duration(i)*10*time.Microsecond))
	}
	a.Observe(record.Observation{Shot: record.Shot{Phase: record.PhaseAimed, Age: 1001 * time.Millisecond}, Late: []record.Event{{}}})
	narrow, near := 0, 0
	const bursts = 2000
	for range bursts {
		gaps, edge := a.Gaps(40, record.TargetUpstream)
		lo, hi := slices.Min(gaps), slices.Max(gaps)
		if hi-lo > BurstSpread(40) {
			t.Fatalf("one burst spread over %s", hi-lo)
		}
		if lo < edge-wideHalf-BurstSpread(40)/2 || hi > edge+wideHalf+BurstSpread(40)/2 {
			t.Fatalf("gaps %s to %s around the edge %s", lo, hi, edge)
		}
		mid := (lo + hi) / 2
		if mid > time.Second-2*time.Millisecond && mid < 1003*time.Millisecond {
			narrow++
		}
		if (mid - 1001*time.Millisecond).Abs() < 2*hitPad {
			near++
		}
	}
	if narrow < bursts*8/10 {
		t.Errorf("only %d of %d bursts near the edge", narrow, bursts)
	}
	if near < bursts/2 {
		t.Errorf("only %d of %d bursts where one has hit before", near, bursts)
	}
	if narrow == bursts {
		t.Error("no burst looks for an edge elsewhere")
	}
}

func TestGapsAreReproducible(t *testing.T) {
	draw := func() []time.Duration {
		a := newTestAim()
		a.Direct(time.Second)
		var out []time.Duration
		for range 20 {
			g, _ := a.Gaps(5, record.TargetUpstream)
			out = append(out, g...)
		}
		return out
	}
	if !slices.Equal(draw(), draw()) {
		t.Error("the same stream gave other gaps")
	}
}

func TestTinyTimeoutKeepsGapsPositive(t *testing.T) {
	a := newTestAim()
	a.Direct(time.Millisecond)
	for range 200 {
		gaps, _ := a.Gaps(10, record.TargetUpstream)
		if slices.Min(gaps) < time.Millisecond {
			t.Fatalf("gap %s", slices.Min(gaps))
		}
	}
}

func TestStaggerKeepsBurstsApart(t *testing.T) {
	var s Stagger
	now := time.Unix(1000, 0)
	type moment struct {
		cell string
		at   time.Time
	}
	var busy []moment
	for i, cell := range []string{"a", "b", "c", "d"} {
		sent := now.Add(time.Duration(i) * 6 * time.Millisecond)
		hold := s.Pick(cell, sent, 500*time.Millisecond)
		if hold < MinHold || hold > MaxHold {
			t.Fatalf("hold %s", hold)
		}
		busy = append(busy, moment{cell, sent.Add(hold)}, moment{cell, sent.Add(hold + 500*time.Millisecond)})
	}
	for i, x := range busy {
		for _, y := range busy[:i] {
			if d := x.at.Sub(y.at).Abs(); x.cell != y.cell && d < busyBefore+busyAfter {
				t.Errorf("%s and %s are busy %s apart", x.cell, y.cell, d)
			}
		}
	}
	for _, m := range busy {
		if at := s.Free(m.at); at.Before(m.at) || at.Sub(m.at) > freeWithin || s.overlap(at) != 0 {
			t.Errorf("%s after a taken moment is not free", at.Sub(m.at))
		}
	}
	// Where there is no room it still answers, and old moments are forgotten.
	for i := range 1000 {
		cell := string(rune('A' + i%50))
		if hold := s.Pick(cell, now.Add(time.Duration(i)*time.Millisecond), 500*time.Millisecond); hold < MinHold || hold > MaxHold {
			t.Fatalf("hold %s", hold)
		}
	}
	if len(s.taken) > 3*54 {
		t.Errorf("%d moments kept", len(s.taken))
	}
	s.Pick("late", now.Add(time.Hour), time.Second)
	if len(s.taken) != 3 {
		t.Errorf("%d moments kept after an hour", len(s.taken))
	}
}

// edge is where the aim believes that side's close to be, as a client age.
func edge(a *Aim, target string) time.Duration {
	_, mid, _ := a.spread(target)
	return mid
}

// What a burst is expected to be is what it will be, unless something was
// learnt in between.
func TestAimExpect(t *testing.T) {
	a := NewAim(rand.New(rand.NewPCG(1, 2)), 0, false)
	if got := a.Expect(40, record.TargetUpstream); got != 0 {
		t.Errorf("%v expected of an unknown edge", got)
	}
	a.Direct(time.Second)
	seen := map[time.Duration]bool{}
	for range 20 {
		want := a.Expect(40, record.TargetUpstream)
		gaps, _ := a.Gaps(40, record.TargetUpstream)
		if first := slices.Min(gaps); first < want || first > want+BurstSpread(40)/40 {
			t.Errorf("first shot at %v, expected %v", first, want)
		}
		seen[want] = true
	}
	if len(seen) < 15 {
		t.Errorf("20 bursts had %d ages", len(seen))
	}
}

// world is a cell as an aim sees it: an upstream and a proxy that close at ages
// of their own, and what either tells of each shot.
type world struct {
	rtt             time.Duration
	direct          time.Duration // what was measured without the proxy
	upstream, proxy time.Duration // closes after that much idle time, as each sees it
	noticed         time.Duration // after the upstream's FIN has arrived, the proxy knows
	calibration     float64       // part of the reuse bursts that meets living connections
	slow            time.Duration // what an aimed request takes longer to get through than one of those bursts
}

// shoot lets the aim shoot until it has met a stale connection, and in a sweep a
// living one as well, and counts the bursts; most if it does not.
func (w world) shoot(rng *rand.Rand, sweep bool, most int) int {
	const lanes = 30
	a := NewAim(rng, w.rtt, sweep)
	a.Direct(w.direct)
	tell := func(phase record.Phase, age time.Duration, alive, stale bool) {
		o := record.Observation{Shot: record.Shot{Phase: phase, Target: record.TargetUpstream, Age: age, Outcome: record.OutcomeResponse, Status: 200}}
		switch {
		case stale:
			o.Late = []record.Event{{Idle: age + w.rtt + w.slow}}
		case alive && phase == record.PhaseReuse:
			o.Requests = []record.Event{{Nth: 2, Idle: age + w.rtt}}
		case alive:
			o.Requests = []record.Event{{Nth: 2, Idle: age + w.rtt + w.slow}}
		default:
			o.Requests = []record.Event{{Nth: 1}}
		}
		a.Observe(o)
	}
	for range 2 {
		for i := range lanes {
			tell(record.PhaseReuse, 20*time.Millisecond, float64(i) < w.calibration*lanes, false)
		}
		a.EndBurst(record.PhaseReuse, "")
	}
	hit, lived := false, !sweep
	for n := range most {
		gaps, _ := a.Gaps(lanes, record.TargetUpstream)
		for _, age := range gaps {
			switch {
			case age+w.rtt+w.slow < w.upstream && age < w.proxy:
				tell(record.PhaseAimed, age, true, false)
				lived = true
				continue
			case age < w.proxy && age < w.upstream+w.noticed:
				tell(record.PhaseAimed, age, false, true)
				hit = true
			default:
				tell(record.PhaseAimed, age, false, false)
			}
			if w.upstream < w.proxy+w.rtt {
				a.Close(idleClose(record.ByUpstream, w.upstream))
			} else {
				a.Close(idleClose(record.ByPeer, w.proxy+w.rtt))
			}
		}
		a.EndBurst(record.PhaseAimed, record.TargetUpstream)
		if hit && lived {
			return n + 1
		}
	}
	return most
}

// TestAimFindsTheWindow: whatever is wrong with what was measured beforehand.
func TestAimFindsTheWindow(t *testing.T) {
	const ms = time.Millisecond
	for name, w := range map[string]world{
		"as measured":                        {direct: 2001 * ms, upstream: 2001 * ms, proxy: time.Hour, calibration: 1},
		"direct measurement 3 ms short":      {direct: 1998 * ms, upstream: 2001 * ms, proxy: time.Hour, calibration: 1},
		"6 ms short":                         {direct: 1995 * ms, upstream: 2001 * ms, proxy: time.Hour, calibration: 1},
		"3 ms short, both sides equal":       {direct: 1998 * ms, upstream: 2001 * ms, proxy: 2002 * ms, calibration: 1},
		"3 ms long":                          {direct: 2004 * ms, upstream: 2001 * ms, proxy: time.Hour, calibration: 1},
		"a round trip":                       {rtt: 60 * ms, direct: 600 * ms, upstream: 601 * ms, proxy: 570 * ms, calibration: 1},
		"a round trip, no burst calibrates":  {rtt: 60 * ms, direct: 600 * ms, upstream: 601 * ms, proxy: 570 * ms},
		"a round trip, half a burst does":    {rtt: 60 * ms, direct: 600 * ms, upstream: 601 * ms, proxy: 570 * ms, calibration: 0.5},
		"a round trip, 3 ms short":           {rtt: 60 * ms, direct: 598 * ms, upstream: 601 * ms, proxy: 560 * ms, calibration: 1},
		"a round trip, slow when it matters": {rtt: 60 * ms, direct: 601 * ms, upstream: 601 * ms, proxy: time.Hour, calibration: 1, slow: 6 * ms},
		"no burst calibrates, no round trip": {direct: 2001 * ms, upstream: 2001 * ms, proxy: time.Hour},
	} {
		w.noticed = 300 * time.Microsecond
		for _, sweep := range []bool{false, true} {
			worst, sum := 0, 0
			const seeds, most = 200, 40
			for seed := range uint64(seeds) {
				n := w.shoot(rand.New(rand.NewPCG(seed, 1)), sweep, most)
				worst, sum = max(worst, n), sum+n
			}
			t.Logf("%s (sweep %t): mean %.1f bursts, worst %d", name, sweep, float64(sum)/seeds, worst)
			if worst == most {
				t.Errorf("%s (sweep %t): a cell of %d bursts never met the window", name, sweep, most)
			}
		}
	}
}
