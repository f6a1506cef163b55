package react

import (
	"slices"
	"strings"
)

// sentence says what a card means: for the requests that were not executed when
// the upstream ended the connection, and for those that were.
func (c card) sentence() string {
	if !slices.ContainsFunc(c.trials, func(t Trial) bool { return len(t.Results) > 0 || t.Unsupported != "" }) {
		return c.title() + ": not tested."
	}
	var parts []string
	for _, g := range c.groups(func(t Trial) bool { return t.Ending != FINExecuted }) {
		parts = append(parts, g.unexecuted())
	}
	executed := c.groups(func(t Trial) bool {
		return t.Ending == FINExecuted && slices.ContainsFunc(t.Results, func(r Result) bool { return r.Executed > 0 && r.Reused })
	})
	switch len(executed) {
	case 0:
	case 1:
		parts = append(parts, "what was executed before the end "+executed[0].ran())
	default:
		var who []string
		for _, g := range executed {
			who = append(who, g.who+" "+g.ran())
		}
		parts = append(parts, "of what was executed before the end, "+strings.Join(who, ", "))
	}
	return c.title() + ": " + strings.Join(parts, "; ") + "."
}

// group holds cases that a proxy treats alike under some endings.
type group struct {
	cases    []string
	who      string // the cases in words
	outcomes []outcome
}

// outcome is what follows from some endings.
type outcome struct {
	endings []string
	trial   Trial // one of them; the others have the same text
}

// groups gives the cases of a card by what follows from the endings that keep
// accepts, in the card's order.
func (c card) groups(keep func(Trial) bool) []group {
	var names []string
	byCase := map[string][]outcome{}
	for _, t := range c.trials {
		if !keep(t) {
			continue
		}
		if !slices.Contains(names, t.Case) {
			names = append(names, t.Case)
		}
		os := byCase[t.Case]
		i := slices.IndexFunc(os, func(o outcome) bool { return o.trial.String() == t.String() })
		if i < 0 {
			i, os = len(os), append(os, outcome{trial: t})
		}
		os[i].endings = append(os[i].endings, string(t.Ending))
		byCase[t.Case] = os
	}
	var out []group
	for _, name := range names {
		os := byCase[name]
		i := slices.IndexFunc(out, func(g group) bool {
			return slices.EqualFunc(g.outcomes, os, func(a, b outcome) bool {
				return a.trial.String() == b.trial.String() && slices.Equal(a.endings, b.endings)
			})
		})
		if i < 0 {
			i, out = len(out), append(out, group{outcomes: os})
		}
		out[i].cases = append(out[i].cases, name)
	}
	for i := range out {
		g := &out[i]
		switch {
		case len(out) == 1:
			g.who = "every request"
		case i == len(out)-1 && len(g.cases) > 1:
			g.who = "all others"
		default:
			g.who = list(g.cases)
		}
	}
	return out
}

// unexecuted is the clause for requests that were not executed before the end.
func (g group) unexecuted() string {
	if o := g.outcomes[0]; len(g.outcomes) == 1 && len(o.trial.Results) < 2 {
		verb, how := o.trial.does()
		return verb + " " + g.who + how
	}
	var parts []string
	for _, o := range g.outcomes {
		part := o.trial.now()
		if len(g.outcomes) > 1 {
			part += " after " + list(o.endings)
		}
		parts = append(parts, part)
	}
	return g.who + ": " + strings.Join(parts, ", ")
}

// now is what a proxy does with a trial's request: "replays on a fresh
// connection", or all that it may do where chance decides.
func (t Trial) now() string {
	if len(t.Results) < 2 {
		verb, how := t.does()
		return verb + how
	}
	var parts []string
	for _, r := range t.Results {
		verb, how := r.does()
		parts = append(parts, "now "+verb+how)
	}
	return strings.Join(parts, ", ")
}

// does is what the proxy does, and how, around the request that it does it to.
func (t Trial) does() (verb, how string) {
	switch {
	case t.Unsupported != "":
		return "has no such setting for", ""
	case len(t.Results) == 0:
		return "was not tested with", ""
	}
	return t.Results[0].does()
}

func (r Result) does() (verb, how string) {
	switch {
	case !r.Reused:
		return "never sends", " on a reused connection"
	case r.Safety == Hidden:
		return "replays", " on a fresh connection"
	case r.Safety == Lost && r.Attempts > 1:
		return "retries and loses", " with " + r.told()
	case r.Safety == Lost:
		return "loses", " with " + r.told()
	case r.Safety == Twice:
		return "executes twice", ""
	}
	return "executes", " and tells the client " + r.told()
}

// told is what the client was told.
func (r Result) told() string {
	switch r.Outcome {
	case OutcomeClosed:
		return "a closed connection"
	case OutcomeTimeout:
		return "nothing"
	}
	return r.seen()
}

// ran is what became of requests that were executed before the end.
func (g group) ran() string {
	var parts []string
	for _, r := range g.outcomes[0].trial.Results {
		switch r.Safety {
		case Twice:
			parts = append(parts, "ran twice")
		case Unanswered:
			parts = append(parts, "ran once and got "+r.told())
		default:
			parts = append(parts, "ran once and was answered")
		}
	}
	return strings.Join(parts, " or ")
}

// list joins names as prose does: "a, b and c".
func list(names []string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
