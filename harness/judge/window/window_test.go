package window

import (
	"math"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

const msec = time.Millisecond

// truth is a window and the ages to shoot at, evenly, in ms.
type truth struct{ lo, hi, h, s1, s2, from, to float64 }

var (
	loopback = truth{lo: -0.1, hi: 0.2, h: 0.6, s1: 0.03, s2: 0.03, from: -1, to: 1}
	distant  = truth{lo: -20, hi: 0.4, h: 1, s1: 0.3, s2: 0.2, from: -30, to: 10}
)

func (w truth) draw(seed uint64, shots int) *Histogram {
	rng := rand.New(rand.NewPCG(seed, 7))
	h := NewHistogram(0)
	for range shots {
		a := w.from + rng.Float64()*(w.to-w.from)
		rate := w.h / ((1 + math.Exp((w.lo-a)/w.s1)) * (1 + math.Exp((a-w.hi)/w.s2)))
		h.Add(Point{duration(a), rng.Float64() < rate})
	}
	return h
}

func (w truth) aimed(from, to float64) truth {
	w.from, w.to = from, to
	return w
}

func (w truth) sharp() truth {
	w.s1, w.s2 = 1e-6, 1e-6
	return w
}

func (e *Estimate) covers(ms float64) bool {
	return e != nil && e.Low <= duration(ms) && duration(ms) <= e.High
}

// sound fails on what no fit may ever say.
func sound(t *testing.T, f Fit) {
	t.Helper()
	for name, e := range map[string]*Estimate{"lower": f.Lower, "upper": f.Upper, "width": f.Width} {
		if e != nil && (e.Low > e.At || e.At > e.High || max(e.Low.Abs(), e.High.Abs()) > time.Second) {
			t.Errorf("%s edge %v", name, *e)
		}
	}
	if f.Lower != nil && f.Upper != nil && f.Lower.At > f.Upper.At {
		t.Errorf("lower edge %v above upper edge %v", *f.Lower, *f.Upper)
	}
	if f.Width != nil && (f.Width.Low < 0 || f.Lower == nil || f.Upper == nil) {
		t.Errorf("width %v, lower edge %v, upper edge %v", *f.Width, f.Lower, f.Upper)
	}
	if !(f.Plateau >= 0 && f.Plateau <= 1) {
		t.Errorf("plateau %v", f.Plateau)
	}
	if none := f.Lower == nil && f.Upper == nil; none != (f.Method == MethodNone) {
		t.Errorf("method %q with edges %v, %v", f.Method, f.Lower, f.Upper)
	}
	if (f.Lower == nil || f.Upper == nil) && f.Why == "" {
		t.Error("an edge is missing without a reason")
	}
}

// The intervals are of 95 %. Of n runs with true coverage 95 % the share inside
// has a standard deviation of sqrt(0.95·0.05/n): 1.8 % of 150, 4.0 % of 30. The
// limits are 90 to 99 % of 150 (-2.8 and +2.2 of them) and 80 % of 30 (-3.8);
// the seeds are fixed, so a change of the fit alone moves the result.
func TestCoverage(t *testing.T) {
	for _, tt := range []struct {
		name      string
		truth     truth
		runs      int
		low, high float64
	}{
		{"loopback", loopback, 150, 0.90, 0.99},
		{"distant", distant, 30, 0.80, 1},
	} {
		const halves = 2
		t.Run(tt.name, func(t *testing.T) {
			fits := make(chan Fit)
			for half := range halves {
				go func() {
					for run := half; run < tt.runs; run += halves {
						fits <- tt.truth.draw(uint64(run), 300).Fit()
					}
				}()
			}
			var hits [3]int
			for range tt.runs {
				f := <-fits
				sound(t, f)
				for i, ok := range []bool{f.Lower.covers(tt.truth.lo), f.Upper.covers(tt.truth.hi), f.Width.covers(tt.truth.hi - tt.truth.lo)} {
					if ok {
						hits[i]++
					}
				}
			}
			t.Logf("lower, upper, width inside: %v of %d runs", hits, tt.runs)
			for i, name := range []string{"lower", "upper", "width"} {
				if share := float64(hits[i]) / float64(tt.runs); share < tt.low || share > tt.high {
					t.Errorf("%s: %.3f inside, want %.2f to %.2f", name, share, tt.low, tt.high)
				}
			}
		})
	}
}

func TestFit(t *testing.T) {
	for _, tt := range []struct {
		name         string
		truth        truth
		shots        int
		method       Method
		lower, upper bool    // known
		within       float64 // of the truth, ms
		plateau      float64 // ± 0.15
	}{
		{"loopback", loopback, 300, MethodLikelihood, true, true, 0.08, 0.6},
		{"many loopback shots", loopback, 20_000, MethodLikelihood, true, true, 0.01, 0.6},
		{"a low plateau", truth{-0.1, 0.4, 0.25, 0.02, 0.02, -1, 1}, 300, MethodLikelihood, true, true, 0.15, 0.25},
		{"distant, spread", distant, 300, MethodLikelihood, true, true, 0.6, 1},
		{"distant, spread, sharp", distant.sharp(), 300, MethodGap, true, true, 0.3, 1},
		{"distant, a plateau of 0.5", truth{-20, 0.4, 0.5, 0.1, 0.1, -30, 10}, 1000, MethodLikelihood, true, true, 1, 0.5},
		{"only the lower edge", distant.aimed(-23, -17), 300, MethodLikelihood, true, false, 0.3, 1},
		{"only the upper edge", distant.aimed(-3, 3), 300, MethodLikelihood, false, true, 0.3, 1},
		{"only the lower edge, sharp", distant.sharp().aimed(-23, -17), 300, MethodGap, true, false, 0.1, 1},
		{"only the upper edge, sharp", distant.sharp().aimed(-3, 3), 300, MethodGap, false, true, 0.1, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.truth.draw(2, tt.shots).Fit()
			sound(t, f)
			if f.Method != tt.method || math.Abs(f.Plateau-tt.plateau) > 0.15 {
				t.Errorf("method %q, plateau %.2f: %s", f.Method, f.Plateau, f.Why)
			}
			for _, e := range []struct {
				name  string
				got   *Estimate
				known bool
				want  float64
			}{{"lower", f.Lower, tt.lower, tt.truth.lo}, {"upper", f.Upper, tt.upper, tt.truth.hi}} {
				switch {
				case (e.got != nil) != e.known:
					t.Errorf("%s edge %v, known: %v wanted", e.name, e.got, e.known)
				case e.known && (math.Abs(ms(e.got.At)-e.want) > tt.within || !e.got.covers(e.want)):
					t.Errorf("%s edge %v, want %v ms ± %v ms inside the interval", e.name, *e.got, e.want, tt.within)
				case !e.known && !strings.Contains(f.Why, e.name+" edge unknown"):
					t.Errorf("why %q does not name the %s edge", f.Why, e.name)
				}
			}
			if (f.Width != nil) != (tt.lower && tt.upper) {
				t.Errorf("width %v", f.Width)
			}
		})
	}
}

func TestStrayShotSoftensNoEdge(t *testing.T) {
	h := distant.sharp().draw(1, 300)
	h.Add(Point{-29 * msec, true})
	f := h.Fit()
	sound(t, f)
	if !f.Lower.covers(-20) || f.Lower.High-f.Lower.Low > 2*msec {
		t.Errorf("lower edge %v", f.Lower)
	}
}

func TestNoFit(t *testing.T) {
	line := func(shots int, stale func(int) bool) *Histogram {
		h := NewHistogram(0)
		for i := range shots {
			h.Add(Point{time.Duration(i) * 50 * time.Microsecond, stale(i)})
		}
		return h
	}
	far := line(0, nil)
	for range 25 {
		far.Add(Point{-time.Second, true})
	}
	for _, tt := range []struct {
		name string
		h    *Histogram
		want string
	}{
		{"empty", line(0, nil), "0 shots, 20 needed"},
		{"few", line(19, func(i int) bool { return i > 9 }), "19 shots, 20 needed"},
		{"none stale", line(300, func(int) bool { return false }), "none of 300 shots was stale"},
		{"all stale", line(300, func(int) bool { return true }), "all 300 shots were stale: no edge among them"},
		{"two stale", line(300, func(i int) bool { return i/2 == 50 }), "2 of 300 shots stale, 3 needed"},
		{"every third stale", line(300, func(i int) bool { return i%3 == 0 }), "100 of 300 shots stale without an edge: one rate for all ages fits as well"},
		{"out of range", far, "0 shots, 20 needed; 25 shots (25 stale) further than 100ms from the close are left out"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := tt.h.Fit()
			sound(t, f)
			if f.Method != MethodNone || f.Why != tt.want {
				t.Errorf("method %q, why %q, want %q", f.Method, f.Why, tt.want)
			}
		})
	}
}

// The edge of sharp data lies in the gap, one bin more or less.
func TestGap(t *testing.T) {
	h := NewHistogram(0)
	for i := -40; i <= 20; i++ {
		h.Add(Point{time.Duration(i) * msec, i >= -20 && i <= 0})
	}
	f := h.Fit()
	want := Fit{
		Method: MethodGap, Plateau: 1, Count: Count{61, 21},
		Lower: &Estimate{-20495 * time.Microsecond, -21 * msec, -19990 * time.Microsecond},
		Upper: &Estimate{505 * time.Microsecond, 0, 1010 * time.Microsecond},
		Width: &Estimate{21 * msec, 19990 * time.Microsecond, 22010 * time.Microsecond},
	}
	if f.Method != want.Method || f.Plateau != 1 || f.Count != want.Count || f.Why != "" ||
		*f.Lower != *want.Lower || *f.Upper != *want.Upper || *f.Width != *want.Width {
		t.Errorf("%+v: lower %v, upper %v, width %v", f, *f.Lower, *f.Upper, *f.Width)
	}
}

func FuzzFit(f *testing.F) {
	for seed := range uint64(10) {
		f.Add(seed, uint16(20+31*seed), int16(seed*100), uint8(seed*27))
	}
	f.Fuzz(func(t *testing.T, seed uint64, shots uint16, spread int16, share uint8) {
		rng := rand.New(rand.NewPCG(seed, 1))
		h := NewHistogram(0)
		wide := 1 + time.Duration(spread)*time.Duration(spread)*100
		for range shots % 1000 {
			rel := time.Duration((rng.Float64() - 0.5) * float64(wide))
			inside := rel > -wide/8 && rel < wide/6
			h.Add(Point{rel, rng.UintN(256) < uint(share) != inside})
		}
		fit := h.Fit()
		sound(t, fit)
		for _, b := range h.Curve(20) {
			if !(b.Rate.Low >= 0 && b.Rate.Low <= b.Rate.High && b.Rate.High <= 1) || b.From >= b.To {
				t.Errorf("bin %+v", b)
			}
		}
		if text := (Law{}).Compare(fit).Text; text == "" || strings.Contains(text, "NaN") || strings.Contains(text, "Inf") {
			t.Errorf("text %q", text)
		}
	})
}

func TestHistogram(t *testing.T) {
	h := NewHistogram(0)
	for rel, stale := range map[time.Duration]bool{
		-100*msec - 1: false, -100 * msec: false, -1: true, 0: false, 100*msec - 1: false, 100 * msec: true, time.Hour: false,
	} {
		h.Add(Point{rel, stale})
	}
	if before, after := h.Outside(); before != (Count{1, 0}) || after != (Count{2, 1}) {
		t.Errorf("outside: %v, %v", before, after)
	}
	var got []Bin
	for _, b := range h.Curve(1) {
		b.Rate = Interval{}
		got = append(got, b)
	}
	want := []Bin{
		{From: -100 * msec, To: -100*msec + Resolution, Count: Count{1, 0}}, {From: -Resolution, Count: Count{1, 1}},
		{To: Resolution, Count: Count{1, 0}}, {From: 100*msec - Resolution, To: 100 * msec, Count: Count{1, 0}},
	}
	if len(got) != len(want) {
		t.Fatalf("bins %v", got)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("bin %d: %v, want %v", i, got[i], want[i])
		}
	}
}

func TestCurve(t *testing.T) {
	h := NewHistogram(msec)
	for i := range 25 {
		h.Add(Point{time.Duration(i) * msec, i >= 20})
	}
	got := h.Curve(10)
	if len(got) != 2 || got[0].Count != (Count{10, 0}) || got[1].Count != (Count{15, 5}) || got[1].From != 10*msec || got[1].To != 25*msec {
		t.Fatalf("curve %+v", got)
	}
	// 0 of 10: 1 - 0.025^(1/10).
	if r := got[0].Rate; r.Low != 0 || math.Abs(r.High-(1-math.Pow(0.025, 0.1))) > 1e-9 {
		t.Errorf("rate %v", r)
	}
	if few := h.Curve(100); len(few) != 1 || few[0].Shots != 25 {
		t.Errorf("curve %+v", few)
	}
}
