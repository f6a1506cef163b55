package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"

	"idlerace/harness/compare"
	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// comparisonFormats are the ways to write a comparison. As with Format, text in
// it is not trusted.
var comparisonFormats = map[string]func(io.Writer, *compare.Comparison, Options) error{
	"terminal": compareTerminal,
	"markdown": compareMarkdown,
	"html":     compareHTML,
	"json":     compareJSON,
}

// ComparisonFormats lists the names of the formats of a comparison.
func ComparisonFormats() []string { return slices.Sorted(maps.Keys(comparisonFormats)) }

// WriteComparison writes c in one of ComparisonFormats; the error of another
// name says which there are.
func WriteComparison(w io.Writer, format string, c *compare.Comparison, o Options) error {
	write := comparisonFormats[format]
	if write == nil {
		return fmt.Errorf("no format of a comparison is called %q: there are %s", format, strings.Join(ComparisonFormats(), ", "))
	}
	return write(w, c, o)
}

func compareJSON(w io.Writer, c *compare.Comparison, _ Options) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(c); err != nil {
		return fmt.Errorf("json: %w", err)
	}
	_, err := w.Write(escapeInvisible(b.Bytes()))
	return err
}

// comparedBlock are cells that differ in their two timeouts alone.
type comparedBlock struct {
	Title string // trusted by no one
	Cells []compare.Cell
}

// comparedBlocks splits cells like the tables of a report, in their order.
func comparedBlocks(cells []compare.Cell) (out []comparedBlock) {
	for _, c := range cells {
		title := c.Proxy + ", " + c.Method
		if c.Upstream != "go" {
			title += ", upstream " + c.Upstream
		}
		if c.Retry != spec.RetryDefault {
			title += ", retry " + string(c.Retry)
		}
		if c.Close != spec.CloseFIN {
			title += ", close " + string(c.Close)
		}
		if c.RTT != "0s" {
			title += ", rtt " + c.RTT
		}
		at := slices.IndexFunc(out, func(b comparedBlock) bool { return b.Title == title })
		if at < 0 {
			at = len(out)
			out = append(out, comparedBlock{Title: title})
		}
		out[at].Cells = append(out[at].Cells, c)
	}
	return out
}

// sideMark is a state with the count behind it: "RACES 18/80".
func sideMark(s compare.Side, m compare.Measure) string {
	word := string(s.State)
	switch s.State {
	case spec.Races:
		word = "RACES"
	case spec.Inconclusive:
		word = "?"
	case spec.Unsupported:
		return "n/a"
	case spec.Broken:
		return "BROKEN"
	}
	return fmt.Sprintf("%s %s/%s", word, count(s.Requests(m).Hit), count(s.Aimed))
}

// sideRate is the interval of a side's rate; empty without aimed requests.
func sideRate(s compare.Side) string {
	if s.Aimed == 0 || s.State == spec.Unsupported || s.State == spec.Broken {
		return ""
	}
	return percent(&judge.Interval{Low: s.Rate.Low, High: s.Rate.High})
}

// pValue shows a probability in two digits.
func pValue(p float64) string {
	switch {
	case p < 1e-99:
		return "<1e-99"
	case p < 0.001:
		return strconv.FormatFloat(p, 'e', 0, 64)
	}
	return strconv.FormatFloat(p, 'g', 2, 64)
}

// pText is a cell's corrected p-value over requests, or why it has none.
func pText(c compare.Cell) string {
	if c.Requests == nil {
		return c.Untested
	}
	return pValue(c.Requests.Holm)
}

// burstsText is the same over bursts; empty where there is none.
func burstsText(c compare.Cell) string {
	if c.Bursts == nil {
		return ""
	}
	return pValue(c.Bursts.Holm)
}

// compareParts names the two ways in which a cell may have changed, the more telling
// first.
var compareParts = []struct {
	change compare.Change
	title  string
}{
	{compare.Significant, "Changed significantly"},
	{compare.StateOnly, "Changed state without significance"},
}

const measures = "lost k/n: k of n aimed requests failed on a connection that the upstream's idle timer had closed; stale k/n: k of n met one, lost or sent again. Rates: 95 % intervals."
