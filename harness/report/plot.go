package report

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"idlerace/harness/judge"
)

// A plot's size in its own units, and the frame that its bars fill.
const (
	plotWidth, plotHeight         = 360, 150
	plotLeft, plotTop, plotBottom = 40, 22, 118
	plotRight                     = plotWidth - 26
)

// mostBars of a histogram leave each one wide enough to see.
const mostBars = 40

// px is a coordinate in an SVG.
type px float64

func (p px) String() string { return strconv.FormatFloat(float64(p), 'f', -1, 64) }

// pixel rounds to a tenth.
func pixel(f float64) px { return px(math.Round(f*10) / 10) }

// plot is a drawing of bars over a time axis.
type plot struct {
	Label                                    string // what it shows, for those who do not see it
	Bars                                     []bar
	Whisker                                  []line // intervals
	Ticks                                    []tick
	Marks                                    []tick // vertical lines, labelled above
	Top                                      string // the value at the upper end of the other axis
	Width, Height, Left, Right, Upper, Lower int
}

type bar struct {
	Class      string
	X, Y, W, H px
}

// Path is the bars of a class as one SVG path: a page has many thousand.
func (p *plot) Path(class string) string {
	var b strings.Builder
	for _, r := range p.Bars {
		if r.Class == class {
			fmt.Fprintf(&b, "M%s %sh%sv%sh-%sz", r.X, r.Y, r.W, r.H, r.W)
		}
	}
	return b.String()
}

// Whiskers are the intervals, likewise.
func (p *plot) Whiskers() string {
	var b strings.Builder
	for _, w := range p.Whisker {
		fmt.Fprintf(&b, "M%s %sV%s", w.X, w.Y1, w.Y2)
	}
	return b.String()
}

type line struct{ X, Y1, Y2 px }

type tick struct {
	X      px
	Text   string
	Anchor string // of SVG text
}

// axis maps durations to a plot's width.
type axis struct{ from, to time.Duration }

func (a axis) x(d time.Duration) float64 {
	return plotLeft + float64(d-a.from)/float64(a.to-a.from)*(plotRight-plotLeft)
}

func (a axis) has(d time.Duration) bool { return a.from <= d && d <= a.to }

// ticks are at most five round values.
func (a axis) ticks() (out []tick) {
	step := time.Duration(1)
	for i := 0; (a.to-a.from)/step > 4; i++ {
		step = step * []time.Duration{2, 5, 2}[i%3] / []time.Duration{1, 2, 1}[i%3]
	}
	first := a.from.Truncate(step)
	for d := first; d <= a.to; d += step {
		if a.has(d) {
			out = append(out, tick{pixel(a.x(d)), axisText(d, step), "middle"})
		}
	}
	return out
}

// axisText has as many digits as tell one tick from the next.
func axisText(d, step time.Duration) string {
	if d == 0 {
		return "0"
	}
	unit, name := time.Millisecond, "ms"
	if d.Abs() >= 10*time.Second && step >= 10*time.Millisecond {
		unit, name = time.Second, "s"
	}
	digits := 0
	for s := step; s%unit != 0 && digits < 6; s *= 10 {
		digits++
	}
	return strconv.FormatFloat(float64(d)/float64(unit), 'f', digits, 64) + " " + name
}

// mark is a tick whose text stays within the drawing.
func (a axis) mark(d time.Duration, text string) tick {
	t := tick{X: pixel(a.x(d)), Text: text, Anchor: "middle"}
	switch x := float64(t.X); {
	case x < plotLeft+20:
		t.Anchor = "start"
	case x > plotRight-30:
		t.Anchor = "end"
	}
	return t
}

func newPlot(a axis, label, top string) *plot {
	return &plot{Label: label, Ticks: a.ticks(), Top: top,
		Width: plotWidth, Height: plotHeight, Left: plotLeft, Right: plotRight, Upper: plotTop, Lower: plotBottom}
}

// bar adds one of the given share of the full height.
func (p *plot) bar(class string, a axis, from, to time.Duration, share float64) {
	if share <= 0 {
		return
	}
	x, h := a.x(from), max(share*(plotBottom-plotTop), 1)
	w := a.x(to) - x
	if w > 3 { // one is told from the next
		w -= 0.4
	}
	p.Bars = append(p.Bars, bar{class, pixel(x), pixel(plotBottom - h), pixel(max(w, 0.6)), pixel(h)})
}

func (p *plot) mark(a axis, d time.Duration, text string) {
	if a.has(d) {
		p.Marks = append(p.Marks, a.mark(d, text))
	}
}

// closes draws the idle times at which one side closed. set is that side's
// setting, 0 where it has none. The few that are far from all others are left
// out, and counted.
func closes(who string, h judge.Histogram, set time.Duration) (p *plot, outside int) {
	bins := slices.Sorted(maps.Keys(h.Counts))
	if len(bins) == 0 {
		return nil, 0
	}
	total := 0
	for _, n := range h.Counts {
		total += n
	}
	// From both ends a hundredth may go, if the rest then fills the drawing.
	lo, hi := 0, len(bins)-1
	for n := h.Counts[bins[lo]]; lo < hi && n <= total/100; n += h.Counts[bins[lo]] {
		lo++
	}
	for n := h.Counts[bins[hi]]; hi > lo && n <= total/100; n += h.Counts[bins[hi]] {
		hi--
	}
	if all := bins[len(bins)-1] - bins[0]; all < 4*(bins[hi]-bins[lo]+h.Width) {
		lo, hi = 0, len(bins)-1
	}
	a := axis{bins[lo] - h.Width, bins[hi] + 2*h.Width}
	if reach := a.to - a.from; set > 0 && set >= a.from-reach && set <= a.to+reach {
		a.from, a.to = min(a.from, set-reach/20), max(a.to, set+reach/20)
	}
	width := h.Width // of a bar
	for (a.to-a.from)/width > mostBars {
		width *= 2
	}
	bars, most := map[time.Duration]int{}, 0
	for i, from := range bins {
		n := h.Counts[from]
		if i < lo || i > hi {
			outside += n
			continue
		}
		from = from.Truncate(width)
		bars[from] += n
		most = max(most, bars[from])
	}
	p = newPlot(a, fmt.Sprintf("Histogram of %d idle times at which the %s closed a connection", total, who), strconv.Itoa(most))
	for _, from := range slices.Sorted(maps.Keys(bars)) {
		p.bar("calm", a, max(from, a.from), from+width, float64(bars[from])/float64(most))
	}
	if set > 0 {
		p.mark(a, set, "set")
	}
	return p, outside
}

// agePlot draws how many aimed requests went out at which age, and which of them
// met a closed connection; rtt is where the zone of danger ends at the earliest.
func agePlot(ages judge.Ages, rtt time.Duration) *plot {
	bins := slices.Sorted(maps.Keys(ages.Bins))
	if len(bins) == 0 || ages.Width <= 0 {
		return nil
	}
	shots, stale, most := 0, 0, 0
	for _, n := range ages.Bins {
		shots, stale, most = shots+n.Shots, stale+n.Stale, max(most, n.Shots)
	}
	// Shots are rarely spread over all of the zone.
	a := axis{min(bins[0], -4*ages.Width), max(bins[len(bins)-1]+ages.Width, rtt+4*ages.Width)}
	p := newPlot(a, fmt.Sprintf("Ages of %d aimed requests, %d of which met a closed connection", shots, stale), strconv.Itoa(most))
	for _, from := range bins {
		n := ages.Bins[from]
		p.bar("calm", a, from, from+ages.Width, float64(n.Shots)/float64(most))
		p.bar("hit", a, from, from+ages.Width, float64(n.Stale)/float64(most))
	}
	p.mark(a, 0, "expected close")
	if rtt > 0 {
		p.Marks[0].Text = "too late from here"
		p.mark(a, rtt, "FIN arrived")
	}
	return p
}

// leastWhisker is how wide a bar must be for its interval to be drawn: those of
// narrow ones would hide each other.
const leastWhisker = 5

// curvePlot draws the rate at which requests met a closed connection, by age.
func curvePlot(f *judge.Fit) *plot {
	if len(f.Curve) == 0 {
		return nil
	}
	first, last := f.Curve[0], f.Curve[len(f.Curve)-1]
	a := axis{time.Duration(first.From), time.Duration(last.To)}
	// The flat ends say the same over and over.
	if f.Lower != nil && f.Upper != nil {
		room := time.Duration(f.Upper.At-f.Lower.At)/2 + time.Millisecond
		a.from, a.to = max(a.from, time.Duration(f.Lower.At)-room), min(a.to, time.Duration(f.Upper.At)+room)
	}
	if a.to <= a.from {
		return nil
	}
	p := newPlot(a, fmt.Sprintf("Share of %d requests that met a closed connection, by age relative to the upstream's close", f.Shots), "100%")
	for _, b := range f.Curve {
		from, to := max(time.Duration(b.From), a.from), min(time.Duration(b.To), a.to)
		if to <= from {
			continue
		}
		p.bar("calm", a, from, to, float64(b.Stale)/float64(max(b.Shots, 1)))
		if a.x(to)-a.x(from) < leastWhisker {
			continue
		}
		y := func(rate float64) px { return pixel(plotBottom - rate*(plotBottom-plotTop)) }
		p.Whisker = append(p.Whisker, line{pixel((a.x(from) + a.x(to)) / 2), y(b.Rate.High), y(b.Rate.Low)})
	}
	for _, e := range []struct {
		edge *judge.Estimate
		text string
	}{{f.Lower, "from"}, {f.Upper, "to"}} {
		if e.edge != nil {
			p.mark(a, time.Duration(e.edge.At), e.text)
		}
	}
	return p
}
