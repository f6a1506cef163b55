package metrics

import (
	"bytes"
	"fmt"
	"io"
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

	"idlerace/harness/plan"
	"idlerace/harness/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// observed has counted a little of everything.
func observed() *Set {
	s := New()
	shot := func(cell string, outcome record.Outcome, status int, cause record.Cause, late int, phase record.Phase, lateness time.Duration) {
		o := record.Observation{
			Shot: record.Shot{Cell: cell, Outcome: outcome, Status: status, Phase: phase, Planned: time.Second, Age: time.Second + lateness},
			Late: make([]record.Event, late),
		}
		s.Observe(plan.Item{ID: cell}, o, cause)
	}
	shot("a", record.OutcomeResponse, 200, "", 0, record.PhaseWarm, time.Hour)
	shot("a", record.OutcomeResponse, 200, "", 1, record.PhaseAimed, 150*time.Microsecond)
	shot("a", record.OutcomeResponse, 404, "", 0, record.PhaseAimed, 3*time.Millisecond)
	shot("a", record.OutcomeResponse, 502, record.CauseIdleClose, 1, record.PhaseAimed, time.Second)
	shot("b", record.OutcomeReset, 0, record.CauseReset, 0, record.PhaseMeasure, 0)
	shot("b", record.OutcomeResponse, 502, record.CauseIdleClose, 2, record.PhaseAimed, 0)
	shot("b", record.OutcomeResponse, 503, record.CauseIdleClose, 0, record.PhaseAimed, 0)
	s.States(map[string]int{"safe": 7})
	s.States(map[string]int{"races": 2, "inconclusive": 1})
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
		"idlerace_late_requests_total{cell=b}":                 2,
		"idlerace_cells{state=races}":                          2,
		"idlerace_cells{state=inconclusive}":                   1,
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
	if diff := cmp.Diff(want, samples(t, bytes.NewReader(text))); diff != "" {
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
	for name := range got {
		if !strings.HasPrefix(name, "idlerace_shot_lateness_seconds{}") {
			t.Errorf("%s without a shot", name)
		}
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
	addr, stop, err := s.Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
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
	s.Observe(plan.Item{ID: "c"}, record.Observation{Shot: record.Shot{Outcome: record.OutcomeResponse, Status: 200}}, "")
	if _, body := get("/metrics"); samples(t, bytes.NewReader(body))["idlerace_shots_total{cell=c,outcome=response}"] != 1 {
		t.Error("what is served does not follow what is counted")
	}
	if status, _ := get("/"); status != http.StatusNotFound {
		t.Errorf("/: status %d", status)
	}

	_, _, err = New().Serve(addr)
	if want := "listen tcp " + addr + ": bind: address already in use"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}

	stop()
	if c, err := net.Dial("tcp", addr); err == nil {
		c.Close()
		t.Error("it accepts connections after stop")
	}
	stop() // harmless
	http.DefaultClient.CloseIdleConnections()
}

// A reader that hangs does not keep a run from ending.
func TestStopWithReader(t *testing.T) {
	before := goleak.IgnoreCurrent()
	addr, stop, err := New().Serve("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET /metrics HTTP/1.1\r\nHost: ") // and no more
	stop()
	if err := goleak.Find(before); err != nil {
		t.Error(err)
	}
}

func TestNil(t *testing.T) {
	var s *Set
	s.Observe(plan.Item{}, record.Observation{}, "")
	s.States(map[string]int{"safe": 1})
	if text, err := s.Text(); len(text) != 0 || err != nil {
		t.Errorf("Text: %q, %v", text, err)
	}
	addr, stop, err := s.Serve("127.0.0.1:0")
	if addr != "" || err != nil {
		t.Errorf("Serve: %q, %v", addr, err)
	}
	if stop == nil {
		t.Fatal("no stop")
	}
	stop()
}
