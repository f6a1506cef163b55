package window

import (
	"math"
	"slices"
	"testing"
	"time"
)

func TestCompare(t *testing.T) {
	edge := func(at, low, high float64) *Estimate { return &Estimate{duration(at), duration(low), duration(high)} }
	yes, no := true, false
	law := Law{RTT: 20 * msec, Uncertainty: 100 * time.Microsecond}
	for _, tt := range []struct {
		name  string
		fit   Fit
		lower *Estimate
		upper *Estimate
		holds *bool
		text  string
	}{
		{"agrees", Fit{Method: MethodGap, Lower: edge(-20.1, -20.2, -19.95), Upper: edge(0.4, 0.3, 0.5)},
			edge(-0.1, -0.3, 0.15), edge(0.4, 0.2, 0.6), &yes, "from -20.1 ms (law -20 ms) to +0.4 ms after the measured close"},
		{"begins early", Fit{Method: MethodGap, Lower: edge(-25, -25.5, -24), Upper: edge(1.26, 1.2, 1.3)},
			edge(-5, -5.6, -3.9), edge(1.26, 1.1, 1.4), &no, "from -25 ms (law -20 ms) to +1.3 ms after the measured close"},
		{"ends before the close", Fit{Method: MethodGap, Upper: edge(-3, -3.2, -2.8)},
			nil, edge(-3, -3.3, -2.7), &no, "from unknown (law -20 ms) to -3 ms after the measured close"},
		{"one edge", Fit{Method: MethodGap, Lower: edge(-20, -20.1, -19.9)},
			edge(0, -0.2, 0.2), nil, nil, "from -20 ms (law -20 ms) to unknown after the measured close"},
		{"nothing", Fit{Why: "0 shots, 20 needed"}, nil, nil, nil, "no window fitted: 0 shots, 20 needed"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := law.Compare(tt.fit)
			if !same(c.Lower, tt.lower) || !same(c.Upper, tt.upper) || !same(c.Holds, tt.holds) || c.Text != tt.text {
				t.Errorf("lower %v, upper %v, holds %v, text %q", c.Lower, c.Upper, c.Holds, c.Text)
			}
		})
	}
}

func same[T comparable](a, b *T) bool {
	return (a == nil) == (b == nil) && (a == nil || *a == *b)
}

func TestMargins(t *testing.T) {
	at := func(margin time.Duration, shots, stale int) Setting {
		return Setting{Margin: margin * msec, Count: Count{shots, stale}}
	}
	dur := func(d time.Duration) *time.Duration { d *= msec; return &d }
	for _, tt := range []struct {
		name       string
		settings   []Setting
		min        *time.Duration
		failed     *time.Duration
		held       int
		bound      float64
		violations []string
		text       string
	}{
		{"clean above 41 ms", []Setting{at(61, 1200, 0), at(0, 300, 280), at(41, 600, 0), at(41, 600, 0), at(21, 300, 4)},
			dur(41), dur(21), 2400, 1 - math.Pow(0.05, 1./2400), nil,
			"upstream idle > proxy idle + 41 ms held in 2,400 shots (95 %: fewer than 0.13 % of requests)"},
		{"a larger one failed", []Setting{at(1, 1000, 0), at(5, 200, 3), at(9, 300, 0)},
			dur(9), dur(5), 300, 1 - math.Pow(0.05, 1./300), []string{"margin +5 ms failed in 3 of 200 shots though +1 ms held in 1,000"},
			"upstream idle > proxy idle + 9 ms held in 300 shots (95 %: fewer than 1 % of requests)"},
		{"the largest failed", []Setting{at(1, 100, 0), at(5, 200, 3)},
			nil, dur(5), 0, 1, []string{"margin +5 ms failed in 3 of 200 shots though +1 ms held in 100"},
			"no margin held: the largest, +5 ms, failed in 3 of 200 shots"},
		{"none failed, below zero", []Setting{at(-5, 100, 0)}, dur(-5), nil, 100, 1 - math.Pow(0.05, 1./100), nil,
			"upstream idle > proxy idle - 5 ms held in 100 shots (95 %: fewer than 3 % of requests)"},
		{"no shots", []Setting{at(5, 0, 0)}, nil, nil, 0, 1, nil, "no margin was tried"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Margins(tt.settings)
			if len(got) != 1 {
				t.Fatalf("%d margins", len(got))
			}
			m := got[0]
			if !same(m.Min, tt.min) || !same(m.Failed, tt.failed) || m.Held != tt.held || math.Abs(m.Bound-tt.bound) > 1e-9 ||
				!slices.Equal(m.Violations, tt.violations) || m.Text != tt.text {
				t.Errorf("%+v", m)
			}
		})
	}
}

func TestMarginsByRTT(t *testing.T) {
	got := Margins([]Setting{
		{41 * msec, 40 * msec, Count{100, 0}}, {0, 0, Count{100, 1}}, {0, 40 * msec, Count{100, 100}}, {msec, 0, Count{100, 0}},
	})
	if len(got) != 2 || got[0].RTT != 0 || *got[0].Min != msec || got[1].RTT != 40*msec || *got[1].Min != 41*msec {
		t.Errorf("%+v", got)
	}
}
