// Package metrics counts a run for Prometheus: live on an address, and as a
// text file when it has ended. It must not import run, stack, load or proxy.
package metrics

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/common/expfmt"

	"idlerace/harness/plan"
	"idlerace/harness/record"
)

// Set is the metrics of one run. Its labels are bounded by the scenario: cell
// ids, outcomes, causes. Methods of a nil *Set do nothing.
type Set struct {
	registry *prometheus.Registry
	shots    *prometheus.CounterVec
	failures *prometheus.CounterVec
	late     *prometheus.CounterVec
	lateness prometheus.Histogram
	states   *prometheus.GaugeVec
}

// New makes the metrics of a run.
func New() *Set {
	s := &Set{
		registry: prometheus.NewRegistry(),
		shots: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "idlerace_shots_total",
			Help: "Requests sent, by cell and outcome as the client saw it."}, []string{"cell", "outcome"}),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "idlerace_failures_total",
			Help: "Requests whose client saw a 5xx or no response, by cell and cause."}, []string{"cell", "cause"}),
		late: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "idlerace_late_requests_total",
			Help: "Requests that arrived at the upstream on a connection its idle timer had closed."}, []string{"cell"}),
		lateness: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "idlerace_shot_lateness_seconds",
			Help:    "Measured minus planned age of the aimed shots.",
			Buckets: []float64{0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.1}}),
		states: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "idlerace_cells",
			Help: "Cells by state."}, []string{"state"}),
	}
	s.registry.MustRegister(s.shots, s.failures, s.late, s.lateness, s.states)
	return s
}

// Observe counts one request of an item.
func (s *Set) Observe(it plan.Item, o record.Observation, cause record.Cause) {
	if s == nil {
		return
	}
	s.shots.WithLabelValues(it.ID, string(o.Shot.Outcome)).Inc()
	if o.Shot.Failed() {
		s.failures.WithLabelValues(it.ID, string(cause)).Inc()
	}
	s.late.WithLabelValues(it.ID).Add(float64(len(o.Late)))
	if o.Shot.Phase == record.PhaseAimed {
		s.lateness.Observe((o.Shot.Age - o.Shot.Planned).Seconds())
	}
}

// States sets the number of cells in each state.
func (s *Set) States(count map[string]int) {
	if s == nil {
		return
	}
	s.states.Reset()
	for state, n := range count {
		s.states.WithLabelValues(state).Set(float64(n))
	}
}

// Text is the current state in the text exposition format.
func (s *Set) Text() ([]byte, error) {
	if s == nil {
		return nil, nil
	}
	families, err := s.registry.Gather()
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

// Serve answers GET /metrics on addr until stop is called. It returns the
// address bound.
func (s *Set) Serve(addr string) (bound string, stop func(), err error) {
	if s == nil {
		return "", func() {}, nil
	}
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.registry, promhttp.HandlerOpts{}))
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(l)
	}()
	return l.Addr().String(), func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		<-done
	}, nil
}
