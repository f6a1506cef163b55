// Package plan turns a scenario into what is to be done: the items of a run
// with their controls, the origin's servers, and one random stream per item.
// It is pure; of this module it imports only spec.
package plan

import (
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"idlerace/harness/spec"
)

// Role of an item.
const (
	RoleCell        = "cell"
	RoleMustRace    = "must-race"     // positive control
	RoleMustNotRace = "must-not-race" // negative control
)

// Timeouts of the controls. The upstream's is the scenario's smallest, within
// these bounds: any racing pair shows that the race can be seen here, and a
// short one shows it soon, if it is long enough to be aimed at.
const (
	controlUpstreamIdle      = 500 * time.Millisecond
	controlUpstreamIdleLeast = 100 * time.Millisecond
	controlProxyIdle         = time.Minute
)

// Item is one cell or control of a run.
type Item struct {
	ID          string    `json:"id"`
	Role        string    `json:"role"`
	Cell        spec.Cell `json:"cell"`
	Server      string    `json:"server"`                // the origin's server behind it
	Unsupported string    `json:"unsupported,omitempty"` // why it cannot run; empty when it can
	Shard       int       `json:"shard,omitempty"`       // that ran it, from 1, in a merged run
}

// Server is one server of the origin: cells with the same upstream setting
// share it.
type Server struct {
	Name        string
	IdleTimeout time.Duration
	RTT         time.Duration // between the proxies and it
	Link        spec.Link     // the rest of the network between them
	Close       spec.Close
}

// Plan is what a run does.
type Plan struct {
	Items   []Item // cells in grid order, then the controls of each proxy
	Servers []Server
}

// New plans a scenario. unsupported says why a proxy or runtime cannot express
// a cell, or "".
func New(s *spec.Scenario, unsupported func(spec.Cell) string) Plan {
	var p Plan
	for _, c := range s.Cells() {
		p.add(Item{ID: c.ID(), Role: RoleCell, Cell: c}, s.Link, unsupported)
	}
	for _, px := range s.Proxies {
		idle := controlUpstreamIdle
		for _, d := range s.Axes.UpstreamIdle {
			idle = min(idle, d)
		}
		idle = max(idle, controlUpstreamIdleLeast)
		race := spec.Cell{Proxy: px.Name, Upstream: s.Upstream.Kind, ProxyIdle: spec.Idle(controlProxyIdle), UpstreamIdle: idle,
			Method: "POST", Retry: spec.RetryOff, Close: spec.CloseFIN}
		if unsupported(race) != "" {
			race.Retry = spec.RetryDefault
		}
		// Nothing between them: what the controls show is the proxy's.
		p.add(Item{ID: "control-must-race_" + race.ID(), Role: RoleMustRace, Cell: race}, spec.Link{}, unsupported)
		calm := race
		calm.ProxyIdle = spec.Off
		calm.Retry = spec.RetryDefault
		p.add(Item{ID: "control-must-not-race_" + calm.ID(), Role: RoleMustNotRace, Cell: calm}, spec.Link{}, unsupported)
	}
	return p
}

func (p *Plan) add(it Item, link spec.Link, unsupported func(spec.Cell) string) {
	it.Unsupported = unsupported(it.Cell)
	link = link.For(it.Cell.RTT)
	s := Server{IdleTimeout: it.Cell.UpstreamIdle, Close: it.Cell.Close, RTT: it.Cell.RTT, Link: link}
	s.Name = fmt.Sprintf("u%s-%s", spec.FormatDuration(s.IdleTimeout), s.Close)
	if s.RTT > 0 {
		s.Name += "-rtt" + spec.FormatDuration(s.RTT)
	}
	switch {
	case link.Netem:
		s.Name += "-netem"
	case link != (spec.Link{}):
		s.Name += "-link"
	}
	it.Server = s.Name
	p.Items = append(p.Items, it)
	if it.Unsupported != "" {
		return
	}
	if slices.Contains(p.Servers, s) {
		return
	}
	p.Servers = append(p.Servers, s)
}

// Only keeps the items that keep accepts, and every control of a proxy that
// still has a cell.
func (p Plan) Only(keep func(Item) bool) Plan {
	var out Plan
	proxies := map[string]bool{}
	for _, it := range p.Items {
		if it.Role == RoleCell && !keep(it) {
			continue
		}
		if it.Role != RoleCell && !proxies[it.Cell.Proxy] {
			continue
		}
		proxies[it.Cell.Proxy] = true
		out.Items = append(out.Items, it)
	}
	used := map[string]bool{}
	for _, it := range out.Items {
		used[it.Server] = used[it.Server] || it.Unsupported == ""
	}
	for _, s := range p.Servers {
		if used[s.Name] {
			out.Servers = append(out.Servers, s)
		}
	}
	return out
}

// Rand is the random stream of an item: it depends on the seed and the item's
// id alone, so that adding a cell changes no other cell's schedule.
func (it Item) Rand(seed uint64) *rand.Rand {
	return rand.New(rand.NewPCG(seed, hash(it.ID)))
}

func hash(id string) uint64 {
	h := fnv.New64a()
	h.Write([]byte(id))
	return h.Sum64()
}
