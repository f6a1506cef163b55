package compare

import (
	"math"
	"testing"
)

// The p-values are those of R: the examples of ?fisher.test and of scipy's
// documentation, and tables of the htslib and fisherexact test suites.
func TestFisher(t *testing.T) {
	for _, tt := range []struct {
		a, b, c, d int // hit and not hit
		p          float64
	}{
		{3, 1, 1, 3, 0.485714285714286},    // Fisher's tea drinker
		{2, 10, 15, 3, 0.0005367241191435}, // Fisher's convictions of twins
		{6, 2, 1, 4, 0.102564102564103},
		{8, 2, 1, 5, 0.034965034965035},
		{12, 5, 29, 2, 0.080268552074},
		{3, 15, 37, 45, 0.033161943699},
		{7, 11, 14, 12, 0.372583797871365},
		{13, 1, 2, 8, 0.000489482250149905},
		{1, 2, 12, 15, 1},
		{7, 6, 14, 1, 0.0286231884057971},
		{13, 2, 5, 11, 0.00318872821653688},
		{1, 1, 100000, 1000000, 0.173555146661},
		{781, 23171, 4963, 2455001, 0},
		{0, 320, 0, 300, 1},
		{35, 0, 40, 0, 1},
		{0, 0, 5, 5, 1},
	} {
		got := Fisher(Count{tt.a, tt.a + tt.b}, Count{tt.c, tt.c + tt.d})
		if math.Abs(got-tt.p) > 1e-10 {
			t.Errorf("%d/%d, %d/%d: p = %.15g, want %.15g", tt.a, tt.b, tt.c, tt.d, got, tt.p)
		}
		back := Fisher(Count{tt.c, tt.c + tt.d}, Count{tt.a, tt.a + tt.b})
		if math.Abs(got-back) > 1e-10 {
			t.Errorf("%d/%d, %d/%d: %g one way and %g the other", tt.a, tt.b, tt.c, tt.d, got, back)
		}
	}
}

// R: p.adjust(c(...), "holm").
func TestHolm(t *testing.T) {
	for _, tt := range []struct{ p, want []float64 }{
		{nil, nil},
		{[]float64{0.03}, []float64{0.03}},
		{[]float64{0.01, 0.02, 0.03, 0.04, 0.05}, []float64{0.05, 0.08, 0.09, 0.09, 0.09}},
		{[]float64{0.05, 0.01, 0.04, 0.02, 0.03}, []float64{0.09, 0.05, 0.09, 0.08, 0.09}},
		{[]float64{0.5, 0.9, 0.001}, []float64{1, 1, 0.003}},
		{[]float64{0.01, 0.01}, []float64{0.02, 0.02}},
	} {
		got := Holm(tt.p)
		if len(got) != len(tt.want) {
			t.Fatalf("%v: %v", tt.p, got)
		}
		for i := range got {
			if math.Abs(got[i]-tt.want[i]) > 1e-12 {
				t.Errorf("%v: %v, want %v", tt.p, got, tt.want)
			}
		}
	}
}
