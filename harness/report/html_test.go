package report

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/google/go-cmp/cmp"
	nethtml "golang.org/x/net/html"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// anyHref is what a link of a page may look like: a place in the page itself or
// a file in the run's folder.
var anyHref = regexp.MustCompile(`^(#[A-Za-z0-9._-]+|(\.\./)*(results/)?cells/[^:]+/evidence\.pcapng|data:,)$`)

// checkPage holds a page against what every page must keep.
func checkPage(t *testing.T, text string) {
	t.Helper()
	root, err := nethtml.Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	count, ids := map[string]int{}, map[string]bool{}
	var hrefs, labelled []string
	for n := range root.Descendants() {
		if n.Type != nethtml.ElementNode {
			continue
		}
		count[n.Data]++
		attr := map[string]string{}
		for _, a := range n.Attr {
			attr[a.Key] = a.Val
			if strings.HasPrefix(a.Key, "on") || a.Key == "style" || a.Key == "src" || a.Key == "srcset" {
				t.Errorf("<%s> has %s=%q", n.Data, a.Key, a.Val)
			}
		}
		if id, ok := attr["id"]; ok {
			if ids[id] || id == "" {
				t.Errorf("id %q is there twice, or empty", id)
			}
			ids[id] = true
		}
		if href, ok := attr["href"]; ok {
			hrefs = append(hrefs, href)
		}
		if l, ok := attr["aria-labelledby"]; ok {
			labelled = append(labelled, l)
		}
		switch n.Data {
		case "script", "img", "iframe", "object", "embed", "form", "base", "video", "audio":
			t.Errorf("<%s>", n.Data)
		case "th":
			if attr["scope"] == "" {
				t.Error("a <th> has no scope")
			}
		case "section":
			if attr["id"] == "" || attr["aria-labelledby"] == "" {
				t.Error("a <section> has no id, or no name")
			}
		case "svg":
			if attr["role"] != "img" || attr["aria-label"] == "" {
				t.Error("an <svg> says nothing to those who do not see it")
			}
		case "a":
			if attr["href"] == "" {
				t.Error("an <a> leads nowhere")
			}
		}
	}
	for _, h := range hrefs {
		if !anyHref.MatchString(h) {
			t.Errorf("link to %q", h)
		}
		if id, internal := strings.CutPrefix(h, "#"); internal && !ids[id] {
			t.Errorf("link to #%s, which is nowhere", id)
		}
	}
	for _, id := range labelled {
		if !ids[id] {
			t.Errorf("aria-labelledby %q, which is nowhere", id)
		}
	}
	for name, want := range map[string]int{"h1": 1, "header": 1, "main": 1, "footer": 1, "nav": 1, "title": 1, "style": 1, "meta": 4} {
		if count[name] != want {
			t.Errorf("%d <%s>, want %d", count[name], name, want)
		}
	}
	if !strings.Contains(text, `http-equiv="Content-Security-Policy" content="default-src 'none';`) {
		t.Error("no content security policy")
	}
	if m := regexp.MustCompile(`url\(|@import`).FindString(text); m != "" {
		t.Errorf("the page has %q", m)
	}
}

func TestPages(t *testing.T) {
	for name, d := range pages() {
		t.Run(name, func(t *testing.T) {
			checkPage(t, render(t, html{}, d, Options{}))
			checkPage(t, render(t, html{}, d, Options{Files: folderOf(d), Folder: "../results", Reactions: reactions}))
		})
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 10 {
		d := random(r, 12)
		for i := range d.Cells {
			d.Cells[i].Detail = typicalDetail(spec.Races)
			d.Cells[i].Detail.Example.Logs[0].Text = d.Run.About
		}
		checkPage(t, render(t, html{}, d, Options{Files: folderOf(d)}))
	}
}

// typicalDetail is one as large as in a real run.
func typicalDetail(s spec.State) *judge.Detail {
	v := probed("nginx", "1", spec.Idle(2*time.Second), time.Second, "POST")
	v.State = s
	detail(&v)
	return v.Detail
}

// A hostile text shows as what it is, wherever it stands.
func TestPageEscapes(t *testing.T) {
	d := hostile()
	for i := range d.Cells {
		x := typicalDetail(spec.Races)
		x.Example.Logs[0].Text = nasty
		d.Cells[i].Detail = x
		d.Cells[i].UpstreamIdle, d.Cells[i].ProxyIdle, d.Cells[i].RTT = "1s", "2s", "0s"
	}
	files := fstest.MapFS{}
	d.Cells[1].ID = "named"
	files["cells/named/proxy.conf"] = &fstest.MapFile{Data: []byte("</pre></details><script>alert(1)</script>\r\n" + nasty)}
	text := render(t, html{}, d, Options{Files: files, Reactions: reactions})
	checkPage(t, text)
	for _, want := range []string{"&lt;img src=x onerror=alert(1)&gt;", "&lt;/pre&gt;&lt;/details&gt;&lt;script&gt;alert(1)&lt;/script&gt;", `\u202e`, `\x1b`} {
		if !strings.Contains(text, want) {
			t.Errorf("the page does not show %s", want)
		}
	}
}

// Every cell of the matrices is a link to a part of its own.
func TestPageLinksCells(t *testing.T) {
	d := full(128)
	text := render(t, html{}, d, Options{})
	links := map[string]bool{}
	for _, m := range regexp.MustCompile(`<td class="[a-z]+ h[123]"><a href="(#[^"]+)">`).FindAllStringSubmatch(text, -1) {
		links[m[1]] = true
	}
	if len(links) != len(d.Cells) {
		t.Errorf("%d links for %d cells", len(links), len(d.Cells))
	}
	for _, c := range d.Controls {
		if !strings.Contains(text, `href="#cell-`+slug(c.ID)+`"`) {
			t.Errorf("no link to %s", c.ID)
		}
	}
}

// A run of 128 cells, with all that can be shown of each, stays below 2 MB.
func TestPageSize(t *testing.T) {
	d := full(128)
	if n := len(render(t, html{}, d, Options{Files: folderOf(d), Reactions: reactions})); n > 2_000_000 {
		t.Errorf("%d bytes", n)
	} else {
		t.Logf("%d bytes", n)
	}
}

func TestPageFiles(t *testing.T) {
	d := typical()
	page := func(o Options) string { return render(t, html{}, d, o) }
	id := ""
	for _, v := range d.Cells {
		if v.State == spec.Races {
			id = v.ID
			break
		}
	}
	conf, packets := "cells/"+id+"/proxy.conf", "cells/"+id+"/evidence.pcapng"
	for name, c := range map[string]struct {
		o       Options
		want    []string
		without []string
	}{
		"no folder":    {Options{}, []string{"The configuration is in the run&#39;s folder, which was not at hand."}, []string{"<pre>", "pcapng\""}},
		"empty folder": {Options{Files: fstest.MapFS{}}, []string{"has no configuration of this cell", "No packets of this cell"}, []string{"<pre>", "pcapng\""}},
		"all of it": {Options{Files: fstest.MapFS{conf: {Data: []byte("keepalive <1>;\n\tx\n")}, packets: {}}},
			[]string{"<pre>keepalive &lt;1&gt;;\n  x</pre>", `href="` + packets + `"`}, nil},
		"from elsewhere": {Options{Files: fstest.MapFS{packets: {}}, Folder: "../results"}, []string{`href="../results/` + packets + `"`}, nil},
		"long": {Options{Files: fstest.MapFS{conf: {Data: bytes.Repeat([]byte("x"), mostConfig+1)}}},
			[]string{strings.Repeat("x", mostConfig) + "\n... the rest is in the run&#39;s folder</pre>"}, []string{strings.Repeat("x", mostConfig+1)}},
		"unreadable": {Options{Files: failing{}}, []string{"disk on fire"}, []string{"<pre>", "pcapng\""}},
	} {
		text := page(c.o)
		for _, want := range c.want {
			if !strings.Contains(text, want) {
				t.Errorf("%s: lacks %s", name, want)
			}
		}
		for _, not := range c.without {
			if strings.Contains(text, not) {
				t.Errorf("%s: has %s", name, not)
			}
		}
	}
}

func TestPageReactionErrors(t *testing.T) {
	o := Options{Reactions: func() ([]Reaction, error) { return nil, errClosed }}
	if err := (html{}).Write(io.Discard, typical(), o); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Open(name string) (fs.File, error) {
	return nil, &fs.PathError{Op: "open", Path: name, Err: fmt.Errorf("disk on fire")}
}

func TestHeadline(t *testing.T) {
	for want, states := range map[string][]spec.State{
		"Nothing was tested, so nothing is known.":                                                     nil,
		"Requests are lost in all of the 2 settings tested.":                                           {spec.Races, spec.Races},
		"Requests are lost in 1 of the 1 setting tested.":                                              {spec.Races},
		"Requests are lost in 1 of the 3 settings tested.":                                             {spec.Races, spec.Safe, spec.Inconclusive},
		"No request is lost: 2 settings tested, all safe.":                                             {spec.Safe, spec.Safe},
		"No request is lost, but in 1 of the 2 settings tested only because the proxy sends it again.": {spec.Safe, spec.Masked},
		"No request was seen to be lost, but 2 of the 3 settings tested prove nothing.":                {spec.Masked, spec.Broken, spec.Inconclusive},
		"No request is lost in the 1 setting that could be tested.":                                    {spec.Safe, spec.Unsupported},
	} {
		d := &judge.Document{}
		for _, s := range states {
			d.Cells = append(d.Cells, judge.Verdict{State: s})
		}
		if got := headline(d); got != want {
			t.Errorf("%v: %q, want %q", states, got, want)
		}
	}
}

// TestChanges: what to do stands once for all proxies, every ground with links to
// its cells, and what does not say what to do stands apart.
func TestChanges(t *testing.T) {
	cell := func(id string) judge.Verdict { return judge.Verdict{ID: id, RTT: "0s", State: spec.Safe} }
	sentence := func(kind judge.AdviceKind, text string, cells ...string) judge.Sentence {
		s := judge.Sentence{Kind: kind, Text: text}
		for _, id := range cells {
			s.Cells = append(s.Cells, judge.Support{ID: id, State: spec.Safe})
		}
		return s
	}
	d := &judge.Document{Cells: []judge.Verdict{cell("c1"), cell("c2"), cell("c3")}, Controls: []judge.Verdict{cell("c4")}, Advice: []judge.Advice{
		{Proxy: "a", Sentences: []judge.Sentence{
			sentence(judge.AdviceSet, "Keep x below y: all were safe.", "c1", "c2", "c3"),
			sentence(judge.AdviceGap, "Not measured: z.", "c1"),
			sentence(judge.AdviceMitigation, "retry off changes nothing.", "c4", "gone"),
			sentence(judge.AdviceMitigation, "proxy_idle off cures it: GET.", "c1"),
		}},
		{Proxy: "b", Sentences: []judge.Sentence{sentence(judge.AdviceSet, "Keep x below y: one was safe.", "c3"), sentence(judge.AdviceMitigation, "x below y cures it.", "c3")}},
		{Proxy: "c", Sentences: []judge.Sentence{sentence(judge.AdviceNone, "No advice: the control failed.", "c4")}},
	}}
	out, rest := changes(d, newParts(d, Options{}))
	var got []string
	show := func(g ground) {
		line := "  " + g.Proxy + " | " + g.Text
		for _, p := range g.Cells {
			line += " #" + p.Cell
		}
		got = append(got, fmt.Sprintf("%s +%d", line, g.More))
	}
	for _, c := range out {
		got = append(got, c.Lead)
		for _, g := range c.Because {
			show(g)
		}
	}
	for _, b := range rest {
		got = append(got, "rest of "+b.Proxy)
		for _, g := range b.Sentences {
			show(g)
		}
	}
	want := []string{
		"Keep x below y.", "  a | All were safe. #c1 #c2 +1", "  b | One was safe. #c3 +0",
		"Retry off changes nothing.", "  a |  #c4 +1", "A proxy_idle off cures it.", "  a | GET. #c1 +0",
		"No advice.", "  c | The control failed. #c4 +0",
		"rest of a", "   | Not measured: z. #c1 +0", "rest of b", "   | X below y cures it. #c3 +0",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestSlug(t *testing.T) {
	for in, want := range map[string]string{"nginx_go_p1.5s": "nginx_go_p1.5s", `a"b<c> d/e#f`: "a-b-c--d-e-f", "ü\x00": "--", strings.Repeat("x", 200): strings.Repeat("x", 120), "": ""} {
		if got := slug(in); got != want {
			t.Errorf("slug(%q) = %q, want %q", in, got, want)
		}
	}
	used := map[string]bool{}
	for _, want := range []string{"a", "a-2", "a-3"} {
		if got := unique(used, "a"); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestContrast holds the palette against WCAG 2.2: 4.5 for text, 3 for what a
// plot is made of.
func TestContrast(t *testing.T) {
	values := map[string][2]string{}
	for _, c := range palette {
		if _, twice := values[c.name]; twice {
			t.Errorf("%s is there twice", c.name)
		}
		values[c.name] = [2]string{c.light, c.dark}
	}
	for _, p := range []struct {
		front string
		least float64
		back  []string
	}{
		{"fg", 4.5, []string{"bg", "panel"}},
		{"muted", 4.5, []string{"bg", "panel"}},
		{"link", 4.5, []string{"bg", "panel"}},
		{"ink", 4.5, []string{"races-1", "races-2", "masked-1", "masked-2", "safe-1", "open-1", "none-1", "broken-1"}},
		{"deep", 4.5, []string{"races-3", "masked-3"}},
		{"hit", 4.5, []string{"bg", "races-1"}},
		{"hit", 3, []string{"calm"}},
		{"calm", 3, []string{"bg"}},
		{"fg", 4.5, []string{"races-1"}},
	} {
		for _, back := range p.back {
			for i, mode := range []string{"light", "dark"} {
				a, b := luminance(t, values[p.front][i]), luminance(t, values[back][i])
				if ratio := (max(a, b) + 0.05) / (min(a, b) + 0.05); ratio < p.least {
					t.Errorf("%s: %s on %s: %.2f, least %.1f", mode, p.front, back, ratio, p.least)
				}
			}
		}
	}
	for _, m := range regexp.MustCompile(`var\(--([a-z0-9-]+)\)`).FindAllStringSubmatch(htmlStyle, -1) {
		if _, ok := values[m[1]]; !ok {
			t.Errorf("style.css uses --%s, which the palette has not", m[1])
		}
	}
}

// luminance is WCAG's relative luminance of "#rrggbb".
func luminance(t *testing.T, hex string) float64 {
	t.Helper()
	n, err := strconv.ParseUint(strings.TrimPrefix(hex, "#"), 16, 24)
	if err != nil || len(hex) != 7 {
		t.Fatalf("colour %q: %v", hex, err)
	}
	linear := func(v uint64) float64 {
		c := float64(v&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*linear(n>>16) + 0.7152*linear(n>>8) + 0.0722*linear(n)
}

// States keep apart without their colour.
func TestLooks(t *testing.T) {
	signs, words := map[string]bool{}, map[string]bool{}
	for _, s := range spec.States() {
		l := lookOf(s)
		if l.Sign == "" || l.Word == "" || signs[l.Sign] || words[l.Word] {
			t.Errorf("%s: %+v", s, l)
		}
		signs[l.Sign], words[l.Word] = true, true
	}
	if l := lookOf("new"); l.Word != "new" || l.Sign != "?" {
		t.Errorf("%+v", l)
	}
}

func TestClosesPlot(t *testing.T) {
	h := judge.Histogram{Width: 10 * time.Microsecond, Counts: map[time.Duration]int{
		time.Second: 200, time.Second + 50*time.Microsecond: 100, time.Second + 90*time.Millisecond: 1}}
	p, outside := closes("proxy", h, time.Second)
	if outside != 1 || len(p.Bars) != 2 || len(p.Marks) != 1 || p.Top != "200" {
		t.Errorf("outside %d: %+v", outside, p)
	}
	if !strings.Contains(p.Label, "301 idle times") || !strings.Contains(p.Label, "proxy") {
		t.Error(p.Label)
	}
	inFrame(t, p)
	// Without the far one nothing is left out.
	delete(h.Counts, time.Second+90*time.Millisecond)
	if _, outside = closes("proxy", h, time.Second); outside != 0 {
		t.Errorf("outside %d", outside)
	}
	// A timer far from its setting does not squeeze its plot.
	p, _ = closes("proxy", h, 5*time.Second)
	if len(p.Marks) != 0 || float64(p.Bars[0].W) < 3 {
		t.Errorf("%+v", p)
	}
	if p, outside = closes("proxy", judge.Histogram{}, time.Second); p != nil || outside != 0 {
		t.Errorf("of nothing: %+v", p)
	}
}

func TestAgePlot(t *testing.T) {
	ages := typicalDetail(spec.Races).Ages
	for _, rtt := range []time.Duration{0, 40 * time.Millisecond} {
		p := agePlot(ages, rtt)
		inFrame(t, p)
		hits := 0
		for _, b := range p.Bars {
			if b.Class == "hit" {
				hits++
			}
		}
		if hits != 5 || len(p.Marks) != 1+int(min(rtt, 1)) {
			t.Errorf("rtt %s: %d bars of hits, marks %+v", rtt, hits, p.Marks)
		}
	}
	if agePlot(judge.Ages{}, 0) != nil {
		t.Error("a plot of nothing")
	}
}

func TestCurvePlot(t *testing.T) {
	f := shaped().Cells[1].Fit
	p := curvePlot(f)
	if p == nil || len(p.Whisker) != 1 || len(p.Marks) == 0 {
		t.Fatalf("%+v", p)
	}
	inFrame(t, p)
	if curvePlot(&judge.Fit{}) != nil {
		t.Error("a plot of nothing")
	}
}

func inFrame(t *testing.T, p *plot) {
	t.Helper()
	for _, b := range p.Bars {
		if b.X < plotLeft-1 || b.X+b.W > plotRight+1 || b.Y < plotTop-1 || b.Y+b.H > plotBottom+0.2 {
			t.Errorf("bar %+v is out of its frame", b)
		}
	}
	if len(p.Ticks) == 0 || len(p.Ticks) > 6 {
		t.Errorf("ticks %+v", p.Ticks)
	}
	for _, k := range append(p.Ticks, p.Marks...) {
		if k.X < plotLeft || k.X > plotRight {
			t.Errorf("tick %+v is out of its frame", k)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, c := range []struct {
		a    axis
		want string
	}{
		{axis{0, 10 * time.Millisecond}, "0 5 ms 10 ms"},
		{axis{-10 * time.Millisecond, 10 * time.Millisecond}, "-10 ms -5 ms 0 5 ms 10 ms"},
		{axis{time.Second - 100*time.Microsecond, time.Second + 500*time.Microsecond}, "1000.0 ms 1000.2 ms 1000.4 ms"},
		{axis{60 * time.Second, 60*time.Second + 40*time.Millisecond}, "60.00 s 60.01 s 60.02 s 60.03 s 60.04 s"},
	} {
		var got []string
		for _, k := range c.a.ticks() {
			got = append(got, k.Text)
		}
		if s := strings.Join(got, " "); s != c.want {
			t.Errorf("%v: %s, want %s", c.a, s, c.want)
		}
	}
}

// Who sends what to whom, and what only happens.
func TestSequence(t *testing.T) {
	for name, want := range map[string]int{"post-raced": 4, "get-masked": 5, "proxy-first": 4, "packets": 7} {
		s := stories()[name]
		tl := NewTimeline(s.obs, s.before)
		zero, _ := tl.zero()
		q := newSequence(tl.Steps, zero)
		arrows, lost := 0, 0
		for i, r := range q.Rows {
			if r.Arrow {
				arrows++
				if r.X1 == r.X2 {
					t.Errorf("%s: %+v goes nowhere", name, r)
				}
			}
			if r.Class == "lost" {
				lost++
			}
			if i > 0 && r.Y <= q.Rows[i-1].Y {
				t.Errorf("%s: row %d is not below the one before", name, i)
			}
			if r.Y > q.Height {
				t.Errorf("%s: row %d is below the end", name, i)
			}
		}
		if arrows != want {
			t.Errorf("%s: %d arrows, want %d: %+v", name, arrows, want, q.Rows)
		}
		if races := tl.Late > 0; races != (lost > 0) {
			t.Errorf("%s: %d rows tell of a loss", name, lost)
		}
		if len(q.Rows) != len(tl.Steps) || len(seqTable(tl.Steps, zero)) != len(tl.Steps) {
			t.Errorf("%s: %d rows for %d steps", name, len(q.Rows), len(tl.Steps))
		}
	}
}
