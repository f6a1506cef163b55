package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"unicode"
	"unicode/utf16"

	"idlerace/harness/judge"
)

func init() { register(jsonFormat{}) }

// jsonFormat is the document itself.
type jsonFormat struct{}

func (jsonFormat) Name() string { return "json" }

func (jsonFormat) About() string { return "the whole document, as verdicts.json has it, indented" }

func (jsonFormat) Write(w io.Writer, d *judge.Document, _ Options) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false) // "upstream_idle > proxy_idle" is read by people
	enc.SetIndent("", "  ")
	if err := enc.Encode(withoutNull(d)); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	_, err := w.Write(escapeInvisible(b.Bytes()))
	return err
}

// withoutNull is a copy of d with empty lists and maps where d has nil ones, so
// that a reader finds one type per field.
func withoutNull(d *judge.Document) *judge.Document {
	c := *d
	c.Run.Warnings = list(c.Run.Warnings)
	c.Unavailable = list(c.Unavailable)
	c.Violations = list(c.Violations)
	c.Controls = list(slices.Clone(c.Controls))
	c.Cells = list(slices.Clone(c.Cells))
	c.Margins = list(c.Margins)
	c.Advice = list(c.Advice)
	for _, vs := range [][]judge.Verdict{c.Controls, c.Cells} {
		for i := range vs {
			v := &vs[i]
			v.Warnings = list(v.Warnings)
			if v.Causes == nil {
				v.Causes = map[string]int{}
			}
			if v.Statuses == nil {
				v.Statuses = map[string]int{}
			}
		}
	}
	return &c
}

func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// escapeInvisible escapes what encoding/json leaves as it is although a
// terminal may act on it: DEL, C1 controls and changes of writing direction.
// Such runes can only stand in strings.
func escapeInvisible(b []byte) []byte {
	hidden := func(r rune) bool { return r > '~' && !unicode.IsPrint(r) }
	if bytes.IndexFunc(b, hidden) < 0 {
		return b
	}
	var out bytes.Buffer
	for _, r := range string(b) {
		switch {
		case !hidden(r):
			out.WriteRune(r)
		case r > 0xFFFF:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&out, `\u%04x\u%04x`, high, low)
		default:
			fmt.Fprintf(&out, `\u%04x`, r)
		}
	}
	return out.Bytes()
}
