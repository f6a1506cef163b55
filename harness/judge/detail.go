package judge

import (
	"time"

	"idlerace/harness/record"
)

// Detail is what a verdict's numbers were counted from, as far as a plot or a
// diagram needs it. It is no part of verdicts.json, which people commit as a
// baseline: whoever judges the record has it again.
type Detail struct {
	Upstream Histogram           // idle times at which the upstream closed; see Verdict.UpstreamClosed
	Proxy    Histogram           // likewise, the proxy
	Ages     Ages                // of the aimed shots
	Example  *record.Observation // the request of Verdict.Example; nil without
}

// Histogram counts durations, none below 0, in bins of one width. Its memory is
// bounded by mostBins, whatever their number and range. The zero value is ready.
type Histogram struct {
	Width  time.Duration         // a power of two times finestBin; 0: nothing was counted
	Counts map[time.Duration]int // by the begin of the bin, a multiple of Width; no bin is empty
}

const (
	finestBin = 10 * time.Microsecond
	mostBins  = 40
)

func (h *Histogram) add(d time.Duration) {
	if h.Counts == nil {
		h.Width, h.Counts = finestBin, map[time.Duration]int{}
	}
	h.Counts[d.Truncate(h.Width)]++
	// A few far off take a bin each, and leave the others as fine as they are.
	for len(h.Counts) > mostBins {
		h.Width *= 2
		coarse := map[time.Duration]int{}
		for from, n := range h.Counts {
			coarse[from.Truncate(h.Width)] += n
		}
		h.Counts = coarse
	}
}

// Ages counts the aimed shots by age, relative to the age at which they were
// expected to be in danger first: a round trip before the upstream's close. The
// zero value is ready.
type Ages struct {
	Width time.Duration              // 0: there was no aimed shot
	Bins  map[time.Duration]AgeCount // by the begin of the bin, a multiple of Width
}

// AgeCount is a number of shots, and how many of them met a closed connection.
type AgeCount struct{ Shots, Stale int }

// ageBins is how many bins the zone of the aimed shots has.
const ageBins = 40

func (a *Ages) add(age, rtt time.Duration, stale bool) {
	if a.Bins == nil {
		a.Width, a.Bins = (2*Zone+rtt)/ageBins, map[time.Duration]AgeCount{}
	}
	from := age.Truncate(a.Width)
	if from > age {
		from -= a.Width
	}
	n := a.Bins[from]
	n.Shots++
	if stale {
		n.Stale++
	}
	a.Bins[from] = n
}
