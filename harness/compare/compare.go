// Package compare holds runs against a first one, cell by cell: what changed,
// what of it is more than chance, and what else the runs differ in. It sees
// documents only; it must not import stack, load, proxy, run or report.
package compare

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// Schema names the format of a comparison as JSON. Fields may be added under
// one number, never renamed or removed.
const Schema = "idlerace/comparison/v1"

// Alpha is the level at which a corrected p-value counts as significant.
const Alpha = 0.05

// MostRuns is how many runs have a letter.
const MostRuns = 26

// Note stands wherever p-values do: what they are, and what they are not.
//
// Seven pairs of runs of one setup, 570 cells tested: after Holm's correction
// 159 differed over requests and none over bursts.
const Note = "p is Fisher's exact test, two-sided and Holm-corrected, over the aimed requests and over the bursts they came in: the requests of one burst share their moment and " +
	"a cell stops at a few proofs (unless probe.until is shots), so that p over requests is too small and only what holds over bursts, too, is called significant; " +
	"a changed state has its own proof either way."

// Comparison is runs held against the first of them.
type Comparison struct {
	Schema      string       `json:"schema"`
	Runs        []Run        `json:"runs"` // the first is the reference
	Differences []Difference `json:"differences"`
	Against     []Against    `json:"against"` // of each run but the first
	Tests       int          `json:"tests"`   // of each kind, that Holm's correction is over
	Alpha       float64      `json:"alpha"`   // of a corrected p-value that counts as significant
	Note        string       `json:"note"`
}

// Run is one of the runs.
type Run struct {
	Label    string    `json:"label"` // "A"
	Path     string    `json:"path"`
	Scenario string    `json:"scenario"`
	Started  time.Time `json:"started"`
	Seed     uint64    `json:"seed"`
	Cells    int       `json:"cells"`
	Partial  string    `json:"partial"` // why it is not complete; empty when it is
}

// Difference is what the runs differ in besides their cells.
type Difference struct {
	What   string   `json:"what"`
	Values []string `json:"values"` // in the order of Runs; "-": has none
}

// Against is one run held against the reference.
type Against struct {
	Run   string `json:"run"`   // its label
	Cells []Cell `json:"cells"` // in both, in the reference's order
	Gone  []Lone `json:"gone"`  // in the reference alone
	New   []Lone `json:"new"`   // in this run alone
}

// Cell is a cell of both runs. All of it but Was and Is is its point of the
// grid, the same in both.
type Cell struct {
	ID           string     `json:"id"`
	Proxy        string     `json:"proxy"`
	Upstream     string     `json:"upstream"`
	ProxyIdle    string     `json:"proxy_idle"`
	UpstreamIdle string     `json:"upstream_idle"`
	Method       string     `json:"method"`
	Retry        spec.Retry `json:"retry"`
	Close        spec.Close `json:"close"`
	RTT          string     `json:"rtt"`

	Was     Side    `json:"was"` // in the reference
	Is      Side    `json:"is"`
	Measure Measure `json:"measure"` // what was tested, and what the rates are of
	// Requests is the test on aimed requests and Bursts that on the bursts they
	// came in; null where there was none, and Untested says why.
	Requests  *Test     `json:"requests"`
	Bursts    *Test     `json:"bursts"`
	Untested  string    `json:"untested"`
	Change    Change    `json:"change"`
	Direction Direction `json:"direction"`
}

// Test is a p-value of Fisher's exact test, as it came and corrected.
type Test struct {
	P    float64 `json:"p"`
	Holm float64 `json:"p_holm"`
}

// Side is a cell as one run saw it.
type Side struct {
	State spec.State     `json:"state"`
	Aimed int            `json:"aimed_shots"`
	Lost  int            `json:"aimed_lost"`  // of these: failed on a connection that the upstream's idle timer had closed
	Stale int            `json:"aimed_stale"` // of these: met such a connection, lost or not
	Rate  judge.Interval `json:"rate"`        // of the measure per aimed shot, 95 % Clopper-Pearson

	Bursts      int `json:"aimed_bursts"`
	LostBursts  int `json:"lost_bursts"`
	StaleBursts int `json:"stale_bursts"`
}

// Requests counts the measure in aimed requests.
func (s Side) Requests(m Measure) Count {
	if m == Lost {
		return Count{s.Lost, s.Aimed}
	}
	return Count{s.Stale, s.Aimed}
}

// InBursts counts the bursts with the measure in them.
func (s Side) InBursts(m Measure) Count {
	if m == Lost {
		return Count{s.LostBursts, s.Bursts}
	}
	return Count{s.StaleBursts, s.Bursts}
}

// Measure is what of aimed requests is counted and tested.
type Measure string

const (
	Lost  Measure = "lost"  // requests that a client lost to the race
	Stale Measure = "stale" // requests that met a closed connection, lost or sent again
)

// Change says how a cell differs from the reference.
type Change string

const (
	Significant Change = "significant" // its rate differs by more than chance, over requests and over bursts; its state may or may not
	StateOnly   Change = "state"       // its state differs, its rate by no more than chance, or was not tested
	Same        Change = "same"
)

// Direction says which way a cell changed.
type Direction string

const (
	Better  Direction = "better"
	Worse   Direction = "worse"
	Neither Direction = ""
)

// Lone is a cell of one of two runs.
type Lone struct {
	ID    string     `json:"id"`
	State spec.State `json:"state"`
	Note  string     `json:"note"` // a cell of the other run alone that differs in one setting, or why there is none; may be empty
}

// Input is a run to compare.
type Input struct {
	Path     string
	Document *judge.Document
	Scenario *spec.Scenario // nil: not known, so that what only it says is not compared
}

// New compares runs with the first of them. The error says which runs cannot be
// compared: fewer than two, too many, one twice, or two without a common cell.
func New(runs []Input) (*Comparison, error) {
	switch {
	case len(runs) < 2:
		return nil, errors.New("a comparison needs two runs or more")
	case len(runs) > MostRuns:
		return nil, fmt.Errorf("%d runs are too many: at most %d can be compared", len(runs), MostRuns)
	}
	c := &Comparison{Schema: Schema, Alpha: Alpha, Note: Note}
	for i, in := range runs {
		for _, other := range runs[:i] {
			if a, b := other.Document.Run, in.Document.Run; a.Scenario == b.Scenario && a.Seed == b.Seed && a.Started.Equal(b.Started) {
				return nil, fmt.Errorf("%s and %s are the same run (%s, started %s); a run is compared with another one",
					other.Path, in.Path, a.Scenario, a.Started.UTC().Format(time.RFC3339))
			}
		}
		r := in.Document.Run
		c.Runs = append(c.Runs, Run{string(rune('A' + i)), in.Path, r.Scenario, r.Started, r.Seed, len(in.Document.Cells), r.Partial})
	}
	c.Differences = differences(runs)
	for i, in := range runs[1:] {
		a := against(runs[0].Document, in.Document)
		a.Run = c.Runs[i+1].Label
		if len(a.Cells) == 0 {
			return nil, fmt.Errorf("%s and %s have no cell in common (%s, %s): cells are joined by their id, so both runs need the same axes; a proxy's version and its runtime may differ",
				runs[0].Path, in.Path, example(runs[0].Document), example(in.Document))
		}
		c.Against = append(c.Against, a)
	}
	c.correct()
	return c, nil
}

func example(d *judge.Document) string {
	if len(d.Cells) == 0 {
		return "one has none"
	}
	return "one has " + d.Cells[0].ID
}

func against(was, is *judge.Document) Against {
	a := Against{Cells: []Cell{}, Gone: []Lone{}, New: []Lone{}}
	now := byID(is)
	var gone, added []*judge.Verdict
	for i := range was.Cells {
		old := &was.Cells[i]
		if v := now[old.ID]; v != nil {
			a.Cells = append(a.Cells, join(old, v))
		} else {
			gone = append(gone, old)
		}
	}
	before := byID(was)
	for i := range is.Cells {
		if v := &is.Cells[i]; before[v.ID] == nil {
			added = append(added, v)
		}
	}
	for _, v := range gone {
		a.Gone = append(a.Gone, Lone{v.ID, v.State, lone(v, added, is)})
	}
	for _, v := range added {
		a.New = append(a.New, Lone{v.ID, v.State, lone(v, gone, was)})
	}
	return a
}

func byID(d *judge.Document) map[string]*judge.Verdict {
	m := make(map[string]*judge.Verdict, len(d.Cells))
	for i := range d.Cells {
		m[d.Cells[i].ID] = &d.Cells[i]
	}
	return m
}

// lone says what may have become of a cell in the other run, of which others
// are the cells that it has alone.
func lone(v *judge.Verdict, others []*judge.Verdict, run *judge.Document) string {
	for _, u := range run.Unavailable {
		if u.Proxy == v.Proxy {
			return fmt.Sprintf("%s did not run there: %s", u.Proxy, u.Reason)
		}
	}
	var like []string
	for _, o := range others {
		var differ []string
		for _, axis := range []struct{ name, a, b string }{
			{"proxy", v.Proxy, o.Proxy}, {"upstream", v.Upstream, o.Upstream}, {"proxy_idle", v.ProxyIdle, o.ProxyIdle}, {"upstream_idle", v.UpstreamIdle, o.UpstreamIdle},
			{"method", v.Method, o.Method}, {"retry", string(v.Retry), string(o.Retry)}, {"close", string(v.Close), string(o.Close)}, {"rtt", v.RTT, o.RTT},
		} {
			if axis.a != axis.b {
				differ = append(differ, axis.name+" "+axis.b)
			}
		}
		if len(differ) == 1 {
			like = append(like, fmt.Sprintf("%s with %s", o.State, differ[0]))
		}
	}
	if len(like) == 0 {
		return ""
	}
	slices.Sort(like)
	const most = 3
	text := "there it is " + strings.Join(like[:min(len(like), most)], ", ")
	if more := len(like) - most; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

// join puts a cell's two verdicts beside each other and tests them, uncorrected.
//
// Note: what is tested hangs on whether any request was lost in either run. As
// that is the same however the requests are dealt to the runs, the test stays
// exact.
func join(was, is *judge.Verdict) Cell {
	c := Cell{ID: was.ID, Proxy: was.Proxy, Upstream: was.Upstream, ProxyIdle: was.ProxyIdle, UpstreamIdle: was.UpstreamIdle, Method: was.Method,
		Retry: was.Retry, Close: was.Close, RTT: was.RTT, Measure: Stale, Change: Same}
	if was.AimedLost+is.AimedLost > 0 {
		c.Measure = Lost
	}
	side := func(v *judge.Verdict) Side {
		s := Side{State: v.State, Aimed: v.AimedShots, Lost: v.AimedLost, Stale: v.AimedStale, Bursts: v.AimedBursts, LostBursts: v.LostBursts, StaleBursts: v.StaleBursts}
		n := s.Requests(c.Measure)
		s.Rate = judge.ClopperPearson(n.Hit, n.N)
		return s
	}
	c.Was, c.Is = side(was), side(is)
	switch {
	case !proven(was.State) || !proven(is.State):
		c.Untested = "not decided in both"
	case c.Was.Aimed == 0 || c.Is.Aimed == 0:
		c.Untested = "no aimed request"
	default:
		c.Requests = &Test{P: Fisher(c.Was.Requests(c.Measure), c.Is.Requests(c.Measure))}
		c.Bursts = &Test{P: Fisher(c.Was.InBursts(c.Measure), c.Is.InBursts(c.Measure))}
	}
	return c
}

func proven(s spec.State) bool { return danger(s) >= 0 }

// danger orders the states that were proven; below 0 are those that were not.
func danger(s spec.State) int {
	return slices.Index([]spec.State{spec.Safe, spec.Masked, spec.Races}, s)
}

// correct makes the tests on requests one family and those on bursts another,
// and says what they come to.
func (c *Comparison) correct() {
	var requests, bursts []*Test
	for _, a := range c.Against {
		for _, cell := range a.Cells {
			if cell.Requests != nil {
				requests, bursts = append(requests, cell.Requests), append(bursts, cell.Bursts)
			}
		}
	}
	c.Tests = len(requests)
	for _, family := range [][]*Test{requests, bursts} {
		var p []float64
		for _, t := range family {
			p = append(p, t.P)
		}
		for i, holm := range Holm(p) {
			family[i].Holm = holm
		}
	}
	for i := range c.Against {
		for j := range c.Against[i].Cells {
			c.Against[i].Cells[j].conclude()
		}
	}
}

func (c *Cell) conclude() {
	switch {
	case c.Requests != nil && max(c.Requests.Holm, c.Bursts.Holm) < Alpha:
		c.Change = Significant
		c.Direction = Worse
		if c.Is.Requests(c.Measure).rate() < c.Was.Requests(c.Measure).rate() {
			c.Direction = Better
		}
	case c.Was.State != c.Is.State:
		c.Change = StateOnly
		if proven(c.Was.State) && proven(c.Is.State) {
			c.Direction = Worse
			if danger(c.Is.State) < danger(c.Was.State) {
				c.Direction = Better
			}
		}
	}
}

// Of gives the cells that changed in one way, in their order.
func (a Against) Of(change Change) (out []Cell) {
	for _, c := range a.Cells {
		if c.Change == change {
			out = append(out, c)
		}
	}
	return out
}

// Sentence says in brief what one run came to: "B against A: 1 of 72 cells
// changed significantly (1 better), ...".
func (c *Comparison) Sentence(a Against) string {
	significant, state := a.Of(Significant), a.Of(StateOnly)
	parts := []string{
		fmt.Sprintf("%d of %s changed significantly%s", len(significant), plural(len(a.Cells), "common cell"), directions(significant)),
		fmt.Sprintf("%d changed state without significance%s", len(state), directions(state)),
		fmt.Sprintf("%d the same", len(a.Of(Same))),
	}
	if len(a.Gone)+len(a.New) > 0 {
		parts = append(parts, fmt.Sprintf("%d gone, %d new", len(a.Gone), len(a.New)))
	}
	return fmt.Sprintf("%s against %s: %s.", a.Run, c.Runs[0].Label, strings.Join(parts, "; "))
}

func directions(cells []Cell) string {
	n := map[Direction]int{}
	for _, c := range cells {
		n[c.Direction]++
	}
	var parts []string
	for _, d := range []Direction{Better, Worse} {
		if n[d] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[d], d))
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// none stands for what a run does not have.
const none = "-"

// differences are the circumstances that are not the same in all runs.
func differences(runs []Input) []Difference {
	out := []Difference{}
	add := func(what string, of func(Input) string) {
		var values []string
		for _, in := range runs {
			values = append(values, cmp.Or(of(in), none))
		}
		if len(slices.Compact(slices.Clone(values))) > 1 {
			out = append(out, Difference{what, values})
		}
	}
	add("scenario", func(in Input) string { return in.Document.Run.Scenario })
	proxies := map[string]bool{}
	for _, in := range runs {
		for _, v := range in.Document.Cells {
			proxies[v.Proxy] = true
		}
	}
	for _, name := range slices.Sorted(maps.Keys(proxies)) {
		add("proxy "+name, func(in Input) string { return ran(in.Document, name) })
	}
	add("idlerace", func(in Input) string { return in.Document.Run.Version })
	add("kernel", func(in Input) string { return in.Document.Run.Kernel })
	add("cores", func(in Input) string { return fmt.Sprint(in.Document.Run.Cores) })
	add("lanes per cell", func(in Input) string { return fmt.Sprint(in.Document.Run.Lanes) })
	add("container engine", func(in Input) string {
		e := in.Document.Run.Engine
		if e == nil {
			return ""
		}
		return strings.Join([]string{e.Name, e.Version, e.OS, e.Arch, e.Path}, " ")
	})
	add("disturbed on purpose", func(in Input) string {
		var kinds []string
		for _, k := range slices.Sorted(maps.Keys(in.Document.Run.Disturbances)) {
			kinds = append(kinds, fmt.Sprintf("%d x %s", in.Document.Run.Disturbances[k], k))
		}
		return strings.Join(kinds, ", ")
	})
	add("packets captured", func(in Input) string {
		if in.Document.Run.NoPackets != "" {
			return "no: " + in.Document.Run.NoPackets
		}
		return "" // they were, or nobody wanted them
	})
	probe := func(of func(*spec.Scenario) string) func(Input) string {
		return func(in Input) string {
			if in.Scenario == nil {
				return ""
			}
			return of(in.Scenario)
		}
	}
	add("probe.shots", probe(func(s *spec.Scenario) string { return fmt.Sprint(s.Probe.Shots) }))
	add("probe.until", probe(func(s *spec.Scenario) string { return string(s.Probe.Until) }))
	add("probe.aim", probe(func(s *spec.Scenario) string { return string(s.Probe.Aim) }))
	add("link", probe(func(s *spec.Scenario) string { return link(s.Link) }))
	return out
}

// ran says what ran under a proxy's name: its version, where, and from which
// image.
func ran(d *judge.Document, proxy string) string {
	for _, u := range d.Unavailable {
		if u.Proxy == proxy {
			return "did not run"
		}
	}
	s := ""
	for _, v := range d.Cells {
		if v.Proxy == proxy {
			s = fmt.Sprintf("%s (%s)", v.Version, v.Runtime)
		}
	}
	for _, p := range d.Run.Proxies {
		if p.Name == proxy && p.Image != "" {
			s += fmt.Sprintf(", image %s, id %.12s", p.Image, strings.TrimPrefix(p.ImageID, "sha256:"))
		}
	}
	return s
}

// link spells an emulated network; empty when it adds nothing.
func link(l spec.Link) string {
	if l == (spec.Link{}) {
		return ""
	}
	parts := []string{}
	add := func(name string, d time.Duration) {
		if d > 0 {
			parts = append(parts, name+" "+spec.FormatDuration(d))
		}
	}
	add("delay up", l.Up.Delay)
	add("jitter up", l.Up.Jitter)
	add("delay down", l.Down.Delay)
	add("jitter down", l.Down.Jitter)
	if l.Idle > 0 {
		parts = append(parts, fmt.Sprintf("idle %s, then %s", spec.FormatDuration(l.Idle), l.OnIdle))
	}
	add("half-closed", l.HalfClosed)
	return strings.Join(parts, ", ")
}
