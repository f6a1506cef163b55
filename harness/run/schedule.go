package run

import (
	"cmp"
	"slices"
	"time"

	"idlerace/harness/load"
	"idlerace/harness/plan"
	"idlerace/harness/spec"
)

// The first bursts of a run's cells are staggerSlot apart, and within
// staggerMost as far as possible.
const (
	staggerSlot = 40 * time.Millisecond
	staggerMost = 2 * time.Second
)

// busyRate is how many shots a second two cores carry without making each other
// late: all parties together spend some 0.4 ms on one.
const busyRate = 1200

// extraBursts is what a cell sends besides its aimed bursts: see cell.next.
const extraBursts = 5

// perCore is how many requests a second one core drives through client, proxy
// and origin with time to spare; probeShare of the budget is what probing a
// cell may take.
const (
	perCore    = 1000
	probeShare = 0.8
)

// lanes chooses the number of client connections of each item: as many as the
// cores can drive, but enough for the longest cell to be probed within the
// budget.
func lanes(items []plan.Item, p spec.Probe, cores int) int {
	perLane, longest := 0.0, time.Duration(0)
	for _, it := range items {
		if it.Unsupported == "" {
			perLane += 1 / it.Cell.UpstreamIdle.Seconds()
			longest = max(longest, it.Cell.UpstreamIdle)
		}
	}
	n := spec.UsualLanes
	if perLane > 0 {
		n = min(n, int(float64(perCore*cores)/perLane))
	}
	bursts := int(probeShare*float64(p.Budget)/float64(longest+load.MinHold)) - extraBursts
	least := (p.Shots + max(bursts, 1) - 1) / max(bursts, 1)
	return min(max(n, least, spec.LeastLanes), spec.UsualLanes, spec.MaxTotalLanes/max(len(items), 1))
}

// need estimates how long a cell takes that stays undecided until its last
// shot.
func need(c spec.Cell, p spec.Probe) time.Duration {
	bursts := (p.Shots+p.Lanes-1)/p.Lanes + extraBursts
	return time.Duration(bursts) * (c.UpstreamIdle + load.MinHold)
}

// starts gives each item's first burst, from the begin of probing. Controls
// come first: nothing may be called safe before they are decided. Then the
// longest cells, as they decide how long the run takes. Where all cells at once
// would be more than the machine carries, the shorter ones are spread over the
// time that the longest need anyway, over half of it, as they may turn out
// longer.
func starts(items []plan.Item, p spec.Probe) map[string]time.Duration {
	items = slices.Clone(items)
	slices.SortStableFunc(items, func(a, b plan.Item) int {
		return cmp.Or(rank(a)-rank(b), cmp.Compare(b.Cell.UpstreamIdle, a.Cell.UpstreamIdle))
	})
	slot := min(staggerSlot, staggerMost/time.Duration(max(len(items), 1)))
	rate, longest := 0.0, time.Duration(0)
	alike := map[time.Duration]int{}
	for _, it := range items {
		rate += float64(p.Lanes) / it.Cell.UpstreamIdle.Seconds()
		if it.Role == plan.RoleCell {
			alike[it.Cell.UpstreamIdle]++
			longest = max(longest, need(it.Cell, p))
		}
	}
	out := map[string]time.Duration{}
	seen := map[time.Duration]int{}
	for i, it := range items {
		at := time.Duration(i) * slot
		if u := it.Cell.UpstreamIdle; it.Role == plan.RoleCell && rate > busyRate {
			spread := (longest - need(it.Cell, p)) / 2
			at = max(at, spread*time.Duration(seen[u])/time.Duration(alike[u]))
			seen[u]++
		}
		out[it.ID] = at
	}
	return out
}

func rank(it plan.Item) int {
	if it.Role == plan.RoleCell {
		return 1
	}
	return 0
}
