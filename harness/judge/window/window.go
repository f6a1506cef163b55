// Package window is the statistics of the danger window: where it begins and
// ends around the measured upstream close, against the law, and which margin
// kept clear of it. It imports nothing of this module.
package window

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

// Confidence of every interval, two-sided, and of every bound, one-sided.
const Confidence = 0.95

// Resolution is what NewHistogram takes for 0.
const Resolution = 10 * time.Microsecond

// reach is how many resolutions a histogram covers on each side of the close.
const reach = 10_000

// Point is one shot.
type Point struct {
	Rel   time.Duration // age relative to the measured upstream close
	Stale bool          // met a closed or closing connection
}

// Count of shots, and how many of them were stale.
type Count struct{ Shots, Stale int }

func (c *Count) add(d Count) { c.Shots += d.Shots; c.Stale += d.Stale }

// Interval of a rate, within [0, 1].
type Interval struct{ Low, High float64 }

// Histogram counts points by age. Its memory is bounded by 20,000 bins,
// whatever the number of points.
type Histogram struct {
	res           time.Duration
	bins          map[int]Count // by floor(age / res)
	before, after Count
}

// NewHistogram covers ages within ±10,000 res of the close: ±100 ms at the
// Resolution, which stands for a res of 0 or below.
func NewHistogram(res time.Duration) *Histogram {
	if res <= 0 {
		res = Resolution
	}
	return &Histogram{res: res, bins: map[int]Count{}}
}

// Add counts one point.
func (h *Histogram) Add(p Point) {
	c := Count{Shots: 1}
	if p.Stale {
		c.Stale = 1
	}
	i := p.Rel / h.res
	if p.Rel%h.res < 0 {
		i--
	}
	switch {
	case i < -reach:
		h.before.add(c)
	case i >= reach:
		h.after.add(c)
	default:
		c.add(h.bins[int(i)])
		h.bins[int(i)] = c
	}
}

// Outside is what fell before and after the range, and so is part of no curve
// and no fit.
func (h *Histogram) Outside() (before, after Count) { return h.before, h.after }

// Bin is one piece of the curve: ages in [From, To).
type Bin struct {
	From, To time.Duration
	Count
	Rate Interval // Clopper-Pearson
}

// Curve gives the failure rate by age in bins of at least shots shots each, in
// order; what is left over at the end joins the last one. Ages without shots
// between two bins belong to neither.
func (h *Histogram) Curve(shots int) []Bin {
	var out []Bin
	open := false
	for _, b := range h.sorted() {
		if !open {
			out = append(out, Bin{From: h.from(b.i)})
		}
		last := &out[len(out)-1]
		last.To = h.from(b.i + 1)
		last.add(b.Count)
		open = last.Shots < shots
	}
	if n := len(out); open && n > 1 {
		out[n-2].To = out[n-1].To
		out[n-2].add(out[n-1].Count)
		out = out[:n-1]
	}
	for i := range out {
		out[i].Rate = clopperPearson(out[i].Count)
	}
	return out
}

type bin struct {
	i int
	Count
}

func (h *Histogram) sorted() []bin {
	out := make([]bin, 0, len(h.bins))
	for i, c := range maps.All(h.bins) {
		out = append(out, bin{i, c})
	}
	slices.SortFunc(out, func(a, b bin) int { return cmp.Compare(a.i, b.i) })
	return out
}

func (h *Histogram) from(i int) time.Duration { return time.Duration(i) * h.res }

// outside says what the range left out; empty when nothing was.
func (h *Histogram) outside() string {
	c := h.before
	c.add(h.after)
	if c.Shots == 0 {
		return ""
	}
	return fmt.Sprintf("%d shots (%d stale) further than %v from the close are left out", c.Shots, c.Stale, reach*h.res)
}

// clopperPearson is the exact two-sided interval of the rate; [0, 1] without
// shots.
func clopperPearson(c Count) Interval {
	const tail = (1 - Confidence) / 2
	out := Interval{0, 1}
	if c.Stale > 0 {
		out.Low = distuv.Beta{Alpha: float64(c.Stale), Beta: float64(c.Shots - c.Stale + 1)}.Quantile(tail)
	}
	if c.Stale < c.Shots {
		out.High = upper(c, 1-tail)
	}
	return out
}

// Bound is the exact one-sided upper bound of a rate that none of so many shots
// showed; 1 without shots.
func Bound(shots int) float64 { return upper(Count{Shots: shots}, Confidence) }

// upper is the exact one-sided upper bound of the rate; 1 without shots.
func upper(c Count, confidence float64) float64 {
	if c.Stale >= c.Shots {
		return 1
	}
	return distuv.Beta{Alpha: float64(c.Stale + 1), Beta: float64(c.Shots - c.Stale)}.Quantile(confidence)
}
