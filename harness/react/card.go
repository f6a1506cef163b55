package react

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Width is the number of columns a card keeps to.
const Width = 80

// WriteJSON writes d as indented JSON.
func (d *Document) WriteJSON(w io.Writer) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(d)
}

// WriteText writes a card per proxy and retry setting, a row per case and a
// column per ending, each with its conclusion, then the differences.
func (d *Document) WriteText(w io.Writer) error {
	var b strings.Builder
	for i, c := range d.cards() {
		if i > 0 {
			b.WriteByte('\n')
		}
		c.write(&b)
		b.WriteByte('\n')
		fill(&b, c.sentence())
	}
	b.WriteString("\nColumns: how the upstream ended the reused connection. keyed: the request has an\n" +
		"Idempotency-Key. -: the proxy has no such setting.\n")
	for _, u := range d.Unavailable {
		b.WriteByte('\n')
		fill(&b, fmt.Sprintf("%s: not available: %s", u.Proxy, u.Reason))
	}
	said := map[[2]string]bool{} // proxy and error: what fails one trial may fail them all
	for _, t := range d.failed() {
		if k := [2]string{t.Proxy, t.Err}; !said[k] {
			said[k] = true
			b.WriteByte('\n')
			fill(&b, t.name()+": "+t.Err)
		}
	}
	if d.Differences != nil {
		fmt.Fprintf(&b, "\n%d differences from the expected document\n", len(d.Differences))
		for _, s := range d.Differences {
			b.WriteString("  " + s + "\n")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Table is a card as plain text: a row per case, an outcome per ending.
type Table struct {
	Title    string // "nginx 1.22.1, retry on (local)"
	Sentence string // its conclusion
	Columns  []string
	Rows     [][]string // Case.Name, then Trial.String of each column
}

// Tables gives the cards in the order of the document.
func (d *Document) Tables() []Table {
	var out []Table
	for _, c := range d.cards() {
		t := Table{Title: c.heading(), Sentence: c.sentence()}
		for _, e := range Endings() {
			t.Columns = append(t.Columns, string(e))
		}
		for i, trial := range c.trials {
			if i%len(t.Columns) == 0 {
				t.Rows = append(t.Rows, []string{trial.Case})
			}
			last := len(t.Rows) - 1
			t.Rows[last] = append(t.Rows[last], trial.String())
		}
		out = append(out, t)
	}
	return out
}

func (c card) heading() string { return fmt.Sprintf("%s (%s)", c.title(), c.proxy.Runtime) }

// write writes the table. A cell has a line per part, so that it fits into
// Width.
func (c card) write(b *strings.Builder) {
	b.WriteString(c.heading() + "\n\n")
	rows := [][][]string{{{""}}} // of cells of lines
	for _, e := range Endings() {
		rows[0] = append(rows[0], []string{string(e)})
	}
	for i, t := range c.trials {
		if i%len(Endings()) == 0 {
			rows = append(rows, [][]string{{t.Case}})
		}
		rows[len(rows)-1] = append(rows[len(rows)-1], t.lines())
	}
	widths := make([]int, len(rows[0]))
	for _, r := range rows {
		for i, cell := range r {
			for _, l := range cell {
				widths[i] = max(widths[i], len(l))
			}
		}
	}
	for _, r := range rows {
		for n, more := 0, true; more; n++ {
			more = false
			var line strings.Builder
			for i, cell := range r {
				text := ""
				if n < len(cell) {
					text = cell[n]
				}
				more = more || n+1 < len(cell)
				fmt.Fprintf(&line, "%-*s  ", widths[i], text)
			}
			b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
		}
	}
}

// fill writes s in lines of at most Width columns.
func fill(b *strings.Builder, s string) {
	used := 0
	for word := range strings.FieldsSeq(s) {
		switch {
		case used == 0:
		case used+1+len(word) > Width:
			b.WriteByte('\n')
			used = 0
		default:
			b.WriteByte(' ')
			used++
		}
		b.WriteString(word)
		used += len(word)
	}
	b.WriteByte('\n')
}
