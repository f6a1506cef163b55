package report

import (
	"bytes"
	_ "embed"
	"fmt"
	"html/template"
	"io"

	"idlerace/harness/compare"
	"idlerace/harness/spec"
)

// comparisonPage is one file without any other: its style is in it, and it has
// no script.
//
//go:embed comparison.html
var comparisonPage string

var comparisonTemplate = template.Must(template.New("comparison").Funcs(template.FuncMap{
	"plain":  plain,
	"class":  func(s spec.State) string { return plain(string(s)) },
	"mark":   sideMark,
	"rate":   sideRate,
	"p":      pText,
	"bursts": burstsText,
	"line":   runLine,
	"blocks": comparedBlocks,
}).Parse(comparisonPage))

// comparisonView is a comparison with what a template cannot work out.
type comparisonView struct {
	*compare.Comparison
	Reference string
	Sentences []string
	Parts     []comparedPart
	Measures  string
}

// comparedPart is one list of cells of one run against the reference.
type comparedPart struct {
	Title, Run string
	Cells      []compare.Cell
	Lone       []compare.Lone
}

func compareHTML(w io.Writer, c *compare.Comparison, _ Options) error {
	v := comparisonView{Comparison: c, Reference: c.Runs[0].Label, Measures: measures}
	for _, a := range c.Against {
		v.Sentences = append(v.Sentences, plain(c.Sentence(a)))
		against := fmt.Sprintf(": %s against %s", a.Run, v.Reference)
		for _, ch := range compareParts {
			v.Parts = append(v.Parts, comparedPart{Title: ch.title + against, Run: a.Run, Cells: a.Of(ch.change)})
		}
		v.Parts = append(v.Parts,
			comparedPart{Title: fmt.Sprintf("Gone: in %s, not in %s", v.Reference, a.Run), Run: a.Run, Lone: a.Gone},
			comparedPart{Title: fmt.Sprintf("New: in %s, not in %s", a.Run, v.Reference), Run: a.Run, Lone: a.New},
			comparedPart{Title: "The same" + against, Run: a.Run, Cells: a.Of(compare.Same)})
	}
	var b bytes.Buffer
	if err := comparisonTemplate.Execute(&b, v); err != nil {
		return fmt.Errorf("html: %w", err)
	}
	_, err := w.Write(b.Bytes())
	return err
}
