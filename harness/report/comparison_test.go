package report

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"

	nethtml "golang.org/x/net/html"

	"idlerace/harness/compare"
	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// comparisons are the hand-made inputs of the golden files.
var comparisons = map[string]func(*testing.T) *compare.Comparison{
	"typical": func(t *testing.T) *compare.Comparison { return newComparison(t, typical(), upgraded(), typical()) },
	"hostile": func(t *testing.T) *compare.Comparison {
		a, b := hostile(), hostile()
		for i, d := range []*judge.Document{a, b} {
			// Ids must join, and only these.
			for j := range d.Cells {
				v := &d.Cells[j]
				v.ID, v.State = fmt.Sprint(j, nasty), []spec.State{spec.Races, spec.Safe, spec.State(nasty), spec.Masked}[(i+j)%4]
			}
			d.Cells[3].ID += fmt.Sprint(i)
		}
		b.Run.Seed, b.Run.Kernel = 2, nasty+nasty
		return newComparison(t, a, b)
	},
}

// upgraded is typical with another nginx: one cell cured, one spoilt, one
// undecided, one under another retry setting, and a proxy that did not run.
func upgraded() *judge.Document {
	d := typical()
	d.Run.Seed, d.Run.Kernel, d.Run.Cores = 2, "Linux 6.18.1-amd64", 8
	var cells []judge.Verdict
	for _, v := range d.Cells {
		if v.Proxy == "gohttp" {
			continue
		}
		v.Version = "1.29.0"
		switch v.ID {
		case "nginx_go_p2s_u1s_POST_default_fin_rtt0s":
			v.State, v.Attributed, v.Late, v.Failures = spec.Safe, 0, 0, 0
			v.AimedLost, v.AimedStale, v.LostBursts, v.StaleBursts = 0, 0, 0, 0
		case "nginx_go_p500ms_u1s_POST_default_fin_rtt0s":
			v.State, v.AimedLost, v.AimedStale, v.LostBursts, v.StaleBursts = spec.Races, 200, 200, 16, 16
		case "nginx_go_p500ms_u2s_GET_default_fin_rtt0s":
			v.State, v.AimedShots, v.AimedBursts = spec.Inconclusive, 40, 2
		case "nginx_go_p1s_u1s_POST_default_fin_rtt0s":
			v.Retry, v.State, v.ID = spec.RetryOn, spec.Masked, strings.Replace(v.ID, "default", "on", 1)
		}
		cells = append(cells, v)
	}
	d.Cells = cells
	d.Unavailable = []judge.Unavailable{{Proxy: "gohttp", Reason: "somebody took it away"}}
	return d
}

func newComparison(t *testing.T, documents ...*judge.Document) *compare.Comparison {
	t.Helper()
	var runs []compare.Input
	for i, d := range documents {
		d.Run.Started = d.Run.Started.Add(time.Duration(i) * time.Hour)
		runs = append(runs, compare.Input{Path: fmt.Sprintf("results/%s/%d", d.Run.Scenario, i+1), Document: d})
	}
	c, err := compare.New(runs)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func renderComparison(t *testing.T, format string, c *compare.Comparison, o Options) string {
	t.Helper()
	var b bytes.Buffer
	if err := WriteComparison(&b, format, c, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestComparisonGolden(t *testing.T) {
	ext := map[string]string{"terminal": "txt", "markdown": "md", "html": "html", "json": "json"}
	for name, of := range comparisons {
		for _, format := range ComparisonFormats() {
			t.Run(format+"/"+name, func(t *testing.T) {
				s := renderComparison(t, format, of(t), Options{})
				checkGolden(t, "compare-"+name+"."+ext[format], s)
				for _, r := range s {
					if r != '\n' && r < ' ' || r == 0x7f || r == '\u202e' {
						t.Fatalf("prints %q", r)
					}
				}
				switch format {
				case "terminal":
					checkWidth(t, s, 80)
				case "json":
					var back compare.Comparison
					if err := json.Unmarshal([]byte(s), &back); err != nil {
						t.Error(err)
					}
				case "html":
					checkSelfContained(t, s)
				}
			})
		}
	}
}

// checkSelfContained wants a page that asks for nothing, runs nothing and whose
// data brought no element along.
func checkSelfContained(t *testing.T, page string) {
	t.Helper()
	doc, err := nethtml.Parse(strings.NewReader(page))
	if err != nil {
		t.Fatal(err)
	}
	mine := map[string]bool{}
	for _, tag := range strings.Fields("html head meta title style body h1 h2 h3 p strong table tbody tr th td small code") {
		mine[tag] = true
	}
	for n := range doc.Descendants() {
		if n.Type != nethtml.ElementNode {
			continue
		}
		if !mine[n.Data] {
			t.Errorf("element %s", n.Data)
		}
		for _, a := range n.Attr {
			switch {
			case strings.HasPrefix(a.Key, "on"), a.Key == "href", a.Key == "src":
				t.Errorf("attribute %s=%q of %s", a.Key, a.Val, n.Data)
			}
		}
	}
	if url := regexp.MustCompile(`url\(|@import|https?://`).FindString(page); url != "" {
		t.Errorf("the page holds %s", url)
	}
}

func TestComparisonColour(t *testing.T) {
	t.Setenv("NO_COLOR", "1") // Options alone decide
	c := comparisons["typical"](t)
	coloured := renderComparison(t, "terminal", c, Options{Color: true})
	if !strings.Contains(coloured, "\x1b[") {
		t.Error("no colour")
	}
	if escapes.ReplaceAllString(coloured, "") != renderComparison(t, "terminal", c, Options{}) {
		t.Error("colour changes the text")
	}
}

func TestComparisonCanBePosted(t *testing.T) {
	a, b := filled(400), filled(400)
	b.Run.Seed = 2
	for i := range b.Cells {
		v := &b.Cells[i]
		v.State = []spec.State{spec.Races, spec.Safe, spec.Masked}[i%3]
		if i >= 200 {
			v.Method, v.ID = "GET", "new-"+v.ID
		}
	}
	s := renderComparison(t, "markdown", newComparison(t, a, b), Options{})
	if len(s) > 60_000 {
		t.Errorf("%d bytes", len(s))
	}
	if !strings.Contains(s, "`idlerace compare --format json` has all") {
		t.Error("does not say that something was cut")
	}
}

func TestComparisonErrors(t *testing.T) {
	c := comparisons["typical"](t)
	if err := WriteComparison(io.Discard, "pdf", c, Options{}); err == nil || !strings.Contains(err.Error(), `"pdf": there are html, json, markdown, terminal`) {
		t.Error(err)
	}
	for _, format := range ComparisonFormats() {
		if err := WriteComparison(broken{}, format, c, Options{}); err == nil {
			t.Errorf("%s: a write error is lost", format)
		}
	}
}

func TestPValue(t *testing.T) {
	for p, want := range map[float64]string{0: "<1e-99", 1e-120: "<1e-99", 2.14e-14: "2e-14", 0.00012: "1e-04", 0.0123: "0.012", 1: "1"} {
		if got := pValue(p); got != want {
			t.Errorf("%g: %s, want %s", p, got, want)
		}
	}
}
