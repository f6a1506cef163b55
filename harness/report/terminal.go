package report

import (
	"bytes"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/lipgloss/table"
	"github.com/muesli/termenv"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

func init() { register(terminal{}) }

// terminal is the report a person sees first: the verdict in a sentence, the
// matrices, then the reasons.
type terminal struct{}

func (terminal) Name() string { return "terminal" }

func (terminal) About() string { return "matrices and reasons as plain text, coloured on request" }

func (terminal) Write(w io.Writer, d *judge.Document, o Options) error {
	p := newPage(o)
	p.verdict(d)
	p.run(&d.Run)
	p.matrices(d)
	p.legend(d)
	p.advice(d.Advice)
	p.windows(d)
	p.margins(d.Margins)
	p.controls(d)
	p.unavailable(d.Unavailable)
	p.whys(d)
	p.notes("Warnings", warnings(d))
	p.violations(d)
	_, err := w.Write(p.Bytes())
	return err
}

// verdict is the first thing on the page: what the run says, preceded by what
// keeps it from saying all.
func (p *page) verdict(d *judge.Document) {
	if d.Run.Partial != "" {
		p.text(0, p.unsure, "PARTIAL: "+plain(d.Run.Partial))
	}
	style := p.strong
	for _, s := range sentences(d) {
		p.text(0, style, plain(s))
		style = p.unsure
	}
}

func (p *page) run(r *judge.Run) {
	p.line("")
	name := plain(r.Scenario)
	if about := plain(r.About); about != "" {
		name += ": " + about
	}
	p.text(0, p.normal, name)
	p.text(0, p.faint, fmt.Sprintf("%s, %sstart-up %s, probing %s", when(r), seedAndLanes(r), rough(r.StartUp), rough(r.Probing)))
	p.text(0, p.faint, machine(r))
	if r.Engine != nil {
		p.text(0, p.faint, "containers: "+plain(engine(r.Engine)))
	}
	if r.NoPackets != "" {
		p.text(0, p.faint, "packets: none, "+plain(r.NoPackets))
	}
	if len(r.Disturbances) > 0 {
		p.text(0, p.faint, "disturbed on purpose: "+plain(disturbances(r)))
	}
}

// windows prints the danger windows that were fitted, a line each.
func (p *page) windows(d *judge.Document) {
	fits := fitsOf(d)
	if len(fits) == 0 {
		return
	}
	p.line("")
	p.text(0, p.strong, "Danger windows: ages at the proxy that met a closed connection")
	for _, v := range fits {
		p.text(2, p.normal, plain(v.ID))
		p.text(4, p.normal, plain(fitText(v)))
	}
}

// margins prints what kept clear of the race.
func (p *page) margins(margins []judge.Margin) {
	if len(margins) == 0 {
		return
	}
	p.line("")
	p.text(0, p.strong, "Margins")
	for _, m := range margins {
		p.text(2, p.normal, plain(marginOf(m))+": "+plain(m.Text))
		for _, x := range m.Violations {
			p.text(4, p.unsure, plain(x))
		}
	}
}

// engine says where a run's containers were and how they were reached.
func engine(e *record.Engine) string {
	s := fmt.Sprintf("%s %s at %s", e.Name, e.Version, e.Host)
	if e.Path != "" {
		s += ", reached by " + e.Path
	}
	return s
}

func seedAndLanes(r *judge.Run) string {
	s := fmt.Sprintf("seed %d, ", r.Seed)
	if r.Lanes > 0 {
		s += plural(r.Lanes, "lane", "lanes") + ", "
	}
	if r.Shards > 0 {
		s += "merged from " + plural(r.Shards, "shard", "shards") + ", "
	}
	return s
}

func when(r *judge.Run) string { return r.Started.UTC().Format("2006-01-02 15:04:05 UTC") }

// disturbances counts a run's by kind: "2 x burn-cpu, 3 x pause-proxy".
func disturbances(r *judge.Run) string {
	var out []string
	for _, what := range slices.Sorted(maps.Keys(r.Disturbances)) {
		out = append(out, fmt.Sprintf("%d x %s", r.Disturbances[what], what))
	}
	return strings.Join(out, ", ")
}

// machine names what the run ran on, as far as known.
func machine(r *judge.Run) string {
	var parts []string
	if r.Version != "" {
		parts = append(parts, "idlerace "+plain(r.Version))
	}
	if r.Kernel != "" {
		parts = append(parts, plain(r.Kernel))
	}
	if r.Cores > 0 {
		parts = append(parts, plural(r.Cores, "core", "cores"))
	}
	return strings.Join(parts, ", ")
}

// Bounds of a matrix in columns. With them four columns of the widest mark
// ("masked 9.9k/9.9k") fit into 80.
const (
	widestLabel = 12
	widestMark  = 16
)

func (p *page) matrices(d *judge.Document) {
	const corner = "proxy idle"
	all := blocks(d)
	// One width for all blocks: their columns stand below each other.
	label, cell, most := len(corner), 0, 0
	for _, b := range all {
		for _, row := range b.rows {
			label = max(label, lipgloss.Width(plain(row)))
		}
		for _, col := range b.cols {
			cell = max(cell, lipgloss.Width(plain(col)))
		}
		for _, v := range b.cells {
			cell = max(cell, lipgloss.Width(plain(mark(v))))
		}
		most = max(most, len(b.cols))
	}
	label, cell = min(label, widestLabel), max(min(cell, widestMark), len("upstream idle"))
	// The widest gap at which every block stays whole; where none does, two.
	gap := 3
	for gap > 0 && label+most*(gap+cell) > p.width {
		gap--
	}
	if gap == 0 {
		gap = 2
	}
	fit := max((p.width-label)/(gap+cell), 1)

	for _, b := range all {
		p.section(plain(b.title))
		groups := (len(b.cols) + fit - 1) / fit
		each := (len(b.cols) + groups - 1) / groups
		for begin := 0; begin < len(b.cols); begin += each {
			cols := b.cols[begin:min(begin+each, len(b.cols))]
			if begin > 0 {
				p.line("")
			}
			header, widths := []string{corner}, []int{label + gap}
			for _, col := range cols {
				header = append(header, cut(plain(col), cell))
				widths = append(widths, cell+gap)
			}
			widths[len(widths)-1] = cell
			var rows [][]string
			for _, row := range b.rows {
				line := []string{cut(plain(row), label)}
				for _, col := range cols {
					line = append(line, p.mark(b.cell(row, col), cell))
				}
				rows = append(rows, line)
			}
			p.line(strings.Repeat(" ", label+gap) + p.faint.Render("upstream idle"))
			p.grid(widths, header, rows)
		}
	}
}

func (p *page) mark(v *judge.Verdict, width int) string {
	if v == nil {
		return p.faint.Render("-")
	}
	return p.of(v.State).Render(cut(plain(mark(v)), width))
}

func (p *page) legend(d *judge.Document) {
	states := present(d)
	if len(states) == 0 {
		return
	}
	p.line("")
	for _, s := range states {
		sign, meaning := legend(s)
		p.hang(2, 13, p.of(s).Render(sign), p.faint, meaning)
	}
	for _, b := range blocks(d) {
		if len(b.at) < len(b.rows)*len(b.cols) {
			p.hang(2, 13, "-", p.faint, "not part of this run")
			return
		}
	}
}

func (p *page) controls(d *judge.Document) {
	list := controls(d)
	if len(list) == 0 {
		return
	}
	p.section("Controls")
	name := 0
	for _, c := range list {
		name = max(name, lipgloss.Width(plain(c.proxy)))
	}
	name = min(name, 20)
	for _, c := range list {
		p.hang(2, name+2, cut(plain(c.proxy), name), p.normal,
			"must race: "+shown(c.mustRace)+";  must not race: "+shown(c.mustNot))
		for _, v := range append(c.mustRace, c.mustNot...) {
			if why := plain(v.Why); why != "" && !holds(v) {
				p.text(4+name, p.unsure, v.Role+": "+why)
			}
		}
	}
}

// shown says what controls of one role came to.
func shown(list []*judge.Verdict) string {
	if len(list) == 0 {
		return "MISSING"
	}
	var parts []string
	for _, v := range list {
		result := " FAILED"
		switch {
		case v.State == spec.Unsupported:
			result = ""
		case holds(v):
			result = " ok"
		}
		parts = append(parts, plain(mark(v))+result)
	}
	return strings.Join(parts, ", ")
}

func (p *page) unavailable(list []judge.Unavailable) {
	if len(list) == 0 {
		return
	}
	p.section("Did not run here")
	for _, u := range list {
		p.text(2, p.normal, plain(u.Proxy)+": "+plain(u.Reason))
		if get := visible(u.Get); get != "" {
			p.command(4, get)
		}
	}
}

// whys lists reasons for everything but `safe`, the worst first.
func (p *page) whys(d *judge.Document) {
	n := tally(d)
	for _, g := range []struct {
		state     spec.State
		one, many string
	}{
		{spec.Races, "cell races", "cells race"},
		{spec.Broken, "cell is broken", "cells are broken"},
		{spec.Inconclusive, "cell is inconclusive", "cells are inconclusive"},
		{spec.Masked, "cell is masked", "cells are masked"},
		{spec.Unsupported, "cell is unsupported", "cells are unsupported"},
	} {
		if n[g.state] > 0 {
			p.notes("Why "+plural(n[g.state], g.one, g.many), whys(d, g.state))
		}
	}
}

func (p *page) violations(d *judge.Document) {
	if len(d.Violations) == 0 {
		return
	}
	p.section("Policy")
	for _, n := range violations(d) {
		p.text(2, p.normal, n.text)
		for _, cell := range n.cells[:min(len(n.cells), 12)] {
			p.text(4, p.bad, cell)
		}
		if more := len(n.cells) - 12; more > 0 {
			p.text(4, p.faint, fmt.Sprintf("and %d more", more))
		}
	}
}

// notes prints a section of notes: all of a few, else one per proxy and where
// the rest is. The matrix must not scroll away.
func (p *page) notes(title string, list []note) {
	if len(list) == 0 {
		return
	}
	p.section(title)
	shown := few(list, 6)
	for _, n := range shown {
		if s := n.subject(); s != "" {
			p.text(2, p.normal, s)
			p.text(4, p.faint, n.text)
		} else {
			p.text(2, p.normal, n.text)
		}
	}
	if more := len(list) - len(shown); more > 0 {
		p.text(2, p.normal, fmt.Sprintf("and %d more: `idlerace explain RUN CELL` tells of one, `idlerace report RUN --format markdown` of all", more))
	}
}

// page collects lines of bounded width without trailing blanks.
type page struct {
	bytes.Buffer
	width int

	normal, strong, faint, bad, unsure, good, hidden lipgloss.Style
}

func newPage(o Options) *page {
	r := lipgloss.NewRenderer(io.Discard)
	r.SetColorProfile(termenv.Ascii) // plain whatever the environment says
	if o.Color {
		r.SetColorProfile(termenv.ANSI)
	}
	colour := func(c string) lipgloss.Style { return r.NewStyle().Foreground(lipgloss.Color(c)) }
	return &page{
		width:  o.width(),
		normal: r.NewStyle(),
		strong: r.NewStyle().Bold(true),
		faint:  r.NewStyle().Faint(true),
		bad:    colour("1").Bold(true),
		unsure: colour("5"),
		good:   colour("2"),
		hidden: colour("3"),
	}
}

// of is the style of a state.
func (p *page) of(s spec.State) lipgloss.Style {
	switch s {
	case spec.Races:
		return p.bad
	case spec.Masked:
		return p.hidden
	case spec.Safe:
		return p.good
	case spec.Unsupported:
		return p.faint
	}
	return p.unsure
}

func (p *page) line(s string) {
	p.WriteString(strings.TrimRight(s, " "))
	p.WriteByte('\n')
}

func (p *page) section(title string) {
	p.line("")
	p.text(0, p.strong, title)
}

// text wraps s under an indentation.
func (p *page) text(indent int, style lipgloss.Style, s string) {
	for _, l := range wrap(s, p.width-indent) {
		p.line(strings.Repeat(" ", indent) + style.Render(l))
	}
}

// hang wraps s in a column that begins label columns after the indentation,
// with head before its first line.
func (p *page) hang(indent, label int, head string, style lipgloss.Style, s string) {
	before := strings.Repeat(" ", indent) + head + strings.Repeat(" ", max(label-lipgloss.Width(head), 0))
	for _, l := range wrap(s, p.width-indent-label) {
		p.line(before + style.Render(l))
		before = strings.Repeat(" ", indent+label)
	}
}

func (p *page) command(indent int, s string) {
	for _, l := range wrapCommand(s, p.width-indent) {
		p.line(strings.Repeat(" ", indent) + l)
	}
}

// grid prints rows of cells below a header. A width is that of a column with
// the gap to the next; no line of a cell may be wider.
func (p *page) grid(widths []int, header []string, rows [][]string) {
	t := table.New().
		Border(lipgloss.NormalBorder()).BorderStyle(p.faint).
		BorderTop(false).BorderBottom(false).BorderLeft(false).BorderRight(false).BorderColumn(false).
		StyleFunc(func(_, col int) lipgloss.Style { return p.normal.Width(widths[col]) }).
		Headers(header...).Rows(rows...)
	for l := range strings.SplitSeq(strings.TrimRight(t.String(), "\n"), "\n") {
		p.line(l)
	}
}

// clock shows an instant to the microsecond.
func clock(ns int64) string { return time.Unix(0, ns).UTC().Format("15:04:05.000000 UTC") }
