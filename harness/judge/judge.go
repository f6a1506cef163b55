// Package judge turns stored observations into verdicts. It is pure and sees
// no socket, so rules can change and old runs be judged again; it must not
// import stack, load or proxy.
package judge

import (
	"cmp"
	"fmt"
	"iter"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Rules that are not the scenario's to set.
const (
	// Zone is how near to the expected upstream close an aimed shot's measured
	// age must be to count as sent where the danger would be.
	Zone = 10 * time.Millisecond
	// edgeTrust is how far the close that shots were aimed at may be from the
	// measured one: what a client's ages and the upstream's may differ by, with
	// room. Shots aimed elsewhere count for nothing.
	edgeTrust = 30 * time.Millisecond
	// Slack is the least margin between the proxy's latest close and the
	// upstream's earliest that counts as the proxy closing first by its timer
	// and not by luck: the granularity of the timers seen so far, with room.
	Slack = 5 * time.Millisecond
	// LateByDesign is the lateness of a server's timer that a busy machine does
	// not explain when it is seen again and again.
	LateByDesign = 100 * time.Millisecond
	// spreads is how many times the usual lateness of its own closes a proxy must
	// be away from the upstream's close for that close to be out of its reach:
	// one that looks for idle connections only now and then has a lateness that
	// is large and usual.
	spreads = 3
	// Proofs is the number of attributed failures after which a racing cell
	// needs no more shots.
	Proofs = 3
)

// Subject is what a verdict is about.
type Subject struct {
	Item      plan.Item
	Version   string
	Runtime   string
	Fault     string        // what ended the item's proxy or the origin in mid-run; empty: nothing
	RTT       time.Duration // the longest between proxy and upstream, jitter included
	Link      spec.Link     // between them
	Shots     int           // aimed shots asked for
	Window    bool          // they are spread for the danger window's shape: fit it
	Until     spec.Until
	Reproduce string
}

// Tally collects the observations of one cell and judges them at any time. Its
// memory does not grow with their number.
type Tally struct {
	s Subject

	shots, aimed, failures, attributed, attributedAimed int
	late, lateFailed, onWire, retried, twice, reused    int
	causes, statuses, orders                            map[string]int
	upstreamClosed, proxyClosed, direct                 sample
	lateAges                                            sample
	otherTexts                                          string // one text of an unattributed failure
	raced, replayed                                     *record.Observation
	orphans, unreached                                  int
	captured                                            bool
	setAside, disturbed                                 int            // requests that say nothing of the pair: the run was disturbed; those of them that failed
	calm                                                map[string]int // statuses of all others
	shape                                               shape
	detail                                              Detail

	// Bursts that were aimed or met a stale connection, and those that did.
	burst               int // the one under way
	bursts, staleBursts int
	counted, stale      bool // it has been
	aims                aims
}

// aims counts the bursts that aimed shots came in, whose shots share their
// moment. Bursts come one after the other.
type aims struct {
	stale                            int // shots
	bursts, lostBursts, staleBursts  int
	burst                            int // the one under way
	begun, lostInBurst, staleInBurst bool
}

// add takes an aimed shot that was lost to an idle-closed connection, or met one
// at least.
func (a *aims) add(burst int, lost, stale bool) {
	if !a.begun || burst != a.burst {
		a.begun, a.burst, a.lostInBurst, a.staleInBurst = true, burst, false, false
		a.bursts++
	}
	if lost && !a.lostInBurst {
		a.lostInBurst = true
		a.lostBursts++
	}
	if stale {
		a.stale++
		if !a.staleInBurst {
			a.staleInBurst = true
			a.staleBursts++
		}
	}
}

// NewTally begins a tally.
func NewTally(s Subject) *Tally {
	return &Tally{s: s, causes: map[string]int{}, statuses: map[string]int{}, calm: map[string]int{}, orders: map[string]int{}}
}

// Observe takes one request.
func (t *Tally) Observe(o record.Observation) {
	t.shots++
	status := string(o.Shot.Outcome)
	if o.Shot.Outcome == record.OutcomeResponse {
		status = strconv.Itoa(o.Shot.Status)
	}
	t.statuses[status]++
	executed := 0
	for _, e := range o.Requests {
		if e.Executed {
			executed++
		}
	}
	if executed > 1 {
		t.twice++
	}
	if t.disturbs(o) {
		return
	}
	t.calm[status]++
	// A request that the proxy answered by itself tested nothing.
	reached := len(o.Requests)+len(o.Late) > 0
	if !reached && !o.Shot.Failed() {
		t.unreached++
	}
	aimed := InZone(o.Shot, t.s.RTT) && t.trusts(o.Shot.Edge) && (reached || o.Shot.Failed())
	if aimed {
		t.aimed++
	}
	stale := o.Stale()
	met := stale || o.Shot.Failed() && t.Cause(o) == record.CauseIdleClose
	t.inBurst(o.Shot, met)
	if aimed {
		t.detail.Ages.add(o.Shot.Age-o.Shot.Edge, t.s.RTT, met)
	}
	if t.s.Window {
		t.shape.observe(o, t.s, stale || o.Shot.Failed(), &t.upstreamClosed)
	}
	for _, e := range o.Requests {
		if e.Nth > 1 {
			t.reused++
		}
	}
	if aimed {
		lost := o.Shot.Failed() && t.Cause(o) == record.CauseIdleClose
		t.aims.add(o.Shot.Burst, lost, stale || lost)
	}
	if stale {
		t.late++
		for _, e := range o.Late {
			t.lateAges.add(e.Idle)
		}
		for _, p := range o.Packets {
			t.orders[p.Order]++
		}
	}
	if len(o.Packets) > 0 && o.Shot.Failed() {
		t.onWire++
	}
	if !o.Shot.Failed() {
		if stale {
			t.retried++
			if t.replayed == nil {
				t.replayed = keep(o)
			}
		}
		return
	}
	t.failures++
	cause := t.Cause(o)
	t.causes[string(cause)]++
	if cause != record.CauseIdleClose {
		t.otherTexts = describe(o)
		return
	}
	t.attributed++
	if stale {
		t.lateFailed++
	}
	if aimed {
		t.attributedAimed++
	}
	if t.raced == nil {
		t.raced = keep(o)
	}
}

// keep moves one observation to the heap, and not all that are observed.
func keep(o record.Observation) *record.Observation { return &o }

// disturbedCause stands before the kinds of disturbance in Verdict.Causes.
const disturbedCause = string(record.CauseDisturbed) + ": "

// disturbs sets aside a request with which a disturbance of the run may have had
// a hand: whatever became of it, the pair of timeouts alone did not do it.
func (t *Tally) disturbs(o record.Observation) bool {
	cause := record.Cause("")
	if o.Shot.Failed() {
		cause = Cause(o)
	}
	if len(o.Disturbed) == 0 && cause != record.CauseRestart {
		return false
	}
	t.setAside++
	if cause != "" {
		t.failures++
		t.disturbed++
		if cause == record.CauseDisturbed {
			cause = record.Cause(disturbedCause + strings.Join(o.Disturbed, " + "))
		}
		t.causes[string(cause)]++
	}
	return true
}

// inBurst counts the shot's burst; bursts come one after the other.
func (t *Tally) inBurst(s record.Shot, stale bool) {
	if s.Burst != t.burst {
		t.burst, t.counted, t.stale = s.Burst, false, false
	}
	if !t.counted && (stale || InZone(s, t.s.RTT)) {
		t.counted = true
		t.bursts++
	}
	if !t.stale && stale {
		t.stale = true
		t.staleBursts++
	}
}

// stalled reports whether stale connections were met only because something
// kept the proxy from closing them for once: it usually closes first, with
// room, and most bursts met none. A stall of the machine looks like that, and
// no pair of timeouts; what such a cell needs is a calmer machine. It takes all
// the shots to tell a stall from a habit.
func (t *Tally) stalled() bool {
	return t.closesFirst() && (t.aimed < t.s.Shots || 2*t.staleBursts < t.bursts)
}

// closesFirst reports whether the proxy usually closes before the upstream, with
// room.
func (t *Tally) closesFirst() bool {
	if t.proxyClosed.n <= t.upstreamClosed.n {
		return false
	}
	usual := t.proxyClosed.quantile(0.5)
	spread := usual - t.proxyClosed.quantile(0.05)
	return t.upstreamEarliest()-usual >= max(Slack, spreads*spread)
}

// unexpected reports whether the cell would be safe if both sides kept to
// their settings. A race there takes all the shots to believe: the first may
// have met a machine that was busy starting.
func (t *Tally) unexpected() bool {
	c := t.s.Item.Cell
	return c.ProxyIdle == spec.Off || time.Duration(c.ProxyIdle)+Slack+t.s.RTT < c.UpstreamIdle
}

// InZone reports whether a shot was aimed at the upstream's close and really
// went out near it: from when the FIN may be under way to when it has arrived.
func InZone(s record.Shot, rtt time.Duration) bool {
	past := s.Age - s.Edge
	return s.Phase == record.PhaseAimed && s.Target == record.TargetUpstream && past >= -Zone && past <= rtt+Zone
}

// trusts reports whether an expected close is near the measured ones. A busy
// machine reads a response late and so measures one of them short: any will do.
func (t *Tally) trusts(edge time.Duration) bool {
	for _, s := range []*sample{&t.direct, &t.upstreamClosed} {
		if s.n > 0 && edge >= s.min-edgeTrust-t.s.RTT && edge <= s.max+edgeTrust {
			return true
		}
	}
	return t.direct.n+t.upstreamClosed.n == 0
}

// Cause is the package's Cause with what this cell's network may have done: a
// middlebox that gave the connection up before the upstream did kept the
// upstream's close from the proxy, which therefore cannot have met it.
func (t *Tally) Cause(o record.Observation) record.Cause {
	if gone := t.s.Link.Idle; gone > 0 {
		o.Before = slices.DeleteFunc(slices.Clone(o.Before), func(e record.Event) bool { return e.IdleClosed() && e.Idle > gone })
	}
	return Cause(o)
}

// Cause says why a failed request failed, from all its witnesses. It is
// CauseIdleClose only when a witness beyond the client ties the request to an
// upstream connection that the upstream's idle timer had closed, nothing
// executed it, and no disturbance of the run may have had a hand in it.
func Cause(o record.Observation) record.Cause {
	if slices.ContainsFunc(o.Before, record.Event.Restarted) {
		return record.CauseRestart
	}
	if len(o.Disturbed) > 0 {
		return record.CauseDisturbed
	}
	executed := false
	for _, e := range o.Requests {
		executed = executed || e.Executed
	}
	stale := o.Stale()
	if !stale {
		// The proxy's own log may name the dead connection of a request that
		// never left the proxy.
		for _, e := range o.Before {
			stale = stale || e.IdleClosed()
		}
	}
	noAnswer := o.Shot.Outcome == record.OutcomeClosed || o.Shot.Outcome == record.OutcomeReset
	if stale && !executed && (noAnswer || o.Shot.Status >= 500) {
		return record.CauseIdleClose
	}
	for _, l := range slices.Backward(o.Logs) { // of several attempts the last made the answer
		if l.Cause != "" {
			return l.Cause
		}
	}
	switch o.Shot.Outcome {
	case record.OutcomeRefused, record.OutcomeClient:
		return record.CauseClient
	case record.OutcomePartial:
		return record.CauseReset
	case record.OutcomeNotHTTP:
		return record.CauseNotHTTP
	}
	if o.Shot.Status == 504 {
		return record.CauseTimeout
	}
	return record.CauseUnknown
}

func describe(o record.Observation) string {
	for _, l := range o.Logs {
		if l.Text != "" {
			return l.Text
		}
	}
	if o.Shot.Err != "" {
		return o.Shot.Err
	}
	return fmt.Sprintf("status %d", o.Shot.Status)
}

// Close takes the end of one of the cell's upstream connections.
func (t *Tally) Close(e record.Event) {
	switch {
	case e.IdleClosed():
		t.upstreamClosed.add(e.Idle)
		t.detail.Upstream.add(e.Idle)
		if t.s.Window {
			t.shape.close(e)
		}
	case e.Kind == record.EventClose && e.By == record.ByPeer && e.Idle > 0:
		t.proxyClosed.add(e.Idle)
		t.detail.Proxy.add(e.Idle)
	}
}

// Direct takes an idle close of the upstream measured without a proxy.
func (t *Tally) Direct(after time.Duration) { t.direct.add(after) }

// Orphan takes a late request that was named after its observation had been
// given out.
func (t *Tally) Orphan(record.Event) { t.orphans++ }

// Done reports whether more shots would not change what can be said.
func (t *Tally) Done() bool {
	if t.s.Until == spec.UntilShots && t.aimed < t.s.Shots && t.s.Item.Role == plan.RoleCell {
		return false
	}
	switch t.state() {
	case spec.Races:
		return t.attributed >= Proofs && !t.unexpected() || t.aimed >= t.s.Shots
	case spec.Masked, spec.Safe, spec.Unsupported, spec.Broken:
		return true
	}
	if t.aimed < t.s.Shots {
		return false
	}
	// No further shot can unsay a failure or add the missing witness, or the
	// cause is another.
	return t.staleBursts > 0 && t.stalled() || t.attributed == 0 && (!t.captured && !t.s.Item.Cell.Close.Witnessed() || t.failures-t.disturbed-t.attributed >= t.s.Shots/4)
}

// Captured says that packets are captured, which are a witness under any close
// style.
func (t *Tally) Captured() { t.captured = true }

// Counts are the numbers of a tally, named as in a Verdict.
type Counts struct{ Shots, Aimed, Failures, Attributed, Late int }

// Interim is how far one cell or control has come in a run that goes on.
type Interim struct {
	Counts
	Item    *plan.Item
	State   spec.State    // by its own observations so far, before controls
	Asked   int           // aimed shots it may need
	Proven  time.Duration // since probing began, until its first attributed failure; 0: none yet
	Decided time.Duration // likewise, until it had been probed enough; 0: not yet
}

// Counts are the numbers so far.
func (t *Tally) Counts() Counts {
	return Counts{t.shots, t.aimed, t.failures, t.attributed, t.late}
}

// Missing is the number of aimed shots still to be sent; 0 also for a cell that
// has them all and is not decided.
func (t *Tally) Missing() int { return max(t.s.Shots-t.aimed, 0) }

// State is the state by this cell's own observations, before controls.
func (t *Tally) State() spec.State { return t.state() }

func (t *Tally) state() spec.State {
	switch {
	case t.s.Item.Unsupported != "":
		return spec.Unsupported
	case t.attributed > 0 && !t.stalled():
		return spec.Races
	case t.s.Fault != "":
		return spec.Broken
	case t.failures > t.disturbed:
		return spec.Inconclusive
	case t.aimed < t.s.Shots:
		return spec.Inconclusive
	case t.late > 0 && !t.stalled():
		return spec.Masked
	case t.late+t.orphans+t.upstreamClosed.n > 0:
		return spec.Inconclusive
	case t.s.Item.Cell.ProxyIdle == spec.Off:
		if t.reused > 0 {
			return spec.Inconclusive
		}
		return spec.Safe
	case t.proxyClosed.n == 0 || t.reused == 0 || t.direct.n == 0:
		return spec.Inconclusive
	case t.margin() < Slack:
		return spec.Inconclusive
	}
	return spec.Safe
}

// margin is how long before the upstream's earliest close the proxy's latest
// close came, both as the upstream saw them: its connections go idle half a
// round trip before the proxy's, and learn of a close half a round trip later.
// Both must have been measured.
func (t *Tally) margin() time.Duration { return t.upstreamEarliest() - t.proxyClosed.max }

// upstreamEarliest is the earliest close to be reckoned with. A measured close
// a little later than the setting may be a busy machine's lateness, so that the
// setting holds; one much later is the server's way (Node closes 1 s late).
func (t *Tally) upstreamEarliest() time.Duration {
	set := t.s.Item.Cell.UpstreamIdle
	if t.direct.n == 0 {
		return set
	}
	earliest := t.direct.min
	if t.upstreamClosed.n > 0 {
		earliest = min(earliest, t.upstreamClosed.min)
	}
	if earliest > set+LateByDesign {
		return earliest
	}
	return min(earliest, set)
}

// Verdict judges what has been seen so far.
func (t *Tally) Verdict() Verdict {
	c := t.s.Item.Cell
	v := Verdict{
		ID: t.s.Item.ID, Role: t.s.Item.Role, Proxy: c.Proxy, Version: t.s.Version, Runtime: t.s.Runtime, Upstream: c.Upstream,
		ProxyIdle: c.ProxyIdle.String(), UpstreamIdle: spec.FormatDuration(c.UpstreamIdle), Method: c.Method,
		Retry: c.Retry, Close: c.Close, RTT: spec.FormatDuration(c.RTT),
		State: t.state(), Shots: t.shots, AimedShots: t.aimed, Failures: t.failures, Attributed: t.attributed,
		AimedLost: t.attributedAimed, AimedStale: t.aims.stale, AimedBursts: t.aims.bursts, LostBursts: t.aims.lostBursts, StaleBursts: t.aims.staleBursts,
		Late: t.late, OnWire: t.onWire, Orders: t.orders, Retried: t.retried, Twice: t.twice, Other: t.failures - t.attributed, SetAside: t.setAside, Disturbed: t.disturbed,
		Causes: t.causes, Statuses: t.statuses, Warnings: []string{}, Reproduce: t.s.Reproduce,
		UpstreamClosed: t.upstreamClosed.quantiles(), ProxyClosed: t.proxyClosed.quantiles(), Direct: t.direct.quantiles(),
	}
	if t.aimed > 0 {
		i := ClopperPearson(t.attributedAimed, t.aimed)
		v.Rate = &i
	}
	if t.lateAges.n > 0 && t.upstreamClosed.n > 0 {
		// A request's age at the upstream is a round trip more than at the proxy.
		edge := t.upstreamClosed.quantile(0.5) + c.RTT
		v.Window = &Window{Duration(t.lateAges.min - edge), Duration(t.lateAges.max - edge)}
	}
	// Where the proxy closes first, or in between, that end is its own.
	if t.upstreamClosed.n > 0 && time.Duration(c.ProxyIdle) > c.UpstreamIdle+nearMargin {
		v.Fit = t.shape.fit(t.s, &t.upstreamClosed)
	}
	detail := t.detail
	detail.Example = cmp.Or(t.raced, t.replayed)
	v.Detail = &detail
	if o := detail.Example; o != nil {
		v.Example = &Example{o.Shot.Cell, o.Shot.Seq}
	}
	v.Why = t.why(v)
	if t.orphans > 0 {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%d late requests were reported after their burst had been settled", t.orphans))
	}
	if t.unreached > 0 {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%s answered %s without asking the upstream", c.Proxy, plural(t.unreached, "request")))
	}
	if n := v.Other - v.Disturbed; v.State == spec.Races && n > 0 {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%d failures had another or an unproven cause: %s", n, t.otherTexts))
	}
	if t.disturbed > 0 {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%s failed in disturbances of the run (%s), which say nothing of this pair of timeouts", plural(t.disturbed, "request"), t.disturbedBy()))
	}
	if t.twice > 0 {
		v.Warnings = append(v.Warnings, fmt.Sprintf("%d requests were executed twice", t.twice))
	}
	return v
}

func (t *Tally) why(v Verdict) string {
	c := t.s.Item.Cell
	switch v.State {
	case spec.Unsupported:
		return t.s.Item.Unsupported
	case spec.Broken:
		return t.s.Fault
	case spec.Races:
		return fmt.Sprintf("%d of %s met an upstream connection that the upstream's idle timer had just closed (set %s, measured %s): %s; %s",
			t.attributed, plural(t.shots, c.Method), spec.FormatDuration(c.UpstreamIdle), t.measuredClose(), t.failedAs(), t.witnesses())
	case spec.Masked:
		return fmt.Sprintf("%d of %s met an upstream connection that the upstream's idle timer had just closed (set %s, measured %s); %s sent each again and every client got its answer; %s executed twice",
			t.late, plural(t.shots, c.Method), spec.FormatDuration(c.UpstreamIdle), t.measuredClose(), c.Proxy, numberOrNone(t.twice))
	case spec.Safe:
		bound := fmt.Sprintf("no failure in %s around the upstream's close (95 %%: fewer than %s)", plural(t.aimed, "aimed shot"), percent(v.Rate.High))
		if c.ProxyIdle == spec.Off {
			return fmt.Sprintf("no upstream connection was ever used twice; %s", bound)
		}
		return fmt.Sprintf("the proxy closed first, all %d times an upstream connection went idle, at %s at the latest, %s before the upstream's earliest close (%s); %s",
			t.proxyClosed.n, ms(t.proxyClosed.max), ms(t.margin()), ms(t.upstreamEarliest()), bound)
	}
	return t.missing()
}

// witnesses says who ties the attributed failures to the idle close.
func (t *Tally) witnesses() string {
	late, logged := t.lateFailed, t.attributed-t.lateFailed
	switch {
	case !t.s.Item.Cell.Close.Witnessed() && logged == 0:
		return "the packets of every one of them show it after the upstream's close, and the origin executed none"
	case late == 1 && logged == 0:
		return "the origin saw it arrive after its FIN, and did not execute it"
	case logged == 0:
		return "the origin saw every one of them arrive after its FIN, and executed none"
	case late == 0:
		return "the proxy's log names the closed connection, the request was never sent on it and never executed"
	}
	return fmt.Sprintf("the origin saw %d of them arrive after its FIN, for the other %d the proxy's log names the closed connection; none was executed", late, logged)
}

// missing says what an inconclusive cell lacks.
func (t *Tally) missing() string {
	c := t.s.Item.Cell
	switch {
	case t.shots == 0:
		return "no request was recorded"
	case t.staleBursts > 0 && t.stalled():
		return t.stall()
	case t.failures > t.disturbed && !c.Close.Witnessed() && t.upstreamClosed.n > 0:
		return fmt.Sprintf("%s of %s failed (%s), but close style %q leaves no witness that ties them to the idle timer; style %q does",
			plural(t.failures-t.disturbed, "request"), plural(t.shots, c.Method), t.failedAs(), c.Close, spec.CloseFIN)
	case t.failures > t.disturbed:
		return fmt.Sprintf("%s of %s failed (%s) and none could be tied to an idle close; one of them: %s",
			plural(t.failures-t.disturbed, "request"), plural(t.shots, c.Method), t.failedAs(), t.otherTexts)
	case t.late > 0:
		return fmt.Sprintf("stale reuse was witnessed %s and always replayed, but only %s of %d went out where the danger is",
			times(t.late), plural(t.aimed, "aimed shot"), t.s.Shots)
	case t.aimed < t.s.Shots:
		missing := fmt.Sprintf("%s, %d needed; no failure and no stale reuse so far", plural(t.aimed, "aimed shot"), t.s.Shots)
		if t.setAside > 0 {
			missing += fmt.Sprintf("; set aside for disturbances of the run: %s", plural(t.setAside, "request"))
		}
		return missing
	case t.upstreamClosed.n > 0 && t.closesFirst():
		return fmt.Sprintf("no failure in %s: %s, yet in %d of %d idle connections the upstream was first: %s",
			plural(t.aimed, "aimed shot"), t.rule(), t.upstreamClosed.n, t.upstreamClosed.n+t.proxyClosed.n, heldUp)
	case t.upstreamClosed.n > 0:
		return fmt.Sprintf("the upstream closed first in %d of %d idle connections (measured %s), so the pair can race, but none of %s met one in that moment",
			t.upstreamClosed.n, t.upstreamClosed.n+t.proxyClosed.n, t.measuredClose(), plural(t.aimed, "aimed shot"))
	case c.ProxyIdle == spec.Off:
		return fmt.Sprintf("keep-alive is off, yet %s went over a used upstream connection", plural(t.reused, "request"))
	case t.reused == 0:
		return "the proxy never reused an upstream connection, so nothing could race: its pool does not work as configured"
	case t.proxyClosed.n == 0:
		return "neither side was seen closing an idle connection"
	case t.direct.n == 0:
		return "the upstream's real close time was not measured"
	}
	if t.closesFirst() {
		return fmt.Sprintf("no failure in %s: %s, yet the latest of %s came at %s: %s",
			plural(t.aimed, "aimed shot"), t.rule(), plural(t.proxyClosed.n, "close"), ms(t.proxyClosed.max), heldUp)
	}
	return fmt.Sprintf("no failure in %s, but the proxy closed only %s before the upstream (latest %s, upstream's earliest %s); less than %s is luck, not a margin",
		plural(t.aimed, "aimed shot"), ms(t.margin()), ms(t.proxyClosed.max), ms(t.upstreamEarliest()), ms(Slack))
}

// stall says what a cell lacks in which the proxy was late now and then.
func (t *Tally) stall() string {
	c := t.s.Item.Cell
	seen := t.rule()
	met := fmt.Sprintf("%s met connections that the upstream had closed before %s got to it", ofBursts(t.staleBursts, t.bursts), c.Proxy)
	if n := t.failures - t.disturbed; n > 0 {
		met += fmt.Sprintf(" (%s of %s failed: %s)", plural(n, "request"), plural(t.shots, c.Method), t.failedAs())
	}
	if t.aimed < t.s.Shots {
		return fmt.Sprintf("%s, yet %s; %s, %d needed to tell a habit of the proxy from a machine that was too busy", seen, met, plural(t.aimed, "aimed shot"), t.s.Shots)
	}
	return fmt.Sprintf("%s, yet %s and the others none: %s", seen, met, heldUp)
}

const heldUp = "something held the proxy up, a machine too busy rather than this pair of timeouts; run it again with less beside it or with fewer lanes"

// rule says what closesFirst has found.
func (t *Tally) rule() string {
	usual, earliest := t.proxyClosed.quantile(0.5), t.upstreamEarliest()
	return fmt.Sprintf("%s closes first, as a rule at %s and so %s before the upstream (%s)", t.s.Item.Cell.Proxy, ms(usual), ms(earliest-usual), ms(earliest))
}

func ofBursts(n, all int) string { return fmt.Sprintf("%d of %s", n, plural(all, "burst")) }

func (t *Tally) measuredClose() string {
	if t.upstreamClosed.n > 0 {
		return ms(t.upstreamClosed.quantile(0.5))
	}
	if t.direct.n > 0 {
		return ms(t.direct.quantile(0.5))
	}
	return "not yet"
}

// disturbedBy lists what failed and was set aside: "burn-cpu: 17, pause-origin +
// pause-proxy: 2, upstream-restart: 3".
func (t *Tally) disturbedBy() string {
	var out []string
	for _, k := range sortedKeys(t.causes) {
		by, disturbed := strings.CutPrefix(k, disturbedCause)
		if disturbed || k == string(record.CauseRestart) {
			out = append(out, fmt.Sprintf("%s: %d", by, t.causes[k]))
		}
	}
	return strings.Join(out, ", ")
}

// failedAs lists what clients of failed requests saw, but those set aside: "9 x
// 502, 1 x closed without a response".
func (t *Tally) failedAs() string {
	var out []string
	for _, k := range sortedKeys(t.calm) {
		n := t.calm[k]
		code, err := strconv.Atoi(k)
		switch {
		case err == nil && code < 500:
			continue
		case err == nil:
			out = append(out, fmt.Sprintf("%d x %d", n, code))
		case k == string(record.OutcomeClosed), k == string(record.OutcomeReset):
			out = append(out, fmt.Sprintf("%d x connection %s without a response", n, k))
		default:
			out = append(out, fmt.Sprintf("%d x %s", n, k))
		}
	}
	return strings.Join(out, ", ")
}

func sortedKeys(m map[string]int) []string {
	out := make([]string, 0, len(m))
	for k := range m {
		out = append(out, k)
	}
	sort.Strings(out)
	return out
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	if what == strings.ToUpper(what) { // a method
		return fmt.Sprintf("%d %ss", n, what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func times(n int) string {
	if n == 1 {
		return "once"
	}
	return fmt.Sprintf("%d times", n)
}

func numberOrNone(n int) string {
	if n == 0 {
		return "none was"
	}
	if n == 1 {
		return "1 was"
	}
	return fmt.Sprintf("%d were", n)
}

func percent(p float64) string { return strconv.FormatFloat(100*p, 'g', 2, 64) + " %" }

// ms gives a duration in ms with a precision of 10 µs: "600.12ms".
func ms(d time.Duration) string {
	return strconv.FormatFloat(float64(d.Round(10*time.Microsecond))/1e6, 'f', -1, 64) + "ms"
}

// Judge reads a run's lines and judges every item of its manifest. policy may
// be nil. Lines that cannot be read become warnings; an error of the stream
// itself ends the judgement.
func Judge(m record.Manifest, s *spec.Scenario, lines iter.Seq2[record.Line, error]) (*Document, error) {
	d := newDocument(m, s)
	tallies := map[string]*Tally{}
	byServer := map[string][]*Tally{}
	var order []*Tally
	for _, it := range m.Items {
		t := NewTally(SubjectOf(m, s, it))
		tallies[it.ID] = t
		byServer[it.Server] = append(byServer[it.Server], t)
		order = append(order, t)
	}
	lost, bad, truncated := 0, 0, false
	var firstBad error
	j := record.Joiner{
		Grace: true,
		Observe: func(o record.Observation) {
			if t := tallies[o.Shot.Cell]; t != nil {
				t.Observe(o)
			}
		},
		Close: func(e record.Event) {
			if t := tallies[e.Cell]; t != nil {
				t.Close(e)
			}
		},
		Orphan: func(e record.Event) {
			if t := tallies[e.Cell]; t != nil && e.Kind == record.EventLate {
				t.Orphan(e)
			}
		},
	}
	for l, err := range lines {
		if badLine, ok := asBadLine(err); ok {
			if badLine.Err == record.ErrTruncated {
				truncated = true
				continue
			}
			bad++
			if firstBad == nil {
				firstBad = err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if l.Direct != nil && l.Direct.Err == "" {
			for _, t := range byServer[l.Direct.Server] {
				if record.Side(t.s.Runtime) == record.Side(l.Direct.Runtime) {
					t.Direct(l.Direct.After)
				}
			}
		}
		if l.Disturbance != nil && l.Disturbance.To == 0 {
			d.Run.Disturbances[l.Disturbance.What]++
		}
		if l.Event != nil && l.Event.Kind == record.EventLost {
			lost += l.Event.Nth
		}
		j.Add(l)
	}
	j.Flush()
	for _, t := range order {
		v := t.Verdict()
		if t.s.Item.Role == RoleCell {
			d.Cells = append(d.Cells, v)
		} else {
			d.Controls = append(d.Controls, v)
		}
	}
	if bad > 0 {
		d.Run.Warnings = append(d.Run.Warnings, fmt.Sprintf("%d lines of the record could not be read; the first: %v", bad, firstBad))
	}
	if truncated {
		d.Run.Warnings = append(d.Run.Warnings, "the record ends in the middle of a line")
	}
	if lost > 0 {
		d.Run.Warnings = append(d.Run.Warnings, fmt.Sprintf("%d events of the origin's journal were lost; failures may lack their witness", lost))
	}
	applyControls(d)
	d.Margins = margins(d.Cells)
	return d, nil
}

func asBadLine(err error) (*record.BadLine, bool) {
	b, ok := err.(*record.BadLine)
	return b, ok
}

// SubjectOf is what the manifest says of an item.
func SubjectOf(m record.Manifest, s *spec.Scenario, it plan.Item) Subject {
	sub := Subject{Item: it, Shots: s.Probe.Shots, Until: s.Probe.Until, Fault: m.Faults[record.FaultOrigin]}
	if f := m.Faults[it.Cell.Proxy]; f != "" {
		sub.Fault = f
	}
	if it.Role == plan.RoleCell {
		sub.RTT, sub.Link, sub.Window = s.Link.RTT(it.Cell.RTT), s.Link, s.Probe.Aim == spec.AimWindow
	}
	for _, p := range m.Proxies {
		if p.Name == it.Cell.Proxy {
			sub.Version, sub.Runtime = p.Version, p.Runtime
		}
	}
	sub.Reproduce = strings.Join(append([]string{"idlerace"}, m.Command...), " ") + " --seed " + strconv.FormatUint(m.Seed, 10)
	if s.Probe.Lanes == 0 && m.Lanes > 0 && !slices.Contains(m.Command, "--lanes") {
		sub.Reproduce += " --lanes " + strconv.Itoa(m.Lanes) // a cell alone would get more
	}
	if it.Role == plan.RoleCell {
		sub.Reproduce += " --cell " + it.ID
	} else {
		sub.Reproduce += " --proxy " + it.Cell.Proxy
	}
	return sub
}

func newDocument(m record.Manifest, s *spec.Scenario) *Document {
	d := &Document{Schema: Schema, Controls: []Verdict{}, Cells: []Verdict{}, Unavailable: []Unavailable{}, Violations: []Violation{}, Margins: []Margin{}, Advice: []Advice{}}
	d.Run = Run{Scenario: m.Scenario, About: s.About, Started: m.Started, Seed: m.Seed, Lanes: m.Lanes, Version: m.Idlerace, Kernel: m.Kernel, Cores: m.Cores,
		StartUp: Duration(m.StartUp), Probing: Duration(m.Probing), Proxies: append([]record.ProxyRun{}, m.Proxies...), Engine: m.Engine, NoPackets: m.NoPackets, Disturbances: map[string]int{}, Shard: m.Shard.String(), Shards: m.Shards, Warnings: append([]string{}, m.Warnings...)}
	switch m.Ended {
	case record.EndDone, record.EndBudget:
	case "":
		d.Run.Partial = "the run was killed before its end; what follows is judged from what it had written"
	default:
		d.Run.Partial = "the run ended early: " + m.Ended
	}
	for _, u := range m.Unavailable {
		d.Unavailable = append(d.Unavailable, Unavailable{u.Proxy, u.Reason, u.Get})
	}
	return d
}

// applyControls withdraws what a proxy's controls do not support: without a
// racing positive control silence proves nothing, and with a failing negative
// control the stack fails for reasons of its own.
func applyControls(d *Document) {
	for _, ctl := range d.Controls {
		for i := range d.Cells {
			v := &d.Cells[i]
			if v.Proxy != ctl.Proxy || v.State == spec.Unsupported {
				continue
			}
			switch {
			case ctl.Role == RoleMustRace && ctl.State != spec.Races && v.State == spec.Safe:
				v.State = spec.Inconclusive
				v.Why = fmt.Sprintf("the positive control, which must race, did not (%s: %s), so that no failure here proves nothing; seen: %s", ctl.State, ctl.Why, v.Why)
			case ctl.Role == RoleMustNotRace && ctl.Attributed > 0 && ctl.Other == ctl.Disturbed && ctl.State == spec.Inconclusive:
				// It was held up now and then (Tally.stalled). What other cells
				// have shown they have shown; a bound drawn from silence waits for
				// a calmer machine.
				if v.State == spec.Safe {
					v.State = spec.Inconclusive
					v.Why = fmt.Sprintf("the negative control, without keep-alive to the upstream, lost requests now and then (%s); seen: %s", ctl.Why, v.Why)
				}
			case ctl.Role == RoleMustNotRace && ctl.Failures > ctl.Disturbed:
				v.State = spec.Broken
				v.Why = fmt.Sprintf("the negative control, without keep-alive to the upstream, failed as well (%s); seen: %s", ctl.Why, v.Why)
			}
		}
	}
}
