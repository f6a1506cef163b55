package report

import (
	"bytes"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

func init() { register(markdown{}) }

// mdLimits bound what a report may hold besides the matrices and the table of
// numbers, which have every cell.
type mdLimits struct {
	list   int // items of a list
	why    int // bytes of all reasons together
	advice int // sentences of advice
}

// mdFits is the size that a report should not exceed: GitHub cuts a comment at
// 65,536 characters.
const mdFits = 60_000

// mdTries are limits from generous to tight. With the last, two hundred cells
// fit, whatever else the run had.
var mdTries = []mdLimits{{25, 24_000, 100}, {25, 18_000, 50}, {12, 14_000, 36}, {6, 12_000, 18}}

// markdown is a report for an issue, a pull request or a repository: as much as
// fits.
type markdown struct{}

func (markdown) Name() string { return "markdown" }

func (markdown) About() string {
	return "GitHub-flavoured: matrices, every cell's numbers, commands to reproduce"
}

func (markdown) Write(w io.Writer, d *judge.Document, _ Options) error {
	var b bytes.Buffer
	for _, l := range mdTries {
		b.Reset()
		l.write(&b, d)
		if b.Len() <= mdFits {
			break
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

func (l mdLimits) write(b *bytes.Buffer, d *judge.Document) {
	fmt.Fprintf(b, "# idlerace: %s\n", md(d.Run.Scenario))
	if d.Run.Partial != "" {
		fmt.Fprintf(b, "\n> **Partial run:** %s\n", md(d.Run.Partial))
	}
	fmt.Fprintf(b, "\n**%s**\n", md(strings.Join(sentences(d), " ")))
	if d.Run.About != "" {
		fmt.Fprintf(b, "\n%s\n", md(d.Run.About))
	}
	mdMatrices(b, d)
	l.mdAdvice(b, d.Advice)
	mdControls(b, d)
	l.mdWindows(b, d)
	l.mdMargins(b, d.Margins)
	l.mdViolations(b, d)
	l.mdCells(b, d)
	l.mdUnavailable(b, d.Unavailable)
	l.mdWarnings(b, warnings(d))
	l.mdReproduce(b, d)
	mdEnvironment(b, d)
}

// mdMore says that a list was cut, and where the rest is; nothing where n is
// not above 0.
func mdMore(b *bytes.Buffer, n int, field string) {
	if n > 0 {
		fmt.Fprintf(b, "\nAnd %d more in verdicts.json (`%s`).\n", n, field)
	}
}

func mdMatrices(b *bytes.Buffer, d *judge.Document) {
	all := blocks(d)
	if len(all) == 0 {
		return
	}
	b.WriteString("\n## Matrix\n\nRows: proxy idle timeout. Columns: upstream idle timeout.\n")
	for _, bl := range all {
		fmt.Fprintf(b, "\n### %s\n\n| |", md(bl.title))
		for _, col := range bl.cols {
			fmt.Fprintf(b, " %s |", md(col))
		}
		b.WriteString("\n|:--|" + strings.Repeat(":--|", len(bl.cols)) + "\n")
		for _, row := range bl.rows {
			fmt.Fprintf(b, "| **%s** |", md(row))
			for _, col := range bl.cols {
				fmt.Fprintf(b, " %s |", mdMark(bl.cell(row, col)))
			}
			b.WriteByte('\n')
		}
	}
	b.WriteByte('\n')
	for _, s := range present(d) {
		sign, meaning := legend(s)
		fmt.Fprintf(b, "- %s: %s\n", md(sign), md(meaning))
	}
}

func mdMark(v *judge.Verdict) string {
	switch {
	case v == nil:
		return ""
	case v.State == spec.Races || v.State == spec.Broken:
		return "**" + md(mark(v)) + "**"
	}
	return md(mark(v))
}

func mdControls(b *bytes.Buffer, d *judge.Document) {
	list := controls(d)
	if len(list) == 0 {
		return
	}
	b.WriteString("\n## Controls\n\n| proxy | must race | must not race |\n|:--|:--|:--|\n")
	var failed []*judge.Verdict
	for _, c := range list {
		fmt.Fprintf(b, "| %s | %s | %s |\n", md(c.proxy), md(shown(c.mustRace)), md(shown(c.mustNot)))
		for _, v := range append(c.mustRace, c.mustNot...) {
			if !holds(v) && v.Why != "" {
				failed = append(failed, v)
			}
		}
	}
	if len(failed) > 0 {
		b.WriteByte('\n')
	}
	for _, v := range failed {
		fmt.Fprintf(b, "- %s %s: %s\n", md(v.Proxy), md(v.Role), md(v.Why))
	}
}

func (l mdLimits) mdWindows(b *bytes.Buffer, d *judge.Document) {
	fits := fitsOf(d)
	if len(fits) == 0 {
		return
	}
	b.WriteString("\n## Danger windows\n\nAges at the proxy, relative to the measured upstream close, that met a closed connection.\n\n| Cell | Window |\n|:--|:--|\n")
	for _, v := range fits[:min(len(fits), l.list)] {
		fmt.Fprintf(b, "| %s | %s |\n", md(v.ID), md(fitText(v)))
	}
	mdMore(b, len(fits)-l.list, "window_fit")
}

func (l mdLimits) mdMargins(b *bytes.Buffer, margins []judge.Margin) {
	if len(margins) == 0 {
		return
	}
	b.WriteString("\n## Margins\n\n")
	for _, m := range margins[:min(len(margins), l.list)] {
		fmt.Fprintf(b, "- %s: %s.\n", md(marginOf(m)), md(m.Text))
		const most = 3
		for _, x := range m.Violations[:min(len(m.Violations), most)] {
			fmt.Fprintf(b, "  - %s\n", md(x))
		}
		if more := len(m.Violations) - most; more > 0 {
			fmt.Fprintf(b, "  - and %d more in verdicts.json\n", more)
		}
	}
	mdMore(b, len(margins)-l.list, "margins")
}

func (l mdLimits) mdViolations(b *bytes.Buffer, d *judge.Document) {
	if len(d.Violations) == 0 {
		return
	}
	b.WriteString("\n## Policy\n")
	for _, n := range violations(d) {
		fmt.Fprintf(b, "\n%s:\n\n", md(n.text))
		for _, cell := range n.cells[:min(len(n.cells), l.list)] {
			fmt.Fprintf(b, "- %s\n", md(cell))
		}
		if more := len(n.cells) - l.list; more > 0 {
			fmt.Fprintf(b, "- and %d more in verdicts.json\n", more)
		}
	}
}

// mdCells is the table of numbers, per block.
func (l mdLimits) mdCells(b *bytes.Buffer, d *judge.Document) {
	all := blocks(d)
	if len(all) == 0 {
		return
	}
	fmt.Fprintf(b, "\n## Cells\n\nRate: failures by the race per aimed request, 95 %% interval. Closed: idle time at which that side closed, median.\n"+
		"Window: ages of the requests that came too late, relative to the upstream's close. A cell's id reads %s.\n", mdCode(d.Cells[0].ID))
	most := min(max(l.why/len(d.Cells), 60), 600)
	for _, bl := range all {
		fmt.Fprintf(b, "\n### %s\n\n", md(bl.title))
		b.WriteString("| proxy idle | upstream idle | state | failures/aimed | rate | upstream closed | proxy closed | window | why |\n" +
			"|:--|:--|:--|--:|--:|--:|--:|--:|:--|\n")
		for _, v := range bl.cells {
			fmt.Fprintf(b, "|%s|%s|%s|%s|%s|%s|%s|%s|%s|\n", md(v.ProxyIdle), md(v.UpstreamIdle), md(string(v.State)),
				failures(v), percent(v.Rate), median(v.UpstreamClosed), median(v.ProxyClosed), window(v.Window), md(clip(plain(v.Why), most)))
		}
	}
}

// clip shortens s to at most n runes.
func clip(s string, n int) string {
	if utf8.RuneCountInString(s) <= n {
		return s
	}
	return string([]rune(s)[:n-1]) + "…"
}

// failures names the share of the race where there were others, and the
// requests that only a retry saved.
func failures(v *judge.Verdict) string {
	if v.State == spec.Unsupported {
		return ""
	}
	s := fmt.Sprintf("%d/%d", v.Failures, v.AimedShots)
	if v.Failures != v.Attributed {
		s += fmt.Sprintf(" (%d by the race)", v.Attributed)
	}
	if v.Retried > 0 {
		s += fmt.Sprintf(" (%d sent again)", v.Retried)
	}
	return s
}

// percent is an interval of proportions as per cent, with at least two digits
// that say something.
func percent(i *judge.Interval) string {
	if i == nil {
		return ""
	}
	digits := 1
	if i.High < 0.01 {
		digits = 3
	}
	show := func(f float64) string { return strconv.FormatFloat(100*f, 'f', digits, 64) }
	return show(i.Low) + " to " + show(i.High) + " %"
}

func median(q *judge.Quantiles) string {
	if q == nil {
		return ""
	}
	return precise(time.Duration(q.P50))
}

func window(w *judge.Window) string {
	if w == nil {
		return ""
	}
	return precise(time.Duration(w.From)) + " to " + precise(time.Duration(w.To))
}

func (l mdLimits) mdUnavailable(b *bytes.Buffer, list []judge.Unavailable) {
	if len(list) == 0 {
		return
	}
	b.WriteString("\n## Did not run here\n\n| proxy | reason | what gets it |\n|:--|:--|:--|\n")
	for _, u := range list[:min(len(list), l.list)] {
		fmt.Fprintf(b, "| %s | %s | %s |\n", md(u.Proxy), md(clip(plain(u.Reason), 600)), strings.ReplaceAll(mdCode(u.Get), "|", `\|`))
	}
	mdMore(b, len(list)-l.list, "unavailable")
}

func (l mdLimits) mdWarnings(b *bytes.Buffer, list []note) {
	if len(list) == 0 {
		return
	}
	b.WriteString("\n## Warnings\n\n")
	for _, n := range list[:min(len(list), l.list)] {
		b.WriteString("- ")
		if s := n.subject(); s != "" {
			b.WriteString(md(s) + ": ")
		}
		b.WriteString(md(clip(n.text, 200)) + "\n")
	}
	if more := len(list) - l.list; more > 0 {
		fmt.Fprintf(b, "- and %d more in verdicts.json\n", more)
	}
}

// mdReproduce gives the command of every racing cell, as far as a comment has
// room.
func (l mdLimits) mdReproduce(b *bytes.Buffer, d *judge.Document) {
	var commands []string
	longest := 2
	for i := range d.Cells {
		v := &d.Cells[i]
		if v.State != spec.Races || v.Reproduce == "" {
			continue
		}
		s := visible(v.Reproduce)
		commands = append(commands, s)
		longest = max(longest, backticks(s))
	}
	if len(commands) == 0 {
		return
	}
	fence := strings.Repeat("`", longest+1)
	fmt.Fprintf(b, "\n## Reproduce\n\nOne command per racing cell; `idlerace explain RUN CELL` then shows a lost request step by step.\n\n%ssh\n", fence)
	for _, c := range commands[:min(len(commands), l.list)] {
		b.WriteString(c + "\n")
	}
	b.WriteString(fence + "\n")
	if more := len(commands) - l.list; more > 0 {
		fmt.Fprintf(b, "\nThe commands of %d more racing cells are in verdicts.json (`reproduce`).\n", more)
	}
}

func mdEnvironment(b *bytes.Buffer, d *judge.Document) {
	b.WriteString("\n## Environment\n\n| | |\n|:--|:--|\n")
	for _, row := range environment(d) {
		fmt.Fprintf(b, "| %s | %s |\n", row[0], md(row[1]))
	}
}

// image names the container image that a proxy ran from; "" if from none.
func image(r *judge.Run, proxy string) string {
	for _, p := range r.Proxies {
		if p.Name == proxy && p.Image != "" {
			id := strings.TrimPrefix(p.ImageID, "sha256:")
			return fmt.Sprintf(", image %s, id %.12s", p.Image, id)
		}
	}
	return ""
}

// md makes text of unknown origin fit for a line, a list item or a table cell:
// it shows as itself, whatever Markdown or HTML it holds.
func md(s string) string {
	s = plain(s)
	if !strings.ContainsAny(s, "\\`*_{}[]<>|~&$#!+-=@:") {
		return s
	}
	var b strings.Builder
	runes := []rune(s)
	word := func(i int) bool {
		return i >= 0 && i < len(runes) && (unicode.IsLetter(runes[i]) || unicode.IsDigit(runes[i]))
	}
	for i, r := range runes {
		switch r {
		case '&':
			b.WriteString("&amp;")
		case '<':
			b.WriteString("&lt;")
		case '>':
			b.WriteString("&gt;")
		case '\\', '`', '*', '{', '}', '[', ']', '|', '~', '$':
			b.WriteByte('\\')
			b.WriteRune(r)
		case '_': // inside a word it is only itself, and ids stay readable
			if !word(i-1) || !word(i+1) {
				b.WriteByte('\\')
			}
			b.WriteRune(r)
		case '#', '+', '-', '=': // headings, lists and rules at the begin of a line; "#1" names an issue
			if i == 0 || r == '#' {
				b.WriteByte('\\')
			}
			b.WriteRune(r)
		case '@': // would notify a person: an empty comment keeps it text
			if !word(i - 1) {
				b.WriteString("@<!---->")
			} else {
				b.WriteRune(r)
			}
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}

// mdCode is a code span. In a table its pipes still need a backslash.
func mdCode(s string) string {
	s = strings.TrimSpace(visible(s))
	if s == "" {
		return ""
	}
	fence := strings.Repeat("`", backticks(s)+1)
	if strings.HasPrefix(s, "`") || strings.HasSuffix(s, "`") {
		s = " " + s + " "
	}
	return fence + s + fence
}

// backticks is the length of the longest run of backticks in s.
func backticks(s string) int {
	longest, run := 0, 0
	for _, r := range s {
		if r == '`' {
			run++
			longest = max(longest, run)
		} else {
			run = 0
		}
	}
	return longest
}
