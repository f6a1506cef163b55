package window

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// Law is what the edges are held against: stale reuse from T_u - R to T_u + d,
// d >= 0, here in ages relative to T_u.
type Law struct {
	RTT         time.Duration // R
	Uncertainty time.Duration // of T_u and R together, ±; >= 0
}

// Comparison is a fit against the law. Its intervals are wider than the fit's
// by the uncertainty on each side.
type Comparison struct {
	Lower *Estimate // lower edge - (T_u - R); nil when unknown
	Upper *Estimate // upper edge - T_u, which is d; nil when unknown
	// Holds: the lower difference may be 0 and d may be >= 0. Nil when no edge is
	// known, or when one is unknown and the other agrees.
	Holds *bool
	Text  string // what was found, as a part of a sentence
}

// Compare holds a fit against the law.
func (l Law) Compare(f Fit) Comparison {
	var c Comparison
	if f.Method == MethodNone {
		c.Text = "no window fitted: " + f.Why
		return c
	}
	lower, upper := "unknown", "unknown"
	agree := true
	if f.Lower != nil {
		c.Lower = f.Lower.plus(l.RTT, l.Uncertainty)
		lower = signed(f.Lower.At)
		agree = c.Lower.Low <= 0 && c.Lower.High >= 0
	}
	if f.Upper != nil {
		c.Upper = f.Upper.plus(0, l.Uncertainty)
		upper = signed(f.Upper.At)
		agree = agree && c.Upper.High >= 0
	}
	if !agree || c.Lower != nil && c.Upper != nil {
		c.Holds = &agree
	}
	c.Text = fmt.Sprintf("from %s (law %s) to %s after the measured close", lower, strings.TrimPrefix(signed(-l.RTT), "+"), upper)
	return c
}

func (e Estimate) plus(d, uncertainty time.Duration) *Estimate {
	u := max(0, uncertainty)
	return &Estimate{At: e.At + d, Low: e.Low + d - u, High: e.High + d + u}
}

// signed spells a time in ms: two decimals below 1 ms, one above.
func signed(d time.Duration) string {
	unit := 100 * time.Microsecond
	if d.Abs() < time.Millisecond {
		unit = Resolution
	}
	s := strconv.FormatFloat(ms(d.Round(unit)), 'f', -1, 64) + " ms"
	if d.Round(unit) > 0 {
		s = "+" + s
	}
	return s
}

// Percent spells a bound in two significant digits, rounded up.
func Percent(rate float64) string {
	p := 100 * rate
	if p <= 0 {
		return "0 %"
	}
	digits := max(0, 1-int(math.Floor(math.Log10(p))))
	scale := math.Pow10(digits)
	return strconv.FormatFloat(math.Ceil(p*scale)/scale, 'f', -1, 64) + " %"
}
