package load

import (
	"os"
	"time"
)

// goTimer is the runtime's own timer, for systems without a better one.
type goTimer struct {
	t      *time.Timer
	closed chan struct{}
}

func newGoTimer() *goTimer {
	return &goTimer{time.NewTimer(time.Hour), make(chan struct{})}
}

func (t *goTimer) arm(d time.Duration) error { t.t.Reset(d); return nil }

func (t *goTimer) wait() error {
	select {
	case <-t.t.C:
		return nil
	case <-t.closed:
		return os.ErrClosed
	}
}

func (t *goTimer) close() error { t.t.Stop(); close(t.closed); return nil }
