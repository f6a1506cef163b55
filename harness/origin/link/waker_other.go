//go:build !linux

package link

import "time"

// waker is needed on Linux only.
type waker struct{}

func newWaker() (*waker, error) { return nil, nil }

func (*waker) at(time.Time) {}
func (*waker) close()       {}
