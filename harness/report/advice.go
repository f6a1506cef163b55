package report

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"idlerace/harness/judge"
)

// adviceCells is how many cells a report names with a sentence; verdicts.json
// has all.
const adviceCells = 2

// advised is the proxy that advice is for.
func advised(a judge.Advice) string {
	return proxyName(&judge.Verdict{Proxy: a.Proxy, Version: a.Version, Runtime: a.Runtime})
}

// adviceHead is the word before a sentence.
func adviceHead(s judge.Sentence) string {
	switch s.Kind {
	case judge.AdviceNone:
		return "none"
	case judge.AdviceSet:
		return "set"
	case judge.AdviceWhy:
		return "because"
	case judge.AdviceMargin:
		return "margin"
	case judge.AdviceContradiction:
		return "but"
	case judge.AdviceMethods:
		return "methods"
	case judge.AdviceMitigation:
		return fmt.Sprintf("%d.", s.Rank)
	case judge.AdviceGap:
		return "open"
	}
	return string(s.Kind)
}

// cellsOf names a sentence's first cells: "a, b and 4 more".
func cellsOf(s judge.Sentence, most int, show func(string) string) string {
	var out []string
	for _, c := range s.Cells[:min(len(s.Cells), most)] {
		out = append(out, show(c.ID))
	}
	text := strings.Join(out, ", ")
	if more := len(s.Cells) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// foremost reports whether a sentence says what to do; others say why and how
// sure it is.
func foremost(s judge.Sentence) bool {
	switch s.Kind {
	case judge.AdviceNone, judge.AdviceSet, judge.AdviceContradiction, judge.AdviceMitigation:
		return true
	}
	return false
}

// advice prints, in brief, what to set and what was seen to help.
func (p *page) advice(list []judge.Advice) {
	if len(list) == 0 {
		return
	}
	p.section("Advice, from this run's cells (pairs are proxy_idle/upstream_idle)")
	left := 0
	for _, a := range list {
		if slices.ContainsFunc(a.Sentences, foremost) {
			p.text(2, p.normal, plain(advised(a)))
		}
		for _, s := range a.Sentences {
			if foremost(s) {
				p.hang(4, 6, cut(plain(adviceHead(s)), 5), p.faint, plain(s.Brief)+" ["+cellsOf(s, 1, plain)+"]")
			} else {
				left++
			}
		}
	}
	p.text(2, p.faint, "`idlerace list` names the settings of each proxy that proxy_idle and retry stand for.")
	if left > 0 {
		p.text(2, p.faint, fmt.Sprintf("Reasons, margins and what was not measured: %s in `idlerace report RUN --format markdown`", plural(left, "more sentence", "more sentences")))
	}
}

// mdAdvice prints whole sentences; where there are too many, those first that
// the terminal has.
func (l mdLimits) mdAdvice(b *bytes.Buffer, list []judge.Advice) {
	if len(list) == 0 {
		return
	}
	all := 0
	for _, a := range list {
		all += len(a.Sentences)
	}
	b.WriteString("\n## Advice\n\nWhat this run's cells support, and nothing else; verdicts.json (`advice`) names every cell of a sentence. `idlerace list` names the settings that proxy_idle and retry stand for.\n")
	left := l.advice
	for _, a := range list {
		fmt.Fprintf(b, "\n### Advice for %s\n\n", md(advised(a)))
		for _, s := range a.Sentences {
			if left > 0 && (all <= l.advice || foremost(s)) {
				fmt.Fprintf(b, "- **%s** %s (%s)\n", md(adviceHead(s)), md(clip(plain(s.Text), 600)), cellsOf(s, adviceCells, md))
				left--
			}
		}
	}
	mdMore(b, all-(l.advice-left), "advice")
}
