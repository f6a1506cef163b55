// Package advice turns a document of verdicts into what they support for each
// proxy: what to set and with which margin, which settings were seen to help,
// and what the run cannot say. Every sentence names its cells. The package is
// pure; of this module it imports judge, its window and spec alone.
package advice

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// Of gives the advice for each proxy of d, in the order of d's cells.
//
// Only cells that are safe, masked or racing support a statement, and only when
// no disturbance of the run touched them. Of a proxy whose controls failed or
// are missing, all there is to say is that.
func Of(d *judge.Document) []judge.Advice {
	out := []judge.Advice{}
	for _, s := range subjects(d) {
		out = append(out, judge.Advice{Proxy: s.proxy, Version: s.version, Runtime: s.runtime, Sentences: s.sentences(d)})
	}
	return out
}

// cell is a verdict that may support a statement, with its point of the grid.
type cell struct {
	*judge.Verdict
	at spec.Cell
}

func (c cell) keepsAlive() bool { return c.at.ProxyIdle != spec.Off }

// stale reports whether requests met connections that the upstream had closed.
func (c cell) stale() bool { return c.State == spec.Races || c.State == spec.Masked }

// difference is how much longer than the proxy the upstream waits.
func (c cell) difference() time.Duration { return c.at.UpstreamIdle - time.Duration(c.at.ProxyIdle) }

// far is all of a cell that lies beyond the proxy and its settings.
type far struct {
	upstream string
	close    spec.Close
	rtt      time.Duration
}

func (c cell) far() far { return far{c.at.Upstream, c.at.Close, c.at.RTT} }

// subject is one proxy, as one version of it ran in one place.
type subject struct {
	proxy, version, runtime string
	proven                  []cell
	others                  []*judge.Verdict // cells that support nothing
}

func subjects(d *judge.Document) (out []*subject) {
	for i := range d.Cells {
		v := &d.Cells[i]
		same := func(s *subject) bool { return s.proxy == v.Proxy && s.version == v.Version && s.runtime == v.Runtime }
		at := slices.IndexFunc(out, same)
		if at < 0 {
			at = len(out)
			out = append(out, &subject{proxy: v.Proxy, version: v.Version, runtime: v.Runtime})
		}
		s := out[at]
		c, err := v.Cell()
		if err != nil || v.SetAside > 0 || !slices.Contains([]spec.State{spec.Safe, spec.Masked, spec.Races}, v.State) {
			s.others = append(s.others, v)
			continue
		}
		s.proven = append(s.proven, cell{v, c})
	}
	return out
}

func (s *subject) sentences(d *judge.Document) []judge.Sentence {
	tried := len(s.proven) > 0 || slices.ContainsFunc(s.others, func(v *judge.Verdict) bool { return v.State != spec.Unsupported })
	if no := s.withheld(d.Controls); no != nil && tried {
		return []judge.Sentence{*no}
	}
	if len(s.proven) == 0 {
		no := s.undecided()
		no.Kind, no.Text, no.Brief = judge.AdviceNone, "No advice: "+no.Text, "no advice: "+no.Brief
		return []judge.Sentence{no}
	}
	var out []judge.Sentence
	rules := map[far]rule{}
	for _, f := range s.fars() {
		rules[f] = s.rule(f, d.Margins)
		out = append(out, rules[f].sentences()...)
	}
	out = append(out, s.byMethod()...)
	out = append(out, s.mitigations(rules)...)
	return append(out, s.gaps()...)
}

// withheld is why there is no advice; nil when the proxy's controls hold.
func (s *subject) withheld(controls []judge.Verdict) *judge.Sentence {
	no := func(why string, of []judge.Support) *judge.Sentence {
		return &judge.Sentence{Kind: judge.AdviceNone, Text: "No advice: " + why + ".", Brief: "no advice: " + why, Cells: of}
	}
	for _, c := range []struct {
		role string
		want spec.State
		what string
	}{
		{judge.RoleMustRace, spec.Races, "the control that must race"},
		{judge.RoleMustNotRace, spec.Safe, "the control that must not race, without keep-alive to the upstream,"},
	} {
		found := false
		for _, v := range controls {
			if v.Proxy != s.proxy || v.Role != c.role {
				continue
			}
			found = true
			if v.State != c.want && v.State != spec.Unsupported {
				return no(fmt.Sprintf("%s is %s, so nothing that was seen of this proxy is proof (%s)", c.what, v.State, cmp.Or(v.Why, "no reason recorded")),
					[]judge.Support{{ID: v.ID, State: v.State}})
			}
		}
		if !found {
			return no("the run lacks "+strings.TrimSuffix(c.what, ",")+", so nothing that was seen of this proxy is proof", append(support(s.proven), named(s.others)...))
		}
	}
	return nil
}

// fars lists what the proxy's proven cells had beyond it, nearest first.
func (s *subject) fars() (out []far) {
	for _, c := range s.proven {
		if !slices.Contains(out, c.far()) {
			out = append(out, c.far())
		}
	}
	slices.SortStableFunc(out, func(a, b far) int { return cmp.Compare(a.rtt, b.rtt) })
	return out
}

// where names what of f is unusual or differs between the proxy's cells: " at
// rtt 40ms"; empty when nothing does.
func (s *subject) where(f far) string {
	var parts []string
	differs := func(of func(far) bool) bool { return slices.ContainsFunc(s.fars(), of) }
	if f.upstream != "go" || differs(func(o far) bool { return o.upstream != f.upstream }) {
		parts = append(parts, "upstream "+f.upstream)
	}
	if f.close != spec.CloseFIN || differs(func(o far) bool { return o.close != f.close }) {
		parts = append(parts, "close "+string(f.close))
	}
	if f.rtt != 0 || differs(func(o far) bool { return o.rtt != f.rtt }) {
		parts = append(parts, "rtt "+spec.FormatDuration(f.rtt))
	}
	if len(parts) == 0 {
		return ""
	}
	return " at " + strings.Join(parts, ", ")
}

// gaps say what the run leaves open.
func (s *subject) gaps() (out []judge.Sentence) {
	if replayed := s.filter(func(c cell) bool { return c.Retried > 0 }); len(replayed) > 0 {
		out = append(out, judge.Sentence{Kind: judge.AdviceGap,
			Text: "What the proxy sent again in these cells had met a closed connection and so never ran. Whether it also sends again what did run, and runs it twice, " +
				"they do not show: idlerace react does.",
			Brief: "whether a retry runs twice what did run: idlerace react shows it", Cells: support(replayed)})
	}
	if len(s.others) > 0 {
		out = append(out, s.undecided())
	}
	open := strings.Join(s.unmeasured(), "; ")
	return append(out, judge.Sentence{Kind: judge.AdviceGap, Text: "Not measured, so not advised: " + open + ".", Brief: "not measured: " + open, Cells: support(s.proven)})
}

// unmeasured lists what no proven cell of the proxy has tried. There are some.
func (s *subject) unmeasured() (out []string) {
	var methods, rtts []string
	var retries []spec.Retry
	var shortest, longest time.Duration
	off := false
	add := func(list *[]string, x string) {
		if !slices.Contains(*list, x) {
			*list = append(*list, x)
		}
	}
	for _, c := range s.proven {
		add(&methods, c.Method)
		add(&rtts, spec.FormatDuration(c.at.RTT))
		idle := c.at.UpstreamIdle
		if c.keepsAlive() {
			retries = append(retries, c.Retry)
			idle = min(idle, time.Duration(c.at.ProxyIdle))
			longest = max(longest, time.Duration(c.at.ProxyIdle))
		}
		off = off || !c.keepsAlive()
		longest = max(longest, c.at.UpstreamIdle)
		if shortest == 0 || idle < shortest {
			shortest = idle
		}
	}
	for _, r := range spec.Retries() {
		if !slices.Contains(retries, r) {
			out = append(out, "retry "+string(r))
		}
	}
	if !off {
		out = append(out, "no keep-alive to the upstream")
	}
	out = append(out, "methods other than "+list(methods), "round trips other than "+list(rtts))
	if shortest == longest {
		return append(out, "timeouts other than "+spec.FormatDuration(shortest))
	}
	return append(out, fmt.Sprintf("timeouts outside %s to %s", spec.FormatDuration(shortest), spec.FormatDuration(longest)))
}

// undecided names the cells that support nothing.
func (s *subject) undecided() judge.Sentence {
	n := map[string]int{}
	for _, v := range s.others {
		if slices.Contains([]spec.State{spec.Safe, spec.Masked, spec.Races}, v.State) {
			n["disturbed"]++
		} else {
			n[string(v.State)]++
		}
	}
	var parts []string
	for _, what := range []string{string(spec.Inconclusive), string(spec.Broken), string(spec.Unsupported), "disturbed"} {
		if n[what] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[what], what))
		}
	}
	text := fmt.Sprintf("%s %s nothing here: %s", plural(len(s.others), "cell"), agree(len(s.others), "supports", "support"), strings.Join(parts, ", "))
	if len(s.others) == 1 {
		text += " (" + cmp.Or(s.others[0].Why, "no reason recorded") + ")"
	}
	return judge.Sentence{Kind: judge.AdviceGap, Text: text + ".", Brief: text, Cells: named(s.others)}
}

func (s *subject) filter(keep func(cell) bool) (out []cell) {
	for _, c := range s.proven {
		if keep(c) {
			out = append(out, c)
		}
	}
	return out
}

// support names each cell once.
func support(lists ...[]cell) []judge.Support {
	out := []judge.Support{}
	for _, list := range lists {
		for _, c := range list {
			if s := (judge.Support{ID: c.ID, State: c.State}); !slices.Contains(out, s) {
				out = append(out, s)
			}
		}
	}
	return out
}

func named(list []*judge.Verdict) []judge.Support {
	out := []judge.Support{}
	for _, v := range list {
		out = append(out, judge.Support{ID: v.ID, State: v.State})
	}
	return out
}

// list joins words: "GET, POST and PUT".
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// agree picks the form of a verb or pronoun.
func agree(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}
