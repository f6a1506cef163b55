package window

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/optimize"
	"gonum.org/v1/gonum/stat/distuv"
)

// Method says where the edges of a Fit come from.
type Method string

// The methods.
const (
	MethodNone       Method = ""           // no fit; Why says why
	MethodLikelihood Method = "likelihood" // maximum likelihood, profile intervals
	MethodGap        Method = "gap"        // every shot inside stale, none outside: last alive to first stale
)

// Estimate is a value with its interval, Low <= At <= High.
type Estimate struct{ At, Low, High time.Duration }

// Fit is the window as the shots show it, in ages relative to the measured
// close. What they do not bound is nil, never guessed, and Why names it.
type Fit struct {
	Method Method
	Lower  *Estimate // lower edge: half the plateau
	Upper  *Estimate // upper edge: half the plateau; this is d of the law
	Width  *Estimate // nil unless both edges are known
	// Plateau is the rate of failure inside the window, within [0, 1].
	Plateau float64
	Count          // within the range of the histogram
	Why     string // why there is no fit or no edge, and what was left out; may be empty
}

const (
	minShots = 20 // below it, no fit
	minStale = 3  // below it, no fit
	minPure  = 10 // stale shots without one alive between them, to take the plateau for 1
)

// Fit finds the edges of the window. The rate at age a is
//
//	h · F((a-lo)/s1) · (1 - F((a-hi)/s2))     F logistic, 0 < h <= 1, lo <= hi
//
// fitted by maximum likelihood to the binomial counts. An interval is what the
// profile likelihood ratio does not refuse, see critical, for an edge up to the
// next shot. An edge is known when the model without it is refused likewise.
//
// Note: the difference F((a-lo)/s1) - F((a-hi)/s2) gets negative where s1 and
// s2 differ; the product does not, and equals it where the edges are apart.
// For that an edge must be no softer than s = width/4: else a low hump is a
// narrow window and a wide one at once.
//
// Note: bootstrap intervals were passed over: with ten hits many resamples have
// no edge at all, and they cost some hundred fits instead of about thirty.
func (h *Histogram) Fit() Fit {
	bins := h.sorted()
	var f Fit
	for _, b := range bins {
		f.add(b.Count)
	}
	switch {
	case f.Shots < minShots:
		f.Why = fmt.Sprintf("%d shots, %d needed", f.Shots, minShots)
	case f.Stale == 0:
		f.Why = fmt.Sprintf("none of %d shots was stale", f.Shots)
	case f.Stale == f.Shots:
		f.Why = fmt.Sprintf("all %d shots were stale: no edge among them", f.Shots)
	case f.Stale < minStale:
		f.Why = fmt.Sprintf("%d of %d shots stale, %d needed", f.Stale, f.Shots, minStale)
	case f.Stale < minPure || !f.gap(bins, h.res):
		f.likelihood(bins, h.res)
	}
	f.because(h.outside())
	return f
}

func (f *Fit) because(why string) {
	f.Why = strings.Trim(f.Why+"; "+why, "; ")
}

// gap fits shots that the age alone tells apart; it reports whether they are
// such. The edge lies between the last alive and the first stale shot, give or
// take the bins they fell into.
func (f *Fit) gap(bins []bin, res time.Duration) bool {
	stale := func(b bin) bool { return b.Stale > 0 }
	first := slices.IndexFunc(bins, stale)
	end := first
	for end < len(bins) && bins[end].Stale == bins[end].Shots {
		end++
	}
	if end == first || slices.ContainsFunc(bins[end:], stale) {
		return false
	}
	between := func(b, c bin) *Estimate {
		low, high := time.Duration(b.i)*res, time.Duration(c.i+1)*res
		return &Estimate{At: low + (high-low)/2, Low: low, High: high}
	}
	f.Method, f.Plateau = MethodGap, 1
	if first > 0 {
		f.Lower = between(bins[first-1], bins[first])
	}
	if end < len(bins) {
		f.Upper = between(bins[end-1], bins[end])
	}
	f.missing()
	if f.Lower != nil && f.Upper != nil {
		f.Width = &Estimate{At: f.Upper.At - f.Lower.At, Low: max(0, f.Upper.Low-f.Lower.High), High: f.Upper.High - f.Lower.Low}
	}
	return true
}

// missing names the edges that are unknown.
func (f *Fit) missing() {
	if f.Lower == nil {
		f.because("lower edge unknown: the shots before it do not show one")
	}
	if f.Upper == nil {
		f.because("upper edge unknown: the shots after it do not show one")
	}
}

// likelihood fits the model with both edges, or with the one that is known.
func (f *Fit) likelihood(bins []bin, res time.Duration) {
	m := newModel(bins, res)
	best, lower, upper := m.best(both), m.best(onlyLower), m.best(onlyUpper)
	hasLower, hasUpper := refused(best, upper), refused(best, lower)
	if !hasLower && !hasUpper { // either edge alone explains the shots as well as both
		hasLower, hasUpper = lower.ll >= upper.ll, upper.ll > lower.ll
	}
	switch {
	case hasLower && !hasUpper:
		best = lower
	case hasUpper && !hasLower:
		best = upper
	}
	if !refused(best, optimum{ll: constant(f.Count)}) {
		f.Why = fmt.Sprintf("%d of %d shots stale without an edge: one rate for all ages fits as well", f.Stale, f.Shots)
		return
	}
	f.Method = MethodLikelihood
	if hasLower {
		f.Lower = m.interval(&best, atLower)
	}
	if hasUpper {
		f.Upper = m.interval(&best, atUpper)
	}
	if f.Lower != nil && f.Upper != nil {
		f.Width = m.interval(&best, atWidth)
	}
	f.Plateau = m.decode(best, free).h
	f.missing()
	if f.Lower == nil && f.Upper == nil {
		f.Method, f.Plateau = MethodNone, 0
	}
}

// critical is the likelihood ratio statistic that refuses one value of one
// parameter.
//
// Note: the 95 % quantile of χ²(1), 3.84, covered edges and width in 86 to 98 %
// of 200 runs of 300 shots, for the softness too is estimated, from the few
// shots on an edge. The 97.5 % quantile, 5.02, with the step to the next shot
// covered 94 to 99 %.
var critical = distuv.ChiSquared{K: 1}.Quantile(1 - (1-Confidence)/2)

func refused(best, other optimum) bool { return 2*(best.ll-other.ll) > critical }

// edges of a model.
type edges int

const (
	both edges = iota
	onlyLower
	onlyUpper
)

// fixed names what a profile holds.
type fixed int

const (
	free fixed = iota
	atLower
	atUpper
	atWidth
)

// stray is the rate the model allows outside the window, and of answers inside
// at full plateau: one shot with a wrong age must not soften an edge.
const stray = 1e-4

// params are the model's; ages in ms. An edge that is absent is infinite.
type params struct{ lo, hi, h, s1, s2 float64 }

func (p params) at(which fixed) float64 {
	switch which {
	case atLower:
		return p.lo
	case atUpper:
		return p.hi
	}
	return p.hi - p.lo
}

// optimum is a point of the search: z has the position in units (of the upper
// edge where there is no lower one), ln of the width, and the angles whose sin²
// gives plateau, lower and upper softness.
type optimum struct {
	edges edges
	z     [5]float64
	ll    float64
}

// group is shots of about one age, in ms.
type group struct{ x, shots, stale float64 }

type model struct {
	groups   []group
	res      float64 // ms
	min, max float64 // ages of the shots, ms
	unit     float64 // of the position, ms
}

const maxGroups = 400

// newModel groups bins so that the time of a fit does not depend on their
// number: inside a run of bins of one outcome the groups grow with the distance
// from its ends, for there the likelihood is flat.
func newModel(bins []bin, res time.Duration) *model {
	m := &model{res: ms(res)}
	for width := 1; ; width *= 2 {
		m.groups = grouped(bins, m.res, width)
		if len(m.groups) <= maxGroups {
			break
		}
	}
	m.min, m.max = m.groups[0].x, m.groups[len(m.groups)-1].x
	return m
}

// grouped makes groups of width bins each near every change of outcome.
func grouped(bins []bin, res float64, width int) []group {
	type key struct{ run, step, cell int }
	outcome := func(b bin) int {
		switch b.Stale {
		case 0:
			return 0
		case b.Shots:
			return 1
		}
		return 2
	}
	var out []group
	var last key
	for from := 0; from < len(bins); {
		end := from + 1
		for end < len(bins) && outcome(bins[end]) == outcome(bins[from]) && outcome(bins[end]) != 2 {
			end++
		}
		for i := from; i < end; i++ {
			k := key{run: from, step: octave(i-from) - octave(end-1-i), cell: bins[i].i}
			if min(i-from, end-1-i) >= 4*width {
				k.cell = 0
			} else if width > 1 {
				k = key{cell: floorDiv(bins[i].i, width)}
			}
			x, n := (float64(bins[i].i)+0.5)*res, float64(bins[i].Shots)
			if len(out) == 0 || k != last {
				out = append(out, group{x: x})
				last = k
			}
			g := &out[len(out)-1]
			g.shots += n
			g.stale += float64(bins[i].Stale)
			g.x += (x - g.x) * n / g.shots
		}
		from = end
	}
	return out
}

// octave is log2 in quarters, for distances from the end of a run.
func octave(i int) int {
	n := bits.Len(uint(i))
	return 4*n + (i<<2>>max(n-1, 0))&3
}

func floorDiv(a, b int) int { return int(math.Floor(float64(a) / float64(b))) }

func (m *model) logLikelihood(p params) float64 {
	var ll float64
	for _, g := range m.groups {
		rate := p.h / ((1 + math.Exp((p.lo-g.x)/p.s1)) * (1 + math.Exp((g.x-p.hi)/p.s2)))
		ll += g.log(rate)
	}
	return ll
}

// log is the log likelihood of the group at a rate.
func (g group) log(rate float64) float64 {
	rate = stray + (1-2*stray)*rate
	var ll float64
	if g.stale > 0 {
		ll = g.stale * math.Log(rate)
	}
	if g.shots > g.stale {
		ll += (g.shots - g.stale) * math.Log(1-rate)
	}
	return ll
}

// constant is the log likelihood of one rate for all ages.
func constant(c Count) float64 {
	return group{shots: float64(c.Shots), stale: float64(c.Stale)}.log(float64(c.Stale) / float64(c.Shots))
}

// soften maps an angle to a softness between half a bin and most.
func (m *model) soften(angle, most float64) float64 {
	least := m.res / 2
	sin := math.Sin(angle)
	return least * math.Pow(max(most/least, 1), sin*sin)
}

// decode gives the parameters of o; what is fixed keeps its place.
func (m *model) decode(o optimum, which fixed) params {
	sin := math.Sin(o.z[2])
	p := params{h: sin * sin, s1: 1, s2: 1}
	at, most := o.z[0]*m.unit, (m.max-m.min)/4
	switch o.edges {
	case onlyLower:
		p.lo, p.hi, p.s1 = at, math.Inf(1), m.soften(o.z[3], most)
		return p
	case onlyUpper:
		p.lo, p.hi, p.s2 = math.Inf(-1), at, m.soften(o.z[4], most)
		return p
	}
	w := m.width(o)
	p.lo, p.hi = at, at+w
	if which == atUpper {
		p.lo, p.hi = at-w, at
	}
	p.s1, p.s2 = m.soften(o.z[3], w/4), m.soften(o.z[4], w/4)
	return p
}

func (m *model) width(o optimum) float64 { return math.Exp(min(o.z[1], 20)) }

// pin holds which at value, ms; the rest of o stays as it is.
func (m *model) pin(o optimum, which fixed, value float64) optimum {
	if which == atWidth {
		o.z[1] = math.Log(value)
	} else {
		o.z[0] = value / m.unit
	}
	return o
}

// indices of what a search may move.
func (e edges) indices(which fixed) []int {
	var out []int
	if which == free || which == atWidth {
		out = append(out, 0)
	}
	if e == both && which != atWidth {
		out = append(out, 1)
	}
	out = append(out, 2)
	if e != onlyUpper {
		out = append(out, 3)
	}
	if e != onlyLower {
		out = append(out, 4)
	}
	return out
}

// maximise searches from o with which held.
func (m *model) maximise(o optimum, which fixed) optimum {
	move := o.edges.indices(which)
	start := make([]float64, len(move))
	for i, j := range move {
		start[i] = o.z[j]
	}
	set := func(x []float64) optimum {
		at := o
		for i, j := range move {
			at.z[j] = x[i]
		}
		return at
	}
	problem := optimize.Problem{Func: func(x []float64) float64 { return -m.logLikelihood(m.decode(set(x), which)) }}
	// A search that ends at its limit still has a value: the best it met.
	result, _ := optimize.Minimize(problem, start, &optimize.Settings{
		FuncEvaluations: 300,
		Converger:       &optimize.FunctionConverge{Absolute: 1e-2, Iterations: 8 * len(move)},
	}, &optimize.NelderMead{SimplexSize: 0.3})
	if result == nil {
		o.ll = m.logLikelihood(m.decode(o, which))
		return o
	}
	o = set(result.X)
	o.ll = -result.F
	return o
}

// best is the maximum of one kind of model over several starts: the best
// window with hard edges, soft and sharp, and the spread of the stale shots.
func (m *model) best(e edges) optimum {
	lo, hi := m.hard(e)
	if e == both {
		m.unit = max(hi-lo, 2*m.res)
	}
	first, last := math.Inf(1), math.Inf(-1)
	for _, g := range m.groups {
		if g.stale > 0 {
			first, last = min(first, g.x), max(last, g.x)
		}
	}
	top := optimum{ll: math.Inf(-1)}
	for _, s := range []struct{ lo, hi, soft float64 }{{lo, hi, 0.4}, {lo, hi, 0.9}, {first - m.res, last + m.res, 0.9}} {
		start := optimum{edges: e}
		start.z = [5]float64{s.lo / m.unit, math.Log(max(s.hi-s.lo, m.res)), 1, s.soft, s.soft}
		if e == onlyUpper {
			start.z[0] = s.hi / m.unit
		}
		if o := m.maximise(start, free); o.ll > top.ll {
			top = o
		}
	}
	return m.maximise(top, free)
}

// hard scans windows with hard edges, of one rate inside and none outside, for
// the likeliest; ages in ms.
func (m *model) hard(e edges) (lo, hi float64) {
	sum := make([]Count, len(m.groups)+1)
	for i, g := range m.groups {
		sum[i+1] = Count{sum[i].Shots + int(g.shots), sum[i].Stale + int(g.stale)}
	}
	cut := func(i int) float64 { // before group i
		switch i {
		case 0:
			return m.min - m.res/2
		case len(m.groups):
			return m.max + m.res/2
		}
		return (m.groups[i-1].x + m.groups[i].x) / 2
	}
	step := len(m.groups)/80 + 1
	all := sum[len(m.groups)]
	best := math.Inf(-1)
	try := func(i, j int) {
		in := group{shots: float64(sum[j].Shots - sum[i].Shots), stale: float64(sum[j].Stale - sum[i].Stale)}
		if in.shots == 0 {
			return
		}
		out := group{shots: float64(all.Shots) - in.shots, stale: float64(all.Stale) - in.stale}
		if ll := in.log(in.stale/in.shots) + out.log(0); ll > best {
			best, lo, hi = ll, cut(i), cut(j)
		}
	}
	n := len(m.groups)
	for i := 0; i < n; i += step {
		switch e {
		case onlyLower:
			try(i, n)
		case onlyUpper:
			try(0, n-i)
		case both:
			for j := i + step; j < n+step; j += step {
				try(i, min(j, n))
			}
		}
	}
	return lo, hi
}

// interval is the profile likelihood interval of one of best's parameters; nil
// where the shots do not bound it. A better optimum met on the way replaces
// best.
func (m *model) interval(best *optimum, which fixed) *Estimate {
	for range 3 {
		from := *best
		at := m.decode(from, free).at(which)
		held := from
		if which == atUpper {
			held = m.pin(held, which, at)
		}
		low, okLow := m.bound(held, which, at, -1, best)
		high, okHigh := m.bound(held, which, at, 1, best)
		if best.ll > from.ll+0.05 {
			continue
		}
		if !okLow || !okHigh {
			return nil
		}
		return &Estimate{At: duration(at), Low: duration(low), High: duration(high)}
	}
	return nil
}

// bound walks from the optimum in direction dir until the profile is refused,
// and closes in on that age, ms; false when it never is.
func (m *model) bound(o optimum, which fixed, at, dir float64, best *optimum) (float64, bool) {
	end := m.min - m.res
	if dir > 0 {
		end = m.max + m.res
	}
	if which == atWidth {
		end = m.res
		if dir > 0 {
			end = m.max - m.min + 2*m.res
		}
	}
	if dir*(at-end) >= 0 { // beyond the shots already
		return 0, which == atWidth && dir < 0
	}
	inside, ratio := at, 0.0
	var outside, over float64
	for step := max(m.res, m.unit/16); ; step *= 3 {
		t := at + dir*step
		if dir*(t-end) >= 0 {
			t = end
		}
		next, r := m.profile(o, which, t, best)
		if r > critical {
			outside, over = t, r
			break
		}
		if t == end {
			return 0, which == atWidth && dir < 0 // a width of 0 is a bound
		}
		o, inside, ratio = next, t, r
	}
	for range 12 {
		if math.Abs(outside-inside) <= max(m.res/2, 0.06*math.Abs(outside-at)) {
			break
		}
		// The root of the ratio is about linear in the distance.
		share := (math.Sqrt(critical) - math.Sqrt(ratio)) / (math.Sqrt(over) - math.Sqrt(ratio))
		t := inside + min(max(share, 0.15), 0.85)*(outside-inside)
		next, r := m.profile(o, which, t, best)
		if r > critical {
			outside, over = t, r
		} else {
			o, inside, ratio = next, t, r
		}
	}
	return m.outward(outside, which, dir), true
}

// outward moves the bound of an edge on to the next shot: up to there the
// likelihood has nothing to go by but the shape of the model.
func (m *model) outward(t float64, which fixed, dir float64) float64 {
	if which == atWidth {
		return t
	}
	next := slices.IndexFunc(m.groups, func(g group) bool { return g.x >= t })
	switch {
	case dir > 0 && next >= 0:
		return m.groups[next].x
	case dir < 0 && next > 0:
		return m.groups[next-1].x
	}
	return t
}

// profile is the maximum with which held at t, ms, and its ratio to best.
func (m *model) profile(o optimum, which fixed, t float64, best *optimum) (optimum, float64) {
	next := m.maximise(m.pin(o, which, t), which)
	if next.ll > best.ll {
		p := m.decode(next, which)
		*best = next
		if which == atUpper && best.edges == both {
			*best = m.pin(next, free, p.lo)
		}
	}
	return next, max(0, 2*(best.ll-next.ll))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func duration(ms float64) time.Duration {
	return time.Duration(math.Round(ms * float64(time.Millisecond)))
}
