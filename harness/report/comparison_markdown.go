package report

import (
	"bytes"
	"fmt"
	"io"

	"idlerace/harness/compare"
)

// compareMarkdown writes what changed, as far as a comment has room.
func compareMarkdown(w io.Writer, c *compare.Comparison, _ Options) error {
	var b bytes.Buffer
	for _, most := range []int{100, 50, 25, 10} {
		b.Reset()
		compareMost(&b, c, most)
		if b.Len() <= mdFits {
			break
		}
	}
	_, err := w.Write(b.Bytes())
	return err
}

// compareMost writes at most so many items of each list.
func compareMost(b *bytes.Buffer, c *compare.Comparison, most int) {
	b.WriteString("# idlerace: runs compared\n")
	for _, a := range c.Against {
		fmt.Fprintf(b, "\n**%s**\n", md(c.Sentence(a)))
	}
	b.WriteString("\n| | run | |\n|:--|:--|:--|\n")
	for _, r := range c.Runs {
		line := runLine(r)
		if r.Partial != "" {
			line += "; partial: " + clip(r.Partial, 200)
		}
		fmt.Fprintf(b, "| **%s** | %s | %s |\n", r.Label, md(r.Path), md(line))
	}
	if len(c.Differences) > 0 {
		b.WriteString("\n## The runs differ in\n\n| |")
		for _, r := range c.Runs {
			fmt.Fprintf(b, " %s |", r.Label)
		}
		b.WriteString("\n|:--|")
		for range c.Runs {
			b.WriteString(":--|")
		}
		b.WriteByte('\n')
		for _, d := range c.Differences {
			fmt.Fprintf(b, "| %s |", md(d.What))
			for _, v := range d.Values {
				fmt.Fprintf(b, " %s |", md(clip(v, 200)))
			}
			b.WriteByte('\n')
		}
	}
	for _, a := range c.Against {
		compareAgainst(b, c.Runs[0].Label, a, most)
	}
	if c.Tests > 0 {
		fmt.Fprintf(b, "\n%s\n\n%s\n", md(measures), md(c.Note))
	}
}

func compareAgainst(b *bytes.Buffer, reference string, a compare.Against, most int) {
	for _, ch := range compareParts {
		cells := a.Of(ch.change)
		if len(cells) == 0 {
			continue
		}
		fmt.Fprintf(b, "\n## %s: %s against %s\n\n| cell | %s | rate | %s | rate | p | over bursts | of | |\n|:--|:--|--:|:--|--:|--:|--:|:--|:--|\n", ch.title, a.Run, reference, reference, a.Run)
		for _, c := range cells[:min(len(cells), most)] {
			fmt.Fprintf(b, "| %s | %s | %s | %s | %s | %s | %s | %s | %s |\n", md(c.ID), md(sideMark(c.Was, c.Measure)), sideRate(c.Was),
				md(sideMark(c.Is, c.Measure)), sideRate(c.Is), md(pText(c)), burstsText(c), c.Measure, c.Direction)
		}
		compareRest(b, len(cells)-most)
	}
	for _, l := range []struct {
		title string
		list  []compare.Lone
	}{{"Gone: in " + reference + ", not in " + a.Run, a.Gone}, {"New: in " + a.Run + ", not in " + reference, a.New}} {
		if len(l.list) == 0 {
			continue
		}
		fmt.Fprintf(b, "\n## %s\n\n", l.title)
		for _, x := range l.list[:min(len(l.list), most)] {
			fmt.Fprintf(b, "- %s: %s", md(x.ID), md(string(x.State)))
			if x.Note != "" {
				fmt.Fprintf(b, "; %s", md(clip(plain(x.Note), 200)))
			}
			b.WriteByte('\n')
		}
		compareRest(b, len(l.list)-most)
	}
}

// compareRest says that a list was cut; nothing where n is not above 0.
func compareRest(b *bytes.Buffer, n int) {
	if n > 0 {
		fmt.Fprintf(b, "\nAnd %d more: `idlerace compare --format json` has all.\n", n)
	}
}
