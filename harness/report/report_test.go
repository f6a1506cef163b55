package report

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/charmbracelet/lipgloss"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"idlerace/harness/judge"
	"idlerace/harness/judge/advice"
	"idlerace/harness/spec"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// render also checks what holds for every format.
func render(t *testing.T, f Format, d *judge.Document, o Options) string {
	t.Helper()
	var a, b bytes.Buffer
	if err := f.Write(&a, d, o); err != nil {
		t.Fatalf("%s: %v", f.Name(), err)
	}
	if err := f.Write(&b, d, o); err != nil || a.String() != b.String() {
		t.Fatalf("%s: a second writing differs (%v)", f.Name(), err)
	}
	s := a.String()
	if !utf8.ValidString(s) {
		t.Errorf("%s: not UTF-8", f.Name())
	}
	if !o.Color {
		for _, r := range s {
			if r != '\n' && r != ' ' && !unicode.IsPrint(r) && (r != '\t' || f.Name() == "terminal") {
				t.Fatalf("%s: prints %q", f.Name(), r)
			}
		}
	}
	return s
}

func checkGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./harness/report -update writes it)", err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

func checkWidth(t *testing.T, s string, width int) {
	t.Helper()
	for i, line := range strings.Split(s, "\n") {
		if w := lipgloss.Width(line); w > width {
			t.Errorf("line %d is %d columns wide, %d are allowed: %s", i+1, w, width, line)
		}
		if strings.HasSuffix(line, " ") {
			t.Errorf("line %d ends in a blank: %q", i+1, line)
		}
	}
}

var extension = map[string]string{"terminal": "txt", "markdown": "md", "json": "json", "csv": "csv", "junit": "xml", "badge": "svg", "html": "html", "picture": "picture.svg"}

func TestGolden(t *testing.T) {
	for _, f := range All() {
		ext, ok := extension[f.Name()]
		if !ok {
			t.Errorf("format %s: give its golden files an extension", f.Name())
			continue
		}
		for name, document := range documents {
			if (ext == "json" || ext == "csv" || ext == "html") && (name == "wide" || name == "partial") {
				continue // long, and says nothing that the other documents do not
			}
			t.Run(f.Name()+"/"+name, func(t *testing.T) {
				checkGolden(t, name+"."+ext, render(t, f, document(), Options{}))
			})
		}
	}
}

func TestTerminalFits(t *testing.T) {
	f, _ := ByName("terminal")
	for name, document := range documents {
		for _, width := range []int{0, 1, 40, 57, 80, 100, 240} {
			o := Options{Width: width}
			checkWidth(t, render(t, f, document(), o), o.width())
			if t.Failed() {
				t.Fatalf("document %s at width %d", name, width)
			}
		}
	}
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestTerminalColour(t *testing.T) {
	t.Setenv("NO_COLOR", "1") // Options alone decide
	f, _ := ByName("terminal")
	for name, document := range documents {
		coloured := render(t, f, document(), Options{Color: true})
		if !strings.Contains(coloured, "\x1b[") {
			t.Errorf("%s: no colour", name)
		}
		checkWidth(t, coloured, 80)
		if diff := cmp.Diff(render(t, f, document(), Options{}), escapes.ReplaceAllString(coloured, "")); diff != "" {
			t.Errorf("%s: colour changes the text:\n%s", name, diff)
		}
	}
}

func TestRandomDocuments(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 20 {
		d := random(r, 12)
		for _, f := range All() {
			o := Options{Width: 40 + r.IntN(100)}
			s := render(t, f, d, o)
			if f.Name() == "terminal" {
				checkWidth(t, s, o.width())
			}
		}
	}
}

// Four columns of the widest mark are what 80 columns must hold.
func TestFourColumnsInOneGroup(t *testing.T) {
	d := &judge.Document{}
	for _, u := range []string{"500ms", "1s", "1m30s", "2s"} {
		d.Cells = append(d.Cells, judge.Verdict{Proxy: "p", Method: "GET", RTT: "0s", ProxyIdle: "1h30m", UpstreamIdle: u, State: spec.Masked, Late: 9940, AimedShots: 9940, Shots: 9940})
	}
	f, _ := ByName("terminal")
	s := render(t, f, d, Options{})
	if n := strings.Count(s, "upstream idle"); n != 1 {
		t.Errorf("%d column groups:\n%s", n, s)
	}
	if !strings.Contains(s, "masked 9.9k/9.9k") {
		t.Error(s)
	}
}

func TestMarkdownCanBePosted(t *testing.T) {
	f, _ := ByName("markdown")
	for _, d := range []*judge.Document{grid(200), allRace(200), filled(200)} {
		if n := len(render(t, f, d, Options{})); n > 60_000 {
			t.Errorf("%d bytes", n)
		}
	}
}

// filled has all that a report of n cells can hold, on four proxies at several
// round trips: windows, margins, advice, warnings, violations, disturbances.
func filled(n int) *judge.Document {
	d := allRace(n)
	d.Controls, d.Margins = nil, nil
	long := strings.Repeat("a long text that somebody's log has written ", 12)
	for i := range d.Cells {
		v := &d.Cells[i]
		v.Proxy, v.RTT = []string{"traefik", "envoy", "gohttp", "nginx"}[i%4], []string{"0s", "10ms", "40ms"}[i/4%3]
		v.ProxyIdle, v.UpstreamIdle = spec.FormatDuration(time.Duration(900+i/12)*time.Millisecond), "1.05s"
		if i%5 == 0 {
			v.State = spec.Safe
		}
		c, err := v.Cell()
		if err != nil {
			panic(err)
		}
		v.ID = c.ID()
		v.Reproduce = "idlerace run scenarios/a-scenario-with-a-long-name.yaml --runtime local --seed 1 --cell " + v.ID
		v.Why = long + v.ID
		v.Fit = &judge.Fit{Stale: 100, Shots: 1500, Law: "from -20.09 ms (law -20 ms) to +2.3 ms after the measured close", Why: "no upper edge: all shots beyond it were stale",
			Width: &judge.Estimate{At: 22, Low: 21, High: 23}, ClientLower: &judge.Estimate{At: 22}}
	}
	for _, proxy := range []string{"traefik", "envoy", "gohttp", "nginx"} {
		d.Controls = append(d.Controls, control(judge.RoleMustRace, proxy, "1.0", spec.Races, 12), control(judge.RoleMustNotRace, proxy, "1.0", spec.Safe, 0))
		for _, rtt := range []string{"0s", "10ms", "40ms"} {
			d.Margins = append(d.Margins, judge.Margin{Proxy: proxy, Version: "1.0", Runtime: "local", Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN, RTT: rtt,
				Violations: slices.Repeat([]string{"margin +30 ms failed in 1 of 300 shots though +20 ms held in 300"}, 20),
				Text:       "upstream idle > proxy idle + 50 ms held in 2,400 shots (95 %: fewer than 0.13 % of requests)"})
		}
		d.Unavailable = append(d.Unavailable, judge.Unavailable{Proxy: proxy + "2", Reason: long, Get: "git clone --depth 1 https://example.org/" + proxy})
	}
	d.Run.Partial, d.Run.Warnings, d.Run.NoPackets = long, slices.Repeat([]string{long}, 50), long
	d.Advice = advice.Of(d)
	return d
}

func allRace(n int) *judge.Document {
	d := grid(n)
	for i := range d.Cells {
		c, err := d.Cells[i].Cell()
		if err != nil {
			panic(err)
		}
		d.Cells[i] = probed(c.Proxy, "1.0", c.ProxyIdle+c.ProxyIdle, 250_000_000, "POST")
		d.Cells[i].UpstreamIdle = c.UpstreamIdle.String()
		d.Cells[i].Warnings = []string{strings.Repeat("a warning of its own ", 20) + d.Cells[i].ID + c.UpstreamIdle.String()}
		d.Violations = append(d.Violations, judge.Violation{Cell: d.Cells[i].ID, State: spec.Races, Rule: "forbid races"})
	}
	return d
}

func TestMarkdownEscapes(t *testing.T) {
	for in, want := range map[string]string{
		"a|b":                       `a\|b`,
		"`x`":                       "\\`x\\`",
		"<b>&":                      "&lt;b&gt;&amp;",
		"a\n# b\r\nc":               `a \# b c`,
		"nginx_go_p1s _x_":          `nginx_go_p1s \_x\_`,
		"- item":                    `\- item`,
		"keep-alive":                "keep-alive",
		"caddy@v2 @you":             "caddy@v2 @<!---->you",
		"\x1b[2J":                   `\\x1b\[2J`,
		"23 of 320: rate 4.6 %, ok": "23 of 320: rate 4.6 %, ok",
	} {
		if got := md(in); got != want {
			t.Errorf("md(%q) = %q, want %q", in, got, want)
		}
	}
	for in, want := range map[string]string{"a": "`a`", "a`b": "``a`b``", "`a": "`` `a ``", "  ": "", "a\nb": "`a b`"} {
		if got := mdCode(in); got != want {
			t.Errorf("mdCode(%q) = %q, want %q", in, got, want)
		}
	}
}

// Every Markdown table must have as many cells in each row as in its header.
func TestMarkdownTables(t *testing.T) {
	f, _ := ByName("markdown")
	for name, document := range documents {
		columns := 0
		for i, line := range strings.Split(render(t, f, document(), Options{}), "\n") {
			if !strings.HasPrefix(line, "|") {
				columns = 0
				continue
			}
			n := strings.Count(line, "|") - strings.Count(line, `\|`)
			if columns == 0 {
				columns = n
			}
			if n != columns {
				t.Errorf("%s:%d: %d instead of %d pipes: %s", name, i+1, n, columns, line)
			}
		}
	}
}

func TestJSONIsTheDocument(t *testing.T) {
	f, _ := ByName("json")
	for _, name := range []string{"typical", "partial", "empty"} {
		d := documents[name]()
		s := render(t, f, d, Options{})
		if strings.Contains(s, "null,\n      \"warnings") || strings.Contains(s, "\"cells\": null") {
			t.Errorf("%s: a list is null", name)
		}
		var back judge.Document
		if err := json.Unmarshal([]byte(s), &back); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(d, &back, cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	s := render(t, f, hostile(), Options{})
	var back judge.Document
	if err := json.Unmarshal([]byte(s), &back); err != nil {
		t.Fatal(err)
	}
	if want := strings.ToValidUTF8(nasty, "\uFFFD"); back.Run.About != want {
		t.Errorf("about is %q, want %q", back.Run.About, want)
	}
}

func TestCSV(t *testing.T) {
	f, _ := ByName("csv")
	for name, document := range documents {
		d := document()
		rows, err := csv.NewReader(strings.NewReader(render(t, f, d, Options{}))).ReadAll()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if want := 1 + len(d.Cells) + len(d.Controls); len(rows) != want {
			t.Errorf("%s: %d rows, want %d", name, len(rows), want)
		}
		for _, row := range rows[1:] {
			for j, field := range row {
				if field != "" && strings.ContainsAny(field[:1], "=+-@\t") && !strings.HasPrefix(rows[0][j], "window") {
					t.Errorf("%s: a spreadsheet would run %s = %q", name, rows[0][j], field)
				}
			}
		}
	}
}

// The header names every field of a verdict.
func TestCSVColumns(t *testing.T) {
	b, err := json.Marshal(probed("nginx", "1", 0, 1e9, "GET"))
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]any
	if err := json.Unmarshal(b, &fields); err != nil {
		t.Fatal(err)
	}
	for _, c := range columns {
		name, _, _ := strings.Cut(c.name, ".")
		if _, ok := fields[name]; !ok {
			t.Errorf("column %s is no field of a verdict", c.name)
		}
		fields[name] = nil
	}
	for name, v := range fields {
		if v != nil {
			t.Errorf("field %s has no column", name)
		}
	}
}

func TestSentence(t *testing.T) {
	cells := func(states ...spec.State) *judge.Document {
		d := &judge.Document{}
		for _, s := range states {
			d.Cells = append(d.Cells, judge.Verdict{Proxy: "p", State: s})
		}
		d.Controls = []judge.Verdict{
			{Proxy: "p", Role: judge.RoleMustRace, State: spec.Races},
			{Proxy: "p", Role: judge.RoleMustNotRace, State: spec.Safe},
		}
		return d
	}
	for _, tt := range []struct {
		d    *judge.Document
		want string
	}{
		{&judge.Document{}, "No cell was judged."},
		{cells(spec.Safe), "No race: all of 1 cell is safe."},
		{cells(spec.Safe, spec.Safe), "No race: all of 2 cells are safe."},
		{cells(spec.Races), "1 of 1 cell races."},
		{cells(spec.Races, spec.Races, spec.Safe), "2 of 3 cells race; 1 safe."},
		{cells(spec.Safe, spec.Inconclusive), "None of 2 cells races; 1 safe, 1 inconclusive."},
		{cells(spec.Races, spec.Broken, spec.Masked), "1 of 3 cells races; 1 masked, 1 broken."},
	} {
		if got := sentences(tt.d); len(got) != 1 || got[0] != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}

func TestShards(t *testing.T) {
	part, whole := typical(), typical()
	part.Run.Shard, whole.Run.Shards = "2/3", 3
	for _, tt := range []struct {
		format string
		d      *judge.Document
		want   string
	}{
		{"terminal", part, "Only shard 2/3 of the scenario's cells."},
		{"markdown", part, "Only shard 2/3 of the scenario's cells."},
		{"terminal", whole, "20 lanes, merged from 3 shards, start-up"},
		{"markdown", whole, "| merged from | 3 shards |"},
	} {
		f, _ := ByName(tt.format)
		if got := render(t, f, tt.d, Options{Width: 100}); !strings.Contains(got, tt.want) {
			t.Errorf("%s: no %q in\n%s", tt.format, tt.want, got)
		}
	}
}

func TestTimeoutsAreSorted(t *testing.T) {
	got := timeouts([]string{"off", "2s", "500ms", "1m", "odd", "2s", "1s"})
	if diff := cmp.Diff([]string{"500ms", "1s", "2s", "1m", "off", "odd"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestFewNotes(t *testing.T) {
	var list []note
	for i := range 9 {
		list = append(list, note{proxy: []string{"nginx", "envoy", "gohttp"}[i/3], cells: []string{"id"}})
	}
	if got := few(list, 9); len(got) != 9 {
		t.Errorf("%d of 9", len(got))
	}
	if got := few(list, 6); len(got) != 3 {
		t.Errorf("%d of 9 notes on three proxies", len(got))
	}
	if got := few(append([]note{{}, {}}, list...), 6); len(got) != 5 {
		t.Errorf("%d of 9 notes on three proxies and two on the run", len(got))
	}
}

func TestCount(t *testing.T) {
	for n, want := range map[int]string{0: "0", 999: "999", 1000: "1.0k", 9949: "9.9k", 9950: "10k", 999_499: "999k", 999_500: "1.0M"} {
		if got := count(n); got != want {
			t.Errorf("count(%d) = %s, want %s", n, got, want)
		}
	}
}

func TestByName(t *testing.T) {
	for name, want := range map[string]string{
		"markdwn":  `no report format is called "markdwn": did you mean "markdown"? there are `,
		"md":       `did you mean "markdown"?`,
		"term":     `did you mean "terminal"?`,
		"JSON":     `did you mean "json"?`,
		"":         `no report format is called "": there are badge, csv, `,
		"sandwich": `no report format is called "sandwich": there are badge, csv, `,
	} {
		f, err := ByName(name)
		if err == nil || f != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ByName(%q): %v, want %s", name, err, want)
		}
	}
	names := map[string]bool{}
	for _, f := range All() {
		if got, err := ByName(f.Name()); err != nil || got.Name() != f.Name() {
			t.Errorf("%s: %v", f.Name(), err)
		}
		if f.About() == "" || strings.Contains(f.About(), "\n") {
			t.Errorf("%s: about is not a line", f.Name())
		}
		names[f.Name()] = true
	}
	for _, want := range []string{"terminal", "markdown", "json", "csv", "junit", "badge", "html"} {
		if !names[want] {
			t.Errorf("no format %s", want)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a format could be registered twice")
		}
	}()
	register(terminal{})
}

var errClosed = io.ErrClosedPipe

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errClosed }

func TestWriteErrorsAreReported(t *testing.T) {
	for _, f := range All() {
		if err := f.Write(broken{}, typical(), Options{}); !errors.Is(err, errClosed) {
			t.Errorf("%s: %v", f.Name(), err)
		}
	}
}

func BenchmarkFormats(b *testing.B) {
	d := grid(1000)
	for _, f := range All() {
		b.Run(f.Name(), func(b *testing.B) {
			for b.Loop() {
				if err := f.Write(io.Discard, d, Options{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
