package report

import (
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"idlerace/harness/judge"
)

func init() { register(csvFormat{}) }

// csvFormat is a row per cell and control for spreadsheets and data frames.
type csvFormat struct{}

func (csvFormat) Name() string { return "csv" }

func (csvFormat) About() string {
	return "one row per cell and control; columns named as in verdicts.json"
}

func (csvFormat) Write(w io.Writer, d *judge.Document, _ Options) error {
	out := csv.NewWriter(w)
	row := make([]string, len(columns))
	for i, c := range columns {
		row[i] = c.name
	}
	if err := out.Write(row); err != nil {
		return fmt.Errorf("csv: %w", err)
	}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			for j, c := range columns {
				row[j] = c.of(&list[i])
			}
			if err := out.Write(row); err != nil {
				return fmt.Errorf("csv: %w", err)
			}
		}
	}
	out.Flush()
	return out.Error()
}

// columns are named by the path of their JSON field. Durations are Go duration
// strings, an absent value is an empty field.
var columns = []struct {
	name string
	of   func(*judge.Verdict) string
}{
	{"id", text(func(v *judge.Verdict) string { return v.ID })},
	{"role", text(func(v *judge.Verdict) string { return v.Role })},
	{"proxy", text(func(v *judge.Verdict) string { return v.Proxy })},
	{"version", text(func(v *judge.Verdict) string { return v.Version })},
	{"runtime", text(func(v *judge.Verdict) string { return v.Runtime })},
	{"upstream", text(func(v *judge.Verdict) string { return v.Upstream })},
	{"proxy_idle", text(func(v *judge.Verdict) string { return v.ProxyIdle })},
	{"upstream_idle", text(func(v *judge.Verdict) string { return v.UpstreamIdle })},
	{"method", text(func(v *judge.Verdict) string { return v.Method })},
	{"retry", text(func(v *judge.Verdict) string { return string(v.Retry) })},
	{"close", text(func(v *judge.Verdict) string { return string(v.Close) })},
	{"rtt", text(func(v *judge.Verdict) string { return v.RTT })},
	{"state", text(func(v *judge.Verdict) string { return string(v.State) })},
	{"shots", number(func(v *judge.Verdict) int { return v.Shots })},
	{"aimed_shots", number(func(v *judge.Verdict) int { return v.AimedShots })},
	{"failures", number(func(v *judge.Verdict) int { return v.Failures })},
	{"attributed", number(func(v *judge.Verdict) int { return v.Attributed })},
	{"late", number(func(v *judge.Verdict) int { return v.Late })},
	{"retried", number(func(v *judge.Verdict) int { return v.Retried })},
	{"executed_twice", number(func(v *judge.Verdict) int { return v.Twice })},
	{"other_failures", number(func(v *judge.Verdict) int { return v.Other })},
	{"causes", text(func(v *judge.Verdict) string { return pairs(v.Causes) })},
	{"statuses", text(func(v *judge.Verdict) string { return pairs(v.Statuses) })},
	{"rate.low", proportion(func(i *judge.Interval) float64 { return i.Low })},
	{"rate.high", proportion(func(i *judge.Interval) float64 { return i.High })},
	{"upstream_closed.n", size(upstreamClosed)},
	{"upstream_closed.min", quantile(upstreamClosed, func(q *judge.Quantiles) judge.Duration { return q.Min })},
	{"upstream_closed.p50", quantile(upstreamClosed, func(q *judge.Quantiles) judge.Duration { return q.P50 })},
	{"upstream_closed.max", quantile(upstreamClosed, func(q *judge.Quantiles) judge.Duration { return q.Max })},
	{"proxy_closed.n", size(proxyClosed)},
	{"proxy_closed.min", quantile(proxyClosed, func(q *judge.Quantiles) judge.Duration { return q.Min })},
	{"proxy_closed.p50", quantile(proxyClosed, func(q *judge.Quantiles) judge.Duration { return q.P50 })},
	{"proxy_closed.max", quantile(proxyClosed, func(q *judge.Quantiles) judge.Duration { return q.Max })},
	{"upstream_closed_direct.n", size(direct)},
	{"upstream_closed_direct.min", quantile(direct, func(q *judge.Quantiles) judge.Duration { return q.Min })},
	{"upstream_closed_direct.p50", quantile(direct, func(q *judge.Quantiles) judge.Duration { return q.P50 })},
	{"upstream_closed_direct.max", quantile(direct, func(q *judge.Quantiles) judge.Duration { return q.Max })},
	{"window.from", edge(func(w *judge.Window) judge.Duration { return w.From })},
	{"window.to", edge(func(w *judge.Window) judge.Duration { return w.To })},
	{"why", text(func(v *judge.Verdict) string { return v.Why })},
	{"warnings", text(func(v *judge.Verdict) string { return strings.Join(v.Warnings, "; ") })},
	{"reproduce", text(func(v *judge.Verdict) string { return v.Reproduce })},
	{"example.cell", text(func(v *judge.Verdict) string {
		if v.Example == nil {
			return ""
		}
		return v.Example.Cell
	})},
	{"example.seq", func(v *judge.Verdict) string {
		if v.Example == nil {
			return ""
		}
		return strconv.FormatUint(v.Example.Seq, 10)
	}},
	{"on_wire", number(func(v *judge.Verdict) int { return v.OnWire })},
	{"orders", text(func(v *judge.Verdict) string { return pairs(v.Orders) })},
	{"window_fit.lower", fitted(func(f *judge.Fit) *judge.Estimate { return f.Lower })},
	{"window_fit.upper", fitted(func(f *judge.Fit) *judge.Estimate { return f.Upper })},
	{"window_fit.width", fitted(func(f *judge.Fit) *judge.Estimate { return f.Width })},
	{"window_fit.client_lower", fitted(func(f *judge.Fit) *judge.Estimate { return f.ClientLower })},
	{"set_aside", number(func(v *judge.Verdict) int { return v.SetAside })},
	{"disturbed", number(func(v *judge.Verdict) int { return v.Disturbed })},
	{"aimed_lost", number(func(v *judge.Verdict) int { return v.AimedLost })},
	{"aimed_stale", number(func(v *judge.Verdict) int { return v.AimedStale })},
	{"aimed_bursts", number(func(v *judge.Verdict) int { return v.AimedBursts })},
	{"lost_bursts", number(func(v *judge.Verdict) int { return v.LostBursts })},
	{"stale_bursts", number(func(v *judge.Verdict) int { return v.StaleBursts })},
}

// fitted is a column of an estimate, without its interval.
func fitted(of func(*judge.Fit) *judge.Estimate) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string {
		if v.Fit == nil || of(v.Fit) == nil {
			return ""
		}
		return of(v.Fit).At.String()
	}
}

func upstreamClosed(v *judge.Verdict) *judge.Quantiles { return v.UpstreamClosed }
func proxyClosed(v *judge.Verdict) *judge.Quantiles    { return v.ProxyClosed }
func direct(v *judge.Verdict) *judge.Quantiles         { return v.Direct }

// text is a column of text on one line that no spreadsheet takes for a formula.
// (Columns of numbers and durations may begin with a minus: they are ours.)
func text(of func(*judge.Verdict) string) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string {
		s := strings.TrimSpace(visible(of(v)))
		// https://owasp.org/www-community/attacks/CSV_Injection, with the
		// full-width forms that some locales accept.
		if r, _ := utf8.DecodeRuneInString(s); strings.ContainsRune("=+-@＝＋－＠", r) {
			return "'" + s
		}
		return s
	}
}

func number(of func(*judge.Verdict) int) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string { return strconv.Itoa(of(v)) }
}

func proportion(of func(*judge.Interval) float64) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string {
		if v.Rate == nil {
			return ""
		}
		return strconv.FormatFloat(of(v.Rate), 'g', -1, 64)
	}
}

func size(q func(*judge.Verdict) *judge.Quantiles) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string {
		if q(v) == nil {
			return ""
		}
		return strconv.Itoa(q(v).N)
	}
}

func quantile(q func(*judge.Verdict) *judge.Quantiles, of func(*judge.Quantiles) judge.Duration) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string {
		if q(v) == nil {
			return ""
		}
		return of(q(v)).String()
	}
}

func edge(of func(*judge.Window) judge.Duration) func(*judge.Verdict) string {
	return func(v *judge.Verdict) string {
		if v.Window == nil {
			return ""
		}
		return of(v.Window).String()
	}
}

// pairs is a map as "200=297; 502=23", sorted by key.
func pairs(m map[string]int) string {
	out := make([]string, 0, len(m))
	for k, n := range m {
		out = append(out, k+"="+strconv.Itoa(n))
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}
