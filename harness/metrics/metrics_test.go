package metrics

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"go.uber.org/goleak"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// observed has counted a little of everything.
func observed() *Set {
	s := New()
	s.Begin(record.Manifest{Idlerace: "v1", Go: "go1.26", Scenario: "quick", Seed: 7, Started: time.UnixMilli(1700000000500)}, 90*time.Second)
	shot := func(cell string, outcome record.Outcome, status int, cause record.Cause, late int, phase record.Phase, lateness time.Duration) {
		o := record.Observation{
			Shot: record.Shot{Cell: cell, Outcome: outcome, Status: status, Phase: phase, Planned: time.Second, Age: time.Second + lateness,
				Target: record.TargetUpstream, Edge: time.Second + 600*time.Microsecond},
			Late: make([]record.Event, late),
		}
		s.Observe(plan.Item{ID: cell, Cell: spec.Cell{Proxy: "nginx", Method: "POST"}}, o, cause, phase == record.PhaseAimed && lateness < time.Second)
	}
	shot("a", record.OutcomeResponse, 200, "", 0, record.PhaseWarm, time.Hour)
	shot("a", record.OutcomeResponse, 200, "", 1, record.PhaseAimed, 150*time.Microsecond)
	shot("a", record.OutcomeResponse, 404, "", 0, record.PhaseAimed, 3*time.Millisecond)
	shot("a", record.OutcomeResponse, 502, record.CauseIdleClose, 1, record.PhaseAimed, time.Second)
	shot("b", record.OutcomeReset, 0, record.CauseReset, 0, record.PhaseMeasure, 0)
	shot("b", record.OutcomeResponse, 502, record.CauseIdleClose, 2, record.PhaseAimed, 0)
	shot("b", record.OutcomeResponse, 503, record.CauseIdleClose, 0, record.PhaseAimed, 0)
	s.Cells(map[Kind]int{{plan.RoleCell, spec.Safe}: 7}, 0, 7)
	s.Cells(map[Kind]int{{plan.RoleCell, spec.Races}: 2, {plan.RoleMustRace, spec.Inconclusive}: 1}, 2, 3)
	return s
}

// samples parses a text exposition: "name{label=value}" to value.
func samples(t *testing.T, text io.Reader) map[string]float64 {
	t.Helper()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(text)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for name, f := range families {
		for _, m := range f.Metric {
			var labels []string
			for _, l := range m.Label {
				labels = append(labels, l.GetName()+"="+l.GetValue())
			}
			key := name + "{" + strings.Join(labels, ",") + "}"
			switch {
			case m.Counter != nil:
				out[key] = m.Counter.GetValue()
			case m.Gauge != nil:
				out[key] = m.Gauge.GetValue()
			case m.Histogram != nil:
				out[key+" count"] = float64(m.Histogram.GetSampleCount())
				for _, b := range m.Histogram.Bucket {
					out[fmt.Sprintf("%s le %g", key, b.GetUpperBound())] = float64(b.GetCumulativeCount())
				}
			default:
				t.Errorf("%s: a metric of another kind", key)
			}
		}
	}
	return out
}

func TestText(t *testing.T) {
	text, err := observed().Text()
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]float64{
		"idlerace_shots_total{cell=a,outcome=response}":        4,
		"idlerace_shots_total{cell=b,outcome=response}":        2,
		"idlerace_shots_total{cell=b,outcome=reset}":           1,
		"idlerace_failures_total{cause=idle-close,cell=a}":     1,
		"idlerace_failures_total{cause=idle-close,cell=b}":     2,
		"idlerace_failures_total{cause=upstream-reset,cell=b}": 1,
		"idlerace_late_requests_total{cell=a}":                 2,
		"idlerace_late_requests_total{cell=b}":                 1,
		"idlerace_aimed_shots_total{cell=a}":                   2,
		"idlerace_aimed_shots_total{cell=b}":                   2,
		"idlerace_build_info{goversion=go1.26,version=v1}":     1,
		"idlerace_run_info{scenario=quick,seed=7}":             1,
		"idlerace_run_start_time_seconds{}":                    1700000000.5,
		"idlerace_run_end_time_seconds{}":                      0,
		"idlerace_run_budget_seconds{}":                        90,
		"idlerace_run_cells{}":                                 3,
		"idlerace_run_cells_decided{}":                         2,
		"idlerace_shot_lateness_seconds{} count":               5,
		"idlerace_shot_lateness_seconds{} le 5e-05":            2,
		"idlerace_shot_lateness_seconds{} le 0.0001":           2,
		"idlerace_shot_lateness_seconds{} le 0.0002":           3,
		"idlerace_shot_lateness_seconds{} le 0.0005":           3,
		"idlerace_shot_lateness_seconds{} le 0.001":            3,
		"idlerace_shot_lateness_seconds{} le 0.002":            3,
		"idlerace_shot_lateness_seconds{} le 0.005":            4,
		"idlerace_shot_lateness_seconds{} le 0.01":             4,
		"idlerace_shot_lateness_seconds{} le 0.1":              4,
		"idlerace_shot_lateness_seconds{} le +Inf":             5,
	}
	// The five aimed shots were sent 0, 0, 0.15, 3 and 1000 ms late, at 0.6 ms before the edge and so on.
	ages := "idlerace_shot_age_past_edge_seconds{edge=upstream,method=POST,proxy=nginx}"
	want[ages+" count"] = 5
	for le, n := range map[string]float64{"-0.01": 0, "-0.005": 0, "-0.002": 0, "-0.001": 0, "-0.0005": 2, "0": 3, "0.0005": 3, "0.001": 3, "0.002": 3, "0.005": 4, "0.01": 4, "+Inf": 5} {
		want[ages+" le "+le] = n
	}
	maps.Copy(want, kinds(map[Kind]float64{{plan.RoleCell, spec.Races}: 2, {plan.RoleMustRace, spec.Inconclusive}: 1}))
	if diff := cmp.Diff(want, samples(t, bytes.NewReader(text))); diff != "" {
		t.Error(diff)
	}
}

// kinds are the samples of all kinds of cells.
func kinds(count map[Kind]float64) map[string]float64 {
	out := map[string]float64{}
	for _, role := range []string{"cell", "must-race", "must-not-race"} {
		for _, state := range []spec.State{"safe", "masked", "races", "inconclusive", "unsupported", "broken"} {
			out[fmt.Sprintf("idlerace_cells{role=%s,state=%s}", role, state)] = count[Kind{role, state}]
		}
	}
	return out
}

// A judged run has the verdicts' numbers: a cause that was found later, a state
// that a control took away, disturbances as one.
func TestJudged(t *testing.T) {
	s := observed()
	s.Judged(&judge.Document{
		Cells: []judge.Verdict{
			{ID: "a", Role: plan.RoleCell, State: spec.Inconclusive, AimedShots: 3, Late: 4, Causes: map[string]int{"idle-close": 1}},
			{ID: "b", Role: plan.RoleCell, State: spec.Races, AimedShots: 2, Causes: map[string]int{"idle-close": 3, "disturbed: burn-cpu": 2, "disturbed: burn-cpu + pause-proxy": 4}},
		},
		Controls: []judge.Verdict{{ID: "c", Role: plan.RoleMustNotRace, State: spec.Safe, Causes: map[string]int{}}},
	}, time.UnixMilli(1700000060500))
	text, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	got := samples(t, bytes.NewReader(text))
	want := kinds(map[Kind]float64{{plan.RoleCell, spec.Inconclusive}: 1, {plan.RoleCell, spec.Races}: 1, {plan.RoleMustNotRace, spec.Safe}: 1})
	maps.Copy(want, map[string]float64{
		"idlerace_failures_total{cause=idle-close,cell=a}": 1,
		"idlerace_failures_total{cause=idle-close,cell=b}": 3,
		"idlerace_failures_total{cause=disturbed,cell=b}":  6,
		"idlerace_late_requests_total{cell=a}":             4,
		"idlerace_late_requests_total{cell=b}":             0,
		"idlerace_late_requests_total{cell=c}":             0,
		"idlerace_aimed_shots_total{cell=a}":               3,
		"idlerace_aimed_shots_total{cell=b}":               2,
		"idlerace_run_end_time_seconds{}":                  1700000060.5,
	})
	maps.DeleteFunc(got, func(name string, _ float64) bool {
		return !strings.HasPrefix(name, "idlerace_cells{") && !strings.HasPrefix(name, "idlerace_failures") && !strings.HasPrefix(name, "idlerace_aimed") && !strings.HasPrefix(name, "idlerace_late") && !strings.HasPrefix(name, "idlerace_run_end")
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

// Before the first shot there is nothing but what has no label.
func TestTextEmpty(t *testing.T) {
	text, err := New().Text()
	if err != nil {
		t.Fatal(err)
	}
	got := samples(t, bytes.NewReader(text))
	if n, ok := got["idlerace_shot_lateness_seconds{} count"]; !ok || n != 0 {
		t.Errorf("%s", text)
	}
	for name, n := range got {
		if !strings.Contains(name, "{}") || n != 0 {
			t.Errorf("%s %g without a run", name, n)
		}
	}
}

// TestCardinality: a run whose every cell sees every outcome and cause has as
// many series as the comment of Set says.
func TestCardinality(t *testing.T) {
	const proxies, methods, pairs = 5, 2, 50
	outcomes := []record.Outcome{record.OutcomeResponse, record.OutcomeClosed, record.OutcomeReset, record.OutcomePartial,
		record.OutcomeNotHTTP, record.OutcomeRefused, record.OutcomeTimeout, record.OutcomeClient}
	causes := []record.Cause{record.CauseIdleClose, record.CauseReset, record.CauseRefused, record.CauseTimeout, record.CauseNotHTTP,
		record.CauseClient, record.CauseUnknown, record.CauseDisturbed, record.CauseRestart, record.CauseClosedEarly}
	s := New()
	s.Begin(record.Manifest{}, time.Minute)
	s.Cells(nil, 0, 0)
	cells := 0
	for p := range proxies {
		for _, method := range []string{"GET", "POST"} {
			for pair := range pairs {
				cells++
				it := plan.Item{ID: fmt.Sprint(p, method, pair), Cell: spec.Cell{Proxy: fmt.Sprint(p), Method: method}}
				for i := range max(len(outcomes), len(causes)) {
					o := record.Observation{Shot: record.Shot{Phase: record.PhaseAimed, Status: 502, Outcome: outcomes[i%len(outcomes)],
						Target: []string{record.TargetUpstream, record.TargetProxy}[i%2]}}
					s.Observe(it, o, causes[i%len(causes)], true)
				}
			}
		}
	}
	if cells != 500 {
		t.Fatalf("%d cells", cells)
	}
	text, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	got := 0
	for l := range strings.Lines(string(text)) {
		if !strings.HasPrefix(l, "#") {
			got++
		}
	}
	// Besides: 18 kinds of cells, the lateness' 12, 2 infos and 5 numbers of the run.
	want := cells*(len(outcomes)+len(causes)+2) + 2*proxies*methods*(len(ageBuckets)+3) + 18 + 12 + 2 + 5
	if got != want {
		t.Errorf("%d series, want %d", got, want)
	}
}

func TestNames(t *testing.T) {
	text, err := observed().Text()
	if err != nil {
		t.Fatal(err)
	}
	problems, err := promlint.New(bytes.NewReader(text)).Lint()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		t.Errorf("%s: %s", p.Metric, p.Text)
	}
}

func TestServe(t *testing.T) {
	s := observed()
	e, err := s.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := e.Addr
	get := func(path string) (int, []byte) {
		t.Helper()
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, b
	}
	text, err := s.Text()
	if err != nil {
		t.Fatal(err)
	}
	status, body := get("/metrics")
	if status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	if diff := cmp.Diff(samples(t, bytes.NewReader(text)), samples(t, bytes.NewReader(body))); diff != "" {
		t.Error(diff)
	}
	s.Observe(plan.Item{ID: "c"}, record.Observation{Shot: record.Shot{Outcome: record.OutcomeResponse, Status: 200}}, "", false)
	if _, body := get("/metrics"); samples(t, bytes.NewReader(body))["idlerace_shots_total{cell=c,outcome=response}"] != 1 {
		t.Error("what is served does not follow what is counted")
	}
	if status, _ := get("/"); status != http.StatusNotFound {
		t.Errorf("/: status %d", status)
	}

	_, err = New().Serve(addr)
	if want := "listen tcp " + addr + ": bind: address already in use"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}

	// Nobody comes; then somebody does.
	over, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if e.Scraped(over) {
		t.Error("a scrape before it was waited for counts")
	}
	scraped := make(chan bool)
	for range 2 {
		go func() { scraped <- e.Scraped(t.Context()) }()
	}
	for range 2 {
		for waiting := true; waiting; {
			select {
			case ok := <-scraped:
				waiting = false
				if !ok {
					t.Error("a scrape is not seen")
				}
			default:
				get("/metrics")
			}
		}
	}

	e.Stop()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("it accepts connections after stop")
	}
	e.Stop() // harmless
	http.DefaultClient.CloseIdleConnections()
}

// A reader that hangs does not keep a run from ending.
func TestStopWithReader(t *testing.T) {
	before := goleak.IgnoreCurrent()
	e, err := New().Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", e.Addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: ") // and no more
	e.Stop()
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func TestNil(t *testing.T) {
	var s *Set
	s.Begin(record.Manifest{}, 0)
	s.Observe(plan.Item{}, record.Observation{}, "", true)
	s.Cells(map[Kind]int{{plan.RoleCell, spec.Safe}: 1}, 1, 1)
	s.Judged(&judge.Document{}, time.Now())
	var e *Endpoint
	if e.Scraped(t.Context()) {
		t.Error("a scrape of nothing")
	}
	e.Stop()
}
