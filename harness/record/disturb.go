package record

import (
	"math"
	"slices"
	"time"

	"idlerace/harness/spec"
)

// How far beyond its begin and end a disturbance may have a hand in things. The
// answers of one burst are not out in one moment, and what was held up takes a
// while to catch up.
const (
	Lead  = 10 * time.Millisecond
	Grace = 100 * time.Millisecond
)

// disturbances of a run, as far as its record has told them. Its begin is told
// before anything is done, so that one under way covers all that follows, and
// nothing must wait for its end.
//
// Note: an origin's moments are compared as they are. They are of its own clock,
// which is the harness's unless its container engine is on another machine.
type disturbances struct {
	open []Disturbance // under way
	past []Disturbance // in the order in which they ended
}

func (ds *disturbances) add(d Disturbance) {
	if d.To == 0 {
		ds.open = append(ds.open, d)
		return
	}
	ds.open = slices.DeleteFunc(ds.open, func(o Disturbance) bool { return o.What == d.What && o.From == d.From })
	ds.past = append(ds.past, d)
}

// during adds to kinds those of the wanted disturbances that were at work
// between from and to, Lead and Grace included.
func (ds *disturbances) during(kinds []string, from, to int64, wanted func(Disturbance) bool) []string {
	take := func(d Disturbance, end int64) {
		if d.From-int64(Lead) <= to && from <= end && wanted(d) && !slices.Contains(kinds, d.What) {
			kinds = append(kinds, d.What)
		}
	}
	for _, d := range ds.open {
		take(d, math.MaxInt64)
	}
	for _, d := range slices.Backward(ds.past) {
		end := d.To + int64(Grace)
		if end < from {
			break
		}
		take(d, end)
	}
	return kinds
}

func anyKind(Disturbance) bool { return true }

func restart(d Disturbance) bool { return d.What == string(spec.RestartOrigin) }

// idle is during for an idle period of a connection. What is at work when it
// begins or ends moves these moments; in between nothing is due that a pause
// would hold up, but a restart ends it.
func (ds *disturbances) idle(kinds []string, from, to int64) []string {
	kinds = ds.during(kinds, from, from, anyKind)
	kinds = ds.during(kinds, to, to, anyKind)
	return ds.during(kinds, from, to, restart)
}

// of gives the kinds that may have had a hand in what became of o.
func (ds *disturbances) of(o *Observation) []string {
	if len(ds.open)+len(ds.past) == 0 {
		return nil
	}
	s := o.Shot
	out := ds.during(nil, s.Sent, s.Sent+int64(s.Latency), anyKind)
	if s.Age > 0 {
		out = ds.idle(out, s.Sent-int64(s.Age), s.Sent)
	}
	for _, e := range o.Before {
		out = ds.during(out, e.At, e.At, anyKind)
	}
	slices.Sort(out)
	return out
}

// Disturbed gives the kinds of disturbance, told so far, that may have had a
// hand in when a connection went idle or how that ended, in Unix ns.
func (j *Joiner) Disturbed(idle, end int64) []string {
	return j.disturbances.idle(nil, idle, end)
}
