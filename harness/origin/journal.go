package origin

import (
	"context"
	"sync"
	"time"

	"idlerace/harness/record"
)

// chunkSize is how many events the journal allocates at a time: few enough
// that the allocation is no pause worth noticing (about 0.2 MB).
const chunkSize = 1024

// clock is Unix time in ns that cannot step: the wall is read once, at start,
// and the monotonic clock carries it on.
type clock struct{ start time.Time }

func (c clock) now() int64 { return c.start.UnixNano() + int64(time.Since(c.start)) }

// journal keeps the last size events in a ring. Appending costs a lock and a
// copy; nothing is encoded until somebody reads.
type journal struct {
	clock
	size uint64

	mu     sync.Mutex
	chunks [][]record.Event // a ring of chunks, each made when first written
	last   uint64           // number of the newest event; 0: none yet
	wake   chan struct{}    // closed at the next append; nil while nobody waits
	closed bool
}

func newJournal(size int) *journal {
	return &journal{
		clock:  clock{time.Now()},
		size:   uint64(size),
		chunks: make([][]record.Event, (size+chunkSize-1)/chunkSize),
	}
}

// slot is the place of event n. The caller holds mu.
func (j *journal) slot(n uint64) *record.Event {
	i := (n - 1) / chunkSize % uint64(len(j.chunks))
	if j.chunks[i] == nil {
		j.chunks[i] = make([]record.Event, min(chunkSize, j.size))
	}
	return &j.chunks[i][(n-1)%uint64(len(j.chunks[i]))]
}

// append numbers e and keeps it. Where e.At is 0 it is taken here, once the
// lock is held: waiting for the lock must not age the moment. idleSince is
// when the connection went idle, 0 if it is not; it gives e.Idle.
func (j *journal) append(e record.Event, idleSince int64) {
	j.mu.Lock()
	if e.At == 0 {
		e.At = j.now()
	}
	if idleSince != 0 {
		e.Idle = time.Duration(max(0, e.At-idleSince))
	}
	j.last++
	e.N = j.last
	*j.slot(j.last) = e
	if j.wake != nil {
		close(j.wake)
		j.wake = nil
	}
	j.mu.Unlock()
}

// read copies events numbered above after into buf, oldest first, at most
// cap(buf), and says how many before them are no longer kept.
func (j *journal) read(buf []record.Event, after uint64) (events []record.Event, lost uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.last > j.size && after < j.last-j.size {
		lost = j.last - j.size - after
		after += lost
	}
	for n := after + 1; n <= j.last && len(buf) < cap(buf); n++ {
		buf = append(buf, *j.slot(n))
	}
	return buf, lost
}

// mark is the number of the newest event, 0 before the first.
func (j *journal) mark() uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// wait returns true once there is an event above after, and false when there
// will be none: the journal is closed or ctx done.
func (j *journal) wait(ctx context.Context, after uint64) bool {
	for {
		j.mu.Lock()
		if j.last > after || j.closed {
			defer j.mu.Unlock()
			return j.last > after
		}
		if j.wake == nil {
			j.wake = make(chan struct{})
		}
		wake := j.wake
		j.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return false
		}
	}
}

// close ends the waits: nothing will be appended any more.
func (j *journal) close() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.closed = true
	if j.wake != nil {
		close(j.wake)
		j.wake = nil
	}
}
