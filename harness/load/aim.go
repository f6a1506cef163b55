package load

import (
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"idlerace/harness/record"
)

// Widths of the aim. The window of a proxy on the same machine is under 1 ms
// wide; the timers on both sides are up to 1 to 2 ms late.
const (
	narrowPad   = 700 * time.Microsecond // beyond the 5th and 95th percentile of the closes seen
	hitPad      = 300 * time.Microsecond // around an age that met a stale connection
	wideHalf    = 8 * time.Millisecond   // for an edge that is not where it is thought
	laneStep    = 60 * time.Microsecond  // between the lanes of a burst: about what sending one request takes
	laneSpread  = 600 * time.Microsecond // of a burst's lanes at least
	behindStep  = 300 * time.Microsecond // back to the edge after a burst behind it, doubled each time
	earlyMost   = 2                      // bursts before an edge never seen that are chance
	earlyStep   = 300 * time.Microsecond // towards it after each more, doubled each time ...
	earlyStride = 4 * earlyStep          // ... up to this, less than a burst and its aim are wide
	recent      = 512                    // closes kept of each side
	recentHits  = 100
	mostOffset  = 20 * time.Millisecond // between the upstream's notion of an age and the client's, besides the round trip
	sweepHalf   = 2 * time.Millisecond  // around either edge of the window, in a sweep
	sweepAfter  = 6 * time.Millisecond  // behind its end, which a proxy busy with a burst moves
)

// Aim decides at which ages a cell is shot at. It learns the real close times
// of both sides, how far the client's ages are from the upstream's, and which
// ages have hit. Its draws come from the stream it is given, one by one.
type Aim struct {
	mu    sync.Mutex
	rng   *rand.Rand
	rtt   time.Duration // between proxy and upstream: the window is that much wider
	sweep bool

	upstream []time.Duration // idle time at which the upstream closed one of the cell's connections
	direct   []time.Duration // the same, measured without a proxy
	proxy    []time.Duration // idle time at which the proxy closed
	hits     []time.Duration // the latest client ages that met a stale connection
	offset   time.Duration   // upstream's age minus client's age of the same shot
	learnt   bool            // the offset is a measurement, not the law's

	forward time.Duration   // moved forward since the offset was learnt
	behind  time.Duration   // how far to move on after the next burst behind the edge
	early   int             // bursts in a row that met living connections only
	back    time.Duration   // moved back, towards a close that none of them saw
	ahead   time.Duration   // how far to move back after the next such burst
	next    *draw           // of the next burst, once somebody has asked
	dead    int             // shots of the burst under way that met no living connection
	stale   int             // of them those that met a closed one
	alive   int             // those that met one
	offsets []time.Duration // of those whose connection's age is known, closed or not
}

// NewAim draws from rng. rtt is the longest round trip between proxy and
// upstream. A sweep covers both edges of the danger window and what is between
// them; else the aim is at a proof, and returns to where it has hit.
func NewAim(rng *rand.Rand, rtt time.Duration, sweep bool) *Aim {
	return &Aim{rng: rng, rtt: rtt, sweep: sweep, offset: rtt, behind: behindStep, ahead: earlyStep}
}

func keep(s *[]time.Duration, d time.Duration, most int) {
	if *s = append(*s, d); len(*s) > most {
		*s = (*s)[len(*s)-most:]
	}
}

// Direct takes an idle close of the upstream measured without the proxy.
func (a *Aim) Direct(after time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	keep(&a.direct, after, recent)
}

// Close takes the end of one of the cell's upstream connections.
func (a *Aim) Close(e record.Event) {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case e.IdleClosed():
		keep(&a.upstream, e.Idle, recent)
	case e.By == record.ByPeer && e.Idle > 0:
		keep(&a.proxy, e.Idle, recent)
	}
}

// Observe takes one request of the burst under way.
func (a *Aim) Observe(o record.Observation) {
	a.mu.Lock()
	defer a.mu.Unlock()
	// A failure counts as a hit too: not every close leaves a witness.
	stale := len(o.Late) > 0 || o.Shot.Failed()
	if stale {
		keep(&a.hits, o.Shot.Age, recentHits)
	}
	if o.Shot.Age == 0 {
		return
	}
	if stale {
		a.dead++
		a.stale++
		if len(o.Late) > 0 && o.Late[0].Idle > o.Shot.Age/2 {
			a.offsets = append(a.offsets, o.Late[0].Idle-o.Shot.Age)
		}
		return
	}
	for _, e := range o.Requests {
		switch {
		case e.Nth == 1:
			a.dead++
		case e.Idle > o.Shot.Age/2: // else given back within the same burst, which says nothing
			a.alive++
			a.offsets = append(a.offsets, e.Idle-o.Shot.Age)
		}
	}
}

// EndBurst learns from the burst whose requests have been observed. When all
// of it met connections of known age, living or closed, these tell how far the
// client's ages are from the upstream's. When none met a connection although the
// upstream's timer does fire here, the aim is behind the edge and moves forward,
// but not for ever. When burst after burst meets only living ones and the
// upstream's timer was never seen to fire here, what was measured elsewhere was
// too short, and the aim moves back, not for ever either.
func (a *Aim) EndBurst(phase record.Phase, target string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	atEdge := phase == record.PhaseAimed && target == record.TargetUpstream
	all := a.alive + a.dead
	if all > 0 && (phase == record.PhaseAimed || phase == record.PhaseReuse) {
		if known := len(a.offsets); known*10 >= all*9 || !a.learnt && known*2 >= all {
			a.learn()
		}
		switch {
		case a.alive*10 >= all*9:
			if atEdge && len(a.upstream) == 0 {
				a.moveBack()
			}
		case atEdge && a.alive*10 <= all && a.stale*10 < all:
			a.stopBack()
			if len(a.upstream) > 0 {
				a.moveForward()
			}
		default: // here is the edge
			a.early, a.behind = 0, behindStep
		}
	}
	a.dead, a.stale, a.alive, a.offsets = 0, 0, 0, a.offsets[:0]
}

// learn takes the offset of a burst; more than mostOffset is one that came
// apart, and none.
func (a *Aim) learn() {
	if o := quantile(a.offsets, 0.5); o.Abs() <= mostOffset+a.rtt {
		a.offset, a.learnt = o, true
		a.forward, a.behind = 0, behindStep
	}
}

func (a *Aim) moveForward() {
	if a.forward += a.behind; a.forward > wideHalf {
		a.forward = 0
		a.behind = behindStep
	}
	a.behind = min(2*a.behind, wideHalf)
}

func (a *Aim) moveBack() {
	if a.early++; a.early <= earlyMost {
		return
	}
	if a.back += a.ahead; a.back > wideHalf {
		a.stopBack()
		return
	}
	a.ahead = min(2*a.ahead, earlyStride)
}

func (a *Aim) stopBack() { a.early, a.back, a.ahead = 0, 0, earlyStep }

// UpstreamKnown and ProxyKnown report whether that side's close was measured.
func (a *Aim) UpstreamKnown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.upstream)+len(a.direct) > 0
}

// ProxyKnown: see UpstreamKnown.
func (a *Aim) ProxyKnown() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.proxy) > 0
}

// Expect is the planned age of the next burst's first shot, as far as is known
// before the burst under way has been observed; 0 when that side's close is not
// known.
func (a *Aim) Expect(n int, target string) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	centre, edge := a.centre(target)
	if edge == 0 {
		return 0
	}
	return max(centre-BurstSpread(n)/2, time.Millisecond)
}

// draw is what chance says about one burst.
type draw struct{ which, where, pick float64 }

// centre is where the next burst is aimed, and the edge it is aimed at. Asking
// again before Gaps gives the same unless something was learnt in between.
func (a *Aim) centre(target string) (centre, edge time.Duration) {
	if a.next == nil {
		a.next = &draw{a.rng.Float64(), a.rng.Float64(), a.rng.Float64()}
	}
	d := *a.next
	lo, edge, hi := a.spread(target)
	from, to := max(lo-narrowPad, edge-wideHalf), min(hi+narrowPad, edge+wideHalf)
	if target == record.TargetProxy {
		if d.which < 0.1 {
			from, to = edge-wideHalf, edge+wideHalf
		}
		return from + time.Duration(d.where*float64(to-from)), edge
	}
	end := edge + a.rtt // of the window
	to += a.rtt
	switch {
	case d.which < 0.1:
		from, to = edge-wideHalf, end+wideHalf
	case a.sweep && d.which < 0.4:
		from, to = edge-sweepHalf, edge+sweepHalf
	case a.sweep && d.which < 0.7:
		from, to = end-sweepHalf, end+sweepAfter
	case !a.sweep && d.which < 0.75 && len(a.hits) > 0:
		h := a.hits[int(d.pick*float64(len(a.hits)))]
		if h >= edge-wideHalf && h <= end+wideHalf {
			from, to = h-hitPad, h+hitPad
		}
	}
	return from + time.Duration(d.where*float64(to-from)), edge
}

// spread gives the 5th percentile, median and 95th percentile of a side's
// closes as client ages.
func (a *Aim) spread(target string) (lo, mid, hi time.Duration) {
	s := a.upstream
	if len(s) == 0 {
		s = a.direct
	}
	if target == record.TargetProxy {
		s = a.proxy
	}
	off := a.offset + a.forward - a.back
	if len(s) == 0 {
		return 0, 0, 0
	}
	return quantile(s, 0.05) - off, quantile(s, 0.5) - off, quantile(s, 0.95) - off
}

// Gaps draws the planned ages of one burst of n shots at a side's close, and
// says where that close is expected. It needs a measured close of that side.
//
// Note: one burst has one aim, and its lanes are little apart. Pools hand
// out the connection that was used last, so shots far apart would all get the
// one that the shot before has just given back.
func (a *Aim) Gaps(n int, target string) (gaps []time.Duration, edge time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	centre, edge := a.centre(target)
	a.next = nil
	gaps = make([]time.Duration, n)
	spread := BurstSpread(n)
	for i, place := range a.rng.Perm(n) {
		offset := time.Duration((float64(place)+a.rng.Float64())/float64(n)*float64(spread)) - spread/2
		gaps[i] = max(centre+offset, time.Millisecond)
	}
	return gaps, edge
}

// BurstSpread is the time over which the shots of a burst of n lanes are
// planned: no shorter than sending them takes, or the last would always be
// late.
func BurstSpread(n int) time.Duration { return max(laneSpread, time.Duration(n)*laneStep) }

// quantile is the empirical q-quantile; 0 of nothing.
func quantile(s []time.Duration, q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Clone(s)
	slices.Sort(sorted)
	return sorted[int(q*float64(len(sorted)-1))]
}
