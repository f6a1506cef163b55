package compare

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// cell is a verdict on nginx at an upstream idle of so many seconds: hits of 20
// aimed requests a burst, in as many bursts as it takes.
func cell(seconds int, s spec.State, hits, bursts int) judge.Verdict {
	c := spec.Cell{Proxy: "nginx", Upstream: "go", ProxyIdle: spec.Idle(2 * time.Second), UpstreamIdle: time.Duration(seconds) * time.Second,
		Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN}
	v := judge.Verdict{ID: c.ID(), Role: judge.RoleCell, Proxy: c.Proxy, Version: "1.26.3", Runtime: "local", Upstream: c.Upstream, ProxyIdle: "2s",
		UpstreamIdle: spec.FormatDuration(c.UpstreamIdle), Method: c.Method, Retry: c.Retry, Close: c.Close, RTT: "0s", State: s,
		AimedShots: 20 * bursts, AimedBursts: bursts, AimedStale: hits, StaleBursts: min(hits, bursts)}
	if s == spec.Races {
		v.AimedLost, v.LostBursts = v.AimedStale, v.StaleBursts
	}
	return v
}

func input(path string, seed uint64, cells ...judge.Verdict) Input {
	return Input{Path: path, Document: &judge.Document{Run: judge.Run{Scenario: "s", Seed: seed, Cores: 2, Kernel: "Linux 6"}, Cells: cells}}
}

func compared(t *testing.T, runs ...Input) *Comparison {
	t.Helper()
	c, err := New(runs)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestChanges(t *testing.T) {
	// Ten cells more that did not change: the family is as large as in a real run.
	var calm []judge.Verdict
	for i := range 10 {
		calm = append(calm, cell(100+i, spec.Safe, 0, 16))
	}
	for _, tt := range []struct {
		name     string
		was, is  judge.Verdict
		change   Change
		dir      Direction
		measure  Measure
		untested string
	}{
		{"same", cell(1, spec.Safe, 0, 16), cell(1, spec.Safe, 0, 15), Same, Neither, Stale, ""},
		{"cured", cell(1, spec.Races, 200, 16), cell(1, spec.Safe, 0, 16), Significant, Better, Lost, ""},
		{"spoilt", cell(1, spec.Safe, 0, 16), cell(1, spec.Races, 200, 16), Significant, Worse, Lost, ""},
		{"masked now", cell(1, spec.Races, 200, 16), cell(1, spec.Masked, 200, 16), Significant, Better, Lost, ""},
		{"masked no more", cell(1, spec.Masked, 200, 16), cell(1, spec.Safe, 0, 16), Significant, Better, Stale, ""},
		// Plain over requests, nothing over the one burst each that it took.
		{"one burst", cell(1, spec.Races, 20, 1), cell(1, spec.Races, 3, 1), Same, Neither, Lost, ""},
		{"one burst of a cure", cell(1, spec.Races, 20, 1), cell(1, spec.Safe, 0, 16), StateOnly, Better, Lost, ""},
		{"few", cell(1, spec.Safe, 0, 16), cell(1, spec.Masked, 2, 16), StateOnly, Worse, Stale, ""},
		{"lost proof", cell(1, spec.Safe, 0, 16), cell(1, spec.Inconclusive, 0, 3), StateOnly, Neither, Stale, "not decided in both"},
		{"undecided", cell(1, spec.Inconclusive, 5, 16), cell(1, spec.Inconclusive, 0, 3), Same, Neither, Stale, "not decided in both"},
		{"not aimed", cell(1, spec.Races, 0, 0), cell(1, spec.Races, 200, 16), Same, Neither, Lost, "no aimed request"},
		{"unsupported", cell(1, spec.Races, 200, 16), cell(1, spec.Unsupported, 0, 0), StateOnly, Neither, Lost, "not decided in both"},
	} {
		c := compared(t, input("a", 1, append(slices.Clone(calm), tt.was)...), input("b", 2, append(slices.Clone(calm), tt.is)...))
		cells := c.Against[0].Cells
		got := cells[len(cells)-1]
		if got.Change != tt.change || got.Direction != tt.dir || got.Measure != tt.measure || got.Untested != tt.untested {
			t.Errorf("%s: %s %q of %s, untested %q; p %v, over bursts %v", tt.name, got.Change, got.Direction, got.Measure, got.Untested, got.Requests, got.Bursts)
		}
		if tested := tt.untested == ""; tested != (got.Requests != nil) || tested != (got.Bursts != nil) {
			t.Errorf("%s: tests %v %v", tt.name, got.Requests, got.Bursts)
		}
		tests := len(calm)
		if tt.untested == "" {
			tests++
		}
		if c.Tests != tests {
			t.Errorf("%s: %d tests, want %d", tt.name, c.Tests, tests)
		}
	}
}

func TestSidesAndTests(t *testing.T) {
	c := compared(t, input("a", 1, cell(1, spec.Races, 18, 4)), input("b", 2, cell(1, spec.Safe, 0, 16)))
	got := c.Against[0].Cells[0]
	if got.Was.Lost != 18 || got.Was.Aimed != 80 || got.Is.Lost != 0 || got.Is.Aimed != 320 {
		t.Errorf("%+v", got)
	}
	// R: fisher.test(matrix(c(18,62,0,320),2)), fisher.test(matrix(c(4,0,0,16),2))
	if p := got.Requests.P; p > 1e-12 || p < 1e-15 {
		t.Errorf("p = %g", p)
	}
	if p := got.Bursts.P; p < 0.00020 || p > 0.00021 { // 1 / choose(20, 4)
		t.Errorf("p over bursts = %g", p)
	}
	if got.Was.Rate != judge.ClopperPearson(18, 80) {
		t.Errorf("rate %v", got.Was.Rate)
	}
	if got.Requests.Holm != got.Requests.P {
		t.Error("one test needs no correction")
	}
}

// Three runs are two comparisons and one family of tests.
func TestSeveralRuns(t *testing.T) {
	a, b := input("a", 1, cell(1, spec.Races, 200, 16), cell(2, spec.Safe, 0, 16)), input("b", 2, cell(1, spec.Safe, 0, 16), cell(2, spec.Safe, 0, 16))
	d := input("c", 3, cell(1, spec.Safe, 0, 16), cell(2, spec.Safe, 0, 16))
	c := compared(t, a, b, d)
	if len(c.Against) != 2 || c.Tests != 4 || c.Against[1].Run != "C" {
		t.Fatalf("%+v", c)
	}
	for _, x := range c.Against {
		if got := x.Cells[0]; got.Change != Significant || got.Requests.Holm < 3.9*got.Requests.P*3/4 {
			t.Errorf("%s: %s %+v", x.Run, got.Change, got.Requests)
		}
	}
	if want, got := "B against A: 1 of 2 common cells changed significantly (1 better); 0 changed state without significance; 1 the same.", c.Sentence(c.Against[0]); got != want {
		t.Errorf("%q", got)
	}
}

func TestGoneAndNew(t *testing.T) {
	before := input("a", 1, cell(1, spec.Races, 9, 3), cell(2, spec.Races, 9, 3), cell(3, spec.Safe, 0, 16))
	cured := cell(2, spec.Masked, 9, 16)
	cured.Retry, cured.ID = spec.RetryOn, strings.Replace(cured.ID, "default", "on", 1)
	after := input("b", 2, cell(1, spec.Races, 9, 3), cured)
	other := cell(3, spec.Safe, 0, 16)
	other.Proxy, other.ID, other.RTT = "envoy", "envoy_cell", "40ms"
	before.Document.Cells = append(before.Document.Cells, other)
	after.Document.Unavailable = []judge.Unavailable{{Proxy: "envoy", Reason: "not on PATH"}}
	c := compared(t, before, after)
	want := []Lone{
		{"nginx_go_p2s_u2s_POST_default_fin_rtt0s", spec.Races, "there it is masked with retry on"},
		{"nginx_go_p2s_u3s_POST_default_fin_rtt0s", spec.Safe, ""},
		{"envoy_cell", spec.Safe, "envoy did not run there: not on PATH"},
	}
	if diff := cmp.Diff(want, c.Against[0].Gone); diff != "" {
		t.Error(diff)
	}
	want = []Lone{{"nginx_go_p2s_u2s_POST_on_fin_rtt0s", spec.Masked, "there it is races with retry default"}}
	if diff := cmp.Diff(want, c.Against[0].New); diff != "" {
		t.Error(diff)
	}
	if s := c.Sentence(c.Against[0]); !strings.HasSuffix(s, "; 3 gone, 1 new.") {
		t.Error(s)
	}
}

func TestDifferences(t *testing.T) {
	a, b := input("a", 1, cell(1, spec.Safe, 0, 16)), input("b", 2, cell(1, spec.Safe, 0, 16))
	if c := compared(t, a, b); len(c.Differences) != 0 {
		t.Errorf("%v", c.Differences)
	}
	b.Document.Cells[0].Version, b.Document.Cells[0].Runtime = "1.29.0", "docker"
	r := &b.Document.Run
	r.Kernel, r.Cores, r.Lanes = "Linux 7", 8, 40
	r.Engine = &record.Engine{Name: "Docker", Version: "28", OS: "Debian", Arch: "amd64", Path: "mapped ports"}
	r.Proxies = []record.ProxyRun{{Name: "nginx", Image: "nginx:1.29", ImageID: "sha256:0123456789abcdef"}}
	r.Disturbances = map[string]int{"burn-cpu": 2}
	a.Scenario = &spec.Scenario{Probe: spec.Probe{Shots: 300, Until: spec.UntilDecided, Aim: spec.AimProof}}
	b.Scenario = &spec.Scenario{Probe: spec.Probe{Shots: 600, Until: spec.UntilShots, Aim: spec.AimProof},
		Link: spec.Link{Up: spec.Direction{Jitter: time.Millisecond}, Idle: 350 * time.Second, OnIdle: spec.ExpiryDrop}}
	want := []Difference{
		{"proxy nginx", []string{"1.26.3 (local)", "1.29.0 (docker), image nginx:1.29, id 0123456789ab"}},
		{"kernel", []string{"Linux 6", "Linux 7"}},
		{"cores", []string{"2", "8"}},
		{"lanes per cell", []string{"0", "40"}},
		{"container engine", []string{"-", "Docker 28 Debian amd64 mapped ports"}},
		{"disturbed on purpose", []string{"-", "2 x burn-cpu"}},
		{"probe.shots", []string{"300", "600"}},
		{"probe.until", []string{"decided", "shots"}},
		{"link", []string{"-", "jitter up 1ms, idle 5m50s, then drop"}},
	}
	if diff := cmp.Diff(want, compared(t, a, b).Differences); diff != "" {
		t.Error(diff)
	}
	// Values that differ between any two runs, not only neighbours with the first.
	if c := compared(t, a, b, input("c", 3, cell(1, spec.Safe, 0, 16))); len(c.Differences) < len(want) || len(c.Differences[0].Values) != 3 {
		t.Errorf("%v", c.Differences)
	}
}

func TestErrors(t *testing.T) {
	a, b := input("a", 1, cell(1, spec.Safe, 0, 16)), input("b", 2, cell(2, spec.Safe, 0, 16))
	var many []Input
	for i := range MostRuns + 1 {
		many = append(many, input(fmt.Sprint(i), uint64(i), cell(1, spec.Safe, 0, 16)))
	}
	for _, tt := range []struct {
		runs []Input
		want string
	}{
		{nil, "needs two runs"},
		{[]Input{a}, "needs two runs"},
		{many, "27 runs are too many: at most 26 can be compared"},
		{[]Input{a, {Path: "copy", Document: a.Document}}, "a and copy are the same run (s, started 0001-01-01T00:00:00Z)"},
		{[]Input{a, b}, "a and b have no cell in common (one has nginx_go_p2s_u1s_POST_default_fin_rtt0s, one has nginx_go_p2s_u2s_POST_default_fin_rtt0s): cells are joined by their id"},
		{[]Input{a, input("none", 3)}, "one has none"},
	} {
		if _, err := New(tt.runs); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%v, want %s", err, tt.want)
		}
	}
}
