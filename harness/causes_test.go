package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/load"
	"idlerace/harness/origin"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/run"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
	"idlerace/harness/stack/local"
)

const (
	causeLanes = 15
	causeLeast = 800                     // failures to provoke, per proxy
	causeIdle  = 1500 * time.Millisecond // the upstreams' idle timeout; the proxies' is far above
	causeShort = 20 * time.Millisecond   // a gap that keeps the pool
	causeLong  = 2500 * time.Millisecond // a gap in which the upstream's idle timer closes all of it
	causeRead  = "2s"                    // the proxies' read timeout, where it can be set
)

// causeGaps are the gaps before the bursts of a fault of our own upstream. It
// answers bursts 0, 1 and 3. So 2 fails on fresh connections, right after the
// idle timer closed the pool, 4 on reused ones and 5 on fresh ones.
var causeGaps = []time.Duration{0, causeShort, causeLong, causeShort, causeShort, causeShort}

func causeBad(seq uint64) bool { return slices.Contains([]uint64{2, 4, 5}, seq/causeLanes) }

// fault is a way for requests to fail that is no keep-alive race.
type fault struct {
	name    string
	methods []string
	// misbehave is done instead of answering, and ends the connection. nil: the
	// upstream is an origin, or stops.
	misbehave func(*net.TCPConn, uint64)
	gaps      []time.Duration
	origin    *origin.Server
	delay     time.Duration // of an answer: all requests of a burst are in flight together
	// recycle ends every connection some causeShort after its first answer, as a
	// server does whose worker has had its number of requests.
	recycle bool
	down    int            // the upstream stops before this burst; 0: it stays
	inBurst bool           // it stops during that burst
	least   int            // failures to provoke, per method
	causes  []record.Cause // any of which is right
}

var bothMethods, postOnly = []string{"GET", "POST"}, []string{"POST"}

func rst(c *net.TCPConn) {
	c.SetLinger(0)
	c.Close()
}

// begun sends a header and the first tenth of its body.
func begun(c *net.TCPConn) {
	fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n%s", strings.Repeat("x", 100))
	time.Sleep(10 * time.Millisecond) // the proxy shall read it before the end comes
}

// banners are first words of servers that are not HTTP.
var banners = []string{"SSH-2.0-OpenSSH_9.2p1\r\n", "220 mail.example ESMTP\r\n"}

// tlsAlert is fatal, handshake_failure.
const tlsAlert = "\x15\x03\x01\x00\x02\x02\x28"

func faults() []fault {
	reset := []record.Cause{record.CauseReset}
	short := slices.Repeat([]time.Duration{causeShort}, 6)
	// A connection's second request is trapped: in bursts 1, 4 and 6. What burst
	// 2 leaves in the pool the idle timer closes before burst 3.
	trapped := []time.Duration{0, causeShort, causeShort, causeLong, causeShort, causeShort, causeShort}
	return []fault{
		{name: "down", methods: bothMethods, gaps: causeGaps, down: 2, least: 4 * causeLanes, causes: []record.Cause{record.CauseRefused}},
		{name: "slow", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, _ uint64) { io.Copy(io.Discard, c); c.Close() },
			least: 3 * causeLanes, causes: []record.Cause{record.CauseTimeout}},
		{name: "tls", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, _ uint64) { io.WriteString(c, tlsAlert); c.Close() },
			least: 3 * causeLanes, causes: []record.Cause{record.CauseNotHTTP}},
		{name: "banner", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, seq uint64) {
			io.WriteString(c, banners[seq%uint64(len(banners))])
			c.Close()
		}, least: 3 * causeLanes, causes: []record.Cause{record.CauseNotHTTP}},
		{name: "reset-in-response", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, _ uint64) { begun(c); rst(c) },
			least: 3 * causeLanes, causes: reset},
		{name: "close-in-response", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, _ uint64) { begun(c); c.Close() },
			least: 3 * causeLanes, causes: reset},
		{name: "reset", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, _ uint64) { rst(c) },
			least: 3 * causeLanes, causes: []record.Cause{record.CauseReset, record.CauseClosedEarly}},
		{name: "close", methods: bothMethods, gaps: causeGaps, misbehave: func(c *net.TCPConn, _ uint64) { c.Close() },
			least: 3 * causeLanes, causes: []record.Cause{record.CauseClosedEarly}},
		{name: "trap", methods: postOnly, gaps: trapped, origin: &origin.Server{Trap: &origin.Trap{After: 1}}, least: 2 * causeLanes,
			causes: []record.Cause{record.CauseClosedEarly}},
		{name: "trap-unread", methods: postOnly, gaps: trapped, origin: &origin.Server{Trap: &origin.Trap{After: 1, Unread: true}}, least: 2 * causeLanes,
			causes: []record.Cause{record.CauseClosedEarly, record.CauseReset}},
		{name: "request-limit", methods: postOnly, gaps: make([]time.Duration, 60), origin: &origin.Server{MaxRequests: 1},
			causes: []record.Cause{record.CauseClosedEarly, record.CauseReset}},
		{name: "recycle", methods: postOnly, gaps: slices.Repeat([]time.Duration{causeShort}, 60), recycle: true, least: 5,
			causes: []record.Cause{record.CauseClosedEarly, record.CauseReset}},
		{name: "shutdown", methods: postOnly, gaps: short, origin: &origin.Server{IdleTimeout: origin.Duration(time.Minute)}, down: 3, inBurst: true, least: 2 * causeLanes,
			causes: []record.Cause{record.CauseRestart, record.CauseRefused, record.CauseClosedEarly, record.CauseReset}},
	}
}

// TestCauses provokes failures that are no keep-alive race, in front of pools
// whose connections the upstream's idle timer does close: none of them may be
// called one.
func TestCauses(t *testing.T) {
	var mu sync.Mutex
	total := 0
	t.Run("proxies", func(t *testing.T) {
		for _, a := range proxy.All() {
			t.Run(a.Name(), func(t *testing.T) {
				need(t, a.Name())
				t.Parallel()
				n := causesOf(t, a) + exhausted(t, a)
				if n < causeLeast {
					t.Errorf("%d failures are too few to prove anything; %d wanted", n, causeLeast)
				}
				mu.Lock()
				defer mu.Unlock()
				total += n
			})
		}
	})
	t.Logf("%d failures provoked", total)
}

// causesOf runs every fault at once behind one process of a; it gives the
// failures provoked.
func causesOf(t *testing.T, a proxy.Adapter) int {
	var cells []*causeCell
	for _, f := range faults() {
		for _, m := range f.methods {
			cells = append(cells, newCauseCell(t, f, a.Name(), m, spec.Idle(10*time.Second)))
		}
	}
	p := startProxyOf(t, a, cells, shortRead)
	var wg sync.WaitGroup
	for _, c := range cells {
		if c.name == "slow" && a.Name() == "gohttp" {
			// Its ResponseHeaderTimeout is 30 s and no setting: the client gives up
			// in the first failing burst.
			c.patience, c.least, c.causes = time.Second, causeLanes, []record.Cause{record.CauseClient}
		}
		if c.name == "tls" && a.Name() == "nginx" {
			// It passes the alert on as HTTP/0.9, without a line end and without
			// closing; the client waits for one.
			c.patience, c.least = time.Second, causeLanes
		}
		wg.Go(func() { c.attack(t, nil) })
	}
	wg.Wait()
	return attributed(t, a, p, cells)
}

// exhausted takes a proxy's means away to reach an upstream that is well.
func exhausted(t *testing.T, a proxy.Adapter) int {
	f := fault{name: "exhausted", delay: 50 * time.Millisecond, gaps: slices.Repeat([]time.Duration{causeShort}, 5), least: causeLanes, causes: []record.Cause{record.CauseUnknown}}
	c := newCauseCell(t, f, a.Name(), "POST", spec.Off)
	if a.Name() == "envoy" {
		// It aborts when it cannot open a socket; its own limit is the breaker.
		p := startProxyOf(t, a, []*causeCell{c}, func(s stack.Service) {
			patched(t, s, "envoy.yaml", "max_connections: 1000000, max_pending_requests: 1000000", "max_connections: 2, max_pending_requests: 2")
		})
		c.attack(t, nil)
		return attributed(t, a, p, []*causeCell{c})
	}
	if runtime.GOOS != "linux" {
		t.Logf("%s: exhausted: skipped: only Linux sets the limits of another process", a.Name())
		return 0
	}
	p := startProxyOf(t, a, []*causeCell{c}, func(stack.Service) {})
	c.attack(t, func(burst int) {
		if burst != 1 {
			return
		}
		// The clients are connected by now, and without keep-alive nothing else is.
		procs := processesBelow(filepath.Dir(p.dir))
		if len(procs) == 0 {
			t.Error("the proxy's process was not found")
			return
		}
		for _, proc := range procs {
			pid, _, _ := strings.Cut(proc, " ")
			fds, err := os.ReadDir("/proc/" + pid + "/fd")
			if err != nil {
				t.Error(err)
				return
			}
			if out, err := exec.Command("prlimit", "--pid", pid, fmt.Sprintf("--nofile=%d", len(fds)+3)).CombinedOutput(); err != nil {
				t.Errorf("prlimit: %v: %s", err, out)
			}
		}
	})
	return attributed(t, a, p, []*causeCell{c})
}

// shortRead sets the read timeouts in a rendered configuration.
func shortRead(s stack.Service) {
	for name, text := range s.Files {
		for _, key := range []string{"proxy_read_timeout ", "responseHeaderTimeout: ", "                  timeout: "} {
			text = strings.ReplaceAll(text, key+"30s", key+causeRead)
		}
		s.Files[name] = text
	}
}

func patched(t *testing.T, s stack.Service, file, from, to string) {
	t.Helper()
	if !strings.Contains(s.Files[file], from) {
		t.Fatalf("%s: no %q", file, from)
	}
	s.Files[file] = strings.ReplaceAll(s.Files[file], from, to)
}

type causeProxy struct {
	stack.Instance
	dir string
}

// startProxyOf starts one process of a that serves all cells until the test
// ends.
func startProxyOf(t *testing.T, a proxy.Adapter, cells []*causeCell, patch func(stack.Service)) causeProxy {
	t.Helper()
	found, err := (&run.Finder{Runtime: record.RuntimeLocal, Self: binary}).Find(t.Context(), a, "")
	if err != nil {
		t.Fatal(err)
	}
	rt := local.New(binary)
	t.Cleanup(rt.Close)
	dir := filepath.Join(t.TempDir(), a.Name())
	var inst stack.Instance
	err = run.OnFreePorts(t.Logf, func() error {
		addrs, err := rt.Reserve(len(cells))
		if err != nil {
			return err
		}
		defer addrs.Release()
		in := proxy.Input{Lanes: causeLanes}
		for i, c := range cells {
			c.addr = addrs.List()[i]
			in.Routes = append(in.Routes, proxy.Route{ID: c.id, Cell: c.cell, Listen: c.addr, Upstream: c.up.addr})
		}
		svc, err := found.Service(in)
		if err != nil {
			return err
		}
		patch(svc)
		if err := addrs.Release(); err != nil {
			return err
		}
		inst, err = rt.Start(t.Context(), svc, dir)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		inst.Stop(ctx)
	})
	return causeProxy{inst, dir}
}

// causeCell is one fault behind one proxy, with one method.
type causeCell struct {
	fault
	id       string
	cell     spec.Cell
	addr     string // of the proxy
	up       *causeUpstream
	patience time.Duration // of the client; 0: enough
	lines    []record.Line // shots and settlements
}

func newCauseCell(t *testing.T, f fault, proxyName, method string, idle spec.Idle) *causeCell {
	c := &causeCell{fault: f, id: f.name + "_" + method}
	c.cell = spec.Cell{Proxy: proxyName, ProxyIdle: idle, UpstreamIdle: causeIdle, Method: method, Retry: spec.RetryDefault}
	switch {
	case proxyName == "traefik":
		c.causes = append(slices.Clip(c.causes), record.CauseUnknown) // its log says why of a 504 only
	case proxyName == "gohttp" && slices.Contains([]string{"reset-in-response", "close-in-response", "request-limit", "recycle", "shutdown"}, f.name):
		// It says nothing of a body cut short, and "use of closed network
		// connection" where its Transport saw the end while it wrote.
		c.causes = append(slices.Clip(c.causes), record.CauseUnknown)
	}
	if f.origin != nil {
		c.up = startOrigin(t, f.name, *f.origin)
	} else {
		c.up = startUpstream(t, f)
	}
	return c
}

// attack sends the bursts. before, if any, is called ahead of each.
func (c *causeCell) attack(t *testing.T, before func(burst int)) {
	alarm, err := load.NewAlarm()
	if err != nil {
		t.Error(err)
		return
	}
	defer alarm.Close()
	hard, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	burst := 0
	a := load.Attack{Cell: c.id, Addr: c.addr, Method: c.cell.Method, Lanes: causeLanes, Alarm: alarm}
	if c.cell.Method == "POST" {
		a.Body = []byte("idlerace=1\n")
	}
	a.Next = func(_ context.Context, last []record.Shot) (load.Burst, bool) {
		var newest uint64
		for _, s := range last {
			c.lines = append(c.lines, record.Line{T: record.KindShot, Shot: &s})
			newest = max(newest, s.Seq)
		}
		if burst > 0 {
			c.lines = append(c.lines, record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: c.id, Burst: burst - 1, Seq: newest}})
		}
		if burst == len(c.gaps) || hard.Err() != nil {
			return load.Burst{}, false
		}
		if before != nil {
			before(burst)
		}
		b := load.Burst{Phase: record.PhaseReuse}
		if burst > 0 && c.gaps[burst] > 0 {
			b.Gaps = slices.Repeat([]time.Duration{c.gaps[burst]}, causeLanes)
		}
		switch {
		case c.down != burst || burst == 0:
		case c.inBurst:
			go c.up.stop()
			b.Gaps = nil
		default:
			c.up.stop()
		}
		if c.patience > 0 && burst == 2 {
			time.AfterFunc(c.gaps[burst]+c.patience, cancel)
		}
		burst++
		return b, true
	}
	if err := a.Run(hard, hard); err != nil {
		t.Error(err)
	}
}

// attributed joins what the witnesses said of the cells and holds every failure
// against its fault; it gives the number of failures.
func attributed(t *testing.T, a proxy.Adapter, p stack.Instance, cells []*causeCell) (total int) {
	t.Helper()
	logs := logged(t, a, p, cells)
	for _, c := range cells {
		c.up.stop()
		found, beside, wrong := map[record.Cause]int{}, map[record.Cause]int{}, map[string]int{}
		failures := 0
		read := c.up.read()
		j := record.Joiner{Grace: true, Observe: func(o record.Observation) {
			if !o.Shot.Failed() {
				return
			}
			cause := judge.Cause(o)
			provoked := c.provoked(o.Shot, read[o.Shot.Seq])
			if cause == record.CauseIdleClose && (provoked || read[o.Shot.Seq]) {
				t.Errorf("%s %s %d is called a keep-alive race: %+v", a.Name(), c.id, o.Shot.Seq, o)
			}
			if !provoked {
				beside[cause]++
				return
			}
			failures++
			found[cause]++
			if !slices.Contains(c.causes, cause) {
				text := o.Shot.Err
				for _, l := range o.Logs {
					text += " | " + l.Text
				}
				wrong[fmt.Sprintf("%s: status %d, %s: %s", cause, o.Shot.Status, o.Shot.Outcome, text)]++
			}
		}}
		for _, l := range c.merged(logs[c.id]) {
			j.Add(l)
		}
		j.Flush()
		total += failures
		idle := c.up.idleCloses()
		t.Logf("%-8s %-24s %4d failures %v; beside them %v; %d idle closes", a.Name(), c.id, failures, found, beside, idle)
		for _, k := range slices.Sorted(maps.Keys(wrong)) {
			t.Errorf("%s %s: %d x %s; want %v", a.Name(), c.id, wrong[k], k, c.causes)
		}
		if idle == 0 && c.down == 0 && slices.Contains(c.gaps, causeLong) {
			t.Errorf("%s %s: the idle timer closed nothing, so nothing could be confused", a.Name(), c.id)
		}
		if failures < c.least {
			t.Errorf("%s %s: %d failures, %d wanted", a.Name(), c.id, failures, c.least)
		}
	}
	return total
}

// provoked reports whether a request failed by the fault. A proxy that is held
// up for longer than the idle timeout may lose others, even to a real race; those
// the upstream has not read.
func (c *causeCell) provoked(s record.Shot, read bool) bool {
	switch {
	case c.misbehave != nil:
		return read && causeBad(s.Seq)
	case c.origin != nil && c.origin.Trap != nil:
		return read
	}
	return s.Burst >= c.down
}

// logged reads the proxy's log until every shot has its line, by cell.
func logged(t *testing.T, a proxy.Adapter, p stack.Instance, cells []*causeCell) map[string][]record.LogLine {
	t.Helper()
	shots := map[string]int{}
	for _, c := range cells {
		for _, l := range c.lines {
			if l.Shot != nil {
				shots[c.id]++
			}
		}
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		out, answered := map[string][]record.LogLine{}, map[string]map[uint64]bool{}
		for _, path := range []string{p.Stdout(), p.Stderr()} {
			b, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				l, ok := a.Parse(strings.TrimSuffix(line, "\n"))
				if !ok {
					continue
				}
				out[l.Cell] = append(out[l.Cell], l)
				if answered[l.Cell] == nil {
					answered[l.Cell] = map[uint64]bool{}
				}
				answered[l.Cell][l.Seq] = true
			}
		}
		missing := ""
		for cell, n := range shots {
			if len(answered[cell]) < n {
				missing += fmt.Sprintf(" %s %d of %d", cell, len(answered[cell]), n)
			}
		}
		if missing == "" {
			return out
		}
		if time.Now().After(end) {
			t.Errorf("%s: requests in the log:%s", a.Name(), missing)
			return out
		}
	}
}

// merged is everything said of the cell, in the order in which a run would have
// heard it.
func (c *causeCell) merged(logs []record.LogLine) []record.Line {
	bySeq := map[uint64][]record.LogLine{}
	for _, l := range logs {
		bySeq[l.Seq] = append(bySeq[l.Seq], l)
	}
	type timed struct {
		at int64
		record.Line
	}
	var all []timed
	for _, e := range c.up.journal() {
		all = append(all, timed{e.At, record.Line{T: record.KindEvent, Event: &e}})
	}
	var newest int64
	for _, l := range c.lines {
		if l.Shot == nil {
			all = append(all, timed{newest, l})
			continue
		}
		at := l.Shot.Sent + int64(l.Shot.Latency)
		newest = max(newest, at)
		all = append(all, timed{at, l})
		for _, log := range bySeq[l.Shot.Seq] {
			all = append(all, timed{at, record.Line{T: record.KindLog, Log: &log}})
		}
	}
	slices.SortStableFunc(all, func(a, b timed) int { return cmp.Compare(a.at, b.at) })
	out := make([]record.Line, len(all))
	for i := range all {
		out[i] = all[i].Line
	}
	return out
}

// causeUpstream is an upstream with a journal.
type causeUpstream struct {
	addr string
	stop func() // returns when it is down and its journal complete; again: nothing

	delay     time.Duration
	name      string
	misbehave func(*net.TCPConn, uint64)
	recycle   bool

	mu     sync.Mutex
	events []record.Event
	conns  map[*net.TCPConn]record.Event // open, by their accept
	down   bool
}

func (u *causeUpstream) journal() []record.Event {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.events)
}

// read gives the requests that came in, by number.
func (u *causeUpstream) read() map[uint64]bool {
	out := map[uint64]bool{}
	for _, e := range u.journal() {
		if e.Kind == record.EventRequest {
			out[e.Seq] = true
		}
	}
	return out
}

func (u *causeUpstream) idleCloses() (n int) {
	for _, e := range u.journal() {
		if e.IdleClosed() {
			n++
		}
	}
	return n
}

// say journals an event; the caller holds mu.
func (u *causeUpstream) say(e record.Event) {
	e.At, e.N, e.Server = time.Now().UnixNano(), uint64(len(u.events)+1), u.name
	u.events = append(u.events, e)
}

// startOrigin starts an origin of this module in this process.
func startOrigin(t *testing.T, name string, s origin.Server) *causeUpstream {
	t.Helper()
	s.Name, s.Listen, s.IdleTimeout = name, "127.0.0.1:0", cmp.Or(s.IdleTimeout, origin.Duration(causeIdle))
	ctx, cancel := context.WithCancel(context.Background())
	ready, done, followed := make(chan map[string]string, 1), make(chan error, 1), make(chan struct{})
	go func() {
		done <- origin.Run(ctx, origin.Config{Admin: "127.0.0.1:0", Servers: []origin.Server{s}}, func(addrs map[string]string) { ready <- addrs })
	}()
	u := &causeUpstream{name: name}
	select {
	case addrs := <-ready:
		u.addr = addrs[name]
		resp, err := http.Get("http://" + addrs["admin"] + "/journal?follow=1")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer close(followed)
			defer resp.Body.Close()
			for dec := json.NewDecoder(resp.Body); ; {
				var e record.Event
				if err := dec.Decode(&e); err != nil {
					if err != io.EOF {
						t.Errorf("%s: journal: %v", name, err)
					}
					return
				}
				u.mu.Lock()
				u.events = append(u.events, e)
				u.mu.Unlock()
			}
		}()
	case err := <-done:
		t.Fatal(err)
	}
	u.stop = sync.OnceFunc(func() {
		cancel()
		<-followed
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(u.stop)
	return u
}

// startUpstream starts a server that reads requests like any other and answers
// them, but misbehaves in the bursts of causeBad.
func startUpstream(t *testing.T, f fault) *causeUpstream {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	u := &causeUpstream{addr: l.Addr().String(), name: f.name, delay: f.delay, misbehave: f.misbehave, recycle: f.recycle, conns: map[*net.TCPConn]record.Event{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for id := uint64(1); ; id++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { u.serve(c.(*net.TCPConn), id) })
		}
	})
	u.stop = sync.OnceFunc(func() {
		l.Close()
		u.mu.Lock()
		u.down = true
		for c := range u.conns {
			u.close(c, record.ByUpstream, record.WhyShutdown)
			c.Close()
		}
		u.mu.Unlock()
		wg.Wait()
	})
	t.Cleanup(u.stop)
	return u
}

// close journals the end of c, once; the caller holds mu.
func (u *causeUpstream) close(c *net.TCPConn, by, why string) {
	if e, open := u.conns[c]; open {
		delete(u.conns, c)
		e.Kind, e.By, e.Why = record.EventClose, by, why
		u.say(e)
	}
}

func (u *causeUpstream) serve(c *net.TCPConn, id uint64) {
	defer c.Close()
	u.mu.Lock()
	if u.down {
		u.mu.Unlock()
		return
	}
	e := record.Event{Conn: id, Kind: record.EventAccept, Peer: c.RemoteAddr().String()}
	u.conns[c] = e
	u.say(e)
	u.mu.Unlock()
	end := func(by, why string) {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.close(c, by, why)
	}
	idle, why := causeIdle, record.WhyIdleTimeout
	if u.recycle {
		idle, why = causeShort+rand.N(10*time.Millisecond)-3*time.Millisecond, record.WhyRequestLimit
	}
	br := bufio.NewReader(c)
	for nth := 1; ; nth++ {
		req, err := http.ReadRequest(br)
		if err == nil {
			_, err = io.Copy(io.Discard, req.Body)
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			end(record.ByUpstream, why)
			return
		case err != nil:
			end(record.ByPeer, record.WhyPeerClosed)
			return
		}
		seq, _ := strconv.ParseUint(req.Header.Get(record.HeaderSeq), 10, 64)
		bad := u.misbehave != nil && causeBad(seq)
		e.Cell, e.Seq = req.Header.Get(record.HeaderCell), seq
		u.mu.Lock()
		r := e
		r.Kind, r.Method, r.Nth, r.Executed = record.EventRequest, req.Method, nth, !bad
		u.say(r)
		if _, open := u.conns[c]; open {
			u.conns[c] = e
		}
		u.mu.Unlock()
		c.SetReadDeadline(time.Time{})
		if bad {
			end(record.ByUpstream, record.WhyTrap)
			u.misbehave(c, seq)
			return
		}
		time.Sleep(u.delay)
		c.SetReadDeadline(time.Now().Add(idle))
		if _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"); err != nil {
			end(record.ByPeer, record.WhyPeerReset)
			return
		}
		u.mu.Lock()
		i := e
		i.Kind = record.EventIdle
		u.say(i)
		u.mu.Unlock()
	}
}
