package spec

import (
	"fmt"
	"time"
)

// What a disturbance of a run does.
type What string

const (
	PauseProxy    What = "pause-proxy"    // every proxy stands still
	PauseOrigin   What = "pause-origin"   // the upstream stands still
	RestartOrigin What = "restart-origin" // the upstream ends every connection, as a rolling deploy does: idle ones at once and without notice
	BurnCPU       What = "burn-cpu"       // a neighbour keeps every core busy
)

// Whats lists the values of What.
func Whats() []What { return []What{PauseProxy, PauseOrigin, RestartOrigin, BurnCPU} }

// Lasts reports whether a disturbance has a length: a restart has none.
func (w What) Lasts() bool { return w != RestartOrigin }

// Limits of a Chaos.
const (
	ChaosFrom  = 3 * time.Second // the first disturbance comes no sooner: cells start, and are measured
	MinEvery   = 100 * time.Millisecond
	MaxDisturb = 10 * time.Second
)

// Chaos is a disturbance that comes again and again while a run is probed.
type Chaos struct {
	What  What
	For   time.Duration // 1ms to MaxDisturb and less than Every; 0 where What does not last
	Every time.Duration // mean time from one begin to the next, at least MinEvery
}

func (d *draft) readChaos(v value) (err error) {
	d.chaosAt = v
	d.Chaos, err = distinct(v, readDisturbance, func(c Chaos) string { return string(c.What) })
	return err
}

func readDisturbance(v value) (Chaos, error) {
	var c Chaos
	var forAt value
	if !v.isMapping() {
		return c, v.wrongType("a disturbance", "{what: pause-proxy, for: 300ms, every: 5s}")
	}
	err := v.mapping(
		field{name: "what", need: "what: pause-proxy", read: func(v value) (err error) {
			c.What, err = choice(v, "disturbance", Whats())
			return err
		}},
		field{name: "for", read: func(v value) (err error) {
			forAt = v
			c.For, err = v.duration()
			if err == nil && (c.For == 0 || c.For > MaxDisturb) {
				return v.fault("1ms to "+FormatDuration(MaxDisturb), "%s is out of range", quote(v.literal()))
			}
			return err
		}},
		field{name: "every", need: "every: 5s", read: func(v value) (err error) {
			c.Every, err = v.duration()
			if err == nil && c.Every < MinEvery {
				return v.fault("at least "+FormatDuration(MinEvery), "%s is too often", quote(v.literal()))
			}
			return err
		}},
	)
	switch given := forAt.path != ""; {
	case err != nil:
		return c, err
	case given && !c.What.Lasts():
		return c, forAt.fault("remove the key", "%s takes no time", c.What)
	case !given && c.What.Lasts():
		return c, v.fault("add for: 300ms", `the key "for" is missing`)
	case c.For >= c.Every:
		return c, forAt.fault("make it shorter, or every longer", "%s lasts as long as until the next one, %s", c.What, FormatDuration(c.Every))
	}
	return c, nil
}

// checkChaos refuses what would never happen.
func (d *draft) checkChaos() error {
	for _, c := range d.Chaos {
		if ChaosFrom+c.For >= d.Probe.Budget {
			return d.chaosAt.fault(fmt.Sprintf("the first comes after %s", FormatDuration(ChaosFrom)),
				"%s does not fit into probe.budget, %s", c.What, FormatDuration(d.Probe.Budget))
		}
	}
	return nil
}
