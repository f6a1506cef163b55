package report

import (
	"fmt"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// fitsOf are the verdicts with a window to tell: those that met a closed
// connection.
func fitsOf(d *judge.Document) (out []judge.Verdict) {
	for _, v := range d.Cells {
		if v.Fit != nil && v.Fit.Stale > 0 {
			out = append(out, v)
		}
	}
	return out
}

// fitText is a fitted window in words.
func fitText(v judge.Verdict) string {
	f := v.Fit
	parts := []string{f.Law}
	if f.Width != nil {
		parts = append(parts, fmt.Sprintf("%s wide (95 %%: %s to %s)", fine(f.Width.At), fine(f.Width.Low), fine(f.Width.High)))
	}
	if f.ClientLower != nil {
		parts = append(parts, "first edge by the client's clock "+fine(f.ClientLower.At))
	}
	switch {
	case f.Holds == nil:
	case *f.Holds:
		parts = append(parts, "as the law says")
	default:
		parts = append(parts, "NOT as the law says")
	}
	if f.Why != "" {
		parts = append(parts, f.Why)
	}
	parts = append(parts, fmt.Sprintf("%d of %d requests", f.Stale, f.Shots))
	return strings.Join(parts, "; ")
}

// fine is d to 10 µs.
func fine(d judge.Duration) string {
	return judge.Duration(time.Duration(d).Round(10 * time.Microsecond)).String()
}

// marginOf names what a margin was measured on.
func marginOf(m judge.Margin) string {
	s := fmt.Sprintf("%s %s (%s), %s", m.Proxy, m.Version, m.Runtime, m.Method)
	if m.Retry != spec.RetryDefault {
		s += ", retry " + string(m.Retry)
	}
	if m.Close != spec.CloseFIN {
		s += ", close " + string(m.Close)
	}
	return s + ", rtt " + m.RTT
}
