package judge

import (
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"strings"
	"testing"
	"time"

	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

const (
	shots = 300
	msec  = time.Millisecond
)

var racing = spec.Cell{Proxy: "px", Upstream: "go", ProxyIdle: spec.Idle(2 * time.Second), UpstreamIdle: time.Second,
	Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN}

// story builds a tally from what happened.
type story struct{ t *Tally }

func tell(c spec.Cell) story {
	return story{NewTally(Subject{Item: plan.Item{ID: c.ID(), Role: plan.RoleCell, Cell: c}, Version: "1", Runtime: "local", Shots: shots})}
}

func aimedShot(seq uint64) record.Shot {
	return record.Shot{Cell: "x", Seq: seq, Phase: record.PhaseAimed, Target: record.TargetUpstream, Edge: time.Second, Age: time.Second,
		Planned: time.Second, Outcome: record.OutcomeResponse, Status: 200}
}

// answered adds n aimed requests that got their answer; nth is their number on
// their upstream connection.
func (s story) answered(n, nth int) story {
	for i := range n {
		s.t.Observe(record.Observation{Shot: aimedShot(uint64(i)), Requests: []record.Event{{Nth: nth, Executed: true}}})
	}
	return s
}

func (s story) observe(change func(*record.Observation)) story {
	o := record.Observation{Shot: aimedShot(1000)}
	change(&o)
	s.t.Observe(o)
	return s
}

func late(o *record.Observation) {
	o.Late = []record.Event{{Kind: record.EventLate, Idle: 1001 * msec}}
}

func failed502(o *record.Observation) { o.Shot.Status = 502 }

func (s story) upstreamCloses(n int) story {
	for range n {
		s.t.Close(record.Event{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: 1000 * msec})
	}
	return s
}

func (s story) proxyCloses(n int, idle time.Duration) story {
	for range n {
		s.t.Close(record.Event{Kind: record.EventClose, By: record.ByPeer, Why: record.WhyPeerClosed, Idle: idle})
	}
	return s
}

func (s story) direct(after time.Duration) story { s.t.Direct(after); return s }

func TestStates(t *testing.T) {
	off, plainClose, equal, rtt, unsupported := racing, racing, racing, racing, racing
	off.ProxyIdle = spec.Off
	plainClose.Close = spec.ClosePlain
	equal.ProxyIdle = spec.Idle(time.Second)
	rtt.RTT = 40 * msec
	for name, c := range map[string]struct {
		story story
		state spec.State
		why   string // part of it
		done  bool
	}{
		"nothing happened": {tell(racing), spec.Inconclusive, "no request was recorded", false},
		"one proven failure races": {tell(racing).answered(50, 2).upstreamCloses(50).observe(func(o *record.Observation) { failed502(o); late(o) }),
			spec.Races, "1 of 51 POSTs met an upstream connection that the upstream's idle timer had just closed (set 1s, measured 1000ms): 1 x 502; the origin saw it arrive after its FIN, and did not execute it", false},
		"two kinds of proof": {tell(racing).upstreamCloses(3).observe(func(o *record.Observation) { failed502(o); late(o) }).observe(func(o *record.Observation) {
			failed502(o)
			o.Before = []record.Event{{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout}}
		}), spec.Races, "the origin saw 1 of them arrive after its FIN, for the other 1 the proxy's log names the closed connection", false},
		"enough proofs end a cell": {tell(racing).upstreamCloses(3).
			observe(func(o *record.Observation) { failed502(o); late(o) }).observe(func(o *record.Observation) { failed502(o); late(o) }).
			observe(func(o *record.Observation) { o.Shot.Status, o.Shot.Outcome = 0, record.OutcomeClosed; late(o) }),
			spec.Races, "1 x connection closed without a response", true},
		"a failure alone proves nothing": {tell(racing).answered(400, 2).upstreamCloses(50).observe(failed502),
			spec.Inconclusive, "none could be tied to an idle close", false},
		"an executed request is not this race": {tell(racing).answered(400, 2).observe(func(o *record.Observation) {
			failed502(o)
			late(o)
			o.Requests = []record.Event{{Nth: 1, Executed: true}}
		}), spec.Inconclusive, "none could be tied", false},
		"the proxy's log and the journal are proof as well": {tell(racing).answered(50, 2).upstreamCloses(1).observe(func(o *record.Observation) {
			failed502(o)
			o.Before = []record.Event{{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout}}
			o.Logs = []record.LogLine{{Attempts: []record.Attempt{{Local: "127.0.0.1:4", Err: "EOF"}}}}
		}), spec.Races, "the proxy's log names the closed connection", false},
		"replayed requests are masked": {tell(racing).answered(300, 2).upstreamCloses(9).observe(late),
			spec.Masked, "1 of 301 POSTs met an upstream connection that the upstream's idle timer had just closed (set 1s, measured 1000ms); px sent each again", true},
		"masked needs the shots too": {tell(racing).answered(10, 2).upstreamCloses(9).observe(late),
			spec.Inconclusive, "only 11 aimed shots of 300", false},
		"silence of a racing pair is not safety": {tell(racing).answered(500, 2).upstreamCloses(50).direct(time.Second),
			spec.Inconclusive, "the upstream closed first in 50 of 50 idle connections", false},
		"the proxy first, with a margin, is safe": {tell(racing).answered(100, 2).answered(300, 1).proxyCloses(80, 700*msec).direct(1001 * msec),
			spec.Safe, "the proxy closed first, all 80 times an upstream connection went idle, at 700ms at the latest, 300ms before", true},
		"safe needs the shots": {tell(racing).answered(100, 2).answered(100, 1).proxyCloses(80, 700*msec).direct(1001 * msec),
			spec.Inconclusive, "200 aimed shots, 300 needed", false},
		"safe needs reuse": {tell(racing).answered(300, 1).proxyCloses(80, 700*msec).direct(time.Second),
			spec.Inconclusive, "never reused", false},
		"safe needs the upstream's real close": {tell(racing).answered(100, 2).answered(300, 1).proxyCloses(80, 700*msec),
			spec.Inconclusive, "real close time was not measured", false},
		"a hair's breadth is no margin": {tell(equal).answered(100, 2).answered(300, 1).proxyCloses(80, 999*msec).direct(1000 * msec),
			spec.Inconclusive, "the proxy closed only 1ms before the upstream", false},
		"a late measurement is no margin": {tell(equal).answered(100, 2).answered(300, 1).proxyCloses(80, 1000*msec).direct(1040 * msec),
			spec.Inconclusive, "the proxy closed only 0ms before the upstream", false},
		"a late measurement that the journal refutes is no margin": {tell(equal).answered(100, 2).answered(300, 1).proxyCloses(80, 1000*msec).upstreamCloses(1).direct(1300 * msec),
			spec.Inconclusive, "the upstream closed first in 1 of 81", false},
		"a server that is late by design is": {tell(equal).answered(100, 2).answered(300, 1).proxyCloses(80, 1000*msec).direct(2000 * msec),
			spec.Safe, "1000ms before the upstream's earliest close (2000ms)", true},
		"the upstream sees the proxy's close a round trip late": {tell(rtt).answered(100, 2).answered(300, 1).proxyCloses(80, 970*msec).direct(1000 * msec),
			spec.Safe, "30ms before the upstream's earliest close", true},
		"one upstream close is enough against safe": {tell(racing).answered(100, 2).answered(300, 1).proxyCloses(80, 700*msec).upstreamCloses(1).direct(time.Second),
			spec.Inconclusive, "px closes first, as a rule at 700ms and so 300ms before the upstream (1000ms), yet in 1 of 81 idle connections the upstream was first", false},
		"one late close of the proxy is enough against safe": {tell(racing).answered(100, 2).answered(300, 1).proxyCloses(80, 700*msec).proxyCloses(1, 998*msec).direct(time.Second),
			spec.Inconclusive, "yet the latest of 81 closes came at 998ms: something held the proxy up", false},
		"keep-alive off": {tell(off).answered(300, 1), spec.Safe, "no upstream connection was ever used twice", true},
		"keep-alive off that reuses": {tell(off).answered(300, 1).answered(1, 2),
			spec.Inconclusive, "keep-alive is off, yet 1 request", false},
		"no witness under a plain close": {tell(plainClose).answered(300, 2).upstreamCloses(40).observe(failed502),
			spec.Inconclusive, `close style "plain" leaves no witness`, true},
		"refused connections are another cause": {tell(racing).answered(300, 2).observe(func(o *record.Observation) {
			failed502(o)
			o.Logs = []record.LogLine{{Cause: record.CauseRefused, Text: "connect() failed"}}
		}), spec.Inconclusive, "connect() failed", false},
		"aimed elsewhere does not count": {tell(off).answered(299, 1).observe(func(o *record.Observation) { o.Shot.Age += Zone + 1 }),
			spec.Inconclusive, "299 aimed shots, 300 needed", false},
		"one short measurement of several discredits no aim": {tell(off).direct(940*msec).direct(1001*msec).direct(1001*msec).answered(300, 1),
			spec.Safe, "no upstream connection was ever used twice", true},
		"aimed at another moment than the measured close does not count": {tell(racing).direct(2*time.Second).answered(100, 2).answered(300, 1).proxyCloses(80, 700*msec),
			spec.Inconclusive, "0 aimed shots, 300 needed", false},
		"a request that never reached the upstream does not count": {tell(off).answered(299, 1).observe(func(o *record.Observation) { o.Shot.Status = 404 }),
			spec.Inconclusive, "299 aimed shots, 300 needed", false},
		"unsupported": {story{NewTally(Subject{Item: plan.Item{Cell: unsupported, Unsupported: "cannot"}})}, spec.Unsupported, "cannot", true},
		"broken": {story{NewTally(Subject{Item: plan.Item{Cell: racing}, Fault: "px: exit status 1", Shots: shots})},
			spec.Broken, "exit status 1", true},
	} {
		t.Run(name, func(t *testing.T) {
			v := c.story.t.Verdict()
			if v.State != c.state {
				t.Errorf("state %s, want %s: %s", v.State, c.state, v.Why)
			}
			if !strings.Contains(v.Why, c.why) {
				t.Errorf("why: %s\nwant a part: %s", v.Why, c.why)
			}
			if got := c.story.t.Done(); got != c.done {
				t.Errorf("done %v, want %v", got, c.done)
			}
		})
	}
}

// TestStall: where the proxy closes first, with room, a stale connection now and
// then is a machine that held it up, and no verdict on the pair. A proxy whose
// lateness is a habit races.
func TestStall(t *testing.T) {
	const lanes = 20
	below := racing // the law calls it safe
	below.ProxyIdle = spec.Idle(500 * msec)
	off := racing
	off.ProxyIdle = spec.Off
	// tight closes at 500 ms, up to 2 ms late; sweeper at 500 ms to 1500 ms.
	tight := func(i int) time.Duration { return 500*msec + time.Duration(i%20)*100*time.Microsecond }
	sweeper := func(i int) time.Duration { return 500*msec + time.Duration(i%20)*50*msec }
	for name, c := range map[string]struct {
		cell   spec.Cell
		bursts int
		stale  func(burst, lane int) bool
		closes func(i int) time.Duration
		method string
		state  spec.State
		why    string
		done   bool
	}{
		"one burst of many": {below, 16, func(b, l int) bool { return b == 5 }, tight, "POST",
			spec.Inconclusive, "px closes first, as a rule at 500.9ms and so 499.1ms before the upstream (1000ms), yet 1 of 16 bursts met connections that the upstream had closed before px got to it (20 requests of 320 POSTs failed: 20 x 502)", true},
		"one burst, replayed": {below, 16, func(b, l int) bool { return b == 5 }, tight, "GET",
			spec.Inconclusive, "1 of 16 bursts met", true},
		"too few bursts to tell": {below, 3, func(b, l int) bool { return b == 0 }, tight, "POST",
			spec.Inconclusive, "60 aimed shots, 300 needed to tell", false},
		"some lanes of each burst: a pool that keeps a few": {below, 16, func(b, l int) bool { return l < 3 }, tight, "POST",
			spec.Races, "48 of 320 POSTs met", true},
		"the same, replayed": {below, 16, func(b, l int) bool { return l < 3 }, tight, "GET",
			spec.Masked, "48 of 320 GETs met", true},
		"a pool that is swept at times": {below, 16, func(b, l int) bool { return b == 5 }, sweeper, "POST",
			spec.Races, "20 of 320 POSTs met", true},
		"closing at the upstream's own moment": {below, 16, func(b, l int) bool { return b == 5 }, func(int) time.Duration { return 999 * msec }, "POST",
			spec.Races, "20 of 320 POSTs met", true},
		"at the start, before the proxy has closed any": {below, 1, func(b, l int) bool { return true }, nil, "POST",
			spec.Races, "20 of 20 POSTs met", false},
		"keep-alive off": {off, 16, func(b, l int) bool { return b == 5 }, func(int) time.Duration { return 100 * time.Microsecond }, "POST",
			spec.Inconclusive, "1 of 16 bursts met", true},
		"the proxy does not close first as a rule": {racing, 16, func(b, l int) bool { return b == 5 }, nil, "POST",
			spec.Races, "20 of 320 POSTs met", true},
	} {
		t.Run(name, func(t *testing.T) {
			c.cell.Method = c.method
			s := tell(c.cell).direct(1001 * msec)
			n := 0
			for b := range c.bursts {
				for l := range lanes {
					shot := aimedShot(uint64(n))
					shot.Burst = b
					o := record.Observation{Shot: shot}
					switch {
					case !c.stale(b, l):
						o.Requests = []record.Event{{Nth: 1, Executed: true}}
						if c.closes != nil {
							s.proxyCloses(1, c.closes(n))
						}
					case c.method == "GET":
						late(&o)
						o.Requests = []record.Event{{Nth: 1, Executed: true}}
						s.upstreamCloses(1)
					default:
						late(&o)
						failed502(&o)
						s.upstreamCloses(1)
					}
					s.t.Observe(o)
					n++
				}
			}
			v := s.t.Verdict()
			if v.State != c.state || !strings.Contains(v.Why, c.why) {
				t.Errorf("%s: %s\nwant %s: %s", v.State, v.Why, c.state, c.why)
			}
			if got := s.t.Done(); got != c.done {
				t.Errorf("done %v, want %v", got, c.done)
			}
		})
	}
}

func TestNumbers(t *testing.T) {
	s := tell(racing).answered(297, 2).upstreamCloses(5)
	for range 3 {
		s.observe(func(o *record.Observation) { failed502(o); late(o) })
	}
	s.observe(func(o *record.Observation) { // not aimed: counted, but not in the rate
		failed502(o)
		late(o)
		o.Shot.Phase = record.PhaseReuse
	})
	s.observe(func(o *record.Observation) { o.Requests = []record.Event{{Executed: true}, {Executed: true}} })
	s.observe(func(o *record.Observation) { o.Shot.Status = 504 })
	s.observe(func(o *record.Observation) { o.Shot.Status = 404 }) // the proxy's own answer
	v := s.t.Verdict()
	if v.Shots != 304 || v.AimedShots != 302 || v.Failures != 5 || v.Attributed != 4 || v.Other != 1 || v.Late != 4 || v.Retried != 0 || v.Twice != 1 {
		t.Errorf("%+v", v)
	}
	if v.Statuses["502"] != 4 || v.Statuses["504"] != 1 || v.Causes[string(record.CauseIdleClose)] != 4 || v.Causes[string(record.CauseTimeout)] != 1 {
		t.Errorf("statuses %v, causes %v", v.Statuses, v.Causes)
	}
	if want := ClopperPearson(3, 302); *v.Rate != want {
		t.Errorf("rate %v, want %v", *v.Rate, want)
	}
	if v.Window == nil || v.Window.From != Duration(msec) || v.Window.To != Duration(msec) {
		t.Errorf("window %v", v.Window)
	}
	if v.UpstreamClosed.N != 5 || v.UpstreamClosed.P50 != Duration(time.Second) || v.ProxyClosed != nil || v.Direct != nil {
		t.Errorf("closes %v %v %v", v.UpstreamClosed, v.ProxyClosed, v.Direct)
	}
	if v.Example == nil || v.Example.Seq != 1000 {
		t.Errorf("example %v", v.Example)
	}
	if len(v.Warnings) != 3 {
		t.Errorf("warnings %q", v.Warnings)
	}
}

// What two runs are compared by counts aimed shots alone, and their bursts once
// each, whatever the order of hits in them.
func TestAimedShotsByBurst(t *testing.T) {
	s := tell(racing).upstreamCloses(50)
	shot := func(burst int, changes ...func(*record.Observation)) {
		s.observe(func(o *record.Observation) {
			o.Shot.Burst = burst
			o.Requests = []record.Event{{Nth: 2, Executed: true}}
			for _, change := range changes {
				change(o)
			}
		})
	}
	lost := func(o *record.Observation) { failed502(o); late(o); o.Requests = nil }
	logged := func(o *record.Observation) {
		failed502(o)
		o.Requests, o.Before = nil, []record.Event{{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout}}
	}
	unaimed := func(o *record.Observation) { o.Shot.Age = time.Second / 2 }
	shot(0)
	shot(0, late)          // sent again
	shot(1, lost)          // the first of its burst
	shot(1, lost)          // the same burst
	shot(1, late)          // and stale besides
	shot(2, logged)        // stale by the proxy's log alone
	shot(3, unaimed, lost) // aimed elsewhere
	shot(4)
	shot(4, func(o *record.Observation) { lost(o); o.Disturbed = []string{"burn-cpu"} }) // set aside
	shot(5, failed502)                                                                   // another cause
	v := s.t.Verdict()
	got := [6]int{v.AimedShots, v.AimedLost, v.AimedStale, v.AimedBursts, v.LostBursts, v.StaleBursts}
	if want := [6]int{8, 3, 5, 5, 2, 3}; got != want {
		t.Errorf("aimed shots, lost, stale; bursts, lost, stale: %v, want %v", got, want)
	}
	if want := ClopperPearson(3, 8); *v.Rate != want {
		t.Errorf("rate %v, want %v", *v.Rate, want)
	}
}

func TestClopperPearson(t *testing.T) {
	// From the definition: the p at which P(X >= k) and P(X <= k) are 2.5 %.
	for _, c := range []struct {
		k, n      int
		low, high float64
	}{
		{0, 0, 0, 1},
		{0, 10, 0, 0.3084971},
		{10, 10, 0.6915029, 1},
		{1, 20, 0.0012651, 0.2487328},
		{23, 320, 0.0461053, 0.1058978},
		{0, 300, 0, 0.0122210},
	} {
		got := ClopperPearson(c.k, c.n)
		if math.Abs(got.Low-c.low) > 1e-5 || math.Abs(got.High-c.high) > 1e-5 {
			t.Errorf("%d/%d: %v, want [%v, %v]", c.k, c.n, got, c.low, c.high)
		}
	}
	// The interval of stopping at the k-th success lies inside (see the note).
	for n := 1; n < 60; n++ {
		for k := 1; k < n; k++ {
			if i := ClopperPearson(k, n); i.Low > float64(k)/float64(n) || i.High < float64(k)/float64(n) {
				t.Errorf("%d/%d outside of %v", k, n, i)
			}
		}
	}
}

// lines yields a run's record.
func lines(all ...record.Line) iter.Seq2[record.Line, error] {
	return func(yield func(record.Line, error) bool) {
		for _, l := range all {
			if !yield(l, nil) {
				return
			}
		}
	}
}

func controlled() (record.Manifest, *spec.Scenario) {
	s := &spec.Scenario{Name: "s", About: "about", Probe: spec.Probe{Shots: 2}}
	calm := racing
	calm.ProxyIdle = spec.Off
	return record.Manifest{Scenario: "s", Seed: 7, Command: []string{"run", "s.yaml"}, Ended: record.EndDone,
		Proxies: []record.ProxyRun{{Name: "px", Version: "1.2", Runtime: "local"}},
		Items: []plan.Item{
			{ID: "cell", Role: plan.RoleCell, Cell: racing, Server: "u"},
			{ID: "must", Role: plan.RoleMustRace, Cell: racing, Server: "u"},
			{ID: "not", Role: plan.RoleMustNotRace, Cell: calm, Server: "u"},
		}}, s
}

// served gives the lines of one answered aimed request.
func served(cell string, seq uint64, conn uint64, nth int) []record.Line {
	s := aimedShot(seq)
	s.Cell = cell
	return []record.Line{
		{T: record.KindEvent, Event: &record.Event{Kind: record.EventAccept, Conn: conn, Peer: fmt.Sprint("p", conn)}},
		{T: record.KindEvent, Event: &record.Event{Kind: record.EventRequest, Conn: conn, Cell: cell, Seq: seq, Nth: nth, Executed: true}},
		{T: record.KindShot, Shot: &s},
	}
}

func lost(cell string, seq uint64, conn uint64) []record.Line {
	s := aimedShot(seq)
	s.Cell, s.Status = cell, 502
	return []record.Line{
		{T: record.KindShot, Shot: &s},
		{T: record.KindEvent, Event: &record.Event{Kind: record.EventLate, Conn: conn, Cell: cell, Seq: seq, Idle: time.Second}},
	}
}

func proxyClosed(cell string, conn uint64) []record.Line {
	return []record.Line{{T: record.KindEvent, Event: &record.Event{Kind: record.EventClose, Conn: conn, Cell: cell, By: record.ByPeer, Why: record.WhyPeerClosed, Idle: 700 * msec}}}
}

// safeCell is the record of a cell that is safe by itself.
func safeCell() []record.Line {
	var out []record.Line
	out = append(out, served("cell", 1, 1, 1)...)
	out = append(out, served("cell", 2, 1, 2)...)
	out = append(out, proxyClosed("cell", 1)...)
	return append(out, record.Line{T: record.KindDirect, Direct: &record.Direct{Server: "u", After: time.Second}})
}

func TestControls(t *testing.T) {
	calm := append(served("not", 1, 10, 1), served("not", 2, 11, 1)...)
	race := lost("must", 1, 20)
	// The proxy closes at once, but for one burst of three.
	heldUp := lost("not", 5, 14)
	for i := range uint64(3) {
		l := served("not", 2+i, 11+i, 1)
		l[2].Shot.Burst = int(1 + i)
		closed := proxyClosed("not", 11+i)
		closed[0].Event.Idle = msec
		heldUp = append(append(l, closed...), heldUp...)
	}
	for name, c := range map[string]struct {
		lines []record.Line
		state spec.State
		why   string
	}{
		"both as they must":          {append(append(safeCell(), calm...), race...), spec.Safe, "closed first"},
		"no racing control":          {append(safeCell(), calm...), spec.Inconclusive, "the positive control, which must race, did not"},
		"the negative control fails": {append(append(append(safeCell(), calm...), race...), lost("not", 3, 30)...), spec.Broken, "the negative control"},
		"the negative control is held up": {append(append(safeCell(), heldUp...), race...), spec.Inconclusive,
			"the negative control, without keep-alive to the upstream, lost requests now and then (px closes first"},
		"a racing cell needs no negative control": {append(append(lost("cell", 9, 40), heldUp...), race...), spec.Races, "met an upstream connection"},
		"a racing cell needs no control":          {append(lost("cell", 9, 40), calm...), spec.Races, "met an upstream connection"},
	} {
		t.Run(name, func(t *testing.T) {
			m, s := controlled()
			d, err := Judge(m, s, lines(c.lines...))
			if err != nil {
				t.Fatal(err)
			}
			if v := d.Cells[0]; v.State != c.state || !strings.Contains(v.Why, c.why) {
				t.Errorf("%s: %s", v.State, v.Why)
			}
			if len(d.Controls) != 2 || d.Run.Partial != "" || d.Cells[0].Version != "1.2" {
				t.Errorf("%+v", d.Run)
			}
			if want := "idlerace run s.yaml --seed 7 --cell cell"; d.Cells[0].Reproduce != want {
				t.Errorf("reproduce %q", d.Cells[0].Reproduce)
			}
		})
	}
}

func TestPartialAndDamagedRecords(t *testing.T) {
	m, s := controlled()
	m.Ended = ""
	d, err := Judge(m, s, func(yield func(record.Line, error) bool) {
		yield(record.Line{}, &record.BadLine{Line: 3, Err: errors.New("no JSON")})
		yield(record.Line{T: record.KindEvent, Event: &record.Event{Kind: record.EventLost, Nth: 12}}, nil)
		yield(record.Line{}, &record.BadLine{Line: 9, Err: record.ErrTruncated})
	})
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(d.Run.Partial, "killed") {
		t.Errorf("partial: %q", d.Run.Partial)
	}
	for _, want := range []string{"1 lines of the record could not be read; the first: line 3: no JSON", "ends in the middle of a line", "12 events"} {
		if !strings.Contains(strings.Join(d.Run.Warnings, "|"), want) {
			t.Errorf("warnings %q lack %q", d.Run.Warnings, want)
		}
	}
	m.Ended = record.EndInterrupted
	if d, _ := Judge(m, s, lines()); !strings.Contains(d.Run.Partial, "interrupted") {
		t.Errorf("partial: %q", d.Run.Partial)
	}
	if _, err := Judge(m, s, func(yield func(record.Line, error) bool) { yield(record.Line{}, io.ErrUnexpectedEOF) }); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("an error of the stream: %v", err)
	}
}

func TestCause(t *testing.T) {
	for name, c := range map[string]struct {
		o    record.Observation
		want record.Cause
	}{
		"the last attempt's": {record.Observation{Shot: record.Shot{Outcome: record.OutcomeResponse, Status: 504},
			Logs: []record.LogLine{{Cause: record.CauseClosedEarly}, {Cause: record.CauseTimeout}, {Status: 504}}}, record.CauseTimeout},
		"late":             {record.Observation{Shot: record.Shot{Outcome: record.OutcomeReset}, Late: []record.Event{{}}}, record.CauseIdleClose},
		"late but partial": {record.Observation{Shot: record.Shot{Outcome: record.OutcomePartial, Status: 200}, Late: []record.Event{{}}}, record.CauseReset},
		"refused client":   {record.Observation{Shot: record.Shot{Outcome: record.OutcomeRefused}}, record.CauseClient},
		"own fault":        {record.Observation{Shot: record.Shot{Outcome: record.OutcomeClient}}, record.CauseClient},
		"504":              {record.Observation{Shot: record.Shot{Outcome: record.OutcomeResponse, Status: 504}}, record.CauseTimeout},
		"502 alone":        {record.Observation{Shot: record.Shot{Outcome: record.OutcomeResponse, Status: 502}}, record.CauseUnknown},
		"closed alone":     {record.Observation{Shot: record.Shot{Outcome: record.OutcomeClosed}}, record.CauseUnknown},
		"log knows":        {record.Observation{Shot: record.Shot{Status: 502}, Logs: []record.LogLine{{}, {Cause: record.CauseNotHTTP}}}, record.CauseNotHTTP},
		"log says closed early, nobody says by what": {record.Observation{Shot: record.Shot{Status: 502, Outcome: record.OutcomeResponse},
			Logs: []record.LogLine{{Cause: record.CauseClosedEarly}}}, record.CauseClosedEarly},
	} {
		if got := Cause(c.o); got != c.want {
			t.Errorf("%s: %s, want %s", name, got, c.want)
		}
	}
}

func TestSampleIsBounded(t *testing.T) {
	var s sample
	for i := range 100 * sampleSize {
		s.add(time.Duration(i))
	}
	if len(s.kept) != sampleSize || s.n != 100*sampleSize || s.min != 0 || s.max != 100*sampleSize-1 {
		t.Errorf("%d kept of %d, %d to %d", len(s.kept), s.n, s.min, s.max)
	}
	if p50 := float64(s.quantile(0.5)) / float64(s.n); p50 < 0.45 || p50 > 0.55 {
		t.Errorf("median at %v", p50)
	}
}

// BenchmarkJudge judges a record of 32 cells. The figure asked for is a
// million observations: ns/observation times that.
func BenchmarkJudge(b *testing.B) {
	m, s := controlled()
	var all []record.Line
	const n = 20000
	for i := range uint64(n) {
		all = append(all, served("cell", i, 1+i/40, 1)...)
		if i%40 == 39 {
			all = append(all, record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: "cell", Seq: i}})
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Judge(m, s, lines(all...)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/n, "ns/observation")
}
