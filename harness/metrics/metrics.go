// Package metrics counts a run for Prometheus: live on an address, and as a
// text file when it has ended. It must not import run, stack, load or proxy.
package metrics

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Set is the metrics of one run. Its labels are bounded by the scenario, so a
// run has at most
//
//	cells x (outcomes + causes + 2) + 2 x proxies x methods x (edges + 3)
//
// series and some 40 more, where cells includes controls, outcomes and causes
// are record's, and edges are ageBuckets. What counts does nothing with a nil
// *Set.
type Set struct {
	mu       sync.Mutex // held while several series change together, and while they are read
	registry *prometheus.Registry
	shots    *prometheus.CounterVec
	aimed    *prometheus.CounterVec
	failures *prometheus.CounterVec
	late     *prometheus.CounterVec
	lateness prometheus.Histogram
	ages     *prometheus.HistogramVec
	states   *prometheus.GaugeVec
	build    *prometheus.GaugeVec
	info     *prometheus.GaugeVec
	start    prometheus.Gauge
	end      prometheus.Gauge
	budget   prometheus.Gauge
	total    prometheus.Gauge
	decided  prometheus.Gauge
}

// ageBuckets are the bounds, in seconds, of what an aimed shot's age is away
// from the edge it was aimed at. Classic buckets and not native ones: text
// files have no others, and the edge, 0, shall be a bound.
var ageBuckets = []float64{-0.01, -0.005, -0.002, -0.001, -0.0005, 0, 0.0005, 0.001, 0.002, 0.005, 0.01}

// New makes the metrics of a run.
func New() *Set {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	gauges := func(name, help string, labels ...string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, labels)
	}
	s := &Set{
		registry: prometheus.NewRegistry(),
		shots:    counter("idlerace_shots_total", "Requests sent, by cell and outcome as the client saw it.", "cell", "outcome"),
		aimed:    counter("idlerace_aimed_shots_total", "Requests that were sent where the danger would be, by cell.", "cell"),
		failures: counter("idlerace_failures_total", "Requests whose client saw a 5xx or no response, by cell and cause.", "cell", "cause"),
		late:     counter("idlerace_late_requests_total", "Requests that met an upstream connection its idle timer had closed, whether lost or sent again.", "cell"),
		lateness: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "idlerace_shot_lateness_seconds",
			Help:    "Measured minus planned age of the aimed shots.",
			Buckets: []float64{0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1}}),
		ages: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "idlerace_shot_age_past_edge_seconds",
			Help:    "Measured age of the aimed shots minus the age at which the side aimed at (edge: upstream or proxy) was expected to close. Negative is before the close. Classic buckets, from -10 ms to 10 ms.",
			Buckets: ageBuckets}, []string{"proxy", "method", "edge"}),
		states:  gauges("idlerace_cells", "Cells and controls by role and state.", "role", "state"),
		build:   gauges("idlerace_build_info", "1, with the versions of idlerace and of Go.", "version", "goversion"),
		info:    gauges("idlerace_run_info", "1, with the scenario and the seed of the run.", "scenario", "seed"),
		start:   gauge("idlerace_run_start_time_seconds", "Unix time at which the run began."),
		end:     gauge("idlerace_run_end_time_seconds", "Unix time at which the run was judged; 0 before that. From then on all numbers are those of verdicts.json."),
		budget:  gauge("idlerace_run_budget_seconds", "Time that probing may take."),
		total:   gauge("idlerace_run_cells", "Cells and controls that are probed."),
		decided: gauge("idlerace_run_cells_decided", "Cells and controls whose probing has ended."),
	}
	s.registry.MustRegister(s.shots, s.aimed, s.failures, s.late, s.lateness, s.ages, s.states, s.build, s.info, s.start, s.end, s.budget, s.total, s.decided)
	return s
}

// Begin says what runs.
func (s *Set) Begin(m record.Manifest, budget time.Duration) {
	if s == nil {
		return
	}
	s.build.WithLabelValues(m.Idlerace, m.Go).Set(1)
	s.info.WithLabelValues(m.Scenario, strconv.FormatUint(m.Seed, 10)).Set(1)
	s.start.Set(unix(m.Started))
	s.budget.Set(budget.Seconds())
}

// Observe counts one request of an item. aimed says that it was sent where the
// danger would be, see judge.Verdict.AimedShots.
func (s *Set) Observe(it plan.Item, o record.Observation, cause record.Cause, aimed bool) {
	if s == nil {
		return
	}
	s.shots.WithLabelValues(it.ID, string(o.Shot.Outcome)).Inc()
	if aimed {
		s.aimed.WithLabelValues(it.ID).Inc()
	}
	if o.Shot.Failed() {
		s.failures.WithLabelValues(it.ID, string(cause)).Inc()
	}
	late := s.late.WithLabelValues(it.ID)
	if o.Stale() {
		late.Inc()
	}
	if o.Shot.Phase == record.PhaseAimed {
		s.lateness.Observe((o.Shot.Age - o.Shot.Planned).Seconds())
		s.ages.WithLabelValues(it.Cell.Proxy, it.Cell.Method, o.Shot.Target).Observe((o.Shot.Age - o.Shot.Edge).Seconds())
	}
}

// Kind is what cells are counted by.
type Kind struct {
	Role  string // a plan.Role
	State spec.State
}

// Cells sets how many cells and controls there are of each kind, and how many
// of those that are probed have been probed enough.
func (s *Set) Cells(count map[Kind]int, decided, total int) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.setStates(count)
	s.decided.Set(float64(decided))
	s.total.Set(float64(total))
}

func (s *Set) setStates(count map[Kind]int) {
	for _, role := range []string{plan.RoleCell, plan.RoleMustRace, plan.RoleMustNotRace} {
		for _, state := range spec.States() {
			s.states.WithLabelValues(role, string(state)).Set(float64(count[Kind{role, state}]))
		}
	}
}

// Judged takes what the run came to. States now know their controls, and a
// witness that spoke late may have given a failure another cause.
func (s *Set) Judged(d *judge.Document, at time.Time) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	count := map[Kind]int{}
	s.failures.Reset() // a reader of s sees neither that nor half of what follows
	s.aimed.Reset()
	s.late.Reset()
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			v := &list[i]
			count[Kind{v.Role, v.State}]++
			for cause, n := range v.Causes {
				cause, _, _ = strings.Cut(cause, ":") // the kinds of disturbance would be a label without a bound
				s.failures.WithLabelValues(v.ID, cause).Add(float64(n))
			}
			s.late.WithLabelValues(v.ID).Add(float64(v.Late))
			if v.AimedShots > 0 {
				s.aimed.WithLabelValues(v.ID).Add(float64(v.AimedShots))
			}
		}
	}
	s.setStates(count)
	s.end.Set(unix(at))
}

func unix(t time.Time) float64 { return float64(t.UnixNano()) / 1e9 }

// Gather makes s a prometheus.Gatherer of consistent numbers.
func (s *Set) Gather() ([]*dto.MetricFamily, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.registry.Gather()
}

// Text is the current state in the text exposition format.
func (s *Set) Text() ([]byte, error) {
	families, err := s.Gather()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := expfmt.NewEncoder(&b, expfmt.NewFormat(expfmt.TypeTextPlain))
	for _, f := range families {
		if err := enc.Encode(f); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// Endpoint serves a Set. Methods of a nil *Endpoint do nothing.
type Endpoint struct {
	Addr string // bound

	server *http.Server
	done   chan struct{} // closed when server has ended

	mu      sync.Mutex
	waiting chan struct{} // closed by the next scrape that begins from now on
}

// Serve answers GET /metrics on addr.
func (s *Set) Serve(addr string) (*Endpoint, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{Addr: l.Addr().String(), done: make(chan struct{})}
	metrics := promhttp.HandlerFor(s, promhttp.HandlerOpts{})
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		e.mu.Lock()
		asked := e.waiting
		e.mu.Unlock()
		metrics.ServeHTTP(w, r)
		if asked == nil || r.Context().Err() != nil {
			return
		}
		e.mu.Lock()
		defer e.mu.Unlock()
		if e.waiting == asked {
			e.waiting = nil
			close(asked)
		}
	})
	e.server = &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		defer close(e.done)
		e.server.Serve(l)
	}()
	return e, nil
}

// Scraped waits for a scrape that begins after the call, and reports whether
// there was one before ctx was done.
func (e *Endpoint) Scraped(ctx context.Context) bool {
	if e == nil {
		return false
	}
	e.mu.Lock()
	if e.waiting == nil {
		e.waiting = make(chan struct{})
	}
	asked := e.waiting
	e.mu.Unlock()
	select {
	case <-asked:
		return true
	case <-ctx.Done():
		return false
	}
}

// Stop ends the endpoint; a scrape under way has a second to end.
func (e *Endpoint) Stop() {
	if e == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if e.server.Shutdown(ctx) != nil {
		e.server.Close()
	}
	<-e.done
}
