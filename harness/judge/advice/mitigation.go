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

// mitigation is a setting on which racing or masked cells were measured again.
type mitigation struct {
	what    string
	short   string // the same in a brief; empty: what
	price   string // what it costs, as its cells show; may be empty
	changes []change
}

// change is a cell and another one that differs in the mitigation alone.
type change struct{ before, after cell }

// usual is the retry setting that the racing cells are taken from: the proxy as
// it comes, where the run has that.
func (s *subject) usual() spec.Retry {
	for _, r := range []spec.Retry{spec.RetryDefault, spec.RetryOff} {
		if slices.ContainsFunc(s.proven, func(c cell) bool { return c.keepsAlive() && c.Retry == r }) {
			return r
		}
	}
	return spec.RetryOn
}

// racing are the cells that a mitigation is held against.
func (s *subject) racing() []cell {
	usual := s.usual()
	return s.filter(func(c cell) bool { return c.keepsAlive() && c.stale() && c.Retry == usual })
}

// byMethod says what became of the different methods on racing pairs; nothing
// where only one was measured.
func (s *subject) byMethod() []judge.Sentence {
	cells := s.racing()
	var methods []string
	for _, c := range cells {
		if !slices.Contains(methods, c.Method) {
			methods = append(methods, c.Method)
		}
	}
	if len(methods) < 2 {
		return nil
	}
	var parts []string
	for _, m := range methods {
		var raced, masked, lost, again, twice int
		for _, c := range cells {
			if c.Method != m {
				continue
			}
			if c.State == spec.Races {
				raced++
				lost += c.Attributed
			} else {
				masked++
			}
			again += c.Retried
			twice += c.Twice
		}
		if raced > 0 {
			parts = append(parts, fmt.Sprintf("%s raced in %s (%s lost)", m, plural(raced, "cell"), plural(lost, "request")))
		}
		if masked > 0 {
			parts = append(parts, fmt.Sprintf("%s was masked in %s (%s sent again, %s executed twice)", m, plural(masked, "cell"), plural(again, "request"), none(twice)))
		}
	}
	as := "with retry " + string(s.usual())
	if s.usual() == spec.RetryDefault {
		as = "as the proxy comes (retry default)"
	}
	text := as + ", " + list(parts)
	return []judge.Sentence{{Kind: judge.AdviceMethods, Text: sentence(text), Brief: text, Cells: support(cells)}}
}

// mitigations rank what was tried on the racing cells, best first.
func (s *subject) mitigations(rules map[far]rule) (out []judge.Sentence) {
	usual, racing := s.usual(), s.racing()
	apart := mitigation{what: s.apart(rules), short: "that distance", price: "what has been idle for proxy_idle is closed, and the next request opens a connection anew"}
	off := mitigation{what: "no keep-alive to the upstream (proxy_idle off)", price: "every request opens a connection of its own"}
	all := []*mitigation{&apart, &off}
	retry := map[spec.Retry]*mitigation{}
	for _, r := range spec.Retries() {
		if r != usual {
			retry[r] = &mitigation{what: "retry " + string(r)}
			all = append(all, retry[r])
		}
	}
	for _, b := range racing {
		for _, a := range s.proven {
			if a.far() != b.far() || a.Method != b.Method {
				continue
			}
			p, u := a.at.ProxyIdle == b.at.ProxyIdle, a.at.UpstreamIdle == b.at.UpstreamIdle
			r := rules[a.far()]
			switch {
			case !a.keepsAlive() && u:
				off.changes = append(off.changes, change{b, a})
			case !a.keepsAlive():
			case p && u && retry[a.Retry] != nil:
				retry[a.Retry].changes = append(retry[a.Retry].changes, change{b, a})
			case p != u && a.Retry == usual && a.State == spec.Safe && len(r.held) > 0 && a.difference() >= r.advised:
				apart.changes = append(apart.changes, change{b, a})
			}
		}
	}
	all = slices.DeleteFunc(all, func(m *mitigation) bool { return len(m.changes) == 0 })
	slices.SortStableFunc(all, func(a, b *mitigation) int {
		return cmp.Or(cmp.Compare(a.rank(), b.rank()), cmp.Compare(len(a.missing(racing)), len(b.missing(racing))))
	})
	for i, m := range all {
		out = append(out, m.sentence(i+1, racing))
	}
	return out
}

// apart names the rule on the pairs of timeouts as a mitigation.
func (s *subject) apart(rules map[far]rule) string {
	var advised []time.Duration
	for _, f := range s.fars() {
		if r := rules[f]; len(r.held) > 0 && !slices.Contains(advised, r.advised) {
			advised = append(advised, r.advised)
		}
	}
	if len(advised) == 1 {
		return below(advised[0])
	}
	return "proxy_idle as far below upstream_idle as said above"
}

func (m *mitigation) rank() int { return slices.Index(judge.Effects(), m.effect()) }

// effect is by the worst that a cell came to.
func (m *mitigation) effect() judge.Effect {
	var better, worse, lost, sent, twice bool
	for _, c := range m.changes {
		is, was := danger(c.after.State), danger(c.before.State)
		better, worse = better || is < was, worse || is > was
		lost, sent = lost || c.after.State == spec.Races, sent || c.after.State == spec.Masked
		twice = twice || c.after.Twice > 0
	}
	switch {
	case worse:
		return judge.EffectWorsens
	case !better:
		return judge.EffectUnchanged
	case lost:
		return judge.EffectHelps
	case twice:
		return judge.EffectRepeats
	case sent:
		return judge.EffectHides
	}
	return judge.EffectCures
}

func danger(s spec.State) int {
	return slices.Index([]spec.State{spec.Safe, spec.Masked, spec.Races}, s)
}

// missing are the methods of racing cells that the mitigation was not tried on.
func (m *mitigation) missing(racing []cell) (out []string) {
	for _, c := range racing {
		tried := slices.ContainsFunc(m.changes, func(ch change) bool { return ch.before.Method == c.Method })
		if !tried && !slices.Contains(out, c.Method) {
			out = append(out, c.Method)
		}
	}
	return out
}

func (m *mitigation) sentence(rank int, racing []cell) judge.Sentence {
	effect := m.effect()
	does := map[judge.Effect]string{judge.EffectCures: "cures it", judge.EffectHides: "hides it", judge.EffectRepeats: "hides it and runs requests twice",
		judge.EffectHelps: "helps in part", judge.EffectUnchanged: "changes nothing", judge.EffectWorsens: "makes it worse"}[effect]
	text := fmt.Sprintf("%s %s: %s", m.what, does, m.changed(true))
	brief := fmt.Sprintf("%s %s: %s", cmp.Or(m.short, m.what), does, m.changed(false))
	if missing := m.missing(racing); len(missing) > 0 {
		text += "; not measured with " + list(missing)
		brief += "; not measured with " + list(missing)
	}
	var before, after []cell
	for _, c := range m.changes {
		before = append(before, c.before)
		if !slices.ContainsFunc(after, func(a cell) bool { return a.ID == c.after.ID }) {
			after = append(after, c.after)
		}
	}
	var again, twice int
	for _, c := range after {
		again += c.Retried
		twice += c.Twice
	}
	price := m.price
	if again+twice > 0 {
		price = fmt.Sprintf("%s sent again, %s of these executed twice; what had run before it failed is not among them, see idlerace react", plural(again, "request"), none(twice))
		if effect != judge.EffectUnchanged {
			brief += fmt.Sprintf("; %s of these ran twice, but see idlerace react", none(twice))
		}
	}
	if price != "" && (twice > 0 || effect != judge.EffectUnchanged && effect != judge.EffectWorsens) {
		text += ". Its price: " + price
	}
	return judge.Sentence{Kind: judge.AdviceMitigation, Rank: rank, Effect: effect, Text: sentence(text), Brief: brief, Cells: support(before, after)}
}

// changed tells, by method, what racing cells were and what they came to, with
// the number of cells that show it: "POST races -> masked (3 cells), GET masked
// -> masked (3 cells)".
func (m *mitigation) changed(numbers bool) string {
	shown := map[string]map[string]bool{} // ids of cells after
	var kinds []string
	for _, c := range m.changes {
		k := fmt.Sprintf("%s %s -> %s", c.before.Method, c.before.State, c.after.State)
		if shown[k] == nil {
			shown[k] = map[string]bool{}
			kinds = append(kinds, k)
		}
		shown[k][c.after.ID] = true
	}
	if numbers {
		for i, k := range kinds {
			kinds[i] = fmt.Sprintf("%s (%s)", k, plural(len(shown[k]), "cell"))
		}
	}
	return strings.Join(kinds, ", ")
}

func none(n int) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprint(n)
}
