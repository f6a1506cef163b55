package netem

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Probe tries whether this kernel has all that Install needs, in a network
// namespace that goes with the call. The error is a *MissingError, or says why
// nothing is known: ErrNoRight, or the system's.
func Probe() error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine, and the namespace with it
		if err := unix.Unshare(unix.CLONE_NEWNET); errors.Is(err, unix.EPERM) {
			result <- ErrNoRight
			return
		} else if err != nil {
			result <- fmt.Errorf("unshare: %w", err)
			return
		}
		s, err := Install([]string{"lo"}, []Path{{Port: 1, Delay: time.Millisecond, Jitter: time.Millisecond}})
		if err == nil {
			err = s.Close()
		}
		if missing, ok := errors.AsType[*MissingError](err); ok {
			err = missing // of which interface is no matter
		}
		result <- err
	}()
	return <-result
}
