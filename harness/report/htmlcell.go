package report

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"idlerace/harness/judge"
	"idlerace/harness/results"
	"idlerace/harness/spec"
)

// part is the section of one cell or control.
type part struct {
	look
	ID       string // of the section, and the target of links; unique in the page
	Cell     string // the verdict's id
	Role     string // of a control; empty: a cell
	Proxy    string
	Row, Col string // the two timeouts
	Method   string
	Setting  string // all that tells the cell from others, in words
	Heat     int    // 1 to 3: how large the share is that Numbers states
	Numbers  string // "18 of 80"
	Why      string
	Facts    [][2]string
	Warnings []string
	Prev     *part
	Next     *part

	Plots    []figure
	NoPlots  string // why there are none; may be empty
	Sequence *sequence
	Steps    [][]string
	Request  string // what the sequence shows
	NoStory  string // why there is no sequence; may be empty
	Logs     []string
	Orders   []string
	Executed string

	Config    string // rendered configuration
	NoConfig  string // why it is not here
	Capture   string // link to the packets; empty: none
	Reproduce string
	Rate      string
	Upstream  string // median closes, for the table of numbers
	ProxySide string
}

// figure is a plot with what it shows.
type figure struct {
	Plot           *plot // nil: there is nothing to draw
	Title, Caption string
}

// newParts makes a part of every cell and control.
func newParts(d *judge.Document, o Options) map[*judge.Verdict]*part {
	parts := map[*judge.Verdict]*part{}
	used := map[string]bool{}
	var last *part
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			p := newPart(&list[i], o)
			p.ID = unique(used, "cell-"+slug(list[i].ID))
			if p.Prev = last; last != nil {
				last.Next = p
			}
			parts[&list[i]], last = p, p
		}
	}
	return parts
}

// slug is text of unknown origin as part of an id or a link: letters, digits,
// ".", "_" and "-", at most 120 of them.
func slug(s string) string {
	s = strings.Map(func(r rune) rune {
		if r == '.' || r == '_' || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '-'
	}, s)
	return s[:min(len(s), 120)]
}

func unique(used map[string]bool, id string) string {
	s := id
	for n := 2; used[s]; n++ {
		s = id + "-" + strconv.Itoa(n)
	}
	used[s] = true
	return s
}

func newPart(v *judge.Verdict, o Options) *part {
	p := &part{look: lookOf(v.State), Cell: plain(v.ID), Proxy: plain(proxyName(v)), Row: plain(v.ProxyIdle), Col: plain(v.UpstreamIdle), Method: plain(v.Method),
		Why: sentenceCase(plain(v.Why)), Reproduce: visible(v.Reproduce), Rate: percent(v.Rate), Upstream: median(v.UpstreamClosed), ProxySide: median(v.ProxyClosed)}
	switch v.Role {
	case judge.RoleMustRace:
		p.Role = "control: must race"
	case judge.RoleMustNotRace:
		p.Role = "control: must not race"
	}
	p.Setting = fmt.Sprintf("%s, %s", p.Proxy, p.Method)
	if v.Retry != spec.RetryDefault {
		p.Setting += ", retry " + plain(string(v.Retry))
	}
	if v.Close != spec.CloseFIN {
		p.Setting += ", close " + plain(string(v.Close))
	}
	if v.RTT != "0s" {
		p.Setting += ", round trip " + plain(v.RTT)
	}
	p.heat(v)
	p.facts(v)
	for _, w := range v.Warnings {
		p.Warnings = append(p.Warnings, plain(w))
	}
	p.plots(v)
	p.story(v)
	p.files(v, o)
	return p
}

// sentenceCase makes a clause a sentence.
func sentenceCase(s string) string {
	r, n := utf8.DecodeRuneInString(s)
	if n == 0 {
		return "No reason recorded."
	}
	s = string(unicode.ToUpper(r)) + s[n:]
	if !strings.HasSuffix(s, ".") {
		s += "."
	}
	return s
}

// heat takes the share from the same numbers as mark does.
func (p *part) heat(v *judge.Verdict) {
	hits, shots := v.Failures, v.AimedShots
	switch v.State {
	case spec.Races:
		hits = v.Attributed
	case spec.Masked:
		hits = v.Late
	case spec.Unsupported, spec.Broken:
		p.Heat = 1
		return
	}
	if hits > shots {
		shots = v.Shots
	}
	p.Numbers = count(hits) + " of " + count(shots)
	p.Heat = 1
	if v.State != spec.Races && v.State != spec.Masked {
		return
	}
	switch share := float64(hits) / float64(max(shots, 1)); {
	case share >= 0.4:
		p.Heat = 3
	case share >= 0.1:
		p.Heat = 2
	}
}

func (p *part) facts(v *judge.Verdict) {
	add := func(name, value string) {
		if value != "" {
			p.Facts = append(p.Facts, [2]string{name, plain(value)})
		}
	}
	if v.State == spec.Unsupported {
		return
	}
	add("aimed requests", fmt.Sprintf("%d, of %d in all", v.AimedShots, v.Shots))
	add("failed", failures(v))
	add("lost to the race, per aimed request", percent(v.Rate)+" (95 % interval)")
	if v.Rate == nil {
		p.Facts = p.Facts[:len(p.Facts)-1]
	}
	if v.Late > 0 {
		add("met a closed connection", strconv.Itoa(v.Late))
	}
	if v.Retried > 0 {
		add("sent again by the proxy, and answered", strconv.Itoa(v.Retried))
	}
	if v.Twice > 0 {
		add("executed twice", strconv.Itoa(v.Twice))
	}
	if v.OnWire > 0 {
		add("failures with packets", strconv.Itoa(v.OnWire))
	}
	add("answers", pairs(v.Statuses))
	add("causes of failures", pairs(v.Causes))
	add("order on the wire", pairs(v.Orders))
	if v.SetAside > 0 {
		add("set aside for disturbances", plural(v.SetAside, "request", "requests"))
	}
	add("upstream idle timeout", fmt.Sprintf("set %s; %s", v.UpstreamIdle, spread(v.UpstreamClosed)))
	add("the same without a proxy", spread(v.Direct))
	add("proxy idle timeout", fmt.Sprintf("set %s; %s", v.ProxyIdle, spread(v.ProxyClosed)))
	if v.Window != nil {
		add("ages that came too late", window(v.Window)+" around the upstream's close")
	}
	if v.Fit != nil {
		add("danger window", fitText(*v))
	}
}

// spread is a sample in words.
func spread(q *judge.Quantiles) string {
	if q == nil {
		return "never seen to close an idle connection"
	}
	return fmt.Sprintf("closed after %s to %s, median %s (%s)", precise(time.Duration(q.Min)), precise(time.Duration(q.Max)), precise(time.Duration(q.P50)), plural(q.N, "close", "closes"))
}

func (p *part) plots(v *judge.Verdict) {
	if v.Fit != nil {
		if c := curvePlot(v.Fit); c != nil {
			p.Plots = append(p.Plots, figure{c, "Danger window", "Share of requests that met a closed connection, by age at the proxy; 0 is the upstream's close. Lines: 95 % intervals."})
		}
	}
	if v.Detail == nil {
		p.NoPlots = "The plots are drawn from the run's record, which was not at hand: idlerace report RUN --format html has it."
		return
	}
	c, err := v.Cell()
	if err != nil {
		p.NoPlots = plain(err.Error())
		return
	}
	if a := agePlot(v.Detail.Ages, c.RTT); a != nil {
		met := "None of them met a closed connection."
		if slices.ContainsFunc(a.Bars, func(b bar) bool { return b.Class == "hit" }) {
			met = "Dark: they met a closed connection."
		}
		p.Plots = append(p.Plots, figure{a, "Aimed requests by age", "How long the connection had been idle, before (-) or after the expected upstream close. " + met})
	}
	for _, side := range []struct {
		who string
		h   judge.Histogram
		set time.Duration
	}{{"upstream", v.Detail.Upstream, c.UpstreamIdle}, {"proxy", v.Detail.Proxy, time.Duration(c.ProxyIdle)}} {
		title := "Idle times at which the " + side.who + " closed"
		h, outside := closes(side.who, side.h, side.set)
		if h == nil {
			p.Plots = append(p.Plots, figure{Title: title, Caption: "The " + side.who + " closed no idle connection of this cell: the other side always did first."})
			continue
		}
		caption := "Set: " + spec.FormatDuration(side.set) + "."
		if side.set == 0 {
			caption = "Keep-alive to the upstream is off."
		}
		if outside > 0 {
			caption += fmt.Sprintf(" %s far from these not drawn.", plural(outside, "close", "closes"))
		}
		p.Plots = append(p.Plots, figure{h, title, caption})
	}
}

// story tells the verdict's example.
func (p *part) story(v *judge.Verdict) {
	switch {
	case v.Example == nil:
		return
	case v.Detail == nil || v.Detail.Example == nil:
		p.NoStory = "The steps of a request are in the run's record, which was not at hand: idlerace explain RUN " + p.Cell
		return
	}
	tl := NewTimeline(*v.Detail.Example, nil)
	zero, event := tl.zero()
	p.Sequence, p.Steps = newSequence(tl.Steps, zero), seqTable(tl.Steps, zero)
	p.Request = fmt.Sprintf("%s request %d of lane %d, burst %d. Time 0 is %s, %s; (log) is the proxy's log, which tells no time.", p.Method, tl.Shot.Seq, tl.Shot.Lane, tl.Shot.Burst, event, clock(zero))
	for _, l := range tl.Logs {
		p.Logs = append(p.Logs, plain(l))
	}
	for _, o := range tl.Orders {
		p.Orders = append(p.Orders, plain(fmt.Sprintf("%s. %s", o, o.Explain())))
	}
	p.Executed = executed(*v, tl)
}

// mostConfig bounds a configuration in the page, in bytes.
const mostConfig = 16 << 10

// files adds what the run's folder has of the cell.
func (p *part) files(v *judge.Verdict, o Options) {
	if v.State == spec.Unsupported {
		return
	}
	if o.Files == nil {
		p.NoConfig = "The configuration is in the run's folder, which was not at hand."
		return
	}
	dir := path.Join(results.CellsDir, v.ID)
	b, err := fs.ReadFile(o.Files, path.Join(dir, results.ConfigFile))
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrInvalid):
		p.NoConfig = "The run's folder has no configuration of this cell."
	case err != nil:
		p.NoConfig = plain(err.Error())
	default:
		if len(b) > mostConfig {
			b = append(b[:mostConfig:mostConfig], "\n... the rest is in the run's folder"...)
		}
		p.Config = visibleLines(string(b))
	}
	if _, err := fs.Stat(o.Files, path.Join(dir, results.EvidenceFile)); err == nil {
		p.Capture = (&url.URL{Path: path.Join("./", o.Folder, dir, results.EvidenceFile)}).EscapedPath()
	}
}

// visibleLines is visible, line by line; a tab is two blanks.
func visibleLines(s string) string {
	var out []string
	for l := range strings.SplitSeq(strings.TrimRight(s, "\r\n"), "\n") {
		out = append(out, visible(strings.ReplaceAll(strings.TrimSuffix(l, "\r"), "\t", "  ")))
	}
	return strings.Join(out, "\n")
}
