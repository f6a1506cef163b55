package judge

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

func TestHistogram(t *testing.T) {
	var h Histogram
	for _, d := range []time.Duration{0, 9999, 10_000, time.Second, time.Second + 10_001, time.Second + 19_999} {
		h.add(d)
	}
	want := Histogram{Width: finestBin, Counts: map[time.Duration]int{0: 2, 10_000: 1, time.Second: 1, time.Second + 10_000: 2}}
	if diff := cmp.Diff(want, h); diff != "" {
		t.Error(diff)
	}
}

// However many there are and however far apart, nothing is lost and memory is
// bounded; and the order of what comes does not matter.
func TestHistogramIsBounded(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	var all []time.Duration
	for range 20_000 {
		d := time.Second + time.Duration(r.ExpFloat64()*float64(300*time.Microsecond))
		if r.IntN(1000) == 0 {
			d = time.Duration(r.Int64N(int64(time.Hour)))
		}
		all = append(all, d)
	}
	var a, b Histogram
	for i := range all {
		a.add(all[i])
		b.add(all[len(all)-1-i])
	}
	if diff := cmp.Diff(a, b); diff != "" {
		t.Error(diff)
	}
	n := 0
	for from, c := range a.Counts {
		n += c
		if from%a.Width != 0 || c == 0 {
			t.Errorf("bin %s has %d", from, c)
		}
	}
	if n != len(all) || len(a.Counts) > mostBins {
		t.Errorf("%d of %d in %d bins", n, len(all), len(a.Counts))
	}
}

func TestAges(t *testing.T) {
	var a Ages
	a.add(-1, 0, false)
	a.add(0, 0, true)
	a.add(499*time.Microsecond, 0, false)
	a.add(-10*time.Millisecond, 0, false)
	want := Ages{Width: 500 * time.Microsecond, Bins: map[time.Duration]AgeCount{
		-500 * time.Microsecond: {1, 0}, 0: {2, 1}, -10 * time.Millisecond: {1, 0}}}
	if diff := cmp.Diff(want, a); diff != "" {
		t.Error(diff)
	}
	a = Ages{}
	a.add(45*time.Millisecond, 40*time.Millisecond, true)
	if a.Width != 1500*time.Microsecond || a.Bins[45*time.Millisecond].Stale != 1 {
		t.Errorf("%+v", a)
	}
}

// TestDetail: a verdict brings what was counted, and the very request that its
// example names.
func TestDetail(t *testing.T) {
	v := tell(racing).answered(50, 2).upstreamCloses(40).proxyCloses(7, 700*msec).observe(late).observe(all(failed502, late)).observe(all(failed502, late)).t.Verdict()
	if v.State != spec.Races {
		t.Fatalf("%s: %s", v.State, v.Why)
	}
	sum := func(h Histogram) (n int) {
		for _, c := range h.Counts {
			n += c
		}
		return n
	}
	d := v.Detail
	if sum(d.Upstream) != v.UpstreamClosed.N || sum(d.Proxy) != v.ProxyClosed.N || sum(d.Proxy) != 7 {
		t.Errorf("closes: %d and %d, want %d and %d", sum(d.Upstream), sum(d.Proxy), v.UpstreamClosed.N, v.ProxyClosed.N)
	}
	shots, stale := 0, 0
	for _, n := range d.Ages.Bins {
		shots, stale = shots+n.Shots, stale+n.Stale
	}
	if shots != v.AimedShots || stale != 3 {
		t.Errorf("%d aimed shots, %d of them stale; want %d and 3", shots, stale, v.AimedShots)
	}
	if d.Example == nil || !d.Example.Shot.Failed() || *v.Example != (Example{d.Example.Shot.Cell, d.Example.Shot.Seq}) {
		t.Errorf("example %+v of %+v", v.Example, d.Example)
	}
	// A replay is the example of a cell without a failure; nothing of one with neither.
	v = tell(racing).answered(300, 2).upstreamCloses(40).observe(late).t.Verdict()
	if v.Detail.Example == nil || v.Detail.Example.Shot.Outcome != record.OutcomeResponse {
		t.Errorf("%+v", v.Detail.Example)
	}
	if v = tell(racing).answered(3, 2).t.Verdict(); v.Example != nil || v.Detail.Example != nil {
		t.Errorf("%+v, %+v", v.Example, v.Detail.Example)
	}
}
