package report

import (
	"slices"
	"strings"

	"idlerace/harness/judge"
)

// change is what to do, once for all proxies that it was found for.
type change struct {
	Lead    string
	Because []ground
}

// ground is what was measured that says so.
type ground struct {
	Proxy, Text string
	Cells       []*part // the first of them
	More        int     // how many there are besides
}

// backing is what else advice says: why, how sure it is, and what is not known.
type backing struct {
	Proxy     string
	Sentences []ground
}

// changes arranges the document's advice for a reader with one minute: what to
// do first, by what it is and not by proxy.
//
// Note: a sentence of advice says what to do, and after a colon why.
func changes(d *judge.Document, parts map[*judge.Verdict]*part) (out []change, rest []backing) {
	byID := map[string]*part{}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			byID[list[i].ID] = parts[&list[i]]
		}
	}
	of := func(s judge.Sentence, proxy, text string) ground {
		g := ground{Proxy: proxy}
		if text != "" {
			g.Text = sentenceCase(plain(text))
		}
		for _, c := range s.Cells {
			if p := byID[c.ID]; p != nil && len(g.Cells) < adviceCells {
				g.Cells = append(g.Cells, p)
			}
		}
		g.More = len(s.Cells) - len(g.Cells)
		return g
	}
	for _, a := range d.Advice {
		proxy := plain(advised(a))
		b := backing{Proxy: proxy}
		mitigations := 0
		for _, s := range a.Sentences {
			if s.Kind == judge.AdviceMitigation {
				mitigations++
			}
		}
		for _, s := range a.Sentences {
			// A mitigation alone is the pair of timeouts, said already.
			if !foremost(s) || s.Kind == judge.AdviceMitigation && mitigations == 1 {
				b.Sentences = append(b.Sentences, of(s, "", s.Text))
				continue
			}
			lead, why, _ := strings.Cut(s.Text, ": ")
			if word, _, _ := strings.Cut(lead, " "); strings.Contains(word, "_") {
				lead = "A " + lead // a setting's name keeps its spelling
			}
			lead = sentenceCase(plain(lead))
			i := slices.IndexFunc(out, func(c change) bool { return c.Lead == lead })
			if i < 0 {
				i, out = len(out), append(out, change{Lead: lead})
			}
			out[i].Because = append(out[i].Because, of(s, proxy, why))
		}
		if len(b.Sentences) > 0 {
			rest = append(rest, b)
		}
	}
	return out, rest
}
