package spec

import (
	"fmt"
	"slices"
	"time"
)

// Link is the emulated network between proxies and upstream, besides the round
// trip that is an axis. The zero value adds nothing.
type Link struct {
	// Netem has the kernel of the upstream's container delay its packets, below
	// TCP; else a relay in the upstream's process does, above it. The kernel can
	// delay only what leaves, so that the round trip is spent on the way back: Up
	// stays zero, and there is no middlebox.
	Netem    bool
	Up, Down Direction // to the upstream, and back

	// Idle is after how long without a byte a middlebox gives a connection up,
	// and OnIdle how. 0: never.
	Idle   time.Duration
	OnIdle Expiry
	// HalfClosed is how long a middlebox remembers a connection that one side
	// has closed; packets after it are dropped without a word. 0: for ever.
	HalfClosed time.Duration
}

// Direction is one way through a Link.
type Direction struct {
	Delay  time.Duration // 0: half of the cell's round trip
	Jitter time.Duration // added to each packet, from 0 to this
}

// Expiry is how a middlebox ends a connection that was idle for too long.
type Expiry string

const (
	ExpiryDrop      Expiry = "drop"       // forgets it and drops what comes later, without a word
	ExpiryReset     Expiry = "reset"      // resets both sides at once
	ExpiryResetLate Expiry = "reset-late" // resets the side that sends next
)

// Expiries lists the values of Expiry.
func Expiries() []Expiry { return []Expiry{ExpiryDrop, ExpiryReset, ExpiryResetLate} }

// Driver is what emulates the network.
type Driver string

const (
	DriverRelay Driver = "relay" // the upstream's process, above TCP
	DriverNetem Driver = "netem" // the kernel of the upstream's container, below it
)

// Drivers lists the values of Driver.
func Drivers() []Driver { return []Driver{DriverRelay, DriverNetem} }

// For is what there is of l between a proxy and an upstream that are rtt apart:
// netem with nothing to delay is nothing.
func (l Link) For(rtt time.Duration) Link {
	if rtt == 0 && l == (Link{Netem: true}) {
		return Link{}
	}
	return l
}

// Delays splits a cell's round trip into the way to the upstream and back.
func (l Link) Delays(rtt time.Duration) (up, down time.Duration) {
	if l.Netem {
		return 0, rtt
	}
	if l.Up.Delay > 0 || l.Down.Delay > 0 {
		return l.Up.Delay, l.Down.Delay
	}
	return rtt / 2, rtt - rtt/2
}

// RTT is the longest round trip of a cell: its own and the jitter of both ways.
func (l Link) RTT(rtt time.Duration) time.Duration { return rtt + l.Up.Jitter + l.Down.Jitter }

func (d *draft) readLink(v value) error {
	l := &d.Link
	d.linkAt = v
	return v.mapping(
		field{name: "driver", read: func(v value) error {
			driver, err := choice(v, "driver", Drivers())
			l.Netem = driver == DriverNetem
			d.driverAt = v
			return err
		}},
		field{name: "up", read: func(v value) error {
			d.relayOnly = append(d.relayOnly, v)
			return readDirection(&l.Up, v)
		}},
		field{name: "down", read: func(v value) error { return readDirection(&l.Down, v) }},
		field{name: "idle", read: func(v value) error {
			d.relayOnly = append(d.relayOnly, v)
			return v.mapping(
				field{name: "after", need: "after: 350ms", read: func(v value) (err error) {
					l.Idle, err = v.positive()
					return err
				}},
				field{name: "then", need: "then: reset", read: func(v value) (err error) {
					l.OnIdle, err = choice(v, "end of an idle connection", Expiries())
					return err
				}},
			)
		}},
		field{name: "half_closed", read: func(v value) (err error) {
			d.relayOnly = append(d.relayOnly, v)
			l.HalfClosed, err = v.positive()
			return err
		}},
	)
}

func readDirection(to *Direction, v value) error {
	return v.mapping(
		field{name: "delay", read: func(v value) (err error) {
			to.Delay, err = v.duration()
			return err
		}},
		field{name: "jitter", read: func(v value) (err error) {
			to.Jitter, err = v.duration()
			return err
		}},
	)
}

// checkLink settles who says the round trip: the axis, or the two ways.
func (d *draft) checkLink() error {
	l := &d.Link
	switch {
	case l.Up.Delay == 0 && l.Down.Delay == 0:
	case d.rttAt.path != "":
		return d.rttAt.fault("keep one of them", "link.up.delay and link.down.delay on line %d say the round trip already", d.linkAt.line)
	default:
		d.Axes.RTT = []time.Duration{l.Up.Delay + l.Down.Delay}
	}
	if l.Netem {
		if err := d.checkNetem(); err != nil {
			return err
		}
	}
	for _, rtt := range d.Axes.RTT {
		if rtt > MaxRTT {
			return d.rttFault().fault(fmt.Sprintf("at most %s", MaxRTT), "a round trip of %s is longer than any network's", FormatDuration(rtt))
		}
	}
	for _, dir := range []Direction{l.Up, l.Down} {
		if dir.Jitter > MaxRTT {
			return d.linkAt.fault(fmt.Sprintf("at most %s", MaxRTT), "a jitter of %s is longer than any network's", FormatDuration(dir.Jitter))
		}
	}
	return nil
}

// maxNetemJitter is what the kernel can draw.
const maxNetemJitter = 4 * time.Second

// checkNetem refuses what the kernel cannot do, and a driver with nothing to do.
func (d *draft) checkNetem() error {
	if len(d.relayOnly) > 0 {
		v := d.relayOnly[0]
		hint := fmt.Sprintf("driver %s has it", DriverRelay)
		if v.path == "link.up" {
			hint = "say the whole round trip: axes.rtt, or link.down"
		}
		return v.fault(hint, "driver %s has no such thing: it delays what leaves the upstream, and no more", DriverNetem)
	}
	if jitter := d.Link.Down.Jitter; jitter > maxNetemJitter {
		return d.linkAt.fault(fmt.Sprintf("at most %s", maxNetemJitter), "a jitter of %s is longer than %s can draw", FormatDuration(jitter), DriverNetem)
	}
	if d.Link == (Link{Netem: true}) && slices.Max(d.Axes.RTT) == 0 {
		return d.driverAt.fault("axes.rtt: [20ms], or link.down: {delay: 20ms}", "%s has nothing to delay", DriverNetem)
	}
	return nil
}

func (d *draft) rttFault() value {
	if d.rttAt.path != "" {
		return d.rttAt
	}
	return d.linkAt
}
