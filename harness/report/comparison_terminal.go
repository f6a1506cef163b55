package report

import (
	"fmt"
	"io"
	"strings"

	"idlerace/harness/compare"
)

// compareTerminal prints what changed, and counts what did not.
func compareTerminal(w io.Writer, c *compare.Comparison, o Options) error {
	p := newPage(o)
	for _, a := range c.Against {
		p.text(0, p.strong, plain(c.Sentence(a)))
	}
	p.section("Runs")
	for _, r := range c.Runs {
		p.hang(2, 3, r.Label, p.normal, plain(r.Path))
		p.text(5, p.faint, plain(runLine(r)))
		if r.Partial != "" {
			p.text(5, p.unsure, "PARTIAL: "+plain(r.Partial))
		}
	}
	if len(c.Differences) > 0 {
		p.section("The runs differ in")
		for _, d := range c.Differences {
			p.text(2, p.normal, plain(d.What))
			for i, v := range d.Values {
				p.hang(4, 3, c.Runs[i].Label, p.faint, plain(v))
			}
		}
	}
	for _, a := range c.Against {
		p.against(c, a)
	}
	if c.Tests > 0 {
		p.line("")
		p.text(0, p.faint, measures)
		p.text(0, p.faint, c.Note)
	}
	_, err := w.Write(p.Bytes())
	return err
}

// runLine is what a run is, in one line.
func runLine(r compare.Run) string {
	return fmt.Sprintf("%s, %s, seed %d, %s", r.Scenario, r.Started.UTC().Format("2006-01-02 15:04:05 UTC"), r.Seed, plural(r.Cells, "cell", "cells"))
}

func (p *page) against(c *compare.Comparison, a compare.Against) {
	reference := c.Runs[0].Label
	for _, ch := range compareParts {
		cells := a.Of(ch.change)
		if len(cells) == 0 {
			continue
		}
		p.section(fmt.Sprintf("%s: %s against %s", ch.title, a.Run, reference))
		for _, b := range comparedBlocks(cells) {
			p.line("")
			p.text(0, p.normal, plain(b.Title))
			p.compared(reference, a.Run, b.Cells)
		}
	}
	p.lone("Gone: in "+reference+", not in "+a.Run, a.Gone)
	p.lone("New: in "+a.Run+", not in "+reference, a.New)
}

// compared prints cells in a table that takes 78 columns.
func (p *page) compared(reference, run string, cells []compare.Cell) {
	widths := []int{16, 19, 19, 24}
	var rows [][]string
	for _, c := range cells {
		mark := func(s compare.Side) string {
			return p.of(s.State).Render(cut(plain(sideMark(s, c.Measure)), 18)) + "\n" + cut(sideRate(s), 18)
		}
		tests := cut(plain(pText(c)), 24)
		if c.Requests != nil {
			tests += ", bursts " + burstsText(c)
		}
		what := string(c.Direction)
		if c.Was.Requests(c.Measure).Hit+c.Is.Requests(c.Measure).Hit > 0 && c.Requests != nil {
			what = strings.TrimPrefix(what+", "+string(c.Measure), ", ")
		}
		rows = append(rows, []string{cut(plain(c.ProxyIdle+"/"+c.UpstreamIdle), 14), mark(c.Was), mark(c.Is), tests + "\n" + what})
	}
	p.grid(widths, []string{"proxy/upstream", reference, run, "p, over bursts"}, rows)
}

func (p *page) lone(title string, list []compare.Lone) {
	if len(list) == 0 {
		return
	}
	p.section(title)
	const most = 12
	for i, l := range list[:min(len(list), most)] {
		p.text(2, p.normal, plain(l.ID)+": "+plain(string(l.State)))
		last := i+1 == min(len(list), most) || list[i+1].Note != l.Note
		if l.Note != "" && last { // of several with the same note
			p.text(4, p.faint, plain(l.Note))
		}
	}
	if more := len(list) - most; more > 0 {
		p.text(2, p.normal, fmt.Sprintf("and %d more: `--format json` has all", more))
	}
}
