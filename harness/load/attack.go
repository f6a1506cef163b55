// Package load drives a cell's traffic with vegeta: bursts of all lanes with
// idle gaps between them, each lane's gap aimed on its own. It must not import
// stack, proxy, judge or report.
package load

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"idlerace/harness/record"
)

// lead is how long before its earliest shot a burst's lanes are woken.
const lead = 4 * time.Millisecond

// Burst is one shot of every lane.
type Burst struct {
	Phase  record.Phase
	Target string          // of an aimed burst: record.TargetUpstream or TargetProxy
	Edge   time.Duration   // of an aimed burst: the age at which that edge is expected
	Gaps   []time.Duration // per lane, from BurstEnd of the burst before; nil: all at once
	Start  time.Time       // not before this moment
	Hold   time.Duration   // how long the origin holds the answers back; less than MinHold means MinHold
}

// Attack is the traffic of one cell.
type Attack struct {
	Cell   string // request ids begin with it (X-Vegeta-Attack)
	Addr   string // host:port of the proxy
	Method string
	Body   []byte
	Lanes  int
	Alarm  *Alarm
	// Next is called when every shot of a burst has ended (first with nil) and
	// gives the burst to follow, or false to end the attack. It may take its
	// time: a gap that is over when it returns makes the shot late, which its
	// measured age then says.
	Next func(ctx context.Context, last []record.Shot) (Burst, bool)
	// Result receives vegeta's own result of each shot, its timestamp and
	// latency those of the request and not of the wait before it. May be nil.
	Result func(*vegeta.Result)

	dial dialFunc // nil: net.Dialer
}

// Run attacks until Next says stop or calm is done, which ends the attack
// between two bursts, or hard is done, which ends it at once. It returns an
// error only for a fault of its own, never for a failed shot.
func (a *Attack) Run(calm, hard context.Context) error {
	if a.Lanes < 1 {
		return fmt.Errorf("load: %s: %d lanes", a.Cell, a.Lanes)
	}
	r := &rig{Attack: a, calm: calm, hard: hard, planned: make([]plannedShot, a.Lanes), shots: make([]record.Shot, a.Lanes)}
	for i := range a.Lanes {
		r.lanes = append(r.lanes, newLane(i, a.Addr, a.dial))
	}
	defer func() {
		for _, l := range r.lanes {
			l.drop()
		}
	}()
	attacker := vegeta.NewAttacker(
		vegeta.Client(&http.Client{
			Transport:     r,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}),
		vegeta.Workers(uint64(a.Lanes)), vegeta.MaxWorkers(uint64(a.Lanes)),
	)
	targeter := vegeta.NewStaticTargeter(vegeta.Target{Method: a.Method, URL: "http://" + a.Addr + "/", Body: a.Body})
	for res := range attacker.Attack(targeter, r, 0, a.Cell) {
		if a.Result != nil {
			a.Result(r.correct(res))
		}
	}
	return r.fault
}

// rig is one running attack: vegeta's Pacer and the http.RoundTripper behind
// vegeta's client.
type rig struct {
	*Attack
	calm, hard context.Context
	lanes      []*lane
	fault      error

	burst    int
	planned  []plannedShot // of the burst under way, by lane
	inFlight sync.WaitGroup

	mu    sync.Mutex
	shots []record.Shot           // of the burst under way, by lane
	times map[uint64][2]time.Time // sent and ended, until correct has asked
}

// Pace implements vegeta.Pacer: all lanes at once, then nothing until every
// response is in and the next burst is due.
//
// Note: vegeta counts ticks and not responses, and cannot be woken from the
// wait that a Pacer asks for. So this one waits itself and asks for none.
func (r *rig) Pace(_ time.Duration, hits uint64) (time.Duration, bool) {
	if hits%uint64(len(r.lanes)) != 0 {
		return 0, false
	}
	r.inFlight.Wait()
	var last []record.Shot
	if hits > 0 {
		r.mu.Lock()
		last = append(last, r.shots...)
		r.mu.Unlock()
		r.burst++
	}
	b, ok := r.Next(r.calm, last)
	if !ok || r.calm.Err() != nil {
		return 0, true
	}
	if b.Gaps != nil && len(b.Gaps) != len(r.lanes) {
		r.fault = fmt.Errorf("load: %s: %d gaps for %d lanes", r.Cell, len(b.Gaps), len(r.lanes))
		return 0, true
	}
	// All lanes count from one moment, the end of the burst before, and not each
	// from its own last response: that is when the upstream's connections went
	// idle, and a burst that came apart comes together again.
	due, end := b.Start, BurstEnd(last)
	for i := range r.lanes {
		p := plannedShot{phase: b.Phase, target: b.Target, edge: b.Edge, burst: r.burst, hold: max(b.Hold, MinHold), idleSince: end}
		if b.Gaps != nil {
			p.at = end.Add(b.Gaps[i])
			if early := p.at.Add(-lead); i == 0 || early.Before(due) {
				due = early
			}
		}
		r.planned[i] = p
	}
	if due.Before(b.Start) {
		due = b.Start
	}
	if err := r.Alarm.Wait(r.calm, due); err != nil {
		return 0, true
	}
	r.inFlight.Add(len(r.lanes))
	return 0, false
}

// BurstEnd is the moment from which ages after a burst count, the client's
// notion of when the burst's upstream connections went idle: the median end of
// its answers. Failures are left out where there is an answer, they end early.
func BurstEnd(shots []record.Shot) time.Time {
	var answered, all []int64
	for _, s := range shots {
		end := s.Sent + int64(s.Latency)
		all = append(all, end)
		if !s.Failed() {
			answered = append(answered, end)
		}
	}
	if len(answered) > 0 {
		all = answered
	}
	if len(all) == 0 {
		return time.Time{}
	}
	slices.Sort(all)
	return time.Unix(0, all[len(all)/2])
}

// Rate implements vegeta.Pacer; a burst has none.
func (r *rig) Rate(time.Duration) float64 { return 0 }

// RoundTrip sends one request on the lane its sequence number belongs to.
func (r *rig) RoundTrip(req *http.Request) (*http.Response, error) {
	defer r.inFlight.Done()
	seq, err := strconv.ParseUint(req.Header.Get(record.HeaderSeq), 10, 64)
	if err != nil {
		return nil, errors.New("load: request without a sequence number")
	}
	l := r.lanes[seq%uint64(len(r.lanes))]
	s, resp, err := l.shoot(r.hard, r.Alarm, r.planned[l.n], prepared(req, r.Cell, seq, r.planned[l.n].hold))
	s.Cell, s.Seq = r.Cell, seq
	r.mu.Lock()
	defer r.mu.Unlock()
	r.shots[l.n] = s
	if r.times == nil {
		r.times = map[uint64][2]time.Time{}
	}
	sent := time.Unix(0, s.Sent)
	r.times[seq] = [2]time.Time{sent, sent.Add(s.Latency)}
	if err != nil {
		return nil, err // a response that broke off is none to vegeta
	}
	return resp, nil
}

// correct sets a result's times to those of the request on the wire.
func (r *rig) correct(res *vegeta.Result) *vegeta.Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t, ok := r.times[res.Seq]; ok {
		res.Timestamp, res.Latency = t[0], t[1].Sub(t[0])
		delete(r.times, res.Seq)
	}
	return res
}
