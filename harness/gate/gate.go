// Package gate compares verdicts with a baseline and a policy and decides
// whether a build may pass. It sees documents only; it must not import stack,
// load, proxy or run.
package gate

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// Exit codes of Exit.
const (
	Passed    = 0
	Violated  = 1 // a cell got worse or vanished, or the policy forbids it
	NotProven = 3 // proof was lost or is missing, or a control failed
)

// Exit is the exit code of a gate. Violated goes before NotProven. A document
// without cells proves nothing, whatever it is compared with.
//
// An inconclusive or broken cell matters only where someone asked for it: the
// baseline, which knew its state, or the policy, which covers it.
func Exit(changes []Change, violations []judge.Violation, d *judge.Document) int {
	code := Passed
	if len(d.Cells) == 0 || slices.ContainsFunc(d.Controls, failed) {
		code = NotProven
	}
	for _, c := range changes {
		switch c.Kind {
		case Worse, Vanished:
			return Violated
		case LostProof:
			code = NotProven
		}
	}
	for _, v := range violations {
		if !strings.HasPrefix(v.Rule, Unproven) {
			return Violated
		}
		code = NotProven
	}
	return code
}

// failed reports whether a control did not show what it is there to show. One
// that its proxy cannot express did not fail: the judge calls no cell of that
// proxy safe.
func failed(v judge.Verdict) bool {
	switch {
	case v.State == spec.Unsupported:
		return false
	case v.Role == judge.RoleMustRace:
		return v.State != spec.Races
	}
	return v.State != spec.Safe
}

// Kind says what a change means.
type Kind string

const (
	Worse     Kind = "worse"      // safe -> masked -> races
	Vanished  Kind = "vanished"   // no longer in the document, although its proxy ran
	LostProof Kind = "lost-proof" // safe, masked or races -> none of these
	Appeared  Kind = "appeared"   // not in the baseline
	Better    Kind = "better"     // races -> masked -> safe, or safe after no proof
	Changed   Kind = "changed"    // anything else, such as races after no proof: news, not a step back
)

// kinds lists the values of Kind in the order of Compare.
func kinds() []Kind { return []Kind{Worse, Vanished, LostProof, Appeared, Better, Changed} }

// Change is a cell whose state is not that of the baseline.
type Change struct {
	Cell    string     // id
	Was, Is spec.State // empty: no such cell
	Kind    Kind
	Text    string // why it is what it is now, in one line
}

// Compare gives the changes from baseline to now, the worst kind first, else in
// the order of the documents. Without a baseline there are none. Controls are
// not compared: Exit looks at those of now.
func Compare(baseline, now *judge.Document) []Change {
	if baseline == nil {
		return nil
	}
	was, is := byID(baseline), byID(now)
	unavailable := map[string]judge.Unavailable{}
	for _, u := range now.Unavailable {
		unavailable[u.Proxy] = u
	}
	var out []Change
	for _, old := range baseline.Cells {
		v := is[old.ID]
		if v == nil {
			out = append(out, missing(old, unavailable))
			continue
		}
		if v.State == old.State {
			continue
		}
		text := v.Why
		if v.Version != old.Version {
			text = fmt.Sprintf("%s was %s, is %s; %s", v.Proxy, old.Version, v.Version, v.Why)
		}
		out = append(out, Change{v.ID, old.State, v.State, kindOf(old.State, v.State), plain(text)})
	}
	for _, v := range now.Cells {
		if was[v.ID] == nil {
			out = append(out, Change{v.ID, "", v.State, Appeared, plain(v.Why)})
		}
	}
	slices.SortStableFunc(out, func(a, b Change) int {
		return cmp.Compare(slices.Index(kinds(), a.Kind), slices.Index(kinds(), b.Kind))
	})
	return out
}

func byID(d *judge.Document) map[string]*judge.Verdict {
	m := make(map[string]*judge.Verdict, len(d.Cells))
	for i := range d.Cells {
		m[d.Cells[i].ID] = &d.Cells[i]
	}
	return m
}

// missing is the change of a cell that is no longer there.
func missing(old judge.Verdict, unavailable map[string]judge.Unavailable) Change {
	u, ok := unavailable[old.Proxy]
	if !ok {
		return Change{old.ID, old.State, "", Vanished, "the run has no such cell; has the scenario changed?"}
	}
	c := Change{old.ID, old.State, "", LostProof, fmt.Sprintf("%s did not run: %s", old.Proxy, u.Reason)}
	if u.Get != "" {
		c.Text += " (get it: " + u.Get + ")"
	}
	c.Text = plain(c.Text)
	if danger(old.State) == unproven {
		c.Kind = Changed
	}
	return c
}

const unproven = -1

// danger orders the states that were proven.
func danger(s spec.State) int {
	return slices.Index([]spec.State{spec.Safe, spec.Masked, spec.Races}, s)
}

func kindOf(was, is spec.State) Kind {
	from, to := danger(was), danger(is)
	switch {
	case from != unproven && to == unproven:
		return LostProof
	case from == unproven && is == spec.Safe:
		return Better
	case from == unproven:
		return Changed
	case to > from:
		return Worse
	}
	return Better
}

// Unproven begins the rule of a violation that is none yet: the policy covers
// the cell, which is inconclusive or broken, so that nothing shows the policy
// to hold.
const Unproven = "unproven: "

// Policy gives the cells of d that p forbids and those it covers that are
// inconclusive or broken, in the order of d; see Unproven. A nil policy forbids
// nothing. The error is that of the expression or of a cell edited by hand.
func Policy(p *spec.Policy, d *judge.Document) ([]judge.Violation, error) {
	if p == nil {
		return nil, nil
	}
	rule := ruleText(p)
	var out []judge.Violation
	for _, v := range d.Cells {
		c, err := v.Cell()
		if err != nil {
			return nil, fmt.Errorf("policy: %w", err)
		}
		covered, err := p.Match(c)
		if err != nil {
			return nil, fmt.Errorf("policy: cell %s: %w", v.ID, err)
		}
		switch {
		case !covered:
		case slices.Contains(p.Forbid, v.State):
			out = append(out, judge.Violation{Cell: v.ID, State: v.State, Rule: rule})
		case v.State == spec.Inconclusive || v.State == spec.Broken:
			out = append(out, judge.Violation{Cell: v.ID, State: v.State, Rule: Unproven + rule})
		}
	}
	return out, nil
}

// ruleText is the policy as its author would say it.
func ruleText(p *spec.Policy) string {
	var states []string
	for _, s := range p.Forbid {
		states = append(states, string(s))
	}
	s := "forbid " + strings.Join(states, ", ")
	if p.Where != "" {
		s += " where " + p.Where
	}
	return s
}

// Finding is one thing that a gate has to say, in text that is fit for a line of
// a terminal.
type Finding struct {
	Kind  string // a Kind, or one of the constants below
	Cell  string // id, of a control also
	What  string // "CELL: safe -> races"
	Why   string // may be empty
	Level Level
	Key   string // of the scenario's file, that it comes from: "axes", "policy", "proxies"
}

// Kinds of finding that are no Kind of change.
const (
	Forbidden = "forbidden"
	Open      = "not proven" // a violation that is none yet, see Unproven
	Control   = "control"    // it failed
)

// Level says what a finding does to a build.
type Level int

const (
	News    Level = iota // nothing
	Missing              // exit NotProven
	Failure              // exit Violated
)

// Findings are all that Write prints and Exit decides by, in that order.
func Findings(changes []Change, violations []judge.Violation, d *judge.Document) []Finding {
	var out []Finding
	finding := func(kind, cell, what, why string, level Level, key string) {
		out = append(out, Finding{kind, plain(cell), plain(what), plain(why), level, key})
	}
	for _, c := range changes {
		level := News
		switch c.Kind {
		case Worse, Vanished:
			level = Failure
		case LostProof:
			level = Missing
		}
		finding(string(c.Kind), c.Cell, fmt.Sprintf("%s: %s -> %s", c.Cell, cmp.Or(string(c.Was), "(none)"), cmp.Or(string(c.Is), "(none)")), c.Text, level, "axes")
	}
	why := map[string]string{}
	for _, v := range d.Cells {
		why[v.ID] = v.Why
	}
	for _, v := range violations {
		kind, rule, level := Forbidden, v.Rule, Failure
		if r, ok := strings.CutPrefix(v.Rule, Unproven); ok {
			kind, rule, level = Open, r, Missing
		}
		finding(kind, v.Cell, fmt.Sprintf("%s: %s (%s)", v.Cell, v.State, rule), why[v.Cell], level, "policy")
	}
	for _, v := range d.Controls {
		if failed(v) {
			finding(Control, v.ID, fmt.Sprintf("%s: %s failed: %s", v.Proxy, v.Role, v.State), v.Why, Missing, "proxies")
		}
	}
	return out
}

// Write prints every changed cell, violation and failed control with its
// reason, one finding per line and its reason below, and what they come to.
func Write(w io.Writer, changes []Change, violations []judge.Violation, d *judge.Document) error {
	var b strings.Builder
	for _, f := range Findings(changes, violations, d) {
		fmt.Fprintf(&b, "%-10s  %s\n", f.Kind, f.What)
		if f.Why != "" {
			fmt.Fprintf(&b, "%-10s  %s\n", "", f.Why)
		}
	}
	b.WriteString(summary(changes, violations, d) + "\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// summary is the last line: the result and what it rests on.
func summary(changes []Change, violations []judge.Violation, d *judge.Document) string {
	result := map[int]string{Passed: "passed", Violated: "FAILED", NotProven: "NOT PROVEN"}[Exit(changes, violations, d)]
	n := map[string]int{}
	for _, f := range Findings(changes, violations, d) {
		n[f.Kind]++
	}
	var parts []string
	for _, k := range kinds() {
		if n[string(k)] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[string(k)], k))
		}
	}
	for _, k := range []struct{ kind, one, many string }{
		{Forbidden, "forbidden cell", "forbidden cells"},
		{Open, "cell under the policy not proven", "cells under the policy not proven"},
		{Control, "failed control", "failed controls"},
	} {
		switch c := n[k.kind]; c {
		case 0:
		case 1:
			parts = append(parts, "1 "+k.one)
		default:
			parts = append(parts, fmt.Sprintf("%d %s", c, k.many))
		}
	}
	if len(parts) == 0 {
		parts = append(parts, "nothing to object")
	}
	cells := "cells"
	if len(d.Cells) == 1 {
		cells = "cell"
	}
	return fmt.Sprintf("gate: %s: %s; %d %s in this run", result, strings.Join(parts, ", "), len(d.Cells), cells)
}

// plain makes text of unknown origin fit for one line of a terminal: white
// space becomes one blank, what does not print its Go escape.
func plain(s string) string {
	var b strings.Builder
	for _, r := range strings.Join(strings.Fields(s), " ") {
		if r == ' ' || unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}
