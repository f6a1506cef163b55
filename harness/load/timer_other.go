//go:build !linux

package load

func newTimer() (timer, error) { return newGoTimer(), nil }
