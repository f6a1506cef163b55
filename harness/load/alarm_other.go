//go:build !linux

package load

import (
	"os"
	"time"
)

// goTimer is the runtime's own timer, where nothing better is at hand.
type goTimer struct {
	t      *time.Timer
	closed chan struct{}
}

func newTimer() (timer, error) {
	return &goTimer{time.NewTimer(time.Hour), make(chan struct{})}, nil
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

func (t *goTimer) close() error { close(t.closed); return nil }
