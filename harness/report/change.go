package report

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// change is advice: what to set, and what was measured that says so.
type change struct {
	Lead    string
	Because []string // a sentence per proxy
}

// changes say what to set, as far as the verdicts alone can tell.
func changes(d *judge.Document) []change {
	type proxy struct {
		name  string
		leads map[time.Duration]*sums  // by upstream idle minus proxy idle
		pairs map[time.Duration]string // a pair of timeouts that differ so
		off   sums
	}
	var order []*proxy
	index := map[string]*proxy{}
	one := func(v *judge.Verdict) sums {
		s := sums{all: 1}
		switch v.State {
		case spec.Races:
			s.races = 1
		case spec.Masked:
			s.masked = 1
		case spec.Safe:
			s.safe = 1
		}
		return s
	}
	for i := range d.Cells {
		v := &d.Cells[i]
		c, err := v.Cell()
		if err != nil || v.State == spec.Unsupported {
			continue
		}
		p := index[proxyName(v)]
		if p == nil {
			p = &proxy{name: proxyName(v), leads: map[time.Duration]*sums{}, pairs: map[time.Duration]string{}}
			index[p.name] = p
			order = append(order, p)
		}
		if c.ProxyIdle == spec.Off {
			p.off.add(one(v))
			continue
		}
		lead := c.UpstreamIdle - time.Duration(c.ProxyIdle)
		if p.leads[lead] == nil {
			p.leads[lead] = &sums{}
			p.pairs[lead] = fmt.Sprintf("%s against %s", c.ProxyIdle, spec.FormatDuration(c.UpstreamIdle))
		}
		p.leads[lead].add(one(v))
	}
	var out []change
	say := func(lead, because string) {
		i := slices.IndexFunc(out, func(c change) bool { return c.Lead == lead })
		if i < 0 {
			i, out = len(out), append(out, change{Lead: lead})
		}
		out[i].Because = append(out[i].Because, because)
	}
	for _, p := range order {
		// From the largest lead of the proxy down to where a request met a closed
		// connection. A lead without a proof of its own is no advice.
		var least time.Duration
		var held, tried, rest sums
		example := ""
		for _, lead := range slices.Backward(slices.Sorted(maps.Keys(p.leads))) {
			s := p.leads[lead]
			if rest.all > 0 || lead <= 0 || s.races+s.masked > 0 {
				rest.add(*s)
				continue
			}
			tried.add(*s)
			if s.safe > 0 {
				least, held, example = lead, tried, p.pairs[lead]
			}
		}
		tried.all, tried.safe = tried.all-held.all, tried.safe-held.safe
		rest.add(tried)
		if len(p.leads) == 0 || p.off.races+p.off.masked > 0 {
			rest.add(p.off)
		}
		because := plain(p.name) + ": "
		switch all := held.with(rest) + "."; {
		case rest.races+rest.masked == 0 && held.safe+rest.safe == 0:
			say("No advice: nothing was proven.", because+all)
			continue
		case rest.races+rest.masked == 0:
			say("Nothing: no request met a closed connection.", because+all)
			continue
		case least > 0:
			because += fmt.Sprintf("so set, %s; of %s %s", held.with(sums{}), plural(rest.all, "other", "others"), rest)
		default:
			because += rest.with(sums{})
		}
		if p.off.all > 0 && p.off.safe == p.off.all {
			because += "; without keep-alive to the upstream nothing is lost, at the price of a new connection per request"
		}
		if least > 0 {
			say(fmt.Sprintf("Set the proxy's idle timeout for upstream connections at least %s below the upstream's own, such as %s.", spec.FormatDuration(least), example), because+".")
		} else {
			say("Set the proxy's idle timeout for upstream connections well below the upstream's own; no pair tested here was proven safe.", because+".")
		}
	}
	return out
}

// sums are cells by what they came to.
type sums struct{ all, races, masked, safe int }

func (s *sums) add(o sums) {
	s.all, s.races, s.masked, s.safe = s.all+o.all, s.races+o.races, s.masked+o.masked, s.safe+o.safe
}

// with says what s and o came to together.
func (s sums) with(o sums) string {
	s.add(o)
	if s.safe == s.all && s.all > 1 {
		return fmt.Sprintf("all %d settings tested are safe", s.all)
	}
	return fmt.Sprintf("of %s tested %s", plural(s.all, "setting", "settings"), s)
}

// String says it of several settings: "6 lose requests and 3 are unproven".
func (s sums) String() string {
	var parts []string
	for _, c := range []struct {
		n         int
		one, many string
	}{
		{s.races, "loses requests", "lose requests"},
		{s.masked, "works only because the proxy sends requests again", "work only because the proxy sends requests again"},
		{s.safe, "is safe", "are safe"},
		{s.all - s.races - s.masked - s.safe, "is unproven", "are unproven"},
	} {
		if c.n > 0 {
			parts = append(parts, plural(c.n, c.one, c.many))
		}
	}
	if n := len(parts); n > 1 {
		return strings.Join(parts[:n-1], ", ") + " and " + parts[n-1]
	}
	return strings.Join(parts, "")
}
