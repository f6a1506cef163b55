// Package report renders a document of verdicts for people and for programs,
// one file per format, and explains single requests. It reads what the judge
// wrote and nothing else; it must not import stack, load, proxy or run.
package report

import (
	"fmt"
	"io"
	"sort"
	"strings"

	"idlerace/harness/judge"
)

// Format is one way to write a document. Its output depends on the document
// and the options alone: no clock, no environment, no map order.
type Format interface {
	// Name is what the command line calls it.
	Name() string
	// About is one line for listings.
	About() string
	// Write renders all of d. Text in d may come from logs and scenario files
	// and is not trusted: a format neutralises what its medium would interpret.
	Write(w io.Writer, d *judge.Document, o Options) error
}

// Options are wishes of the reader's medium; a format ignores what does not
// concern it.
type Options struct {
	Color bool // ANSI colours
	Width int  // columns; 0 means 80, and 40 is the least
}

func (o Options) width() int {
	if o.Width == 0 {
		return 80
	}
	return max(o.Width, 40)
}

var registry = map[string]Format{}

func register(f Format) {
	if _, dup := registry[f.Name()]; dup {
		panic("report: registered twice: " + f.Name())
	}
	registry[f.Name()] = f
}

// All gives every format, sorted by name.
func All() []Format {
	out := make([]Format, 0, len(registry))
	for _, f := range registry {
		out = append(out, f)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name() < out[j].Name() })
	return out
}

// ByName finds a format. The error of an unknown name says which ones there
// are and which was probably meant.
func ByName(name string) (Format, error) {
	if f, ok := registry[name]; ok {
		return f, nil
	}
	var names []string
	for _, f := range All() {
		names = append(names, f.Name())
	}
	hint := ""
	if near := nearest(name, names); near != "" {
		hint = fmt.Sprintf("did you mean %q? ", near)
	}
	return nil, fmt.Errorf("no report format is called %q: %sthere are %s", name, hint, strings.Join(names, ", "))
}

// nearest is the candidate that name abbreviates or misspells; empty when none
// is close.
func nearest(name string, candidates []string) string {
	name = strings.ToLower(name)
	best, least := "", 3 // edits
	for _, c := range candidates {
		if d := edits(name, c); d < least {
			best, least = c, d
		}
	}
	if best != "" || name == "" {
		return best
	}
	for _, c := range candidates {
		if abbreviates(name, c) {
			return c
		}
	}
	return ""
}

// abbreviates reports whether the letters of short occur in long in that order,
// from the same first letter: "md" for "markdown".
func abbreviates(short, long string) bool {
	if short[0] != long[0] {
		return false
	}
	for _, r := range short {
		_, rest, found := strings.Cut(long, string(r))
		if !found {
			return false
		}
		long = rest
	}
	return true
}

// edits is the Levenshtein distance of a and b in bytes.
func edits(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			diagonal, row[j+1] = row[j+1], min(diagonal+cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
