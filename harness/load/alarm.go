package load

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Alarm wakes goroutines at given moments, as precisely as the system can.
//
// Note: time.Sleep is not good enough here. When every goroutine sleeps, Go's
// runtime waits in epoll with a timeout in whole milliseconds and so wakes up
// to 1 ms late, which is the width of the window this program aims at.
type Alarm struct {
	mu      sync.Mutex
	waiters waiters
	timer   timer
	done    chan struct{}
}

// timer is a system timer: arm it to go off after d (replacing what was armed
// before), wait for it to go off.
type timer interface {
	arm(d time.Duration) error
	wait() error
	close() error
}

// NewAlarm makes an alarm; Close it after use.
func NewAlarm() (*Alarm, error) {
	t, err := newTimer()
	if err != nil {
		return nil, err
	}
	return newAlarm(t), nil
}

func newAlarm(t timer) *Alarm {
	a := &Alarm{timer: t, done: make(chan struct{})}
	go a.loop()
	return a
}

// Wait returns at t, at once if t is past, or with ctx's error.
func (a *Alarm) Wait(ctx context.Context, t time.Time) error {
	if time.Until(t) <= 0 {
		return ctx.Err()
	}
	w := &waiter{at: t, wake: make(chan struct{})}
	a.mu.Lock()
	heap.Push(&a.waiters, w)
	err := a.rearm()
	a.mu.Unlock()
	if err != nil {
		return err
	}
	select {
	case <-w.wake:
		return nil
	case <-ctx.Done():
		a.mu.Lock()
		if w.index >= 0 {
			heap.Remove(&a.waiters, w.index)
		}
		a.mu.Unlock()
		return ctx.Err()
	case <-a.done:
		return context.Canceled
	}
}

// Close ends the alarm; waiters return with an error.
func (a *Alarm) Close() error {
	err := a.timer.close()
	<-a.done
	return err
}

func (a *Alarm) loop() {
	defer close(a.done)
	for {
		if a.timer.wait() != nil {
			return
		}
		a.mu.Lock()
		now := time.Now()
		for len(a.waiters) > 0 && !a.waiters[0].at.After(now) {
			close(heap.Pop(&a.waiters).(*waiter).wake)
		}
		err := a.rearm()
		a.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// rearm sets the timer to the earliest waiter. It needs a.mu.
func (a *Alarm) rearm() error {
	if len(a.waiters) == 0 {
		return nil
	}
	return a.timer.arm(max(time.Until(a.waiters[0].at), 1))
}

type waiter struct {
	at    time.Time
	wake  chan struct{}
	index int // in the heap; -1 outside
}

// waiters is a heap by moment.
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].at.Before(w[j].at) }
func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].index, w[j].index = i, j
}
func (w *waiters) Push(x any) {
	n := x.(*waiter)
	n.index = len(*w)
	*w = append(*w, n)
}
func (w *waiters) Pop() any {
	old := *w
	n := old[len(old)-1]
	n.index = -1
	*w = old[:len(old)-1]
	return n
}
