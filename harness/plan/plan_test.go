package plan

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/spec"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func scenario() *spec.Scenario {
	return &spec.Scenario{
		Version:  1,
		Name:     "grid",
		Proxies:  []spec.Proxy{{Name: "gohttp"}, {Name: "nginx", Image: "nginx:1"}},
		Upstream: spec.Upstream{Kind: "go"},
		Axes: spec.Axes{
			ProxyIdle:    []spec.Idle{spec.Off, spec.Idle(time.Second), spec.Idle(90 * time.Second)},
			UpstreamIdle: []time.Duration{600 * time.Millisecond, time.Minute},
			Method:       []string{"GET", "POST"},
			Retry:        []spec.Retry{spec.RetryDefault},
			Close:        []spec.Close{spec.CloseFIN, spec.CloseRST},
			RTT:          []time.Duration{0, 20 * time.Millisecond},
		},
		Probe: spec.Probe{Lanes: 40, Shots: 300, Budget: time.Minute, Seed: 1},
	}
}

func all(spec.Cell) string { return "" }

func controls(p Plan) []Item {
	return slices.DeleteFunc(slices.Clone(p.Items), func(it Item) bool { return it.Role == RoleCell })
}

// Ids are what baselines, `--cell` and old runs name: a change here breaks them.
func TestGolden(t *testing.T) {
	p := New(scenario(), func(c spec.Cell) string {
		if c.RTT != 0 {
			return "no link"
		}
		return ""
	})
	var b strings.Builder
	for _, it := range p.Items {
		fmt.Fprintf(&b, "%-13s %s server=%s unsupported=%q\n", it.Role, it.ID, it.Server, it.Unsupported)
	}
	for _, s := range p.Servers {
		fmt.Fprintf(&b, "%-13s %s %s %s\n", "server", s.Name, s.IdleTimeout, s.Close)
	}
	path := filepath.Join("testdata", "plan.txt")
	if *update {
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), b.String()); diff != "" {
		t.Errorf("%s is stale (make golden rewrites it): %s", path, diff)
	}
}

func TestItems(t *testing.T) {
	s := scenario()
	p := New(s, all)
	ids := map[string]bool{}
	for i, it := range p.Items {
		if ids[it.ID] {
			t.Errorf("%s is there twice", it.ID)
		}
		ids[it.ID] = true
		if !filepath.IsLocal(it.ID) || strings.ContainsAny(it.ID, `/\: `) {
			t.Errorf("%q is no safe name of a folder", it.ID)
		}
		if !slices.ContainsFunc(p.Servers, func(s Server) bool {
			return s == Server{Name: it.Server, IdleTimeout: it.Cell.UpstreamIdle, RTT: it.Cell.RTT, Close: it.Cell.Close}
		}) {
			t.Errorf("%s: no server is called %s", it.ID, it.Server)
		}
		if i < len(s.Cells()) && (it.Cell != s.Cells()[i] || it.ID != it.Cell.ID() || it.Role != RoleCell) {
			t.Errorf("item %d is %s, want the grid in its order", i, it.ID)
		}
	}
	if want := len(s.Cells()) + 2*len(s.Proxies); len(p.Items) != want {
		t.Errorf("%d items, want %d", len(p.Items), want)
	}
	names := map[string]bool{}
	for _, srv := range p.Servers {
		if names[srv.Name] {
			t.Errorf("server %s is there twice", srv.Name)
		}
		names[srv.Name] = true
	}
	// 2 timeouts x 2 close styles x 2 round trips, and the controls' own.
	if len(p.Servers) != 9 {
		t.Errorf("servers %v", p.Servers)
	}
}

// Netem shapes what has something to shape: neither cells without a round trip
// nor controls.
func TestNetem(t *testing.T) {
	s := scenario()
	s.Link.Netem = true
	for _, jitter := range []time.Duration{0, time.Millisecond} {
		s.Link.Down.Jitter = jitter
		for _, srv := range New(s, all).Servers {
			want := spec.Link{}
			if srv.RTT > 0 || jitter > 0 && srv.IdleTimeout != controlUpstreamIdle {
				want = s.Link
			}
			if srv.Link != want || srv.Link.Netem != strings.HasSuffix(srv.Name, "-netem") {
				t.Errorf("jitter %s: %+v, want the link %+v", jitter, srv, want)
			}
		}
	}
}

func TestControls(t *testing.T) {
	for _, tt := range []struct {
		name        string
		idles       []time.Duration
		unsupported func(spec.Cell) string
		race, calm  Item // their ID and Server left out
	}{
		{
			name: "as it comes", idles: []time.Duration{2 * time.Second}, unsupported: all,
			race: Item{Cell: spec.Cell{ProxyIdle: spec.Idle(time.Minute), UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryOff}},
			calm: Item{Cell: spec.Cell{ProxyIdle: spec.Off, UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryDefault}},
		}, {
			name: "the scenario's upstream is quicker", idles: []time.Duration{time.Second, 300 * time.Millisecond, 400 * time.Millisecond}, unsupported: all,
			race: Item{Cell: spec.Cell{ProxyIdle: spec.Idle(time.Minute), UpstreamIdle: 300 * time.Millisecond, Retry: spec.RetryOff}},
			calm: Item{Cell: spec.Cell{ProxyIdle: spec.Off, UpstreamIdle: 300 * time.Millisecond, Retry: spec.RetryDefault}},
		}, {
			name: "retry cannot be turned off", idles: []time.Duration{time.Second},
			unsupported: func(c spec.Cell) string {
				if c.Retry == spec.RetryOff {
					return "always retries"
				}
				return ""
			},
			race: Item{Cell: spec.Cell{ProxyIdle: spec.Idle(time.Minute), UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryDefault}},
			calm: Item{Cell: spec.Cell{ProxyIdle: spec.Off, UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryDefault}},
		}, {
			name: "keep-alive cannot be turned off", idles: []time.Duration{time.Second},
			unsupported: func(c spec.Cell) string {
				if c.ProxyIdle == spec.Off {
					return "always keeps"
				}
				return ""
			},
			race: Item{Cell: spec.Cell{ProxyIdle: spec.Idle(time.Minute), UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryOff}},
			calm: Item{Unsupported: "always keeps", Cell: spec.Cell{ProxyIdle: spec.Off, UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryDefault}},
		}, {
			name: "POST is not for it", idles: []time.Duration{time.Second},
			unsupported: func(c spec.Cell) string { return "no " + c.Method + " with retry " + string(c.Retry) },
			race:        Item{Unsupported: "no POST with retry default", Cell: spec.Cell{ProxyIdle: spec.Idle(time.Minute), UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryDefault}},
			calm:        Item{Unsupported: "no POST with retry default", Cell: spec.Cell{ProxyIdle: spec.Off, UpstreamIdle: 500 * time.Millisecond, Retry: spec.RetryDefault}},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := scenario()
			s.Axes.UpstreamIdle = tt.idles
			var want []Item
			for _, px := range []string{"gohttp", "nginx"} {
				for role, it := range map[string]Item{RoleMustRace: tt.race, RoleMustNotRace: tt.calm} {
					c := &it.Cell
					c.Proxy, c.Upstream, c.Method, c.Close = px, "go", "POST", spec.CloseFIN
					it.Role, it.ID = role, "control-"+role+"_"+c.ID()
					it.Server = "u" + spec.FormatDuration(c.UpstreamIdle) + "-fin"
					want = append(want, it)
				}
			}
			got := controls(New(s, tt.unsupported))
			byID := func(a, b Item) int { return strings.Compare(a.ID, b.ID) }
			slices.SortFunc(got, byID)
			slices.SortFunc(want, byID)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestLink: cells have the link, controls have nothing between the two sides.
func TestLink(t *testing.T) {
	s := scenario()
	s.Link.Up.Jitter = time.Millisecond
	p := New(s, all)
	for _, it := range p.Items {
		i := slices.IndexFunc(p.Servers, func(srv Server) bool { return srv.Name == it.Server })
		if srv := p.Servers[i]; it.Role == RoleCell != (srv.Link == s.Link) || it.Role != RoleCell && srv.RTT != 0 {
			t.Errorf("%s: %+v", it.ID, srv)
		}
	}
}

// A server that only unsupported cells would use is not started.
func TestServersOfUnsupported(t *testing.T) {
	p := New(scenario(), func(c spec.Cell) string {
		if c.UpstreamIdle == time.Minute || c.Close == spec.CloseRST {
			return "no"
		}
		return ""
	})
	want := []Server{
		{Name: "u600ms-fin", IdleTimeout: 600 * time.Millisecond, Close: spec.CloseFIN},
		{Name: "u600ms-fin-rtt20ms", IdleTimeout: 600 * time.Millisecond, RTT: 20 * time.Millisecond, Close: spec.CloseFIN},
		{Name: "u500ms-fin", IdleTimeout: 500 * time.Millisecond, Close: spec.CloseFIN},
	}
	if diff := cmp.Diff(want, p.Servers); diff != "" {
		t.Error(diff)
	}
}

func TestOnly(t *testing.T) {
	p := New(scenario(), func(c spec.Cell) string {
		if c.Close == spec.CloseRST && c.Proxy == "nginx" {
			return "no"
		}
		return ""
	})
	one := p.Items[3].ID
	for _, tt := range []struct {
		name     string
		keep     func(Item) bool
		cells    int
		controls []string // their proxies
		servers  int
	}{
		{"all", func(Item) bool { return true }, 96, []string{"gohttp", "gohttp", "nginx", "nginx"}, 9},
		{"none", func(Item) bool { return false }, 0, nil, 0},
		{"one", func(it Item) bool { return it.ID == one }, 1, []string{"gohttp", "gohttp"}, 2},
		{"a proxy", func(it Item) bool { return it.Cell.Proxy == "nginx" }, 48, []string{"nginx", "nginx"}, 5},
		{"unsupported ones", func(it Item) bool { return it.Unsupported != "" }, 24, []string{"nginx", "nginx"}, 1},
		{"no control by itself", func(it Item) bool { return it.Role != RoleCell }, 0, nil, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := p.Only(tt.keep)
			var proxies []string
			for _, it := range controls(got) {
				proxies = append(proxies, it.Cell.Proxy)
			}
			if n := len(got.Items) - len(proxies); n != tt.cells {
				t.Errorf("%d cells, want %d", n, tt.cells)
			}
			if diff := cmp.Diff(tt.controls, proxies); diff != "" {
				t.Errorf("controls: %s", diff)
			}
			if len(got.Servers) != tt.servers {
				t.Errorf("servers %v, want %d", got.Servers, tt.servers)
			}
			// What is kept is what it was, in its order.
			i := 0
			for _, it := range got.Items {
				for i < len(p.Items) && p.Items[i] != it {
					i++
				}
			}
			if i == len(p.Items) {
				t.Error("the order is another")
			}
		})
	}
	if n := len(p.Items); n != 100 {
		t.Errorf("the plan itself has %d items now", n)
	}
}

func draw(it Item, seed uint64) []uint64 {
	r := it.Rand(seed)
	out := make([]uint64, 8)
	for i := range out {
		out[i] = r.Uint64()
	}
	return out
}

func TestRand(t *testing.T) {
	a := Item{ID: "a"}
	if !slices.Equal(draw(a, 1), draw(a, 1)) {
		t.Error("the same item and seed give two streams")
	}
	same := Item{ID: "a", Role: RoleMustRace, Server: "s", Unsupported: "x", Cell: spec.Cell{Proxy: "p"}}
	if !slices.Equal(draw(a, 1), draw(same, 1)) {
		t.Error("a stream depends on more than id and seed")
	}
	if slices.Equal(draw(a, 1), draw(a, 2)) {
		t.Error("another seed, the same stream")
	}
	if slices.Equal(draw(a, 1), draw(Item{ID: "b"}, 1)) {
		t.Error("another item, the same stream")
	}
	// A run of last year is repeated by its seed.
	want := []uint64{0x2300daff6eb3bc0a, 0xe95c0351902c2821, 0x78d4d6ada8829162}
	if got := draw(Item{ID: "gohttp_go_p1s_u600ms_POST_default_fin_rtt0s"}, 1)[:3]; !slices.Equal(got, want) {
		t.Errorf("%#x, want %#x", got, want)
	}
}

// Whatever is added to a scenario, the schedules of what was there stay.
func TestRandOfGrownScenario(t *testing.T) {
	streams := func(s *spec.Scenario) map[string][]uint64 {
		out := map[string][]uint64{}
		for _, it := range New(s, all).Items {
			out[it.ID] = draw(it, s.Probe.Seed)
		}
		return out
	}
	before := streams(scenario())
	for name, grow := range map[string]func(*spec.Scenario){
		"a proxy": func(s *spec.Scenario) { s.Proxies = slices.Insert(s.Proxies, 0, spec.Proxy{Name: "envoy"}) },
		"a proxy timeout": func(s *spec.Scenario) {
			s.Axes.ProxyIdle = slices.Insert(s.Axes.ProxyIdle, 0, spec.Idle(5*time.Second))
		},
		"an upstream's":      func(s *spec.Scenario) { s.Axes.UpstreamIdle = slices.Insert(s.Axes.UpstreamIdle, 0, 3*time.Second) },
		"a method":           func(s *spec.Scenario) { s.Axes.Method = slices.Insert(s.Axes.Method, 0, "PUT") },
		"a retry setting":    func(s *spec.Scenario) { s.Axes.Retry = spec.Retries() },
		"a close style":      func(s *spec.Scenario) { s.Axes.Close = spec.Closes() },
		"a round-trip time":  func(s *spec.Scenario) { s.Axes.RTT = slices.Insert(s.Axes.RTT, 0, time.Millisecond) },
		"more lanes, budget": func(s *spec.Scenario) { s.Probe.Lanes, s.Probe.Budget = 80, time.Hour },
	} {
		s := scenario()
		grow(s)
		after := streams(s)
		for id, want := range before {
			if !slices.Equal(after[id], want) {
				t.Errorf("%s more: the stream of %s changes", name, id)
			}
		}
		if name != "more lanes, budget" && len(after) <= len(before) {
			t.Errorf("%s more: %d items of %d", name, len(after), len(before))
		}
	}
}
