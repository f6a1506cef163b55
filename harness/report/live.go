package report

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/x/ansi"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/spec"
)

// Live is a run that goes on, for somebody who watches it.
type Live struct {
	Cells          []judge.Interim // and controls
	Decided, Total int             // of those that are probed
	Failures       int             // client-visible, so far
	Proven         int             // cells and controls with an attributed one
	Elapsed        time.Duration   // since probing began
	Left           time.Duration   // estimated, by what is missing
	Budget         time.Duration   // of probing
}

// Frame draws the run as at most height lines of at most width columns: its
// matrices as rich as fit, else those of proxies that are not done, else numbers
// only; then the last events and the status. It depends on its arguments alone.
func (l *Live) Frame(width, height int, color bool) []string {
	f := newFrame(l, width, color)
	status := f.status()
	room := height - len(status)
	if room <= 0 {
		return status[:max(height, 0)]
	}
	for _, try := range []struct {
		marks   *marks
		running bool // leave out proxies of which all is decided
		roomy   bool // with blank lines
	}{
		{&rich, false, true}, {&short, false, true}, {&short, false, false}, {&signs, false, false},
		{&short, true, false}, {&signs, true, false},
	} {
		below := append([]string{f.legend(try.marks)}, f.controls()...)
		if try.roomy {
			below = slices.Insert(below, 0, "")
		}
		body := f.matrices(try.marks, try.running, try.roomy, room-len(below)-leastEvents)
		if body != nil {
			body = append(body, below...)
			return slices.Concat(body, f.events(room-len(body)), status)
		}
	}
	body := f.counts(f.proxies)
	if len(body) > room {
		body = nil
	}
	return slices.Concat(body, f.events(room-len(body)), status)
}

// leastEvents must have room below a matrix, mostEvents are shown where more
// have.
const (
	leastEvents = 1
	mostEvents  = 6
)

// frame is one drawing of a Live.
type frame struct {
	*Live
	width   int
	proxies []string // in the order of the cells
	panels  []panel  // likewise
	rows    []spec.Idle
	cols    []time.Duration
	at      map[spec.Cell]*judge.Interim
	several struct{ upstream, retry, close, rtt bool }

	normal, strong, faint ink
	inks                  map[spec.State]ink
}

// panel is one matrix: cells that differ in their two timeouts alone, which are
// 0 in kind.
type panel struct {
	kind  spec.Cell
	title string
}

func newFrame(l *Live, width int, color bool) *frame {
	p := newPage(Options{Color: color})
	f := &frame{Live: l, width: width, at: map[spec.Cell]*judge.Interim{},
		normal: inkOf(p.normal), strong: inkOf(p.strong), faint: inkOf(p.faint), inks: map[spec.State]ink{}}
	for _, s := range spec.States() {
		f.inks[s] = inkOf(p.of(s))
	}
	var first *spec.Cell
	seen := map[spec.Cell]bool{}
	for i := range l.Cells {
		o := &l.Cells[i]
		c := o.Item.Cell
		if !slices.Contains(f.proxies, c.Proxy) {
			f.proxies = append(f.proxies, c.Proxy)
		}
		if o.Item.Role != plan.RoleCell {
			continue
		}
		if first == nil {
			first = &o.Item.Cell
		}
		f.several.upstream = f.several.upstream || c.Upstream != first.Upstream
		f.several.retry = f.several.retry || c.Retry != first.Retry
		f.several.close = f.several.close || c.Close != first.Close
		f.several.rtt = f.several.rtt || c.RTT != first.RTT
		f.at[c] = o
		if !slices.Contains(f.rows, c.ProxyIdle) {
			f.rows = append(f.rows, c.ProxyIdle)
		}
		if !slices.Contains(f.cols, c.UpstreamIdle) {
			f.cols = append(f.cols, c.UpstreamIdle)
		}
		c.ProxyIdle, c.UpstreamIdle = 0, 0
		if !seen[c] {
			seen[c] = true
			f.panels = append(f.panels, panel{kind: c})
		}
	}
	for i := range f.panels {
		c := f.panels[i].kind
		f.panels[i].title = plain(c.Proxy + " " + c.Method + f.rest(c))
	}
	slices.SortFunc(f.rows, func(a, b spec.Idle) int {
		if (a == spec.Off) != (b == spec.Off) {
			return cmp.Compare(b, a) // off comes last
		}
		return cmp.Compare(a, b)
	})
	slices.Sort(f.cols)
	return f
}

// rest names the settings in which not all cells are alike.
func (f *frame) rest(c spec.Cell) string {
	s := ""
	if f.several.upstream {
		s += " " + c.Upstream
	}
	if f.several.retry {
		s += " retry " + string(c.Retry)
	}
	if f.several.close {
		s += " " + string(c.Close)
	}
	if f.several.rtt {
		s += " rtt " + spec.FormatDuration(c.RTT)
	}
	return s
}

// marks are how much is said of a cell.
type marks struct {
	width  int
	header bool // the columns are named above each matrix
	text   func(*judge.Interim) string
}

// barWidth is the width of a cell's progress.
const barWidth = 6

var (
	rich = marks{14, true, func(o *judge.Interim) string {
		if o.Decided == 0 {
			return dots(o, barWidth) + " " + count(o.Aimed) + "/" + count(o.Asked)
		}
		return mark(interim(o))
	}}
	short = marks{barWidth, true, func(o *judge.Interim) string {
		if o.Decided == 0 {
			return dots(o, barWidth)
		}
		word, _, _ := strings.Cut(mark(interim(o)), " ")
		return word
	}}
	signs = marks{1, false, func(o *judge.Interim) string {
		if o.Decided == 0 {
			return dots(o, 1)
		}
		return ansi.Truncate(mark(interim(o)), 1, "")
	}}
)

// interim is what a verdict would be now, as far as marks go.
func interim(o *judge.Interim) *judge.Verdict {
	return &judge.Verdict{Role: o.Item.Role, State: o.State, Shots: o.Shots, AimedShots: o.Aimed, Failures: o.Failures, Attributed: o.Attributed, Late: o.Late}
}

// dots shows how many of a cell's aimed shots were sent, and whether a failure
// is proven.
func dots(o *judge.Interim, width int) string {
	sent := min((2*o.Aimed*width+o.Asked)/max(2*o.Asked, 1), width)
	s := strings.Repeat("•", sent) + strings.Repeat("·", width-sent)
	if o.Proven > 0 {
		return "!" + ansi.TruncateLeft(s, 1, "")
	}
	return s
}

// over reports whether nothing more will be learnt of a cell.
func over(o *judge.Interim) bool {
	return o.Decided > 0 || o.State == spec.Unsupported || o.State == spec.Broken
}

// of is the colour of a cell.
func (f *frame) of(o *judge.Interim) ink {
	switch {
	case over(o):
		return f.inks[o.State]
	case o.Proven > 0:
		return f.inks[spec.Races]
	}
	return f.faint
}

// between is the gap between matrices that stand side by side.
const between = 3

// matrices draws every panel with these marks, or those of proxies that are not
// done; nil where they do not fit or there is none.
func (f *frame) matrices(m *marks, running, roomy bool, room int) []string {
	panels, out := f.panels, []string(nil)
	if running {
		still := map[string]bool{}
		for i := range f.Cells {
			proxy := f.Cells[i].Item.Cell.Proxy
			still[proxy] = still[proxy] || !over(&f.Cells[i])
		}
		panels = slices.DeleteFunc(slices.Clone(panels), func(p panel) bool { return !still[p.kind.Proxy] })
		out = f.counts(slices.DeleteFunc(slices.Clone(f.proxies), func(proxy string) bool { return still[proxy] }))
	}
	label := 0
	for _, p := range panels {
		label = max(label, lipgloss.Width(p.title))
	}
	for _, row := range f.rows {
		label = max(label, 2+len(row.String()))
	}
	label = min(label, 30)
	each := label + len(f.cols)*(1+m.width)
	if each > f.width || len(panels) == 0 {
		return nil
	}
	across := (f.width + between) / (each + between)
	high := (len(panels) + across - 1) / across * (1 + len(f.rows))
	if roomy {
		high += (len(panels)+across-1)/across - 1
	}
	if len(out)+high > room {
		return nil
	}
	names := make([]string, len(f.cols))
	for j, col := range f.cols {
		names[j] = spec.FormatDuration(col)
	}
	for some := range slices.Chunk(panels, across) {
		if roomy && len(out) > 0 {
			out = append(out, "")
		}
		var l inkLine
		for i, p := range some {
			left := i * (each + between)
			l.at(left, f.strong, fit(p.title, label))
			for j := range f.cols {
				if m.header {
					l.at(left+label+1+j*(1+m.width), f.faint, fit(names[j], m.width))
				}
			}
		}
		out = append(out, l.String())
		for _, row := range f.rows {
			var l inkLine
			name := row.String()
			for i, p := range some {
				left := i * (each + between)
				l.at(left+2, f.faint, name)
				for j, col := range f.cols {
					c := p.kind
					c.ProxyIdle, c.UpstreamIdle = row, col
					text, in := "-", f.faint
					if o := f.at[c]; o != nil {
						text, in = fit(m.text(o), m.width), f.of(o)
					}
					l.at(left+label+1+j*(1+m.width), in, text)
				}
			}
			out = append(out, l.String())
		}
	}
	return out
}

func (f *frame) legend(m *marks) string {
	text := "rows: proxy idle; columns: upstream idle; " + dots(&judge.Interim{Counts: judge.Counts{Aimed: 1}, Asked: 2}, 4) + " shots sent; ! failure proven"
	if m == &signs {
		var cols []string
		for _, c := range f.cols {
			cols = append(cols, spec.FormatDuration(c))
		}
		text = "R races, m masked, s safe, ! failure proven; columns: upstream idle " + strings.Join(cols, ", ")
	}
	return f.faint.on + cut(text, f.width) + f.faint.off
}

// controls is a line that says how they stand: the one that must race, then the
// one that must not.
func (f *frame) controls() []string {
	var l inkLine
	for _, proxy := range f.proxies {
		begun := false
		for i := range f.Cells {
			o := &f.Cells[i]
			if o.Item.Role == plan.RoleCell || o.Item.Cell.Proxy != proxy {
				continue
			}
			if !begun {
				begun = true
				before := ", "
				if l.width == 0 {
					before = "controls: "
				}
				l.add(f.faint, before)
				l.add(f.normal, plain(proxy))
			}
			text, in := dots(o, barWidth/2), f.of(o)
			if over(o) {
				text, in = "FAILED", f.inks[spec.Broken]
				if holds(interim(o)) {
					text, in = "ok", f.inks[spec.Safe]
				}
			}
			l.add(f.normal, " ")
			l.add(in, text)
		}
	}
	if l.width == 0 {
		return nil
	}
	return []string{cut(l.String(), f.width)}
}

// counts is a line for each of these proxies: its cells by state.
func (f *frame) counts(proxies []string) []string {
	name := 0
	for _, proxy := range proxies {
		name = max(name, lipgloss.Width(plain(proxy)))
	}
	name = min(name, 20)
	var out []string
	for _, proxy := range proxies {
		n, done, all := map[spec.State]int{}, 0, 0
		for i := range f.Cells {
			if o := &f.Cells[i]; o.Item.Cell.Proxy == proxy && o.Item.Role == plan.RoleCell {
				all++
				if over(o) {
					done++
					n[o.State]++
				}
			}
		}
		var l inkLine
		l.at(0, f.strong, cut(plain(proxy), name))
		l.at(name+2, f.normal, fmt.Sprintf("%d/%d", done, all))
		column := name + 2 + 9
		for _, s := range []spec.State{spec.Races, spec.Masked, spec.Safe, spec.Inconclusive, spec.Broken, spec.Unsupported} {
			if word, _, _ := strings.Cut(mark(&judge.Verdict{State: s}), " "); n[s] > 0 {
				l.at(column, f.inks[s], fmt.Sprintf("%d %s", n[s], word))
				column = l.width + 2
			}
		}
		out = append(out, cut(l.String(), f.width))
	}
	return out
}

// events are the last ones, oldest first, at most room of them: first proofs,
// and decisions of cells without one.
func (f *frame) events(room int) []string {
	type event struct {
		at      time.Duration
		decided bool
		cell    *judge.Interim
	}
	var all []event
	for i := range f.Cells {
		o := &f.Cells[i]
		if o.Proven > 0 {
			all = append(all, event{o.Proven, false, o})
		}
		if o.Decided > 0 && o.Proven == 0 {
			all = append(all, event{o.Decided, true, o})
		}
	}
	slices.SortStableFunc(all, func(a, b event) int { return cmp.Compare(a.at, b.at) })
	var out []string
	for _, e := range all[max(len(all)-max(min(room, mostEvents), 0), 0):] {
		what := "first failure proven"
		in := f.normal
		if e.decided {
			what, in = mark(interim(e.cell)), f.faint
		}
		c := e.cell.Item.Cell
		name := fmt.Sprintf("%s %s/%s %s%s", c.Proxy, c.ProxyIdle, spec.FormatDuration(c.UpstreamIdle), c.Method, f.rest(c))
		if e.cell.Item.Role != plan.RoleCell {
			name = c.Proxy + " control, " + e.cell.Item.Role
		}
		text := fmt.Sprintf("%s: %s after %.1f s", plain(name), what, e.at.Seconds())
		out = append(out, in.on+cut(text, f.width)+in.off)
	}
	return out
}

// status is what always stands there.
func (f *frame) status() []string {
	round := func(d time.Duration) string { return spec.FormatDuration(d.Round(time.Second)) }
	count := fmt.Sprintf("%d of %d cells and controls decided; %s", f.Decided, f.Total, plural(f.Failures, "failure", "failures"))
	if f.Proven > 0 {
		count += fmt.Sprintf(", proven in %d", f.Proven)
	}
	clock := fmt.Sprintf("%s elapsed, about %s left; the budget of %s ends in %s",
		round(f.Elapsed), round(f.Left), round(f.Budget), round(max(f.Budget-f.Elapsed, 0)))
	var out []string
	for _, s := range []string{count, clock} {
		for _, l := range wrap(s, f.width) {
			out = append(out, f.strong.on+l+f.strong.off)
		}
	}
	return out
}

// ink is what to write before and after text of a style: rendering a thousand
// cells one by one would take milliseconds.
type ink struct{ on, off string }

func inkOf(s lipgloss.Style) ink {
	on, off, _ := strings.Cut(s.Render("x"), "x")
	return ink{on, off}
}

// breadth is the width of s in columns. Nearly all that is drawn is of letters and dots,
// which need no table.
func breadth(s string) int {
	n := 0
	for _, r := range s {
		if r >= ' ' && r <= '~' || r == '•' || r == '·' || r == '…' {
			n++
			continue
		}
		return lipgloss.Width(s)
	}
	return n
}

// fit is cut for text that mostly needs no cutting.
func fit(s string, width int) string {
	if breadth(s) <= width {
		return s
	}
	return cut(s, width)
}

// inkLine is filled from the left.
type inkLine struct {
	strings.Builder
	width int // columns so far
}

func (l *inkLine) add(in ink, s string) {
	l.WriteString(in.on)
	l.WriteString(s)
	l.WriteString(in.off)
	l.width += breadth(s)
}

// at adds s at a column.
func (l *inkLine) at(column int, in ink, s string) {
	if n := column - l.width; n > 0 {
		l.WriteString(strings.Repeat(" ", n))
		l.width = column
	}
	l.add(in, s)
}
