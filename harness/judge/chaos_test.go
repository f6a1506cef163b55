package judge

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

func disturbed(kinds ...string) func(*record.Observation) {
	return func(o *record.Observation) { o.Disturbed = kinds }
}

func all(changes ...func(*record.Observation)) func(*record.Observation) {
	return func(o *record.Observation) {
		for _, c := range changes {
			c(o)
		}
	}
}

// restarted is a request whose connection, by the proxy's log, a restart had
// closed.
func restarted(o *record.Observation) {
	o.Before = []record.Event{{Kind: record.EventIdle}, {Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyShutdown}}
	o.Logs = []record.LogLine{{Cause: record.CauseClosedEarly, Attempts: []record.Attempt{{Local: "127.0.0.1:4", Err: "EOF"}}}}
}

// safePair is all that a safe verdict needs.
func safePair() story {
	return tell(racing).answered(100, 2).answered(300, 1).proxyCloses(80, 700*msec).direct(1001 * msec)
}

// TestDisturbed: what a disturbance may have had a hand in counts for nothing
// and against nothing.
func TestDisturbed(t *testing.T) {
	paused := disturbed("pause-proxy")
	for name, c := range map[string]struct {
		story              story
		state              spec.State
		why, warning       string // part of it; empty: no warning
		causes             map[string]int
		attributed, others int
		setAside           int
	}{
		"a safe pair stays safe": {safePair().observe(all(failed502, paused)).observe(all(failed502, late, paused)),
			spec.Safe, "no failure in 400 aimed shots", "2 requests failed in disturbances of the run (pause-proxy: 2)",
			map[string]int{"disturbed: pause-proxy": 2}, 0, 2, 2},
		"its replays mask nothing":      {safePair().observe(all(late, paused)), spec.Safe, "no failure", "", map[string]int{}, 0, 0, 1},
		"without a disturbance they do": {tell(racing).answered(300, 2).upstreamCloses(9).observe(late), spec.Masked, "met an upstream connection", "", map[string]int{}, 0, 0, 0},
		"answers of a disturbed machine are no shots": {tell(racing).answered(299, 2).proxyCloses(80, 700*msec).direct(time.Second).observe(paused),
			spec.Inconclusive, "299 aimed shots, 300 needed; no failure and no stale reuse so far; set aside for disturbances of the run: 1 request", "", map[string]int{}, 0, 0, 1},
		"a race alone in a disturbance is none": {tell(racing).answered(300, 2).upstreamCloses(50).direct(time.Second).observe(all(failed502, late, paused)),
			spec.Inconclusive, "the upstream closed first", "1 request failed in disturbances", map[string]int{"disturbed: pause-proxy": 1}, 0, 1, 1},
		"a racing pair races by its other shots": {tell(racing).answered(50, 2).upstreamCloses(50).
			observe(all(failed502, late)).observe(all(failed502, late, disturbed("burn-cpu", "pause-origin"))),
			spec.Races, "1 of 52 POSTs met an upstream connection that the upstream's idle timer had just closed (set 1s, measured 1000ms): 1 x 502; the origin saw it",
			"1 request failed in disturbances of the run (burn-cpu + pause-origin: 1)",
			map[string]int{"idle-close": 1, "disturbed: burn-cpu + pause-origin": 1}, 1, 1, 1},
		"a restart, at any time": {safePair().observe(all(failed502, restarted)),
			spec.Safe, "no failure", "(upstream-restart: 1)", map[string]int{"upstream-restart": 1}, 0, 1, 1},
		"a restart within a disturbance": {safePair().observe(all(failed502, restarted, disturbed("restart-origin"))),
			spec.Safe, "no failure", "(upstream-restart: 1)", map[string]int{"upstream-restart": 1}, 0, 1, 1},
		"a restart beside an idle close": {safePair().observe(all(failed502, restarted, late)),
			spec.Safe, "no failure", "(upstream-restart: 1)", map[string]int{"upstream-restart": 1}, 0, 1, 1},
		"another failure still counts": {safePair().observe(all(failed502, paused)).observe(failed502),
			spec.Inconclusive, "1 request of 402 POSTs failed (1 x 502) and none could be tied", "pause-proxy: 1", map[string]int{"disturbed: pause-proxy": 1, "unknown": 1}, 0, 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			v := c.story.t.Verdict()
			if v.State != c.state || !strings.Contains(v.Why, c.why) {
				t.Errorf("%s: %s\nwant %s: %s", v.State, v.Why, c.state, c.why)
			}
			if got := strings.Join(v.Warnings, "\n"); !strings.Contains(got, c.warning) || (c.warning == "") != (got == "") {
				t.Errorf("warnings: %s\nwant a part: %s", got, c.warning)
			}
			if diff := cmp.Diff(c.causes, v.Causes); diff != "" {
				t.Errorf("causes: %s", diff)
			}
			if v.Attributed != c.attributed || v.Other != c.others || v.SetAside != c.setAside {
				t.Errorf("attributed %d, other %d, set aside %d", v.Attributed, v.Other, v.SetAside)
			}
		})
	}
}

func TestDisturbedExecutedTwice(t *testing.T) {
	twice := func(o *record.Observation) {
		o.Requests = []record.Event{{Nth: 1, Executed: true}, {Nth: 1, Executed: true}}
	}
	if v := safePair().observe(all(twice, disturbed("pause-origin"))).t.Verdict(); v.Twice != 1 {
		t.Errorf("%d executed twice: what the origin did it did, whoever disturbed it", v.Twice)
	}
}

// TestJudgeChaos reads a record in which a proxy is paused.
func TestJudgeChaos(t *testing.T) {
	said := func(to int64) record.Line {
		return record.Line{T: record.KindDisturbance, Disturbance: &record.Disturbance{What: "pause-proxy", Target: "px", From: 1, To: to}}
	}
	calm := append(served("not", 1, 10, 1), served("not", 2, 11, 1)...)
	race := lost("must", 1, 20)
	// Everything of this record stands at 0, within the disturbance's lead.
	failed := lost("not", 3, 30)
	for name, c := range map[string]struct {
		lines []record.Line
		state spec.State
		n     int
	}{
		"the negative control fails of it": {append(append(append(safeCell(), calm...), race...), append(later(said(0), said(2)), failed...)...), spec.Safe, 1},
		"the cell does":                    {append(append(append(safeCell(), calm...), race...), append(later(said(0), said(2)), lost("cell", 9, 40)...)...), spec.Safe, 1},
		"the run was killed in it":         {append(append(append(safeCell(), calm...), race...), append(later(said(0)), lost("cell", 9, 40)...)...), spec.Safe, 1},
		"nobody disturbs":                  {append(append(append(safeCell(), calm...), race...), failed...), spec.Broken, 0},
	} {
		t.Run(name, func(t *testing.T) {
			m, s := controlled()
			d, err := Judge(m, s, lines(c.lines...))
			if err != nil {
				t.Fatal(err)
			}
			if v := d.Cells[0]; v.State != c.state {
				t.Errorf("%s: %s", v.State, v.Why)
			}
			if n := d.Run.Disturbances["pause-proxy"]; n != c.n {
				t.Errorf("%d disturbances, want %d", n, c.n)
			}
		})
	}
}

// later settles what came before the lines of a disturbance, twice, as a judge
// hears a witness for one burst more.
func later(ls ...record.Line) []record.Line {
	var out []record.Line
	for _, cell := range []string{"cell", "must", "not"} {
		for range 2 {
			out = append(out, record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: cell, Seq: 2}})
		}
	}
	return append(out, ls...)
}
