package load

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// timerFD is timerfd(2): its expiry is an event of the runtime's poller, which
// so wakes in time and not at the next whole millisecond.
type timerFD struct{ f *os.File }

func newTimer() (timer, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_MONOTONIC, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("timerfd_create", err)
	}
	return &timerFD{os.NewFile(uintptr(fd), "timerfd")}, nil
}

func (t *timerFD) arm(d time.Duration) error {
	raw, err := t.f.SyscallConn()
	if err != nil {
		return err
	}
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(d))}
	var setErr error
	if err := raw.Control(func(fd uintptr) { setErr = unix.TimerfdSettime(int(fd), 0, &spec, nil) }); err != nil {
		return err
	}
	return os.NewSyscallError("timerfd_settime", setErr)
}

func (t *timerFD) wait() error {
	var expirations [8]byte
	_, err := t.f.Read(expirations[:])
	return err
}

func (t *timerFD) close() error { return t.f.Close() }
