package judge

import (
	"encoding/json"
	"fmt"
	"time"

	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Schema names the format of verdicts.json. Fields may be added under one
// number, never renamed or removed.
const Schema = "idlerace/verdicts/v1"

// Document is verdicts.json.
type Document struct {
	Schema      string        `json:"schema"`
	Run         Run           `json:"run"`
	Controls    []Verdict     `json:"controls"`
	Cells       []Verdict     `json:"cells"`
	Unavailable []Unavailable `json:"unavailable"` // proxies of the scenario that could not run here
	Violations  []Violation   `json:"violations"`  // of the scenario's policy
	Margins     []Margin      `json:"margins"`     // where the scenario tries small differences of the two timeouts
	Advice      []Advice      `json:"advice"`      // what the cells support, by package advice
}

// Run says where a document comes from.
type Run struct {
	Scenario string    `json:"scenario"`
	About    string    `json:"about"`
	Started  time.Time `json:"started"`
	Seed     uint64    `json:"seed"`
	Lanes    int       `json:"lanes"` // client connections per cell; 0: not known
	Version  string    `json:"idlerace"`
	Kernel   string    `json:"kernel"`
	Cores    int       `json:"cores"`
	StartUp  Duration  `json:"start_up"` // until every proxy was ready
	Probing  Duration  `json:"probing"`  // from then to the last settled burst
	// Proxies says what ran under each name, and why from there. Engine is the
	// container engine; null when none was used.
	Proxies []record.ProxyRun `json:"proxies"`
	Engine  *record.Engine    `json:"engine"`
	// NoPackets says why no packets were captured; empty when they were, or when
	// nobody wanted them.
	NoPackets string `json:"no_packets"`
	// Disturbances of the run by kind, as its scenario wished (chaos).
	Disturbances map[string]int `json:"disturbances"`
	Partial      string         `json:"partial"`          // why the run is not complete; empty when it is
	Shard        string         `json:"shard,omitempty"`  // "2/3" of the scenario's cells; empty: all
	Shards       int            `json:"shards,omitempty"` // merged from so many
	Warnings     []string       `json:"warnings"`
}

// Unavailable is a proxy that could not run, and what would change that.
type Unavailable struct {
	Proxy  string `json:"proxy"`
	Reason string `json:"reason"`
	Get    string `json:"get"` // the one command that gets it
}

// Violation is a cell that a policy forbids.
type Violation struct {
	Cell  string     `json:"cell"`
	State spec.State `json:"state"`
	Rule  string     `json:"rule"`
}

// Roles of a verdict's cell in its run.
const (
	RoleCell        = plan.RoleCell
	RoleMustRace    = plan.RoleMustRace
	RoleMustNotRace = plan.RoleMustNotRace
)

// Verdict is the judgement on one cell or control.
type Verdict struct {
	ID             string         `json:"id"`
	Role           string         `json:"role"`
	Proxy          string         `json:"proxy"`
	Version        string         `json:"version"`
	Runtime        string         `json:"runtime"`
	Upstream       string         `json:"upstream"`
	ProxyIdle      string         `json:"proxy_idle"`
	UpstreamIdle   string         `json:"upstream_idle"`
	Method         string         `json:"method"`
	Retry          spec.Retry     `json:"retry"`
	Close          spec.Close     `json:"close"`
	RTT            string         `json:"rtt"`
	State          spec.State     `json:"state"`
	Shots          int            `json:"shots"`       // every request of the cell that was recorded
	AimedShots     int            `json:"aimed_shots"` // those sent into the danger zone around the measured upstream close
	Failures       int            `json:"failures"`    // aimed or not: 5xx or no complete response
	Attributed     int            `json:"attributed"`  // failures tied to an idle-closed upstream connection by a second witness
	Late           int            `json:"late"`        // request ids seen, by the origin or on the wire, on connections its idle timer had closed
	OnWire         int            `json:"on_wire"`     // failures whose connection's packets were captured
	Orders         map[string]int `json:"orders"`      // late requests with packets, by wire.Order
	Retried        int            `json:"retried"`     // late requests whose client got its answer all the same
	Twice          int            `json:"executed_twice"`
	Other          int            `json:"other_failures"`         // failures with a cause other than the idle close, unknown included
	SetAside       int            `json:"set_aside"`              // requests that a disturbance of the run may have had a hand in; they count for and against nothing
	Disturbed      int            `json:"disturbed"`              // failures among them; other_failures has them too
	Causes         map[string]int `json:"causes"`                 // failures by record.Cause; disturbed ones as "disturbed: pause-origin + pause-proxy"
	Statuses       map[string]int `json:"statuses"`               // by status code, or by record.Outcome without a response
	AimedLost      int            `json:"aimed_lost"`             // attributed failures of aimed shots
	AimedStale     int            `json:"aimed_stale"`            // aimed shots that met an idle-closed connection: lost, or sent again by the proxy
	AimedBursts    int            `json:"aimed_bursts"`           // bursts with an aimed shot
	LostBursts     int            `json:"lost_bursts"`            // of these: with one of aimed_lost
	StaleBursts    int            `json:"stale_bursts"`           // of these: with one of aimed_stale
	Rate           *Interval      `json:"rate"`                   // aimed_lost per aimed shot, 95 % Clopper-Pearson; null without aimed shots
	UpstreamClosed *Quantiles     `json:"upstream_closed"`        // idle time at which the upstream closed, as its journal says; null when it never did
	ProxyClosed    *Quantiles     `json:"proxy_closed"`           // idle time at which the proxy closed; null when it never did
	Direct         *Quantiles     `json:"upstream_closed_direct"` // idle time to EOF measured at a socket straight to the upstream; null when not measured
	Window         *Window        `json:"window"`                 // ages of late requests relative to the measured upstream close; null without
	Fit            *Fit           `json:"window_fit"`             // the danger window's edges, from all shots, relative to the upstream's closes; null unless the scenario asks for it (probe.aim: window)
	Why            string         `json:"why"`
	Warnings       []string       `json:"warnings"`
	Reproduce      string         `json:"reproduce"`
	Example        *Example       `json:"example"` // the failure (attributed > 0) or the replay (late > 0) that explain shows; null without
	Detail         *Detail        `json:"-"`       // what plots are drawn from; nil where the verdict was read from a file
}

// Example names one proven request of a cell.
type Example struct {
	Cell string `json:"cell"`
	Seq  uint64 `json:"seq"`
}

// Interval is an exact 95 % confidence interval of a proportion.
type Interval struct {
	Low  float64 `json:"low"`
	High float64 `json:"high"`
}

// Quantiles of a sample of durations.
type Quantiles struct {
	N   int      `json:"n"`
	Min Duration `json:"min"`
	P50 Duration `json:"p50"`
	Max Duration `json:"max"`
}

// Window is a range of ages relative to the measured upstream close.
type Window struct {
	From Duration `json:"from"`
	To   Duration `json:"to"`
}

// Cell is the verdict's point of the grid. It fails when a field was edited by
// hand into something no scenario can say.
func (v Verdict) Cell() (spec.Cell, error) {
	c := spec.Cell{Proxy: v.Proxy, Upstream: v.Upstream, Method: v.Method, Retry: v.Retry, Close: v.Close}
	for _, f := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"proxy_idle", v.ProxyIdle, (*time.Duration)(&c.ProxyIdle)},
		{"upstream_idle", v.UpstreamIdle, &c.UpstreamIdle},
		{"rtt", v.RTT, &c.RTT},
	} {
		if f.text == spec.Off.String() {
			continue
		}
		d, err := time.ParseDuration(f.text)
		if err != nil {
			return c, fmt.Errorf("cell %s: %s: %w", v.ID, f.name, err)
		}
		*f.to = d
	}
	return c, nil
}

// Duration is a time.Duration whose JSON form is a Go duration string.
type Duration time.Duration

func (d Duration) String() string { return spec.FormatDuration(time.Duration(d)) }

// MarshalJSON gives "600ms".
func (d Duration) MarshalJSON() ([]byte, error) { return json.Marshal(d.String()) }

// UnmarshalJSON reads what MarshalJSON gives.
func (d *Duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return err
	}
	v, err := time.ParseDuration(s)
	*d = Duration(v)
	return err
}
