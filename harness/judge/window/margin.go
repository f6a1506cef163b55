package window

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Setting is one cell of a margin study.
type Setting struct {
	Margin time.Duration // set T_u - T_p
	RTT    time.Duration
	Count
}

// Margin is what kept clear of the race at one RTT.
type Margin struct {
	RTT time.Duration
	// Min is the smallest margin that had no stale reuse, nor had any larger
	// one; nil when the largest margin failed, or none was tried.
	Min *time.Duration
	// Held is the shots at Min and above, none of them stale.
	Held int
	// Bound is the exact one-sided upper bound of the rate over Held; 1 without
	// shots.
	Bound float64
	// Failed is the largest margin with stale reuse; nil when none had any.
	Failed *time.Duration
	// Violations name each margin that failed though a smaller one held.
	Violations []string
	Text       string // one sentence without its full stop
}

// Margins judges settings by RTT, in ascending order. Settings of one margin
// are counted together; those without shots say nothing.
//
// Note: Min is chosen after the shots were seen, Bound holds for a margin named
// before. It is the rate of the aimed shots, which seek the race: ordinary
// traffic meets it less often.
func Margins(settings []Setting) []Margin {
	byRTT := map[time.Duration]map[time.Duration]Count{}
	for _, s := range settings {
		if byRTT[s.RTT] == nil {
			byRTT[s.RTT] = map[time.Duration]Count{}
		}
		c := byRTT[s.RTT][s.Margin]
		c.add(s.Count)
		byRTT[s.RTT][s.Margin] = c
	}
	var out []Margin
	for _, rtt := range slices.Sorted(maps.Keys(byRTT)) {
		var tried []Setting
		for margin, c := range byRTT[rtt] {
			if c.Shots > 0 {
				tried = append(tried, Setting{margin, rtt, c})
			}
		}
		slices.SortFunc(tried, func(a, b Setting) int { return cmp.Compare(a.Margin, b.Margin) })
		out = append(out, judge(rtt, tried))
	}
	return out
}

// judge takes settings of one RTT in ascending order of margin, with shots.
func judge(rtt time.Duration, tried []Setting) Margin {
	m := Margin{RTT: rtt}
	var held *Setting // the first one without stale reuse
	for i, s := range tried {
		if s.Stale == 0 {
			if held == nil {
				held = &tried[i]
			}
			if m.Min == nil {
				m.Min = &tried[i].Margin
			}
			m.Held += s.Shots
			continue
		}
		m.Failed, m.Min, m.Held = &tried[i].Margin, nil, 0
		if held != nil {
			m.Violations = append(m.Violations, fmt.Sprintf("margin %s failed in %d of %s shots though %s held in %s",
				signed(s.Margin), s.Stale, grouping(s.Shots), signed(held.Margin), grouping(held.Shots)))
		}
	}
	m.Bound = Bound(m.Held)
	switch {
	case len(tried) == 0:
		m.Text = "no margin was tried"
	case m.Min == nil:
		last := tried[len(tried)-1]
		m.Text = fmt.Sprintf("no margin held: the largest, %s, failed in %d of %s shots", signed(last.Margin), last.Stale, grouping(last.Shots))
	default:
		m.Text = fmt.Sprintf("upstream idle > proxy idle%s held in %s shots (95 %%: fewer than %s of requests)",
			beyond(*m.Min), grouping(m.Held), Percent(m.Bound))
	}
	return m
}

// beyond spells a margin as a term; empty for 0.
func beyond(d time.Duration) string {
	switch {
	case d > 0:
		return " + " + strings.TrimPrefix(signed(d), "+")
	case d < 0:
		return " - " + strings.TrimPrefix(signed(-d), "+")
	}
	return ""
}

// grouping spells a count with a comma at each thousand.
func grouping(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
