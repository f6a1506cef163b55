package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"idlerace/harness/judge"
	"idlerace/harness/metrics"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/run"
)

// observe is the folder with what shows a run's metrics.
const observe = "../docker/observe"

// needPrometheus skips a test where Prometheus and promtool are not installed,
// or fails it where the environment asks for them.
func needPrometheus(t *testing.T) {
	t.Helper()
	for _, name := range []string{"prometheus", "promtool"} {
		if _, err := exec.LookPath(name); err != nil {
			if slices.Contains(run.Required(), "prometheus") {
				t.Fatalf("prometheus is required by %s: %v", run.RequireVar, err)
			}
			t.Skipf("%v; to get it: apt-get install prometheus", err)
		}
	}
}

// promtool runs a check and wants neither error nor advice.
func promtool(t *testing.T, stdin []byte, args ...string) {
	t.Helper()
	cmd := exec.Command("promtool", args...)
	cmd.Stdin = bytes.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 && !bytes.Contains(out, []byte("SUCCESS")) {
		t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// prometheus is a real one that scrapes an address five times a second, until
// the test ends.
type prometheus struct {
	t   *testing.T
	url string
}

func startPrometheus(t *testing.T, target string) *prometheus {
	t.Helper()
	needPrometheus(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "prometheus.yml")
	text := fmt.Sprintf("global: {scrape_interval: 200ms, scrape_timeout: 200ms}\nscrape_configs: [{job_name: idlerace, static_configs: [{targets: [%q]}]}]\n", target)
	if err := os.WriteFile(config, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	addr := freeAddr(t)
	cmd := exec.Command("prometheus", "--config.file", config, "--storage.tsdb.path", filepath.Join(dir, "data"),
		"--storage.tsdb.retention.time", "1h", "--web.listen-address", addr, "--log.level", "warn")
	cmd.Dir = dir // it writes a file where it stands
	var log lockedBuffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("prometheus: %s", log.String())
		}
	})
	p := &prometheus{t, "http://" + addr}
	waitFor(t, "prometheus", func() bool {
		resp, err := http.Get(p.url + "/-/ready")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
	// It takes seconds to begin.
	waitFor(t, "a first try to scrape", func() bool { return len(p.query("up", 0)) > 0 })
	return p
}

// freeAddr is an address that was free a moment ago.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// query gives the value of each series of an instant query, by the values of
// some of its labels.
func (p *prometheus) query(q string, at float64, labels ...string) map[string]float64 {
	p.t.Helper()
	args := url.Values{"query": {q}}
	if at != 0 {
		args.Set("time", strconv.FormatFloat(at, 'f', 3, 64))
	}
	resp, err := http.PostForm(p.url+"/api/v1/query", args)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	var answer struct {
		Status string
		Data   struct {
			Result []struct {
				Metric map[string]string
				Value  [2]any // time, value as text
			}
		}
	}
	if err := json.Unmarshal(b, &answer); err != nil || answer.Status != "success" {
		p.t.Fatalf("%s: %v: %s", q, err, b)
	}
	out := map[string]float64{}
	for _, r := range answer.Data.Result {
		var key []string
		for _, l := range labels {
			key = append(key, r.Metric[l])
		}
		v, err := strconv.ParseFloat(fmt.Sprint(r.Value[1]), 64)
		if err != nil {
			p.t.Fatalf("%s: %v: %s", q, err, b)
		}
		out[strings.Join(key, " ")] += v
	}
	return out
}

// TestE2EPrometheus has a real Prometheus scrape a real run, and holds what it
// says afterwards against the verdicts: exactly, since the run stays until its
// final numbers were fetched. Every query of the dashboard finds something.
func TestE2EPrometheus(t *testing.T) {
	target := freeAddr(t)
	p := startPrometheus(t, target)
	file := scenarioFile(t, "prometheus", "gohttp", `axes:
  proxy_idle: [300ms, 1200ms]
  upstream_idle: [600ms]
probe: {lanes: 20, shots: 100, budget: 90s}`)
	out := t.TempDir()
	cmd := exec.Command(binary, "run", file, "--runtime", record.RuntimeLocal, "--out", out, "--metrics", target, "--metrics-wait", "60s")
	text, _ := cmd.CombinedOutput()
	// On a machine too busy to decide anything the numbers are the same all the same.
	if code := cmd.ProcessState.ExitCode(); code != exitOK && code != exitInconclusive || strings.Contains(string(text), "nobody came") {
		t.Fatalf("exit code %d\n%s", code, text)
	}
	folder, err := results.Open(filepath.Join(out, results.Latest))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	b, err := os.ReadFile(filepath.Join(folder.Path, results.VerdictsFile))
	if err != nil {
		t.Fatal(err)
	}
	var d judge.Document
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	var at float64 // of the last scrape
	waitFor(t, "the last scrape in Prometheus", func() bool {
		at = 0
		for _, at = range p.query("max_over_time(timestamp(idlerace_run_end_time_seconds > 0)[5m:100ms])", 0) {
		}
		return at != 0
	})

	outcomes, causes := map[string]float64{}, map[string]float64{}
	aimed, late, kinds := map[string]float64{}, map[string]float64{}, map[string]float64{}
	for _, v := range append(d.Cells, d.Controls...) {
		for status, n := range v.Statuses {
			if _, err := strconv.Atoi(status); err == nil {
				status = string(record.OutcomeResponse)
			}
			outcomes[v.ID+" "+status] += float64(n)
		}
		for cause, n := range v.Causes {
			causes[v.ID+" "+cause] += float64(n)
		}
		if v.AimedShots > 0 {
			aimed[v.ID] = float64(v.AimedShots)
		}
		late[v.ID] = float64(v.Late)
		kinds[v.Role+" "+string(v.State)]++
	}
	for _, tt := range []struct {
		query  string
		labels []string
		want   map[string]float64
	}{
		{"idlerace_shots_total", []string{"cell", "outcome"}, outcomes},
		{"idlerace_aimed_shots_total", []string{"cell"}, aimed},
		{"idlerace_failures_total", []string{"cell", "cause"}, causes},
		{"idlerace_late_requests_total", []string{"cell"}, late},
		{"idlerace_cells > 0", []string{"role", "state"}, kinds},
		{"idlerace_run_cells", nil, map[string]float64{"": 6}},
		{"idlerace_run_cells_decided", nil, map[string]float64{"": 6}},
		{"idlerace_run_budget_seconds", nil, map[string]float64{"": 90}},
		{"idlerace_run_info", []string{"scenario", "seed"}, map[string]float64{"prometheus 1": 1}},
	} {
		if diff := cmp.Diff(tt.want, p.query(tt.query, at, tt.labels...)); diff != "" {
			t.Errorf("%s (-verdicts +prometheus):\n%s", tt.query, diff)
		}
	}
	if len(causes) == 0 {
		t.Error("no request failed: the comparison compared little")
	}

	// What the run leaves for a textfile collector is what was scraped last.
	left, err := os.ReadFile(filepath.Join(folder.Path, results.MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	promtool(t, left, "check", "metrics")
	scraped := p.query(`{__name__=~"idlerace_.*"}`, at, "__name__")
	if diff := cmp.Diff(metricsFile(t, folder), scraped); diff != "" {
		t.Errorf("sums by name (-metrics.prom +prometheus):\n%s", diff)
	}

	for _, q := range dashboardQueries(t) {
		q = strings.NewReplacer("$__rate_interval", "1m", "$proxy", ".*").Replace(q)
		finite := false
		for _, v := range p.query(q, at) {
			finite = finite || !math.IsNaN(v) && !math.IsInf(v, 0)
		}
		if !finite {
			t.Errorf("the dashboard's %s finds nothing; scrapes: %v", q, p.query("count_over_time(idlerace_run_cells[5m])", at))
		}
	}
}

// metricsFile sums the samples in a run's metrics.prom by name.
func metricsFile(t *testing.T, folder *results.Folder) map[string]float64 {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(folder.Path, results.MetricsFile))
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, m := range regexp.MustCompile(`(?m)^([a-z_]+)\S* (\S+)$`).FindAllStringSubmatch(string(text), -1) {
		v, err := strconv.ParseFloat(m[2], 64)
		if err != nil {
			t.Fatal(err)
		}
		out[m[1]] += v
	}
	return out
}

// TestE2EMetricsWait: a run whose final metrics nobody wants ends when it may, and
// at once when it is interrupted.
func TestE2EMetricsWait(t *testing.T) {
	file := scenarioFile(t, "wait", "gohttp", quickScenario)
	for _, tt := range []struct {
		wait      string
		interrupt bool
	}{{"100ms", false}, {"1h", true}} {
		cmd := exec.Command(binary, "run", file, "--runtime", record.RuntimeLocal, "--out", t.TempDir(), "--metrics", "127.0.0.1:0", "--metrics-wait", tt.wait)
		var text lockedBuffer
		cmd.Stdout, cmd.Stderr = &text, &text
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if tt.interrupt {
			waitFor(t, "the wait", func() bool { return strings.Contains(text.String(), "waiting for a last scrape, at most "+tt.wait) })
			cmd.Process.Signal(os.Interrupt)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(text.String(), "nobody came for the final ones") {
			t.Errorf("--metrics-wait %s: %v\n%s", tt.wait, err, text.String())
		}
	}
}

// dashboard is what Grafana needs of a dashboard, and we rely on.
type dashboard struct {
	UID, Title    string
	SchemaVersion int
	Templating    struct {
		List []struct {
			Name, Type, Definition string
			Query                  any
		}
	}
	Panels []struct {
		ID         int
		Title      string
		Type       string
		Datasource struct{ Type, UID string }
		GridPos    struct{ X, Y, W, H int }
		Targets    []struct {
			RefID, Expr string
			Datasource  struct{ Type, UID string }
		}
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(observe, "grafana", "dashboards", "idlerace.json"))
	if err != nil {
		t.Fatal(err)
	}
	var d dashboard
	if err := json.Unmarshal(b, &d); err != nil {
		t.Fatal(err)
	}
	return d
}

func dashboardQueries(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, panel := range readDashboard(t).Panels {
		for _, target := range panel.Targets {
			out = append(out, target.Expr)
		}
	}
	if len(out) == 0 {
		t.Fatal("the dashboard has no query")
	}
	return out
}

// TestDashboard: what Grafana needs is there, panels do not cover each other,
// and every metric they name is one of ours.
func TestDashboard(t *testing.T) {
	set := metrics.New() // something of everything
	set.Begin(record.Manifest{}, time.Minute)
	set.Cells(nil, 0, 0)
	set.Observe(plan.Item{}, record.Observation{Shot: record.Shot{Phase: record.PhaseAimed, Status: 502}}, record.CauseUnknown, true)
	gathered, err := set.Gather()
	if err != nil {
		t.Fatal(err)
	}
	families := map[string]string{} // type by name
	for _, f := range gathered {
		families[f.GetName()] = strings.ToLower(f.GetType().String())
	}
	d := readDashboard(t)
	if d.UID == "" || d.Title == "" || d.SchemaVersion == 0 {
		t.Errorf("uid %q, title %q, schemaVersion %d", d.UID, d.Title, d.SchemaVersion)
	}
	name := regexp.MustCompile(`\bidlerace_\w+`)
	named := map[string]bool{}
	check := func(where, expr string) {
		t.Helper()
		found := name.FindAllString(expr, -1)
		if len(found) == 0 {
			t.Errorf("%s: names no metric of ours: %s", where, expr)
		}
		for _, n := range found {
			base := n
			for _, suffix := range []string{"_bucket", "_count", "_sum"} {
				if s, ok := strings.CutSuffix(n, suffix); ok && families[s] == "histogram" {
					base = s
				}
			}
			if families[base] == "" || base == n && families[base] == "histogram" {
				t.Errorf("%s: there is no metric %s", where, n)
			}
			named[base] = true
		}
	}
	for _, v := range d.Templating.List {
		if v.Type == "query" {
			check("variable "+v.Name, v.Definition)
		}
	}
	ids := map[int]bool{}
	for i, p := range d.Panels {
		if p.ID == 0 || ids[p.ID] || p.Title == "" || p.Type == "" || p.GridPos.W == 0 || p.GridPos.H == 0 || p.GridPos.X+p.GridPos.W > 24 || len(p.Targets) == 0 {
			t.Errorf("panel %d: %+v", i, p)
		}
		ids[p.ID] = true
		for _, o := range d.Panels[:i] {
			a, b := p.GridPos, o.GridPos
			if a.X < b.X+b.W && b.X < a.X+a.W && a.Y < b.Y+b.H && b.Y < a.Y+a.H {
				t.Errorf("%s covers %s", p.Title, o.Title)
			}
		}
		for _, target := range p.Targets {
			if target.RefID == "" || target.Datasource.Type != "prometheus" || target.Datasource.UID != "${datasource}" || p.Datasource != target.Datasource {
				t.Errorf("%s: %+v", p.Title, target)
			}
			check(p.Title, target.Expr)
		}
	}
	for n := range families {
		if !named[n] {
			t.Errorf("the dashboard does not show %s", n)
		}
	}
}

// TestObserve: the compose file pins its images and mounts what is there, and
// Grafana is told of the Prometheus that it starts and of the dashboard.
func TestObserve(t *testing.T) {
	read := func(path string, to any) {
		t.Helper()
		b, err := os.ReadFile(filepath.Join(observe, path))
		if err != nil {
			t.Fatal(err)
		}
		if err := yaml.Unmarshal(b, to); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
	}
	var compose struct {
		Services map[string]struct {
			Image          string
			Volumes, Ports []string
		}
		Volumes map[string]any
	}
	read("compose.yaml", &compose)
	inside := map[string]string{} // path in a container: path here
	for name, s := range compose.Services {
		if !regexp.MustCompile(`^[a-z]+/[a-z]+:v?\d+\.\d+\.\d+$`).MatchString(s.Image) {
			t.Errorf("%s: the image %q is not pinned", name, s.Image)
		}
		for _, port := range s.Ports {
			if !strings.HasPrefix(port, "127.0.0.1:") {
				t.Errorf("%s: port %s is open to others", name, port)
			}
		}
		for _, v := range s.Volumes {
			from, to, _ := strings.Cut(v, ":")
			if _, ok := compose.Volumes[from]; ok {
				continue
			}
			if _, err := os.Stat(filepath.Join(observe, from)); err != nil || !strings.HasSuffix(to, ":ro") {
				t.Errorf("%s: %s: %v", name, v, err)
			}
			inside[strings.TrimSuffix(to, ":ro")] = from
		}
	}
	if _, ok := compose.Services["prometheus"]; !ok || len(compose.Services) != 2 {
		t.Errorf("services: %v", compose.Services)
	}
	var config struct {
		ScrapeConfigs []struct {
			StaticConfigs []struct{ Targets []string } `yaml:"static_configs"`
		} `yaml:"scrape_configs"`
	}
	read("prometheus.yml", &config)
	if len(config.ScrapeConfigs) != 1 || !slices.Equal(config.ScrapeConfigs[0].StaticConfigs[0].Targets, []string{"host.docker.internal:9464"}) {
		t.Errorf("scrape_configs: %+v", config.ScrapeConfigs)
	}
	var sources struct {
		Datasources []struct{ UID, Type, URL string }
	}
	read("grafana/provisioning/datasources/prometheus.yaml", &sources)
	if s := sources.Datasources; len(s) != 1 || s[0].Type != "prometheus" || s[0].URL != "http://prometheus:9090" || s[0].UID == "" {
		t.Errorf("datasources: %+v", s)
	}
	var dashboards struct {
		Providers []struct {
			Type    string
			Options struct{ Path string }
		}
	}
	read("grafana/provisioning/dashboards/idlerace.yaml", &dashboards)
	if p := dashboards.Providers; len(p) != 1 || p[0].Type != "file" || inside[p[0].Options.Path] != "./grafana/dashboards" {
		t.Errorf("providers: %+v", p)
	}
}

// TestPromtoolConfig has promtool read the Prometheus configuration.
func TestPromtoolConfig(t *testing.T) {
	needPrometheus(t)
	promtool(t, nil, "check", "config", filepath.Join(observe, "prometheus.yml"))
}
