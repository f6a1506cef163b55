package report

import (
	"bytes"
	"cmp"
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"slices"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

func init() { register(html{}) }

// html is one page that needs nothing beside itself: no script, no font, no
// request. A cell's part is hidden until its link is followed, by :target.
type html struct{}

func (html) Name() string { return "html" }

func (html) About() string {
	return "one page for a browser, phone or printer: matrices, what to change, each cell's proof, a glossary"
}

//go:embed html/page.tmpl
var htmlPage string

//go:embed html/style.css
var htmlStyle string

var htmlTemplate = template.Must(template.New("page").Parse(htmlPage))

func (html) Write(w io.Writer, d *judge.Document, o Options) error {
	sheet := newSheet(d, o)
	if o.Reactions != nil {
		cards, err := o.Reactions()
		if err != nil {
			return err
		}
		for _, c := range cards {
			sheet.Reactions = append(sheet.Reactions, plainReaction(c))
		}
	}
	var b bytes.Buffer
	if err := htmlTemplate.Execute(&b, sheet); err != nil {
		return fmt.Errorf("html: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}

// sheet is what the template shows. Its texts are fit for a line each; markup
// in them is the template's to escape.
type sheet struct {
	Style     template.CSS // palette and style.css: nothing of a document
	Scenario  string
	About     string
	Started   string
	Partial   string
	Headline  string
	Counts    []stateCount
	Qualified []string // what makes the verdict worth less
	Changes   []change
	Backing   []backing
	Matrices  []matrix
	Legend    []stateCount
	Policy    []said
	Controls  []controlRow
	Windows   []windowRow
	Margins   []judge.Margin
	Reactions []Reaction
	Untested  []untested
	Warnings  []said
	Facts     [][2]string // the environment
	Numbers   []*part
	Parts     []*part
}

// stateCount is a state with a number or a meaning.
type stateCount struct {
	look
	N       int
	Meaning string
}

// matrix is a table of links to the cells' parts.
type matrix struct {
	Title string
	Cols  []string
	Rows  []matrixRow
}

type matrixRow struct {
	Name  string
	Cells []*part // nil where the run has no such cell
}

type controlRow struct {
	Proxy             string
	MustRace, MustNot []*part
	Ok                bool
}

type windowRow struct {
	Part *part
	Text string
}

// said is a note.
type said struct {
	Text, Subject string
	Cells         []string
}

func saidOf(list []note) (out []said) {
	for _, n := range list {
		out = append(out, said{n.text, n.subject(), n.cells})
	}
	return out
}

// untested is something the run says nothing about.
type untested struct {
	What, Why, Get string
	Cells          []*part
}

func newSheet(d *judge.Document, o Options) *sheet {
	r := &d.Run
	s := &sheet{
		Style: template.CSS(paletteCSS() + htmlStyle), Scenario: plain(r.Scenario), About: plain(r.About), Started: when(r), Partial: plain(r.Partial),
		Headline: headline(d), Policy: saidOf(violations(d)), Warnings: saidOf(warnings(d)), Facts: environment(d),
	}
	for _, q := range sentences(d)[1:] {
		s.Qualified = append(s.Qualified, plain(q))
	}
	parts := newParts(d, o)
	s.Changes, s.Backing = changes(d, parts)
	for i := range d.Cells {
		s.Numbers = append(s.Numbers, parts[&d.Cells[i]])
	}
	s.Parts = slices.Clone(s.Numbers)
	for i := range d.Controls {
		s.Parts = append(s.Parts, parts[&d.Controls[i]])
	}
	n := tally(d)
	for _, state := range []spec.State{spec.Races, spec.Masked, spec.Safe, spec.Inconclusive, spec.Unsupported, spec.Broken} {
		if n[state] > 0 {
			_, meaning := legend(state)
			s.Counts = append(s.Counts, stateCount{lookOf(state), n[state], ""})
			s.Legend = append(s.Legend, stateCount{lookOf(state), n[state], meaning})
		}
	}
	for _, b := range blocks(d) {
		m := matrix{Title: plain(b.title)}
		for _, col := range b.cols {
			m.Cols = append(m.Cols, plain(col))
		}
		for _, row := range b.rows {
			line := matrixRow{Name: plain(row)}
			for _, col := range b.cols {
				line.Cells = append(line.Cells, parts[b.cell(row, col)])
			}
			m.Rows = append(m.Rows, line)
		}
		s.Matrices = append(s.Matrices, m)
	}
	for _, c := range controls(d) {
		row := controlRow{Proxy: plain(c.proxy), Ok: c.mustRaceOK && c.mustNOK}
		for _, v := range c.mustRace {
			row.MustRace = append(row.MustRace, parts[v])
		}
		for _, v := range c.mustNot {
			row.MustNot = append(row.MustNot, parts[v])
		}
		s.Controls = append(s.Controls, row)
	}
	for i := range d.Cells {
		if v := &d.Cells[i]; v.Fit != nil && v.Fit.Stale > 0 {
			s.Windows = append(s.Windows, windowRow{parts[v], plain(fitText(*v))})
		}
	}
	for _, m := range d.Margins {
		x := judge.Margin{Text: plain(marginOf(m)) + ": " + plain(m.Text)}
		for _, text := range m.Violations {
			x.Violations = append(x.Violations, plain(text))
		}
		s.Margins = append(s.Margins, x)
	}
	s.Untested = notTested(d, parts)
	return s
}

func plainReaction(c Reaction) Reaction {
	out := Reaction{Title: plain(c.Title), Sentence: plain(c.Sentence)}
	for _, x := range c.Columns {
		out.Columns = append(out.Columns, plain(x))
	}
	for _, row := range c.Rows {
		var texts []string
		for _, x := range row {
			texts = append(texts, plain(x))
		}
		out.Rows = append(out.Rows, texts)
	}
	return out
}

// headline is the verdict for somebody who knows no word of ours.
func headline(d *judge.Document) string {
	n, total := tally(d), len(d.Cells)
	lost, hidden, unproven := n[spec.Races], n[spec.Masked], n[spec.Inconclusive]+n[spec.Broken]
	all := plural(total, "setting", "settings")
	switch {
	case total == 0:
		return "Nothing was tested, so nothing is known."
	case lost == total && total > 1:
		return fmt.Sprintf("Requests are lost in all of the %s tested.", all)
	case lost > 0:
		return fmt.Sprintf("Requests are lost in %d of the %s tested.", lost, all)
	case n[spec.Safe] == total:
		return fmt.Sprintf("No request is lost: %s tested, all safe.", all)
	case hidden > 0 && unproven == 0:
		return fmt.Sprintf("No request is lost, but in %d of the %s tested only because the proxy sends it again.", hidden, all)
	case unproven > 0:
		return fmt.Sprintf("No request was seen to be lost, but %d of the %s tested prove nothing.", unproven, all)
	}
	return fmt.Sprintf("No request is lost in the %s that could be tested.", plural(n[spec.Safe], "setting", "settings"))
}

// notTested is what the run says nothing about, and why.
func notTested(d *judge.Document, parts map[*judge.Verdict]*part) []untested {
	var out []untested
	for _, u := range d.Unavailable {
		out = append(out, untested{What: plain(u.Proxy), Why: plain(u.Reason), Get: visible(u.Get)})
	}
	for _, g := range []struct {
		state spec.State
		what  string
	}{
		{spec.Unsupported, "cannot be expressed"}, {spec.Inconclusive, "unproven"}, {spec.Broken, "broken"},
	} {
		index := map[string]int{}
		for i := range d.Cells {
			v := &d.Cells[i]
			if v.State != g.state {
				continue
			}
			why := cmp.Or(plain(v.Why), "no reason recorded")
			at, known := index[why]
			if !known {
				at = len(out)
				index[why] = at
				out = append(out, untested{What: g.what, Why: why})
			}
			out[at].Cells = append(out[at].Cells, parts[v])
		}
	}
	if d.Run.NoPackets != "" {
		out = append(out, untested{What: "packets", Why: plain(d.Run.NoPackets)})
	}
	return out
}

// environment is where and how the run took place, as rows of a name and a
// value.
func environment(d *judge.Document) (rows [][2]string) {
	r := &d.Run
	row := func(name, value string) {
		if value = plain(value); value != "" {
			rows = append(rows, [2]string{name, value})
		}
	}
	row("started", when(r))
	row("seed", fmt.Sprint(r.Seed))
	if r.Lanes > 0 {
		row("lanes per cell", fmt.Sprint(r.Lanes))
	}
	if r.Shards > 0 {
		row("merged from", plural(r.Shards, "shard", "shards"))
	}
	row("start-up", rough(r.StartUp))
	row("probing", rough(r.Probing))
	row("machine", machine(r))
	if e := r.Engine; e != nil {
		row("containers", fmt.Sprintf("%s (%s, %s); each: %s", engine(e), e.OS, e.Arch, e.Limits))
	}
	if len(r.Disturbances) > 0 {
		row("disturbed on purpose", disturbances(r))
	}
	seen := map[string]bool{}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			if name := proxyName(&list[i]); !seen[name] {
				seen[name] = true
				row("proxy", name+image(r, list[i].Proxy))
			}
		}
	}
	return rows
}
