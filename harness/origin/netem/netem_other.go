//go:build !linux

package netem

// Shaper is what Install has set up: nothing, on this system.
type Shaper struct{}

// Interfaces fails with ErrNoSystem.
func Interfaces() ([]string, error) { return nil, ErrNoSystem }

// Install fails with ErrNoSystem.
func Install([]string, []Path) (*Shaper, error) { return nil, ErrNoSystem }

// Probe fails with ErrNoSystem.
func Probe() error { return ErrNoSystem }

// Close does nothing.
func (s *Shaper) Close() error { return nil }
