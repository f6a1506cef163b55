package spec

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// An id names a folder of a published report and a cell in a baseline: a
// changed line here breaks both.
func TestCellID(t *testing.T) {
	base := Cell{"nginx", "go", Idle(time.Second), 600 * time.Millisecond, "POST", RetryDefault, CloseFIN, 0}
	with := func(change func(*Cell)) Cell {
		c := base
		change(&c)
		return c
	}
	for id, c := range map[string]Cell{
		"nginx_go_p1s_u600ms_POST_default_fin_rtt0s":          base,
		"traefik-3_go_p1s_u600ms_POST_default_fin_rtt0s":      with(func(c *Cell) { c.Proxy = "traefik-3" }),
		"nginx_node_p1s_u600ms_POST_default_fin_rtt0s":        with(func(c *Cell) { c.Upstream = "node" }),
		"nginx_go_poff_u600ms_POST_default_fin_rtt0s":         with(func(c *Cell) { c.ProxyIdle = Off }),
		"nginx_go_p1m30s_u600ms_POST_default_fin_rtt0s":       with(func(c *Cell) { c.ProxyIdle = Idle(90 * time.Second) }),
		"nginx_go_p1s_u1.5s_POST_default_fin_rtt0s":           with(func(c *Cell) { c.UpstreamIdle = 1500 * time.Millisecond }),
		"nginx_go_p1s_u24h_POST_default_fin_rtt0s":            with(func(c *Cell) { c.UpstreamIdle = MaxDuration }),
		"nginx_go_p1s_u600ms_GET_default_fin_rtt0s":           with(func(c *Cell) { c.Method = "GET" }),
		"nginx_go_p1s_u600ms_POST_off_fin_rtt0s":              with(func(c *Cell) { c.Retry = RetryOff }),
		"nginx_go_p1s_u600ms_POST_default_half-close_rtt0s":   with(func(c *Cell) { c.Close = CloseHalfClose }),
		"nginx_go_p1s_u600ms_POST_default_fin_rtt40ms":        with(func(c *Cell) { c.RTT = 40 * time.Millisecond }),
		"nginx_go_p1s_u1h0m1s_POST_default_fin_rtt1h0m0.001s": with(func(c *Cell) { c.UpstreamIdle, c.RTT = time.Hour+time.Second, time.Hour+time.Millisecond }),
	} {
		if got := c.ID(); got != id {
			t.Errorf("ID() = %s, want %s", got, id)
		}
		if !pathSafe(id) {
			t.Errorf("%s is not path-safe", id)
		}
	}
}

func TestCells(t *testing.T) {
	s := Scenario{
		Proxies:  []Proxy{{Name: "envoy"}, {Name: "nginx", Image: "nginx:1"}},
		Upstream: Upstream{Kind: "go"},
		Axes: Axes{
			ProxyIdle:    []Idle{Idle(time.Second), Off},
			UpstreamIdle: []time.Duration{2 * time.Second, time.Second},
			Method:       []string{"POST", "GET"},
			Retry:        Retries(),
			Close:        Closes(),
			RTT:          []time.Duration{0, time.Millisecond},
		},
	}
	cells := s.Cells()
	if want := 2 * 2 * 2 * 2 * 3 * 4 * 2; len(cells) != want {
		t.Fatalf("%d cells, want %d", len(cells), want)
	}
	ids := make([]string, len(cells))
	for i, c := range cells {
		ids[i] = c.ID()
	}
	want := []string{
		"envoy_go_p1s_u2s_POST_default_fin_rtt0s",
		"envoy_go_p1s_u1s_POST_default_fin_rtt0s",
		"envoy_go_poff_u2s_POST_default_fin_rtt0s",
		"envoy_go_poff_u1s_POST_default_fin_rtt0s",
		"envoy_go_p1s_u2s_POST_default_fin_rtt1ms",
		"envoy_go_p1s_u1s_POST_default_fin_rtt1ms",
		"envoy_go_poff_u2s_POST_default_fin_rtt1ms",
		"envoy_go_poff_u1s_POST_default_fin_rtt1ms",
		"envoy_go_p1s_u2s_POST_default_plain_rtt0s",
	}
	if diff := cmp.Diff(want, ids[:len(want)]); diff != "" {
		t.Errorf("first ids (-want +got):\n%s", diff)
	}
	if last := "nginx_go_poff_u1s_GET_on_half-close_rtt1ms"; ids[len(ids)-1] != last {
		t.Errorf("last id %s, want %s", ids[len(ids)-1], last)
	}
	slices.Sort(ids)
	if n := len(slices.Compact(ids)); n != len(cells) {
		t.Errorf("%d distinct ids of %d cells", n, len(cells))
	}
}

func TestFormatDuration(t *testing.T) {
	for want, d := range map[string]time.Duration{
		"0s":        0,
		"1ms":       time.Millisecond,
		"1.5s":      1500 * time.Millisecond,
		"10s":       10 * time.Second,
		"1m":        time.Minute,
		"10m":       10 * time.Minute,
		"1m30s":     90 * time.Second,
		"2h":        2 * time.Hour,
		"2h0m1s":    2*time.Hour + time.Second,
		"2h10m":     2*time.Hour + 10*time.Minute,
		"20h":       20 * time.Hour,
		"-1m":       -time.Minute,
		"1h0m0.02s": time.Hour + 20*time.Millisecond,
	} {
		got := FormatDuration(d)
		if got != want {
			t.Errorf("FormatDuration(%v) = %s, want %s", d, got, want)
		}
		if back, err := time.ParseDuration(got); err != nil || back != d {
			t.Errorf("ParseDuration(%s) = %v, %v", got, back, err)
		}
	}
	if got := Off.String(); got != "off" {
		t.Errorf("Off is %s", got)
	}
}

func TestNearest(t *testing.T) {
	known := []string{"proxy_idle", "upstream_idle", "method", "retry", "rtt", "on", "off"}
	for word, want := range map[string]string{
		"proxy-idle":                         "proxy_idle",
		"proxyIdle":                          "proxy_idle",
		"PROXY_IDLE":                         "proxy_idle",
		"upstraem_idl":                       "upstream_idle",
		"mehtod":                             "method",
		"methods":                            "method",
		"retries":                            "",
		"rt":                                 "rtt",
		"no":                                 "on",
		"":                                   "",
		"lanes":                              "",
		"proxy_idle_timeout_in_milliseconds": "",
	} {
		if got := nearest(word, known); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func TestSetLanes(t *testing.T) {
	s, err := Read("x.yaml", []byte("version: 1\nname: x\nproxies: [nginx]\naxes: {proxy_idle: [1s, 2s, 3s, 4s, 5s], upstream_idle: [1s, 2s, 3s, 4s, 5s]}\n"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if s.Probe.Lanes != 0 {
		t.Errorf("%d lanes where none are stated", s.Probe.Lanes)
	}
	for n, want := range map[int]string{
		1: "", 400: "",
		0:    "0 is out of range (1 to 1000)",
		1001: "1001 is out of range (1 to 1000)",
		401:  "50 cells x 401 lanes make 20050 client connections (at most 20000: 400 lanes or less)",
	} {
		s.Probe.Lanes = 7
		err := s.SetLanes(n)
		if got := fmt.Sprint(err); err != nil && got != want || err == nil && want != "" {
			t.Errorf("%d: %s, want %q", n, got, want)
		}
		if err == nil && s.Probe.Lanes != n || err != nil && s.Probe.Lanes != 7 {
			t.Errorf("%d: %d lanes", n, s.Probe.Lanes)
		}
	}
}
