package advice

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

const ms = time.Millisecond

// grid collects cells of one proxy.
type grid struct{ d *judge.Document }

// newGrid has a proxy's controls, which hold.
func newGrid() grid {
	return grid{&judge.Document{Controls: []judge.Verdict{
		{ID: "control-race", Role: judge.RoleMustRace, Proxy: "nginx", State: spec.Races},
		{ID: "control-calm", Role: judge.RoleMustNotRace, Proxy: "nginx", State: spec.Safe},
	}}}
}

func (g grid) cell(p, u time.Duration, method string, retry spec.Retry, s spec.State) *judge.Verdict {
	c := spec.Cell{Proxy: "nginx", Upstream: "go", ProxyIdle: spec.Idle(p), UpstreamIdle: u, Method: method, Retry: retry, Close: spec.CloseFIN}
	v := judge.Verdict{ID: c.ID(), Role: judge.RoleCell, Proxy: c.Proxy, Version: "1.26.3", Runtime: "local", Upstream: c.Upstream, ProxyIdle: c.ProxyIdle.String(),
		UpstreamIdle: spec.FormatDuration(u), Method: method, Retry: retry, Close: c.Close, RTT: "0s", State: s, AimedShots: 300, Why: "because " + string(s)}
	switch s {
	case spec.Races:
		v.Failures, v.Attributed, v.Late = 7, 7, 7
	case spec.Masked:
		v.Late, v.Retried = 5, 5
	case spec.Safe:
		v.ProxyClosed = &judge.Quantiles{N: 300, Min: judge.Duration(p), P50: judge.Duration(p + ms), Max: judge.Duration(p + 4*ms)}
	}
	g.d.Cells = append(g.d.Cells, v)
	return &g.d.Cells[len(g.d.Cells)-1]
}

// at moves the last cell to a round trip.
func (g grid) at(rtt time.Duration) grid {
	v := &g.d.Cells[len(g.d.Cells)-1]
	v.RTT = spec.FormatDuration(rtt)
	v.ID = strings.TrimSuffix(v.ID, "0s") + v.RTT
	return g
}

func (g grid) post(p, u time.Duration, s spec.State) *judge.Verdict {
	return g.cell(p, u, "POST", spec.RetryDefault, s)
}

// advise gives the sentences on the one proxy, checked.
func (g grid) advise(t *testing.T) []judge.Sentence {
	t.Helper()
	all := Of(g.d)
	check(t, g.d, all)
	if len(all) != 1 {
		t.Fatalf("%d proxies", len(all))
	}
	return all[0].Sentences
}

// check holds every sentence against its cells: there are some, the document
// has them in the state that the sentence gives, and a statement rests on
// nothing undecided or disturbed.
func check(t *testing.T, d *judge.Document, all []judge.Advice) {
	t.Helper()
	verdicts := map[string]judge.Verdict{}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for _, v := range list {
			verdicts[v.ID] = v
		}
	}
	// What a sentence says when it rests on cells of a state.
	words := map[spec.State][]string{spec.Safe: {"safe"}, spec.Races: {"race", "lost", "closed connection"}, spec.Masked: {"masked", "sent again"}}
	for _, a := range all {
		if len(a.Sentences) == 0 {
			t.Errorf("%s: no sentence", a.Proxy)
		}
		for _, s := range a.Sentences {
			where := fmt.Sprintf("%s %q", s.Kind, s.Text)
			if len(s.Cells) == 0 {
				t.Errorf("%s: no cell", where)
			}
			if s.Text == "" || s.Brief == "" || !strings.HasSuffix(strings.TrimSuffix(s.Text, ")"), ".") {
				t.Errorf("%s (%q): no sentence", where, s.Brief)
			}
			if (s.Kind == judge.AdviceMitigation) != (s.Rank > 0) || (s.Kind == judge.AdviceMitigation) != (s.Effect != "") {
				t.Errorf("%s: rank %d, effect %q", where, s.Rank, s.Effect)
			}
			seen := map[string]bool{}
			for _, c := range s.Cells {
				v, ok := verdicts[c.ID]
				if !ok || v.State != c.State || v.Proxy != a.Proxy {
					t.Errorf("%s: names %s as %s, which is %q", where, c.ID, c.State, v.State)
				}
				if seen[c.ID] {
					t.Errorf("%s: names %s twice", where, c.ID)
				}
				seen[c.ID] = true
				if s.Kind == judge.AdviceGap || s.Kind == judge.AdviceNone {
					continue
				}
				if v.SetAside > 0 || words[v.State] == nil {
					t.Errorf("%s: rests on %s, which is %s with %d requests set aside", where, c.ID, v.State, v.SetAside)
				}
				if !slices.ContainsFunc(words[v.State], func(w string) bool { return strings.Contains(s.Text, w) }) {
					t.Errorf("%s: names %s, which is %s, and says nothing of it", where, c.ID, v.State)
				}
			}
		}
	}
}

func of(list []judge.Sentence, k judge.AdviceKind) (out []judge.Sentence) {
	for _, s := range list {
		if s.Kind == k {
			out = append(out, s)
		}
	}
	return out
}

func ids(s judge.Sentence) string {
	var out []string
	for _, c := range s.Cells {
		out = append(out, c.ID)
	}
	return strings.Join(out, " ")
}

// want wants exactly one sentence of a kind, and a text in it.
func want(t *testing.T, list []judge.Sentence, k judge.AdviceKind, text string) judge.Sentence {
	t.Helper()
	found := of(list, k)
	if len(found) != 1 {
		t.Fatalf("%d sentences of kind %s: %v", len(found), k, found)
	}
	if !strings.Contains(found[0].Text, text) {
		t.Errorf("%s: %q does not say %q", k, found[0].Text, text)
	}
	return found[0]
}

func TestPairRule(t *testing.T) {
	g := newGrid()
	for _, m := range []string{"GET", "POST"} {
		stale := spec.Races
		if m == "GET" {
			stale = spec.Masked
		}
		g.cell(time.Second, 500*ms, m, spec.RetryDefault, stale)
		g.cell(time.Second, time.Second, m, spec.RetryDefault, stale)
		g.cell(500*ms, time.Second, m, spec.RetryDefault, spec.Safe)
		g.cell(500*ms, 2*time.Second, m, spec.RetryDefault, spec.Safe)
	}
	got := g.advise(t)
	set := want(t, got, judge.AdviceSet, "Keep proxy_idle at least 500ms below upstream_idle: both pairs tried so were safe (500ms/1s, 500ms/2s; proxy_idle/upstream_idle), "+
		"and none of 1200 aimed requests met a closed connection (95 %: fewer than 0.25 % of such requests); the nearest pair that did not hold, 1s/1s, raced.")
	if len(set.Cells) != 5 {
		t.Errorf("cells: %s", ids(set))
	}
	want(t, got, judge.AdviceWhy, "Not with proxy_idle at upstream_idle or above: both pairs tried so (1s/1s, 1s/500ms) met connections that the upstream's idle timer had just closed; "+
		"2 cells raced (14 requests lost), 2 cells were masked, 10 requests sent again.")
	want(t, got, judge.AdviceMargin, "500ms is the smallest safe difference of this run, not the smallest there is: nothing is proven between it and 0s, which raced (scenarios/margin.yaml tries such pairs); "+
		"the safe cells' proxy closed up to 4ms after its setting")
	want(t, got, judge.AdviceMethods, "As the proxy comes (retry default), GET was masked in 2 cells (10 requests sent again, none executed twice) and POST raced in 2 cells (14 requests lost).")
	m := want(t, got, judge.AdviceMitigation, "proxy_idle at least 500ms below upstream_idle cures it: GET masked -> safe (1 cell), POST races -> safe (1 cell). Its price:")
	if strings.Contains(ids(m), "p1s_u500ms") {
		t.Errorf("no safe cell differs from 1s/500ms in one timeout alone: %s", ids(m))
	}
	if n := len(of(got, judge.AdviceContradiction)); n != 0 {
		t.Errorf("%d contradictions", n)
	}
}

// A safe pair beside a racing one with a larger difference moves no limit, and
// is said.
func TestContradiction(t *testing.T) {
	g := newGrid()
	g.post(900*ms, time.Second, spec.Safe)
	g.post(1500*ms, 2*time.Second, spec.Races)
	g.post(time.Second, 2*time.Second, spec.Safe)
	got := g.advise(t)
	set := want(t, got, judge.AdviceSet, "proxy_idle at least 1s below upstream_idle")
	if strings.Contains(ids(set), "p900ms") {
		t.Errorf("rests on the pair that is contradicted: %s", ids(set))
	}
	c := want(t, got, judge.AdviceContradiction, "Cells disagree: 900ms/1s was safe, yet 500ms (1.5s/2s) raced with no smaller a difference; the advice goes by what met closed connections.")
	if len(c.Cells) != 2 {
		t.Errorf("cells: %s", ids(c))
	}
	want(t, got, judge.AdviceWhy, "1 of 2 pairs tried so (1.5s/2s) met")

	g = newGrid()
	g.post(500*ms, 500*ms, spec.Safe)
	g.cell(500*ms, 500*ms, "GET", spec.RetryOff, spec.Races)
	got = g.advise(t)
	want(t, got, judge.AdviceContradiction, "Cells disagree: 500ms/500ms was safe with POST and raced with GET (retry off);")
	want(t, got, judge.AdviceNone, "No pair of timeouts can be advised: none that was tried is safe without another cell that speaks against it")
	if len(of(got, judge.AdviceSet)) != 0 {
		t.Error("advises a pair all the same")
	}
}

// A difference that the proxy's own lateness would have used up held by luck.
func TestLatenessMovesTheRule(t *testing.T) {
	g := newGrid()
	g.post(time.Second, time.Second, spec.Races)
	g.post(970*ms, time.Second, spec.Safe)
	v := g.post(900*ms, time.Second, spec.Safe)
	v.ProxyClosed.Max = judge.Duration(941 * ms)
	got := g.advise(t)
	set := want(t, got, judge.AdviceSet, "proxy_idle at least 100ms below upstream_idle: the one pair tried so was safe")
	if strings.Contains(ids(set), "p970ms") {
		t.Error(ids(set))
	}
	want(t, got, judge.AdviceMargin, "The limit is between 0s, which raced, and 30ms, which was safe; the safe cells' proxy closed up to 41ms after its setting, as the upstream saw it, "+
		"which would have used up 30ms, so that 100ms is advised (a calmer machine may show less).")

	// Where even that raced, the lateness is why.
	v.State, v.Attributed = spec.Races, 7
	want(t, g.advise(t), judge.AdviceNone, "none that was tried is safe without another cell that speaks against it; the nearest to it, proxy_idle 900ms with upstream_idle 1s, raced; "+
		"the proxy, whose timeout is the shorter one there, closed up to 41ms after it.")
	v.State, v.Attributed = spec.Safe, 0

	g.d.Cells[2].ProxyClosed.Max = judge.Duration(1200 * ms)
	want(t, g.advise(t), judge.AdviceMargin, "which would have used up 30ms, and no larger difference was tried (a calmer machine may show less).")
}

// Cells that are not decided are named and never counted, whatever the margin
// study makes of them.
func TestUndecidedSupportsNothing(t *testing.T) {
	g := newGrid()
	g.post(time.Second, time.Second, spec.Races)
	g.post(990*ms, time.Second, spec.Inconclusive)
	g.post(980*ms, time.Second, spec.Safe)
	g.post(970*ms, time.Second, spec.Broken)
	g.post(960*ms, time.Second, spec.Safe).SetAside = 3
	g.post(950*ms, time.Second, spec.Unsupported)
	least := judge.Duration(10 * ms)
	g.d.Margins = []judge.Margin{{Proxy: "nginx", Version: "1.26.3", Runtime: "local", Close: spec.CloseFIN, RTT: "0s", Least: &least}}
	got := g.advise(t)
	want(t, got, judge.AdviceSet, "proxy_idle at least 20ms below upstream_idle: the one pair tried so was safe (980ms/1s; proxy_idle/upstream_idle), and none of 300 aimed")
	var gaps []string
	for _, s := range of(got, judge.AdviceGap) {
		gaps = append(gaps, s.Text)
	}
	all := strings.Join(gaps, "\n")
	for _, text := range []string{
		"A difference of 10ms is not decided (inconclusive), so it supports nothing; the margin study, which says 10ms, counts it as held, since it lost nothing.",
		"4 cells support nothing here: 1 inconclusive, 1 broken, 1 unsupported, 1 disturbed.",
		"Not measured, so not advised: retry off; retry on; no keep-alive to the upstream; methods other than POST; round trips other than 0s; timeouts outside 980ms to 1s.",
	} {
		if !strings.Contains(all, text) {
			t.Errorf("no gap says %q:\n%s", text, all)
		}
	}
}

func TestByRoundTrip(t *testing.T) {
	g := newGrid()
	for _, rtt := range []time.Duration{40 * ms, 0} {
		g.post(time.Second, time.Second, spec.Races)
		g.at(rtt)
		g.post(time.Second-10*ms-rtt, time.Second, spec.Safe)
		g.at(rtt)
	}
	var rules []string
	got := g.advise(t)
	for _, s := range of(got, judge.AdviceSet) {
		rule, _, _ := strings.Cut(s.Text, ":")
		rules = append(rules, rule)
	}
	if want := []string{"Keep proxy_idle at least 10ms below upstream_idle at rtt 0s", "Keep proxy_idle at least 50ms below upstream_idle at rtt 40ms"}; !slices.Equal(rules, want) {
		t.Errorf("%q", rules)
	}
	want(t, got, judge.AdviceMitigation, "proxy_idle as far below upstream_idle as said above cures it: POST races -> safe (2 cells)")
}

func TestMitigationsAreRanked(t *testing.T) {
	g := newGrid()
	for _, m := range []string{"GET", "POST"} {
		usual := spec.Races
		if m == "GET" {
			usual = spec.Masked
		}
		g.cell(2*time.Second, time.Second, m, spec.RetryOff, spec.Races)
		g.cell(2*time.Second, time.Second, m, spec.RetryDefault, usual)
		g.cell(2*time.Second, time.Second, m, spec.RetryOn, spec.Masked)
		g.cell(time.Duration(spec.Off), time.Second, m, spec.RetryDefault, spec.Safe)
		g.cell(500*ms, time.Second, m, spec.RetryDefault, spec.Safe)
	}
	ranked := func() (out []string) {
		for i, s := range of(g.advise(t), judge.AdviceMitigation) {
			if s.Rank != i+1 {
				t.Errorf("rank %d at place %d", s.Rank, i+1)
			}
			does, _, _ := strings.Cut(s.Text, ":")
			out = append(out, does+" = "+string(s.Effect))
		}
		return out
	}
	rule, off := "proxy_idle at least 500ms below upstream_idle cures it = cures", "No keep-alive to the upstream (proxy_idle off) cures it = cures"
	if got, want := ranked(), []string{rule, off, "Retry on hides it = hides", "Retry off makes it worse = worsens"}; !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	text := of(g.advise(t), judge.AdviceMitigation)[2].Text
	if want := "Retry on hides it: GET masked -> masked (1 cell), POST races -> masked (1 cell). Its price: 10 requests sent again, none of these executed twice; " +
		"what had run before it failed is not among them, see idlerace react."; text != want {
		t.Errorf("\n got %q\nwant %q", text, want)
	}

	// What runs requests twice comes after what does not, and what leaves out a
	// method after what does not.
	on := &g.d.Cells[7]
	on.Twice = 2
	g.d.Cells[8].State = spec.Inconclusive // POST without keep-alive
	if got, want := ranked(), []string{rule, off, "Retry on hides it and runs requests twice = repeats", "Retry off makes it worse = worsens"}; !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	texts := of(g.advise(t), judge.AdviceMitigation)
	if !strings.Contains(texts[1].Text, "GET masked -> safe (1 cell); not measured with POST") || !strings.Contains(texts[2].Text, "2 of these executed twice") {
		t.Errorf("%q\n%q", texts[1].Text, texts[2].Text)
	}

	// A retry that helps one method alone, or none.
	on.State, on.Twice = spec.Races, 0
	if got, want := ranked(), []string{rule, off, "Retry on changes nothing = unchanged", "Retry off makes it worse = worsens"}; !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
	g.d.Cells[1].State, g.d.Cells[0].State = spec.Races, spec.Races
	if got, want := ranked(), []string{rule, off, "Retry on helps in part = helps", "Retry off changes nothing = unchanged"}; !slices.Equal(got, want) {
		t.Errorf("\n got %q\nwant %q", got, want)
	}
}

func TestControls(t *testing.T) {
	for _, tt := range []struct {
		spoil func(*judge.Document)
		want  string
	}{
		{func(d *judge.Document) { d.Controls[0].State, d.Controls[0].Why = spec.Inconclusive, "37 aimed shots" },
			"No advice: the control that must race is inconclusive, so nothing that was seen of this proxy is proof (37 aimed shots)."},
		{func(d *judge.Document) { d.Controls[1].State = spec.Races },
			"No advice: the control that must not race, without keep-alive to the upstream, is races, so nothing that was seen of this proxy is proof (no reason recorded)."},
		{func(d *judge.Document) { d.Controls = d.Controls[:1] },
			"No advice: the run lacks the control that must not race, without keep-alive to the upstream, so nothing that was seen of this proxy is proof."},
		{func(d *judge.Document) { d.Controls[0].Proxy = "envoy" },
			"No advice: the run lacks the control that must race, so nothing that was seen of this proxy is proof."},
	} {
		g := newGrid()
		g.post(time.Second, 500*ms, spec.Races)
		g.post(500*ms, time.Second, spec.Inconclusive)
		tt.spoil(g.d)
		got := g.advise(t)
		if len(got) != 1 {
			t.Errorf("%d sentences", len(got))
		}
		want(t, got, judge.AdviceNone, tt.want)
	}
	g := newGrid()
	g.d.Controls = nil
	g.post(time.Second, 500*ms, spec.Unsupported)
	want(t, g.advise(t), judge.AdviceNone, "No advice: 1 cell supports nothing here: 1 unsupported (because unsupported).")

	g = newGrid()
	g.post(time.Second, 500*ms, spec.Races).SetAside = 1
	g.post(500*ms, time.Second, spec.Inconclusive)
	want(t, g.advise(t), judge.AdviceNone, "No advice: 2 cells support nothing here: 1 inconclusive, 1 disturbed.")
}

func TestOfNothing(t *testing.T) {
	if got := Of(&judge.Document{}); got == nil || len(got) != 0 {
		t.Errorf("%v", got)
	}
}

// Whatever the cells are, no sentence says more than they do.
func TestRandomDocuments(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		g := newGrid()
		seen := map[string]bool{}
		for range 1 + r.IntN(40) {
			p, u := time.Duration(r.IntN(4))*500*ms, time.Duration(1+r.IntN(4))*500*ms
			v := g.cell(p, u, []string{"GET", "POST"}[r.IntN(2)], spec.Retries()[r.IntN(3)], spec.States()[r.IntN(6)])
			g.at([]time.Duration{0, 20 * ms}[r.IntN(2)])
			v.SetAside, v.Twice = max(0, r.IntN(10)-8), max(0, r.IntN(10)-8)
			if seen[v.ID] {
				g.d.Cells = g.d.Cells[:len(g.d.Cells)-1]
			}
			seen[v.ID] = true
		}
		g.advise(t)
		if t.Failed() {
			t.FailNow()
		}
	}
}
