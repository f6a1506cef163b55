package link

import (
	"container/heap"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// waker makes the runtime look at its timers in time. When every goroutine
// sleeps, the runtime waits in epoll with a timeout in whole milliseconds and
// runs its timers up to 1 ms late; the expiry of a timerfd(2) is an event of
// epoll and comes when it is due. A nil waker does nothing.
type waker struct {
	fd   *os.File
	done chan struct{}

	mu  sync.Mutex
	due moments
}

func newWaker() (*waker, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	w := &waker{fd: os.NewFile(uintptr(fd), "timerfd"), done: make(chan struct{})}
	go w.loop()
	return w, nil
}

// at asks for a wake-up at t.
func (w *waker) at(t time.Time) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	heap.Push(&w.due, t)
	if w.due[0].Equal(t) {
		w.arm()
	}
}

// loop has nothing to do at a wake-up but to arm the next: that it ran is what
// matters.
func (w *waker) loop() {
	defer close(w.done)
	var expirations [8]byte
	for {
		if _, err := w.fd.Read(expirations[:]); err != nil {
			return
		}
		w.mu.Lock()
		for now := time.Now(); len(w.due) > 0 && !w.due[0].After(now); {
			heap.Pop(&w.due)
		}
		if len(w.due) > 0 {
			w.arm()
		}
		w.mu.Unlock()
	}
}

// arm sets the timer to the earliest moment. Where it fails the runtime's own
// timers are left. The caller holds mu.
func (w *waker) arm() {
	raw, err := w.fd.SyscallConn()
	if err != nil {
		return
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(max(time.Until(w.due[0]), 1)))}
	raw.Control(func(fd uintptr) { unix.TimerfdSettime(int(fd), 0, &spec, nil) })
}

func (w *waker) close() {
	if w == nil {
		return
	}
	w.fd.Close()
	<-w.done
}

// moments is a heap.
type moments []time.Time

func (m moments) Len() int           { return len(m) }
func (m moments) Less(i, j int) bool { return m[i].Before(m[j]) }
func (m moments) Swap(i, j int)      { m[i], m[j] = m[j], m[i] }
func (m *moments) Push(x any)        { *m = append(*m, x.(time.Time)) }
func (m *moments) Pop() any {
	old := *m
	t := old[len(old)-1]
	*m = old[:len(old)-1]
	return t
}
