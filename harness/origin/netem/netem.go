// Package netem has the kernel delay what leaves a server: below TCP, so that
// handshakes, acknowledgements, FIN and RST take their time as well. It needs
// Linux with sch_netem, sch_htb and cls_u32, CAP_NET_ADMIN, and a network
// namespace of its own. It imports nothing of this module.
package netem

import (
	"errors"
	"fmt"
	"time"
)

// MaxJitter is the longest that the kernel can draw.
const MaxJitter = 4 * time.Second

// Path is what leaves one TCP port. Its packets keep their order, whatever the
// jitter: they pass in line, as over a cable, and those of all ports with the
// same Delay and Jitter are in one line.
type Path struct {
	Port   uint16
	Delay  time.Duration
	Jitter time.Duration // added to each packet, from 0 to this; at most MaxJitter
}

// Reasons for which Install may fail; to be told with errors.Is.
var (
	ErrNoRight  = errors.New("no right to shape (CAP_NET_ADMIN)")
	ErrNoSystem = errors.New("packets can be shaped on Linux only")
)

// MissingError says what the kernel has not got.
type MissingError struct{ Name, Module string }

func (e *MissingError) Error() string {
	return fmt.Sprintf("this kernel has no %s (%s)", e.Name, e.Module)
}
