package report

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// block is one table of a report: the cells of one proxy that differ in their
// two timeouts alone.
type block struct {
	title string   // trusted by no one: neutralise it before printing
	rows  []string // proxy idle, shortest first, "off" last
	cols  []string // upstream idle, likewise
	cells []*judge.Verdict
	at    map[[2]string]*judge.Verdict
}

// cell is nil where the run has no such cell.
func (b *block) cell(row, col string) *judge.Verdict { return b.at[[2]string{row, col}] }

// blocks splits the document's cells into tables, in the order in which the
// document begins them.
func blocks(d *judge.Document) []*block {
	type key struct {
		proxy, version, runtime, upstream, method string
		retry                                     spec.Retry
		close                                     spec.Close
		rtt                                       string
	}
	var several struct{ upstream, retry, close, rtt bool }
	for i := range d.Cells {
		v, first := &d.Cells[i], &d.Cells[0]
		several.upstream = several.upstream || v.Upstream != first.Upstream
		several.retry = several.retry || v.Retry != first.Retry
		several.close = several.close || v.Close != first.Close
		several.rtt = several.rtt || v.RTT != first.RTT
	}
	var out []*block
	index := map[key]*block{}
	for i := range d.Cells {
		v := &d.Cells[i]
		k := key{v.Proxy, v.Version, v.Runtime, v.Upstream, v.Method, v.Retry, v.Close, v.RTT}
		b := index[k]
		if b == nil {
			parts := []string{proxyName(v), v.Method}
			if several.upstream || v.Upstream != "go" {
				parts = append(parts, "upstream "+v.Upstream)
			}
			if several.retry || v.Retry != spec.RetryDefault {
				parts = append(parts, "retry "+string(v.Retry))
			}
			if several.close || v.Close != spec.CloseFIN {
				parts = append(parts, "close "+string(v.Close))
			}
			if several.rtt || v.RTT != "0s" {
				parts = append(parts, "rtt "+v.RTT)
			}
			b = &block{title: strings.Join(parts, ", "), at: map[[2]string]*judge.Verdict{}}
			index[k] = b
			out = append(out, b)
		}
		b.cells = append(b.cells, v)
		b.rows = append(b.rows, v.ProxyIdle)
		b.cols = append(b.cols, v.UpstreamIdle)
		b.at[[2]string{v.ProxyIdle, v.UpstreamIdle}] = v
	}
	for _, b := range out {
		b.rows, b.cols = timeouts(b.rows), timeouts(b.cols)
	}
	return out
}

// proxyName is the proxy with its version and runtime, as far as known.
func proxyName(v *judge.Verdict) string {
	s := v.Proxy
	if v.Version != "" {
		s += " " + v.Version
	}
	if v.Runtime != "" {
		s += " (" + v.Runtime + ")"
	}
	return s
}

// timeouts sorts and compacts values of a timeout axis: durations first, then
// "off", then what is neither.
func timeouts(values []string) []string {
	length := func(s string) (class int, d time.Duration) {
		if s == spec.Off.String() {
			return 1, 0
		}
		d, err := time.ParseDuration(s)
		if err != nil {
			return 2, 0
		}
		return 0, d
	}
	slices.Sort(values)
	values = slices.Compact(values)
	slices.SortStableFunc(values, func(a, b string) int {
		ca, da := length(a)
		cb, db := length(b)
		return cmp.Or(cmp.Compare(ca, cb), cmp.Compare(da, db))
	})
	return values
}

// mark is a verdict in one word, with the numbers behind it where there are
// any. Only words that mean trouble are in capitals, so that a table can be
// scanned without colour.
func mark(v *judge.Verdict) string {
	switch v.State {
	case spec.Races:
		return "RACES " + hits(v)
	case spec.Masked:
		return "masked " + hits(v)
	case spec.Safe:
		return "safe " + hits(v)
	case spec.Inconclusive:
		return "? " + hits(v)
	case spec.Unsupported:
		return "n/a"
	case spec.Broken:
		return "BROKEN"
	}
	return string(v.State)
}

// hits are the numbers that a state stands on, "n/m"; empty where there are none.
func hits(v *judge.Verdict) string {
	n := 0
	switch v.State {
	case spec.Races:
		n = v.Attributed
	case spec.Masked:
		n = v.Late
	case spec.Safe, spec.Inconclusive:
		n = v.Failures
	default:
		return ""
	}
	shots := v.AimedShots
	if n > shots { // some failed before the edge was known to aim at
		shots = v.Shots
	}
	return count(n) + "/" + count(shots)
}

// legend says what the marks mean, in the order of spec.States.
func legend(s spec.State) (sign, meaning string) {
	switch s {
	case spec.Safe:
		return "safe 0/m", "none of m aimed requests failed or met a closed connection"
	case spec.Masked:
		return "masked n/m", "n of m met a connection already closed; the proxy sent them again"
	case spec.Races:
		return "RACES n/m", "n of m aimed requests failed on a connection already closed"
	case spec.Inconclusive:
		return "? n/m", "not decided: n failures in m aimed requests"
	case spec.Unsupported:
		return "n/a", "the proxy cannot express this cell"
	case spec.Broken:
		return "BROKEN", "a control or the stack failed: the cell says nothing"
	}
	return string(s), "unknown state"
}

// present lists the states that occur among the cells, in the order of
// spec.States.
func present(d *judge.Document) []spec.State {
	n := tally(d)
	var out []spec.State
	for _, s := range spec.States() {
		if n[s] > 0 {
			out = append(out, s)
		}
	}
	return out
}

func tally(d *judge.Document) map[spec.State]int {
	n := map[spec.State]int{}
	for i := range d.Cells {
		n[d.Cells[i].State]++
	}
	return n
}

// holds reports whether a control showed what it is there to show, or is one
// that its proxy cannot express.
func holds(v *judge.Verdict) bool {
	switch {
	case v.State == spec.Unsupported:
		return true
	case v.Role == judge.RoleMustRace:
		return v.State == spec.Races
	}
	return v.State == spec.Safe
}

// controlled is a proxy of the document with its controls.
type controlled struct {
	proxy               string
	mustRace, mustNot   []*judge.Verdict
	mustRaceOK, mustNOK bool // at least one control, and every one holds
}

// controls lists the proxies that have a control or need one, in the order of
// the document. A proxy of which every cell is unsupported needs none.
func controls(d *judge.Document) []*controlled {
	var out []*controlled
	index := map[string]*controlled{}
	of := func(proxy string) *controlled {
		c := index[proxy]
		if c == nil {
			c = &controlled{proxy: proxy}
			index[proxy] = c
			out = append(out, c)
		}
		return c
	}
	for i := range d.Cells {
		if v := &d.Cells[i]; v.State != spec.Unsupported {
			of(v.Proxy)
		}
	}
	for i := range d.Controls {
		v := &d.Controls[i]
		c := of(v.Proxy)
		if v.Role == judge.RoleMustRace {
			c.mustRace = append(c.mustRace, v)
		} else {
			c.mustNot = append(c.mustNot, v)
		}
	}
	fails := func(v *judge.Verdict) bool { return !holds(v) }
	for _, c := range out {
		c.mustRaceOK = len(c.mustRace) > 0 && !slices.ContainsFunc(c.mustRace, fails)
		c.mustNOK = len(c.mustNot) > 0 && !slices.ContainsFunc(c.mustNot, fails)
	}
	return out
}

// sentences are the whole document in brief: the verdict first, then what
// qualifies it.
func sentences(d *judge.Document) []string {
	n, total := tally(d), len(d.Cells)
	var out []string
	var rest []string
	for _, s := range []spec.State{spec.Masked, spec.Safe, spec.Inconclusive, spec.Unsupported, spec.Broken} {
		if n[s] > 0 {
			rest = append(rest, fmt.Sprintf("%d %s", n[s], s))
		}
	}
	tail := "."
	if len(rest) > 0 {
		tail = "; " + strings.Join(rest, ", ") + "."
	}
	switch {
	case total == 0:
		out = append(out, "No cell was judged.")
	case n[spec.Safe] == total:
		out = append(out, fmt.Sprintf("No race: all of %s safe.", plural(total, "cell is", "cells are")))
	case n[spec.Races] == 0:
		out = append(out, fmt.Sprintf("None of %s races%s", plural(total, "cell", "cells"), tail))
	case n[spec.Races] == 1:
		out = append(out, fmt.Sprintf("1 of %s races%s", plural(total, "cell", "cells"), tail))
	default:
		out = append(out, fmt.Sprintf("%d of %d cells race%s", n[spec.Races], total, tail))
	}
	var failed []string
	for _, c := range controls(d) {
		if !c.mustRaceOK || !c.mustNOK {
			failed = append(failed, c.proxy)
		}
	}
	if len(failed) > 0 {
		out = append(out, "Controls failed or are missing: "+strings.Join(failed, ", ")+".")
	}
	forbidden, unproven := 0, 0
	for _, v := range d.Violations {
		if v.State == spec.Inconclusive || v.State == spec.Broken {
			unproven++
		} else {
			forbidden++
		}
	}
	if forbidden > 0 {
		out = append(out, plural(forbidden, "cell violates", "cells violate")+" the policy.")
	}
	if unproven > 0 {
		out = append(out, plural(unproven, "cell", "cells")+" under the policy not proven.")
	}
	if d.Run.Shard != "" {
		out = append(out, "Only shard "+d.Run.Shard+" of the scenario's cells.")
	}
	if len(d.Unavailable) > 0 {
		var names []string
		for _, u := range d.Unavailable {
			names = append(names, u.Proxy)
		}
		out = append(out, "Did not run here: "+strings.Join(names, ", ")+".")
	}
	return out
}

// note is a text with the cells it was said of.
type note struct {
	text  string
	proxy string   // of the first cell
	cells []string // ids; empty: said of the run
}

// subject names the note's cells on one line.
func (n note) subject() string {
	switch len(n.cells) {
	case 0:
		return ""
	case 1:
		return n.cells[0]
	}
	return fmt.Sprintf("%s and %d more", n.cells[0], len(n.cells)-1)
}

// notes collects equal texts.
type notes struct {
	list  []note
	index map[string]int
}

func (ns *notes) add(text, proxy, cell string) {
	if ns.index == nil {
		ns.index = map[string]int{}
	}
	i, ok := ns.index[text]
	if !ok {
		i = len(ns.list)
		ns.index[text] = i
		ns.list = append(ns.list, note{text: text, proxy: proxy})
	}
	if cell != "" {
		ns.list[i].cells = append(ns.list[i].cells, cell)
	}
}

// few picks from a list longer than most the notes on the run and one per
// proxy, and at most that many.
func few(list []note, most int) []note {
	if len(list) <= most {
		return list
	}
	var out []note
	for _, n := range list {
		known := func(o note) bool { return o.proxy == n.proxy }
		if len(out) < most && (len(n.cells) == 0 || !slices.ContainsFunc(out, known)) {
			out = append(out, n)
		}
	}
	return out
}

// whys are the reasons of all cells in one state.
func whys(d *judge.Document, s spec.State) []note {
	var ns notes
	for i := range d.Cells {
		if v := &d.Cells[i]; v.State == s {
			ns.add(cmp.Or(plain(v.Why), "no reason recorded"), v.Proxy, plain(v.ID))
		}
	}
	return ns.list
}

// warnings are those of the run, then those of controls and cells.
func warnings(d *judge.Document) []note {
	var ns notes
	for _, w := range d.Run.Warnings {
		ns.add(plain(w), "", "")
	}
	for _, list := range [][]judge.Verdict{d.Controls, d.Cells} {
		for i := range list {
			for _, w := range list[i].Warnings {
				ns.add(plain(w), list[i].Proxy, plain(list[i].ID))
			}
		}
	}
	return ns.list
}

// violations are the cells per rule.
func violations(d *judge.Document) []note {
	var ns notes
	for _, v := range d.Violations {
		ns.add(plain(v.Rule), "", plain(v.Cell)+": "+plain(string(v.State)))
	}
	return ns.list
}

// count shows n in at most four columns up to a million.
func count(n int) string {
	switch {
	case n < 1000:
		return strconv.Itoa(n)
	case n < 9950:
		return strconv.FormatFloat(float64(n)/1000, 'f', 1, 64) + "k"
	case n < 999_500:
		return strconv.Itoa((n+500)/1000) + "k"
	}
	return strconv.FormatFloat(float64(n)/1e6, 'f', 1, 64) + "M"
}

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// precise rounds a measured duration to what its size makes worth reading, in
// at most eight columns and a sign below a hundred hours.
func precise(d time.Duration) string {
	abs := d.Abs()
	switch {
	case abs >= time.Hour:
		d = d.Round(time.Minute)
	case abs >= time.Minute:
		d = d.Round(100 * time.Millisecond)
	case abs >= 10*time.Second:
		d = d.Round(time.Millisecond)
	case abs >= time.Second:
		d = d.Round(100 * time.Microsecond)
	case abs >= time.Millisecond:
		d = d.Round(10 * time.Microsecond)
	case abs >= 10*time.Microsecond:
		d = d.Round(time.Microsecond)
	}
	return spec.FormatDuration(d)
}

// rough is a duration a person waited for.
func rough(d judge.Duration) string {
	t := time.Duration(d)
	switch {
	case t >= 10*time.Second:
		t = t.Round(time.Second)
	case t >= time.Second:
		t = t.Round(100 * time.Millisecond)
	default:
		t = t.Round(time.Millisecond)
	}
	return spec.FormatDuration(t)
}
