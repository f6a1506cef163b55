package run

import (
	"testing"
	"time"

	"idlerace/harness/plan"
	"idlerace/harness/spec"
)

// grid has n cells of each upstream timeout, and a control.
func grid(n int, upstreams ...time.Duration) []plan.Item {
	var out []plan.Item
	add := func(role string, u time.Duration, p int) {
		c := spec.Cell{Proxy: "px", Upstream: "go", ProxyIdle: spec.Idle(time.Duration(p+1) * time.Second), UpstreamIdle: u, Method: "POST"}
		out = append(out, plan.Item{ID: role + c.ID(), Role: role, Cell: c})
	}
	for _, u := range upstreams {
		for p := range n {
			add(plan.RoleCell, u, p)
		}
	}
	add(plan.RoleMustRace, upstreams[0], 0)
	return out
}

func TestStarts(t *testing.T) {
	p := spec.Probe{Lanes: 20, Shots: 300}
	for _, tt := range []struct {
		name   string
		items  []plan.Item
		spread bool
	}{
		{"few cells start at once", grid(2, 500*time.Millisecond, 2*time.Second), false},
		{"many are spread", grid(40, 500*time.Millisecond, 2*time.Second), true},
		{"nothing to spread them over", grid(200, time.Second), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			at := starts(tt.items, p)
			if len(at) != len(tt.items) {
				t.Fatalf("%d starts for %d items", len(at), len(tt.items))
			}
			var end, last time.Duration
			for _, it := range tt.items {
				if it.Role != plan.RoleCell {
					if at[it.ID] != 0 {
						t.Errorf("the control starts at %s", at[it.ID])
					}
					continue
				}
				end = max(end, need(it.Cell, p))
				last = max(last, at[it.ID])
			}
			if spread := last > staggerMost; spread != tt.spread {
				t.Errorf("the last starts at %s", last)
			}
			for _, it := range tt.items {
				if got := at[it.ID] + need(it.Cell, p); got > end+staggerMost {
					t.Errorf("%s is over at %s, the longest at %s", it.ID, got, end)
				}
			}
		})
	}
}

func TestLanes(t *testing.T) {
	p := spec.Probe{Shots: 300, Budget: time.Minute}
	short := p
	short.Budget = 20 * time.Second
	for _, tt := range []struct {
		name  string
		items []plan.Item
		p     spec.Probe
		cores int
		want  int
	}{
		{"a few cells", grid(2, time.Second), p, 2, spec.UsualLanes},
		{"many: a lane costs 100 requests a second", grid(99, time.Second), p, 2, 20},
		{"more cores carry more", grid(99, time.Second), p, 3, 30},
		{"so many that they would hardly have any", grid(999, time.Second), p, 2, spec.LeastLanes},
		{"what fits the budget comes first", grid(99, time.Second), short, 2, 30},
		{"whatever the budget", grid(99, time.Minute), short, 2, spec.UsualLanes},
		{"nothing to run", nil, p, 2, spec.UsualLanes},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := lanes(tt.items, tt.p, tt.cores); got != tt.want {
				t.Errorf("%d lanes, want %d", got, tt.want)
			}
		})
	}
}
