package run

import (
	"context"
	"slices"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/load"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

const (
	reuseGap = 20 * time.Millisecond
	// How long a settling burst waits for a witness that has not spoken.
	logPatience   = 200 * time.Millisecond
	latePatience  = 300 * time.Millisecond
	journalBehind = 5 * time.Second
)

// cell drives one item: opens its connections, shows that they are reused, lets
// both sides' timers fire once to measure them, then aims until it is decided.
type cell struct {
	item  plan.Item
	addr  string // of the proxy's listener
	lanes int
	start time.Time // of the first burst
	hub   *hub

	journal *journal      // of its origin
	packets *packetSource // likewise; nil: there is no capture
	side    string        // name of its runtime
	link    spec.Link     // between its proxy and its origin
	aim     *load.Aim
	slots   *load.Stagger

	// Guarded by hub.mu.
	tally    *judge.Tally
	files    *cellFiles
	open     int              // upstream connections that served this cell and are open
	logged   int              // access log lines seen
	unproven map[uint64]bool  // failed shots of which the origin has not spoken
	lateSeen map[uint64]bool  // late requests of the burst under way
	answered int              // shots that reached the proxy
	suspects []suspect        // connections to ask packets of
	proven   time.Time        // of its first attributed failure; zero: none yet
	closes   map[uint64]int64 // seenClosed of connections that the idle timer has closed of late
	done     bool

	bursts int
	aimed  int // aimed bursts
}

// attack runs the cell until it is decided or calm, which carries the budget,
// is done; a done hard ends it at once.
func (c *cell) attack(calm, hard context.Context, alarm *load.Alarm) error {
	a := load.Attack{
		Cell: c.item.ID, Addr: c.addr, Method: c.item.Cell.Method, Lanes: c.lanes, Alarm: alarm, Result: c.files.result,
		Next: c.next,
	}
	if c.item.Cell.Method == "POST" || c.item.Cell.Method == "PUT" || c.item.Cell.Method == "PATCH" {
		a.Body = []byte("idlerace=1\n")
	}
	return a.Run(calm, hard)
}

// next is load.Attack's Next.
//
// The first burst's requests reach the upstream as the connections come up;
// the second's find them idle since different moments; the third's all at once.
func (c *cell) next(ctx context.Context, last []record.Shot) (load.Burst, bool) {
	c.tell(last)
	c.bursts++
	switch c.bursts {
	case 1:
		return load.Burst{Phase: record.PhaseWarm, Start: c.start}, ctx.Err() == nil
	case 2, 3:
		gaps := make([]time.Duration, c.lanes)
		for i := range gaps {
			gaps[i] = reuseGap
		}
		return load.Burst{Phase: record.PhaseReuse, Gaps: gaps, Hold: c.hold(load.BurstEnd(last).Add(reuseGap), reuseGap)}, ctx.Err() == nil
	case 4:
		c.settle(ctx, last)
		c.waitForCloses(ctx)
		return c.fresh(record.PhaseMeasure), ctx.Err() == nil
	}
	c.settle(ctx, last)
	if c.decided() || ctx.Err() != nil {
		return load.Burst{}, false
	}
	return c.aimedBurst(ctx, last)
}

// tell records a burst's shots.
func (c *cell) tell(shots []record.Shot) {
	lines := make([]record.Line, 0, len(shots))
	reached := 0
	for i := range shots {
		lines = append(lines, record.Line{T: record.KindShot, Shot: &shots[i]})
		if o := shots[i].Outcome; o == record.OutcomeResponse || o == record.OutcomePartial {
			reached++
		}
	}
	if len(lines) == 0 {
		return
	}
	c.hub.with(func() {
		c.answered += reached
		clear(c.unproven)
		for seq := range c.lateSeen { // named before the shot's own line
			if seq < shots[0].Seq {
				delete(c.lateSeen, seq)
			}
		}
	})
	c.hub.add(lines...)
	c.hub.with(func() {
		for seq := range c.lateSeen {
			delete(c.unproven, seq)
		}
	})
}

// settle gives every witness time to speak about the shots so far.
func (c *cell) settle(ctx context.Context, last []record.Shot) {
	if n, err := c.journal.mark(ctx); err == nil {
		if !c.hub.wait(ctx, journalBehind, func() bool { return c.journal.seen >= n }) && ctx.Err() == nil {
			c.hub.with(func() { c.hub.behind++ })
		}
	}
	c.hub.wait(ctx, logPatience, func() bool { return c.logged >= c.answered })
	if c.item.Cell.Close.Witnessed() {
		// A failed shot's late request may still be on its way to the journal.
		c.hub.wait(ctx, latePatience, func() bool { return len(c.unproven) == 0 })
	}
	c.inspect(ctx)
	end := last[len(last)-1]
	c.hub.add(record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: c.item.ID, Burst: end.Burst, Seq: maxSeq(last)}})
	c.aim.EndBurst(end.Phase, end.Target)
}

func maxSeq(shots []record.Shot) uint64 {
	var out uint64
	for _, s := range shots {
		out = max(out, s.Seq)
	}
	return out
}

func (c *cell) decided() bool {
	c.hub.mu.Lock()
	defer c.hub.mu.Unlock()
	c.done = c.tally.Done()
	return c.done
}

// left estimates how long the cell still needs; rest for one that may need any
// number of bursts. It needs the hub's lock.
func (c *cell) left(rest time.Duration) time.Duration {
	missing := c.tally.Missing()
	if missing == 0 {
		return rest
	}
	bursts := (missing + c.lanes - 1) / c.lanes
	return max(time.Until(c.start), 0) + time.Duration(bursts)*(c.item.Cell.UpstreamIdle+load.MinHold)
}

// waitForCloses lets one side or the other close every idle connection. The
// limit is generous: what is measured here is how late a timer really is.
func (c *cell) waitForCloses(ctx context.Context) {
	idle := c.item.Cell.UpstreamIdle
	if p := time.Duration(c.item.Cell.ProxyIdle); p != 0 {
		idle = min(idle, p)
	}
	c.hub.wait(ctx, generous(idle), func() bool { return c.open == 0 })
}

// generous is a limit for waiting for a timer set to d: room for one that is
// seconds late, as several servers' are.
func generous(d time.Duration) time.Duration { return d + d/4 + 2*time.Second }

// aimedBurst plans the next aimed burst, or a fresh start where the lanes have
// been idle for too long to be aimed.
func (c *cell) aimedBurst(ctx context.Context, last []record.Shot) (load.Burst, bool) {
	// What failed has left no idle connection behind: without new ones the next
	// burst would find the pool empty and prove nothing.
	if answered := len(last) - failed(last); last[0].Phase == record.PhaseAimed && 2*answered < len(last) {
		return c.fresh(record.PhaseWarm), ctx.Err() == nil
	}
	target := c.target()
	if target == record.TargetUpstream && !c.aim.UpstreamKnown() {
		// A proxy that always closes first hides the upstream's close; the
		// direct measurement will tell it.
		known := c.hub.wait(ctx, generous(c.item.Cell.UpstreamIdle), c.aim.UpstreamKnown)
		if !known && ctx.Err() == nil {
			c.aim.Direct(c.item.Cell.UpstreamIdle) // as configured; the judge will miss the measurement
		}
	}
	gaps, edge := c.aim.Gaps(c.lanes, target)
	earliest := load.BurstEnd(last).Add(slices.Min(gaps))
	if time.Until(earliest) < 0 {
		return c.fresh(record.PhaseWarm), true
	}
	if deadline, ok := ctx.Deadline(); ok && earliest.After(deadline) {
		return load.Burst{}, false
	}
	c.aimed++
	hold := c.hold(earliest, c.aim.Expect(c.lanes, c.target()))
	return load.Burst{Phase: record.PhaseAimed, Target: target, Edge: edge, Gaps: gaps, Hold: hold}, ctx.Err() == nil
}

func failed(shots []record.Shot) (n int) {
	for _, s := range shots {
		if s.Failed() {
			n++
		}
	}
	return n
}

// fresh is a burst that is sent soon, at no moment in particular.
func (c *cell) fresh(p record.Phase) load.Burst {
	start := c.slots.Free(time.Now())
	return load.Burst{Phase: p, Start: start, Hold: c.hold(start, c.aim.Expect(c.lanes, c.target()))}
}

// hold keeps this cell's answers, and the burst a gap after them, out of the
// other cells' way.
func (c *cell) hold(sent time.Time, gap time.Duration) time.Duration {
	return c.slots.Pick(c.item.ID, sent, gap)
}

// target picks the edge of the next burst. The upstream's is where the danger
// is; where the proxy closes well before, its own edge is visited as well, in
// case it is not as sharp as it looks.
func (c *cell) target() string {
	p := c.item.Cell.ProxyIdle
	if p == spec.Off || time.Duration(p) >= c.item.Cell.UpstreamIdle || !c.aim.ProxyKnown() {
		return record.TargetUpstream
	}
	if c.aimed%4 == 0 || !c.aim.UpstreamKnown() && c.aimed < 4 {
		return record.TargetProxy
	}
	return record.TargetUpstream
}
