package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
	"gonum.org/v1/gonum/stat"

	"idlerace/harness/judge"
	"idlerace/harness/load"
	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
	"idlerace/harness/stack/local"
)

// The figures of `make bench`. Each benchmark runs once and reports what it
// measured; a ratio has both sides measured in the same run.

// program is idlerace itself, built for these benchmarks.
func program(b *testing.B) string {
	b.Helper()
	path := filepath.Join(b.TempDir(), "idlerace")
	if out, err := exec.Command("go", "build", "-o", path, "idlerace/harness").CombinedOutput(); err != nil {
		b.Fatalf("go build: %v\n%s", err, out)
	}
	return path
}

// benchProxy is nginx where it is, else the embedded proxy.
func benchProxy(b *testing.B) string {
	a, err := proxy.ByName("nginx")
	if err != nil {
		b.Fatal(err)
	}
	if _, err := (&Finder{Runtime: record.RuntimeLocal}).Find(b.Context(), a, ""); err != nil {
		b.Logf("nginx: %v; measuring gohttp instead", err)
		return "gohttp"
	}
	return "nginx"
}

func scenario(b *testing.B, text string) *spec.Scenario {
	b.Helper()
	s, err := spec.Read("bench.yaml", []byte(text), nil)
	if err != nil {
		b.Fatal(err)
	}
	return s
}

func runOnce(b *testing.B, self string, s *spec.Scenario, only func(plan.Item) bool) (*results.Folder, record.Manifest) {
	b.Helper()
	folder, err := Run(b.Context(), nil, s, Options{Runtime: record.RuntimeLocal, Out: b.TempDir(), Self: self, Version: "bench", Seed: s.Probe.Seed,
		Command: []string{"run"}, Only: only})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { folder.Close() })
	m, err := folder.Manifest()
	if err != nil {
		b.Fatal(err)
	}
	return folder, m
}

// eachLine gives every line of a run's record.
func eachLine(b *testing.B, f *results.Folder, do func(record.Line)) {
	b.Helper()
	obs, err := f.Observations()
	if err != nil {
		b.Fatal(err)
	}
	defer obs.Close()
	for l, err := range record.Read(obs) {
		if err != nil {
			b.Fatal(err)
		}
		do(l)
	}
}

// BenchmarkTimeToProof takes a known racing pair, T_u = 1 s, from the start of
// the program to the first failure that a second witness ties to the idle
// close, and to the end of the run, controls included.
func BenchmarkTimeToProof(b *testing.B) {
	self := program(b)
	for _, name := range []string{"gohttp", benchProxy(b)} {
		b.Run(name, func(b *testing.B) {
			s := scenario(b, fmt.Sprintf("version: 1\nname: proof\nproxies: [%s]\naxes: {proxy_idle: [2s], upstream_idle: [1s], method: [POST]}\n", name))
			cell := s.Cells()[0].ID()
			var proof, whole time.Duration
			for b.Loop() {
				begun := time.Now()
				folder, _ := runOnce(b, self, s, nil)
				whole += time.Since(begun)
				late := int64(0)
				eachLine(b, folder, func(l record.Line) {
					if l.Event != nil && l.Event.Kind == record.EventLate && l.Event.Cell == cell && late == 0 {
						late = l.Event.At
					}
				})
				if late == 0 {
					b.Fatal("no proof")
				}
				proof += time.Unix(0, late).Sub(begun)
			}
			b.ReportMetric(proof.Seconds()/float64(b.N), "s/proof")
			b.ReportMetric(whole.Seconds()/float64(b.N), "s/run")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkMatrix runs 32 cells side by side, then the cell that was decided
// last alone, and the longest safe one alone.
func BenchmarkMatrix(b *testing.B) {
	self := program(b)
	s := scenario(b, fmt.Sprintf(`version: 1
name: matrix
proxies: [%s]
axes: {proxy_idle: [500ms, 1s, 1500ms, 2s], upstream_idle: [500ms, 1s, 1500ms, 2s], method: [GET, POST]}
`, benchProxy(b)))
	var matrix, alone time.Duration
	var lateness []time.Duration
	undecided := 0
	idle := machineLateness(b)
	for b.Loop() {
		folder, m := runOnce(b, self, s, nil)
		matrix += m.Probing
		last, at := "", -1
		n := 0
		eachLine(b, folder, func(l record.Line) {
			n++
			if l.Shot != nil && l.Shot.Phase == record.PhaseAimed {
				lateness = append(lateness, l.Shot.Age-l.Shot.Planned)
			}
			if l.Settled != nil && n > at {
				last, at = l.Settled.Cell, n
			}
		})
		d, _, err := folder.Judge()
		if err != nil {
			b.Fatal(err)
		}
		for _, v := range d.Cells {
			if v.State == spec.Inconclusive || v.State == spec.Broken {
				undecided++
				b.Logf("%s: %s: %s", v.ID, v.State, v.Why)
			}
		}
		slowest := time.Duration(0)
		for _, id := range []string{last, s.Cells()[3].ID()} {
			_, m := runOnce(b, self, s, func(it plan.Item) bool { return it.ID == id })
			slowest = max(slowest, m.Probing)
		}
		alone += slowest
	}
	slices.Sort(lateness)
	b.ReportMetric(matrix.Seconds()/float64(b.N), "s/matrix")
	b.ReportMetric(alone.Seconds()/float64(b.N), "s/slowest-alone")
	b.ReportMetric(float64(matrix)/float64(alone), "matrix/alone")
	b.ReportMetric(float64(undecided)/float64(b.N), "undecided")
	b.ReportMetric(float64(lateness[len(lateness)/2].Microseconds()), "us-late-p50")
	b.ReportMetric(float64(lateness[len(lateness)*99/100].Microseconds()), "us-late-p99")
	b.ReportMetric(float64(idle[len(idle)*99/100].Microseconds()), "us-machine-p99")
	b.ReportMetric(float64(idle[len(idle)*999/1000].Microseconds()), "us-machine-p99.9")
	b.ReportMetric(0, "ns/op")
}

// machineLateness is how late the same alarm wakes a program that does nothing
// else: what of a shot's lateness is the machine's, whatever runs on it.
func machineLateness(b *testing.B) []time.Duration {
	alarm, err := load.NewAlarm()
	if err != nil {
		b.Fatal(err)
	}
	defer alarm.Close()
	var out []time.Duration
	for range 5000 {
		at := time.Now().Add(2 * time.Millisecond)
		if err := alarm.Wait(b.Context(), at); err != nil {
			b.Fatal(err)
		}
		out = append(out, time.Since(at))
	}
	slices.Sort(out)
	return out
}

// perSide is how long each contender of BenchmarkAgainstVegeta attacks.
const perSide = time.Minute

// BenchmarkAgainstVegeta compares attributed failures per minute on one racing
// pair (proxy 60 s, upstream 1 s, POST): this program's aimed bursts of 200 lanes, and plain
// vegeta at constant rates, one after the other on the same proxy process. The
// origin attributes for both: a failure counts when it saw the request late.
func BenchmarkAgainstVegeta(b *testing.B) {
	self := program(b)
	s := scenario(b, fmt.Sprintf(`version: 1
name: vegeta
proxies: [%s]
axes: {proxy_idle: [1m], upstream_idle: [1s], method: [POST]}
probe: {lanes: 200, shots: 1000000, budget: 1m, until: shots}
`, benchProxy(b)))
	for b.Loop() {
		st := startStack(b, self, s)
		aimed := st.aim(b)
		best := 0.0
		for _, rate := range []int{1, 40, 400} {
			got := st.vegeta(b, rate)
			b.ReportMetric(got, fmt.Sprintf("vegeta-%d/s-per-min", rate))
			best = max(best, got)
		}
		b.ReportMetric(aimed, "idlerace-per-min")
		// With no failure at all, "fewer than one a minute" is what was seen.
		b.ReportMetric(aimed/max(best, 1), "ratio")
	}
	b.ReportMetric(0, "ns/op")
}

// benchStack is a run whose stack is up, driven by hand.
type benchStack struct {
	run  *run
	st   *side
	item plan.Item
	ctx  context.Context
}

func startStack(b *testing.B, self string, s *spec.Scenario) *benchStack {
	b.Helper()
	r, err := prepare(b.Context(), s, Options{Runtime: record.RuntimeLocal, Out: b.TempDir(), Self: self, Seed: s.Probe.Seed, Say: b.Logf})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { r.folder.Close() })
	rt := local.New(self)
	b.Cleanup(rt.Close)
	sides, err := r.start(b.Context(), []stack.Runtime{rt})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { stopAll(context.Background(), sides) })
	return &benchStack{run: r, st: sides[0], item: r.plan.Items[0], ctx: b.Context()}
}

// lateIDs counts the late requests of an attack since the given event.
func (s *benchStack) lateIDs(b *testing.B, attack string, after uint64) int {
	b.Helper()
	resp, err := s.st.journal.get(s.ctx, fmt.Sprintf("/journal?after=%d", after))
	if err != nil {
		b.Fatal(err)
	}
	defer resp.Body.Close()
	n := 0
	for dec := json.NewDecoder(resp.Body); ; {
		var e record.Event
		if err := dec.Decode(&e); errors.Is(err, io.EOF) {
			return n
		} else if err != nil {
			b.Fatal(err)
		}
		if e.Kind == record.EventLate && e.Cell == attack {
			n++
		}
	}
}

func (s *benchStack) mark(b *testing.B) uint64 {
	b.Helper()
	n, err := s.st.journal.mark(s.ctx)
	if err != nil {
		b.Fatal(err)
	}
	return n
}

// aim lets this program probe the cell for perSide and gives attributed
// failures per minute.
func (s *benchStack) aim(b *testing.B) float64 {
	b.Helper()
	before := s.mark(b)
	begun := time.Now()
	s.run.plan.Items = s.run.plan.Items[:1] // without the controls
	if err := s.run.openRecord(); err != nil {
		b.Fatal(err)
	}
	reason, err := s.run.probe(s.ctx, nil, []*side{s.st})
	if err != nil || reason != record.EndBudget {
		b.Fatalf("%s: %v", reason, err)
	}
	return float64(s.lateIDs(b, s.item.ID, before)) / time.Since(begun).Minutes()
}

// vegeta attacks the cell at a constant rate, as `vegeta attack` does.
func (s *benchStack) vegeta(b *testing.B, rate int) float64 {
	b.Helper()
	before := s.mark(b)
	name := fmt.Sprintf("plain-%d", rate)
	target := vegeta.NewStaticTargeter(vegeta.Target{Method: http.MethodPost, URL: "http://" + s.st.routes[s.item.ID].Listen + "/", Body: []byte("idlerace=1\n")})
	failed := 0
	a := vegeta.NewAttacker()
	for res := range a.Attack(target, vegeta.Rate{Freq: rate, Per: time.Second}, perSide, name) {
		if res.Code == 0 || res.Code >= 500 {
			failed++
		}
	}
	late := s.lateIDs(b, name, before)
	b.Logf("vegeta %d/s: %d failures, %d attributed", rate, failed, late)
	return float64(late) / perSide.Minutes()
}

// BenchmarkWitness runs the witnessed close beside an ordinary one on a racing
// pair and reports the share of aimed shots that failed under each, in per
// cent, with the half width of its 95 % interval. The shots of a burst share
// their moment, so the interval is over bursts. z is the difference in standard
// errors: beyond 2 the two would disagree.
func BenchmarkWitness(b *testing.B) {
	self := program(b)
	for _, name := range []string{"gohttp", benchProxy(b)} {
		b.Run(name, func(b *testing.B) {
			s := scenario(b, fmt.Sprintf(`version: 1
name: witness
proxies: [%s]
axes: {proxy_idle: [2s], upstream_idle: [500ms], method: [POST], close: [fin, plain]}
probe: {shots: 4000, budget: 120s, until: shots}
`, name))
			fin, plain := s.Cells()[0], s.Cells()[1]
			bursts := map[string]map[int][]float64{fin.ID(): {}, plain.ID(): {}}
			for b.Loop() {
				folder, _ := runOnce(b, self, s, nil)
				eachLine(b, folder, func(l record.Line) {
					if l.Shot == nil || bursts[l.Shot.Cell] == nil || !judge.InZone(*l.Shot, 0) {
						return
					}
					failed := 0.0
					if l.Shot.Failed() {
						failed = 100
					}
					bursts[l.Shot.Cell][l.Shot.Burst] = append(bursts[l.Shot.Cell][l.Shot.Burst], failed)
				})
			}
			finMean, finErr := overBursts(bursts[fin.ID()])
			plainMean, plainErr := overBursts(bursts[plain.ID()])
			b.ReportMetric(finMean, "fin-%")
			b.ReportMetric(1.96*finErr, "fin-±")
			b.ReportMetric(plainMean, "plain-%")
			b.ReportMetric(1.96*plainErr, "plain-±")
			b.ReportMetric(math.Abs(finMean-plainMean)/math.Hypot(finErr, plainErr), "z")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// overBursts is the mean of the bursts' means, and its standard error.
func overBursts(bursts map[int][]float64) (mean, stderr float64) {
	var means []float64
	for _, shots := range bursts {
		means = append(means, stat.Mean(shots, nil))
	}
	mean, sd := stat.MeanStdDev(means, nil)
	return mean, stat.StdErr(sd, float64(len(means)))
}
