package load

import (
	"sync"
	"time"
)

// MinHold and MaxHold bound how long the origin holds a burst's answers back.
// The least must cover the spread of a burst on its way to the origin, or it
// would be answered in two parts.
const (
	MinHold = 12 * time.Millisecond
	MaxHold = 60 * time.Millisecond
)

// Busy moments of a burst: while it is sent, and while it is answered.
const (
	busyBefore = time.Millisecond
	busyAfter  = 6 * time.Millisecond
	holdStep   = time.Millisecond
	freeWithin = 150 * time.Millisecond
)

// Stagger keeps the bursts of different cells apart, so that none makes
// another late. A burst's answers are held back by the origin; how long they
// are decides when all its connections go idle and so when the next burst is
// due. Stagger picks that hold so that the answers, and the next burst, fall
// into moments no other cell has taken. The zero value is ready.
type Stagger struct {
	mu    sync.Mutex
	taken []taken
}

type taken struct {
	by       string
	from, to time.Time
}

// Pick gives the hold of a burst of cell that is sent at the given moment and
// followed by another one gap after its answers. It replaces what the cell had
// taken before.
func (s *Stagger) Pick(cell string, sent time.Time, gap time.Duration) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	kept := s.taken[:0]
	for _, t := range s.taken {
		if t.by != cell && t.to.After(sent.Add(-time.Second)) {
			kept = append(kept, t)
		}
	}
	s.taken = kept
	best, fewest := MinHold, time.Duration(-1)
	for hold := MinHold; hold <= MaxHold; hold += holdStep {
		n := s.overlap(sent.Add(hold)) + s.overlap(sent.Add(hold+gap))
		if fewest < 0 || n < fewest {
			best, fewest = hold, n
		}
		if n == 0 {
			break
		}
	}
	for _, at := range []time.Time{sent, sent.Add(best), sent.Add(best + gap)} {
		s.taken = append(s.taken, taken{cell, at.Add(-busyBefore), at.Add(busyAfter)})
	}
	return best
}

// Free is the first moment, from the given one on and not much later, that no
// cell has taken: for a burst that is in no hurry.
func (s *Stagger) Free(from time.Time) time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	for at := from; at.Before(from.Add(freeWithin)); at = at.Add(holdStep) {
		if s.overlap(at) == 0 {
			return at
		}
	}
	return from
}

// overlap is how much of the busy moment at a time others have taken.
func (s *Stagger) overlap(at time.Time) time.Duration {
	from, to := at.Add(-busyBefore), at.Add(busyAfter)
	var sum time.Duration
	for _, t := range s.taken {
		a, b := from, to
		if t.from.After(a) {
			a = t.from
		}
		if t.to.Before(b) {
			b = t.to
		}
		sum += max(b.Sub(a), 0)
	}
	return sum
}
