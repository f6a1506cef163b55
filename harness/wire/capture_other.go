//go:build !linux

package wire

type socket struct{}

func openSocket([]uint16, int) (*socket, error) { return nil, ErrNoSystem }

func (*socket) wait(func() int) {}

func (*socket) read(func(int64, int32, []byte)) (n int, more bool, err error) { return 0, false, nil }

func (*socket) dropped() (uint64, error) { return 0, nil }

func (*socket) close() error { return nil }
