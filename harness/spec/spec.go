// Package spec holds the nouns of a scenario: what is measured, not how. It
// imports nothing of this module.
package spec

import (
	"fmt"
	"strings"
	"time"

	"github.com/goccy/go-yaml/ast"
)

// Version is the scenario format this package reads.
const Version = 1

// Limits of one scenario, checked by Read. They bound a run's sockets and
// memory, and catch an axis that explodes by accident.
const (
	MaxCells      = 1024  // cells of one scenario, controls not counted
	MaxLanes      = 1000  // lanes of one cell
	MaxTotalLanes = 20000 // lanes of one run, controls not counted
	LeastLanes    = 10    // of a cell whose scenario leaves the number to the run
	UsualLanes    = 40    // the most of such a cell
	MaxShots      = 1_000_000
	MaxDuration   = 24 * time.Hour // of every duration, the budget included
	MaxRTT        = 5 * time.Second
)

// Scenario is one scenario file: a grid of cells, how hard each is probed and
// what a gate forbids.
type Scenario struct {
	Version  int
	Name     string // path-safe: lower-case letters, digits, "-"
	About    string // one sentence that a report can print
	Proxies  []Proxy
	Upstream Upstream
	Axes     Axes
	Link     Link    // between proxies and upstream
	Chaos    []Chaos // disturbances of the run, one of a kind; usually none
	Probe    Probe
	Policy   *Policy // nil: nothing is forbidden

	// Source is the text the scenario was read from, byte for byte, and File
	// its name; both are empty for a scenario built in code.
	Source []byte
	File   string
}

// Proxy names one proxy of a scenario.
type Proxy struct {
	Name  string // adapter name: "nginx", "gohttp"
	Image string // container image for the docker runtime; empty: the adapter's pin
}

// Upstream says which server stands behind the proxies.
type Upstream struct {
	Kind string // "go" is the origin of this module
}

// Axes are the dimensions of the grid. Every slice is non-empty and free of
// duplicates after Read.
type Axes struct {
	ProxyIdle    []Idle
	UpstreamIdle []time.Duration
	Method       []string
	Retry        []Retry
	Close        []Close
	RTT          []time.Duration
}

// Probe says how hard each cell is probed.
type Probe struct {
	Lanes  int           // client connections per cell; 0: as many as the machine can drive, LeastLanes to UsualLanes
	Shots  int           // aimed shots before a cell without a failure counts as probed
	Budget time.Duration // probing ends here, start-up not counted
	Seed   uint64        // all schedules derive from it
	Until  Until         // when a cell has been probed enough
	Aim    Aim           // where its shots go
}

// Aim says where a cell's shots go.
type Aim string

const (
	AimProof  Aim = "proof"  // at the upstream's close, and back to where one has hit: a verdict soon
	AimWindow Aim = "window" // at both edges of the danger window and all that is between: its shape
)

// Aims lists the values of Aim.
func Aims() []Aim { return []Aim{AimProof, AimWindow} }

// Until says when a cell has been probed enough.
type Until string

const (
	UntilDecided Until = "decided" // when its state is proven
	UntilShots   Until = "shots"   // when its state is proven and all its aimed shots were sent: rates of equal size, for comparing cells
)

// Untils lists the values of Until.
func Untils() []Until { return []Until{UntilDecided, UntilShots} }

// Policy is what a gate forbids: a cell that matches Where and whose state is
// one of Forbid violates it.
type Policy struct {
	Forbid []State
	Where  string // expression over a cell, see Policy.Match; empty: every cell

	match matcher // compiled Where; nil for a Policy built in code
}

// Idle is the idle timeout of a proxy's upstream connection pool.
type Idle time.Duration

// Off means that the proxy keeps no upstream connection alive.
const Off Idle = 0

// String gives "off" or a Go duration without trailing zero units ("1s", "1m30s").
func (i Idle) String() string {
	if i == Off {
		return "off"
	}
	return FormatDuration(time.Duration(i))
}

// Retry is the setting of the proxy that decides whether a request that met a
// dead upstream connection is sent again.
type Retry string

const (
	RetryDefault Retry = "default" // as the proxy comes
	RetryOff     Retry = "off"     // never
	RetryOn      Retry = "on"      // the proxy's setting that should cover this race, POST included
)

// Retries lists the values of Retry.
func Retries() []Retry { return []Retry{RetryDefault, RetryOff, RetryOn} }

// Close is how the upstream ends a connection whose idle timer fired.
type Close string

const (
	CloseFIN       Close = "fin"        // FIN at once, then read on, note the id of a late request, reset: the witnessed close
	ClosePlain     Close = "plain"      // an ordinary close(2): FIN, and the kernel resets on late data
	CloseRST       Close = "rst"        // RST at once (SO_LINGER 0)
	CloseHalfClose Close = "half-close" // FIN, late requests are read, noted and never answered; no RST
)

// Closes lists the values of Close.
func Closes() []Close { return []Close{CloseFIN, ClosePlain, CloseRST, CloseHalfClose} }

// Witnessed reports whether the origin can read the id of a late request under
// this style.
func (c Close) Witnessed() bool { return c == CloseFIN || c == CloseHalfClose }

// Methods lists the request methods an axis may hold.
func Methods() []string {
	return []string{"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"}
}

// State is the verdict on a cell.
type State string

const (
	Races        State = "races"        // a client-visible failure is tied to an idle-closed upstream connection
	Masked       State = "masked"       // stale reuse was witnessed, the proxy sent the request again, the client got its answer
	Safe         State = "safe"         // no failure, no stale reuse, enough aimed shots, and the proxy closed first every time
	Inconclusive State = "inconclusive" // neither shown
	Unsupported  State = "unsupported"  // the proxy cannot express the cell
	Broken       State = "broken"       // a control failed or the stack did
)

// States lists the values of State, best proof of safety first.
func States() []State { return []State{Safe, Masked, Races, Inconclusive, Unsupported, Broken} }

// Cell is one point of the grid. It is comparable; use it as a map key.
type Cell struct {
	Proxy        string
	Upstream     string
	ProxyIdle    Idle
	UpstreamIdle time.Duration
	Method       string
	Retry        Retry
	Close        Close
	RTT          time.Duration
}

// ID is the cell's stable name: path-safe, unique in a scenario, and
// independent of every other cell.
func (c Cell) ID() string {
	return strings.Join([]string{
		c.Proxy, c.Upstream,
		"p" + c.ProxyIdle.String(), "u" + FormatDuration(c.UpstreamIdle),
		c.Method, string(c.Retry), string(c.Close), "rtt" + FormatDuration(c.RTT),
	}, "_")
}

// Cells is the whole grid in reading order: proxies outside, then method,
// retry, close, RTT, proxy idle, upstream idle.
func (s *Scenario) Cells() []Cell {
	var out []Cell
	for _, p := range s.Proxies {
		for _, m := range s.Axes.Method {
			for _, r := range s.Axes.Retry {
				for _, c := range s.Axes.Close {
					for _, rtt := range s.Axes.RTT {
						for _, pi := range s.Axes.ProxyIdle {
							for _, ui := range s.Axes.UpstreamIdle {
								out = append(out, Cell{p.Name, s.Upstream.Kind, pi, ui, m, r, c, rtt})
							}
						}
					}
				}
			}
		}
	}
	return out
}

// FormatDuration is time.Duration.String without zero units at the end:
// "1m0s" becomes "1m", "2h0m0s" becomes "2h".
func FormatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// Error is a fault in a scenario file, as a person wants to read it.
type Error struct {
	File string // as named by the caller
	Line int    // 1-based; 0 when the fault has no line
	Msg  string // what is wrong
	Hint string // what would be right; may be empty
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.File)
	if e.Line > 0 {
		fmt.Fprintf(&b, ":%d", e.Line)
	}
	b.WriteString(": ")
	b.WriteString(e.Msg)
	if e.Hint != "" {
		b.WriteString(" (")
		b.WriteString(e.Hint)
		b.WriteString(")")
	}
	return b.String()
}

// SetLanes overrides probe.lanes. It fails where Read would.
func (s *Scenario) SetLanes(n int) error {
	cells := len(s.Cells())
	switch {
	case n < 1 || n > MaxLanes:
		return fmt.Errorf("%d is out of range (1 to %d)", n, MaxLanes)
	case cells*n > MaxTotalLanes:
		return fmt.Errorf("%d cells x %d lanes make %d client connections (at most %d: %d lanes or less)", cells, n, cells*n, MaxTotalLanes, MaxTotalLanes/cells)
	}
	s.Probe.Lanes = n
	return nil
}

// Line is where a key of the top level stands in Source, from 1; 0 where it does
// not.
func (s *Scenario) Line(key string) int {
	root, err := parse(s.File, s.Source)
	if err != nil {
		return 0
	}
	m, ok := root.node.(*ast.MappingNode)
	if !ok {
		return 0
	}
	for _, kv := range m.Values {
		if at := kv.Key.GetToken(); at.Value == key {
			return at.Position.Line
		}
	}
	return 0
}
