package advice

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/judge/window"
	"idlerace/harness/spec"
)

// near is up to which distance the limit counts as found: it lies between a
// difference that raced and one that was safe.
const near = 200 * time.Millisecond

// pair is two timeouts with the proven cells that tried them.
type pair struct {
	proxy, upstream time.Duration
	safe, stale     []cell
}

func (p pair) difference() time.Duration { return p.upstream - p.proxy }

// String gives "1s/2s": the proxy's timeout, then the upstream's.
func (p pair) String() string {
	return spec.FormatDuration(p.proxy) + "/" + spec.FormatDuration(p.upstream)
}

// rule is what the pairs before one far side come to. Methods and retry
// settings are taken together: which side closes first is no matter of the
// request.
type rule struct {
	where  string
	raced  []pair        // met closed connections; largest difference first
	held   []pair        // safe, as was every pair with as large a difference; smallest first
	odd    []pair        // safe although a pair with as large a difference was not
	failed time.Duration // the largest difference of raced
	least  time.Duration // the smallest difference of held
	// advised is the smallest difference of held that the proxy's timer, late as
	// it was in the safe cells, would not have used up; least where there is none.
	advised time.Duration
	late    time.Duration // that timer's largest lateness
	study   *judge.Margin // of the run, on these cells; nil: none
	open    []*judge.Verdict
}

func (s *subject) rule(f far, margins []judge.Margin) rule {
	r := rule{where: s.where(f)}
	var pairs []pair
	for _, c := range s.proven {
		if c.far() != f || !c.keepsAlive() {
			continue
		}
		p := pair{proxy: time.Duration(c.at.ProxyIdle), upstream: c.at.UpstreamIdle}
		at := slices.IndexFunc(pairs, func(o pair) bool { return o.proxy == p.proxy && o.upstream == p.upstream })
		if at < 0 {
			at = len(pairs)
			pairs = append(pairs, p)
		}
		if c.stale() {
			pairs[at].stale = append(pairs[at].stale, c)
		} else {
			pairs[at].safe = append(pairs[at].safe, c)
		}
	}
	slices.SortStableFunc(pairs, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.difference(), b.difference()), cmp.Compare(a.upstream, b.upstream))
	})
	for _, p := range slices.Backward(pairs) {
		if len(p.stale) > 0 {
			r.raced = append(r.raced, p)
		}
	}
	if len(r.raced) > 0 {
		r.failed = r.raced[0].difference()
	}
	for _, p := range pairs {
		switch {
		case len(p.safe) == 0:
		case len(r.raced) > 0 && p.difference() <= r.failed:
			r.odd = append(r.odd, p)
		default:
			r.held = append(r.held, p)
		}
	}
	if len(r.held) > 0 {
		r.least, r.late = r.held[0].difference(), lateness(safeOf(r.held))
		r.advised = r.least
		for _, p := range slices.Backward(r.held) {
			if p.difference() > r.late {
				r.advised = p.difference()
			}
		}
	}
	for i, m := range margins {
		if m.Proxy == s.proxy && m.Version == s.version && m.Runtime == s.runtime && m.Close == f.close && m.RTT == spec.FormatDuration(f.rtt) {
			r.study = &margins[i]
		}
	}
	for _, v := range s.others {
		if c, err := v.Cell(); err == nil && v.State != spec.Unsupported && c.ProxyIdle != spec.Off && (cell{v, c}).far() == f {
			r.open = append(r.open, v)
		}
	}
	return r
}

func (r rule) sentences() (out []judge.Sentence) {
	if len(r.held) > 0 {
		out = append(out, r.set())
	} else if len(r.raced) > 0 {
		out = append(out, r.none())
	}
	if len(r.raced) > 0 {
		out = append(out, r.why())
	}
	if len(r.held) > 0 {
		out = append(out, r.margin())
	}
	if len(r.odd) > 0 {
		out = append(out, r.contradiction())
	}
	if s := r.undecided(); s != nil {
		out = append(out, *s)
	}
	return out
}

func (r rule) set() judge.Sentence {
	var pairs []pair
	shots := 0
	for _, p := range r.held {
		if p.difference() < r.advised {
			continue
		}
		pairs = append(pairs, p)
		for _, c := range p.safe {
			shots += c.AimedShots
		}
	}
	cells := safeOf(pairs)
	rule := below(r.advised) + r.where
	brief := fmt.Sprintf("%s: safe in %s, 0 of %d aimed requests met a closed connection", rule, plural(len(cells), "cell"), shots)
	if len(r.raced) > 0 {
		brief += fmt.Sprintf("; %s %s", r.raced[0], did(r.raced[0].stale))
		cells = append(cells, worst(r.raced[0].stale)...)
	}
	return judge.Sentence{Kind: judge.AdviceSet,
		Text: fmt.Sprintf("Keep %s: %s tried so %s safe (%s; proxy_idle/upstream_idle), and none of %d aimed requests met a closed connection (95 %%: fewer than %s of such requests)%s.",
			rule, all(len(pairs), "pair"), agree(len(pairs), "was", "were"), few(pairs), shots, window.Percent(window.Bound(shots)), r.limit()),
		Brief: brief, Cells: support(cells)}
}

// limit is what raced next to the rule, as the end of a sentence.
func (r rule) limit() string {
	if len(r.raced) == 0 {
		return ""
	}
	return fmt.Sprintf("; the nearest pair that did not hold, %s, %s", r.raced[0], did(r.raced[0].stale))
}

// none says why no pair can be advised.
func (r rule) none() judge.Sentence {
	first := r.raced[0]
	what := "none that was tried is safe"
	if len(r.odd) > 0 {
		what = "none that was tried is safe without another cell that speaks against it"
	}
	text := fmt.Sprintf("no pair of timeouts can be advised%s: %s; the nearest to it, proxy_idle %s with upstream_idle %s, %s", r.where, what,
		spec.FormatDuration(first.proxy), spec.FormatDuration(first.upstream), did(first.stale))
	text += overdue(worst(first.stale))
	return judge.Sentence{Kind: judge.AdviceNone, Text: sentence(text), Brief: text, Cells: support(worst(first.stale))}
}

func (r rule) why() judge.Sentence {
	cells := staleOf(r.raced)
	within := len(r.raced)
	for _, p := range r.odd {
		if len(p.stale) == 0 {
			within++
		}
	}
	tried := all(within, "pair") + " tried so"
	if within > len(r.raced) {
		tried = fmt.Sprintf("%d of %s tried so", len(r.raced), plural(within, "pair"))
	}
	var raced, masked, lost, again int
	for _, c := range cells {
		if c.State == spec.Races {
			raced++
			lost += c.Attributed
		} else {
			masked++
		}
		again += c.Retried
	}
	var came []string
	if raced > 0 {
		came = append(came, fmt.Sprintf("%s raced (%s lost)", plural(raced, "cell"), plural(lost, "request")))
	}
	if masked > 0 {
		came = append(came, fmt.Sprintf("%s %s masked", plural(masked, "cell"), agree(masked, "was", "were")))
	}
	if again > 0 {
		came = append(came, plural(again, "request")+" sent again")
	}
	return judge.Sentence{Kind: judge.AdviceWhy,
		Text: fmt.Sprintf("Not with %s%s: %s (%s) met connections that the upstream's idle timer had just closed; %s%s.",
			upTo(r.failed), r.where, tried, few(r.raced), strings.Join(came, ", "), overdue(cells)),
		Brief: fmt.Sprintf("not with %s%s: %s", upTo(r.failed), r.where, strings.Join(came, ", ")),
		Cells: support(cells)}
}

// margin says how near the limit the rule is, as far as the cells tell.
func (r rule) margin() judge.Sentence {
	least, failed := spec.FormatDuration(r.least), spec.FormatDuration(r.failed)
	var first []cell
	var text string
	switch {
	case len(r.raced) == 0:
		text = fmt.Sprintf("no pair raced%s, so these cells do not show how small the difference may be; %s is the smallest that was tried, and was safe", r.where, least)
	case r.study != nil || r.least-r.failed <= near:
		first = worst(r.raced[0].stale)
		text = fmt.Sprintf("the limit%s is between %s, which %s, and %s, which was safe", r.where, failed, did(first), least)
	default:
		first = worst(r.raced[0].stale)
		text = fmt.Sprintf("%s is the smallest safe difference of this run%s, not the smallest there is: nothing is proven between it and %s, which %s (scenarios/margin.yaml tries such pairs)",
			least, r.where, failed, did(first))
	}
	brief := text
	held := safeOf(r.held)
	if r.late > 0 {
		text += fmt.Sprintf("; the safe cells' proxy closed up to %s after its setting, as the upstream saw it", spec.FormatDuration(r.late))
		switch {
		case r.advised > r.least:
			text += fmt.Sprintf(", which would have used up %s, so that %s is advised (a calmer machine may show less)", least, spec.FormatDuration(r.advised))
		case r.late >= r.least:
			text += ", which would have used up " + least + ", and no larger difference was tried (a calmer machine may show less)"
		}
	}
	if design := upstreamLateness(held); design > judge.LateByDesign {
		text += fmt.Sprintf("; this upstream closes %s after its setting, and one that closes in time leaves that much less", spec.FormatDuration(design.Round(time.Millisecond)))
	}
	return judge.Sentence{Kind: judge.AdviceMargin, Text: sentence(text), Brief: brief, Cells: support(held, first)}
}

// contradiction names safe pairs that the rule does not believe.
func (r rule) contradiction() judge.Sentence {
	var parts []string
	var safer []pair
	var cells []judge.Support
	for _, p := range r.odd {
		bad := worst(p.stale)
		cells = append(cells, support(p.safe, bad)...)
		if len(bad) > 0 {
			parts = append(parts, fmt.Sprintf("%s was safe with %s and %s with %s", p, requests(p.safe), did(bad), requests(bad)))
		} else {
			safer = append(safer, p)
		}
	}
	if len(safer) > 0 {
		first := r.raced[0]
		parts = append(parts, fmt.Sprintf("%s %s safe, yet %s %s with no smaller a difference", few(safer), agree(len(safer), "was", "were"), apart(first), did(first.stale)))
		for _, c := range support(worst(first.stale)) {
			if !slices.Contains(cells, c) {
				cells = append(cells, c)
			}
		}
	}
	text := "cells disagree" + r.where + ": " + strings.Join(parts, "; ")
	return judge.Sentence{Kind: judge.AdviceContradiction, Text: sentence(text + "; the advice goes by what met closed connections"), Brief: text, Cells: cells}
}

// undecided names the cells around the limit that would move it if they were
// proven; nil when there are none.
func (r rule) undecided() *judge.Sentence {
	if len(r.held) == 0 {
		return nil
	}
	var list []*judge.Verdict
	var differences []time.Duration
	for _, v := range r.open {
		c, _ := v.Cell()
		d := c.UpstreamIdle - time.Duration(c.ProxyIdle)
		if d >= r.least || len(r.raced) > 0 && d <= r.failed {
			continue
		}
		list = append(list, v)
		if !slices.Contains(differences, d) {
			differences = append(differences, d)
		}
	}
	if len(list) == 0 {
		return nil
	}
	slices.Sort(differences)
	var words []string
	for _, d := range differences {
		words = append(words, spec.FormatDuration(d))
	}
	text := fmt.Sprintf("a difference of %s%s is not decided (%s), so it supports nothing", strings.Join(words, ", "), r.where, states(list))
	if r.study != nil && r.study.Least != nil && time.Duration(*r.study.Least) < r.least {
		text += fmt.Sprintf("; the margin study, which says %s, counts it as held, since it lost nothing", r.study.Least)
	}
	return &judge.Sentence{Kind: judge.AdviceGap, Text: sentence(text), Brief: text, Cells: named(list)}
}

func states(list []*judge.Verdict) string {
	var out []string
	for _, s := range spec.States() {
		if slices.ContainsFunc(list, func(v *judge.Verdict) bool { return v.State == s }) {
			out = append(out, string(s))
		}
	}
	return strings.Join(out, ", ")
}

// below spells the rule of a difference.
func below(d time.Duration) string {
	if d <= 0 {
		return "upstream_idle minus proxy_idle at " + spec.FormatDuration(d) + " or more"
	}
	return "proxy_idle at least " + spec.FormatDuration(d) + " below upstream_idle"
}

// lateness is how long after its setting the proxy closed at the latest, to
// 0.1 ms.
func lateness(cells []cell) (late time.Duration) {
	for _, c := range cells {
		if c.ProxyClosed != nil {
			late = max(late, time.Duration(c.ProxyClosed.Max)-time.Duration(c.at.ProxyIdle))
		}
	}
	return late.Round(100 * time.Microsecond)
}

// overdue says how late the proxy closed in stale cells in which it should have
// been first, as the end of a sentence; nothing where it should not, or was in
// time.
func overdue(cells []cell) string {
	var first []cell
	for _, c := range cells {
		if c.difference() > 0 {
			first = append(first, c)
		}
	}
	late := lateness(first)
	if late <= 0 {
		return ""
	}
	return fmt.Sprintf("; the proxy, whose timeout is the shorter one there, closed up to %s after it", spec.FormatDuration(late))
}

// upstreamLateness is how long after its setting the upstream closed, without a
// proxy, at the earliest.
func upstreamLateness(cells []cell) (late time.Duration) {
	for _, c := range cells {
		if c.Direct != nil {
			late = max(late, time.Duration(c.Direct.Min)-c.at.UpstreamIdle)
		}
	}
	return late
}

// upTo spells the differences that are no larger than d.
func upTo(d time.Duration) string {
	switch {
	case d > 0:
		return "proxy_idle " + spec.FormatDuration(d) + " below upstream_idle or nearer"
	case d < 0:
		return "proxy_idle " + spec.FormatDuration(-d) + " above upstream_idle or more"
	}
	return "proxy_idle at upstream_idle or above"
}

// apart is a pair with its difference.
func apart(p pair) string {
	return fmt.Sprintf("%s (%s)", spec.FormatDuration(p.difference()), p)
}

// raced reports whether a cell lost requests.
func raced(c cell) bool { return c.State == spec.Races }

// worst keeps those of stale cells that raced, or all where none did.
func worst(cells []cell) []cell {
	if !slices.ContainsFunc(cells, raced) {
		return cells
	}
	var out []cell
	for _, c := range cells {
		if raced(c) {
			out = append(out, c)
		}
	}
	return out
}

// did says what became of stale cells, by the worst of them.
func did(cells []cell) string {
	if slices.ContainsFunc(cells, raced) {
		return "raced"
	}
	return "was masked"
}

// requests names what cells sent: "GET" or "POST (retry on)".
func requests(cells []cell) string {
	var out []string
	for _, c := range cells {
		s := c.Method
		if c.Retry != spec.RetryDefault {
			s += " (retry " + string(c.Retry) + ")"
		}
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return list(out)
}

func safeOf(pairs []pair) (out []cell) {
	for _, p := range pairs {
		out = append(out, p.safe...)
	}
	return out
}

func staleOf(pairs []pair) (out []cell) {
	for _, p := range pairs {
		out = append(out, p.stale...)
	}
	return out
}

// few lists up to four pairs.
func few(pairs []pair) string {
	const most = 4
	var out []string
	for _, p := range pairs[:min(len(pairs), most)] {
		out = append(out, p.String())
	}
	s := strings.Join(out, ", ")
	if more := len(pairs) - most; more > 0 {
		s += fmt.Sprintf(" and %d more", more)
	}
	return s
}

// all says "the one pair", "both pairs" or "all 3 pairs".
func all(n int, what string) string {
	switch n {
	case 1:
		return "the one " + what
	case 2:
		return "both " + what + "s"
	}
	return "all " + plural(n, what)
}

// sentence begins text with a capital, unless a setting's name stands there,
// and ends it with a full stop.
func sentence(text string) string {
	if word, _, _ := strings.Cut(text, " "); !strings.Contains(word, "_") {
		text = strings.ToUpper(text[:1]) + text[1:]
	}
	return text + "."
}
