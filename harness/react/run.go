package react

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"idlerace/harness/origin"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/run"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

// Options of a test beside its scenario.
type Options struct {
	Runtime string   // one of run.Runtimes
	Self    string   // path of this program
	Version string   // of this program
	Proxy   string   // the only one to test; empty: all of the scenario
	Require []string // proxies that must be there
	// Say receives the story, a line at a time.
	Say func(format string, args ...any)
}

// originKind is the upstream kind that has traps.
const originKind = "go"

const (
	// Both timers are out of the way.
	proxyIdle    = spec.Idle(10 * time.Minute)
	upstreamIdle = time.Hour

	rounds    = 3                        // a trial that met no reused connection is repeated up to so often
	primes    = 3                        // first requests until one is answered with a 2xx
	parallel  = 8                        // trials under way
	stopGrace = 3 * time.Second          // for a service that is asked to end
	firstSeq  = 1                        // of the first requests; the second request's follows
	secondSeq = firstSeq + rounds*primes // first of the second requests, one per round
)

// ErrKind is the error of a scenario whose upstream has no traps.
var ErrKind = fmt.Errorf("react needs upstream.kind %s, which can be made to close instead of answering", originKind)

// Run carries out every trial. Of the scenario it takes the proxies, the retry
// settings and the upstream's kind. An error is the machine's fault, or
// ErrKind. Nothing is left running or on disk.
func Run(ctx context.Context, s *spec.Scenario, o Options) (_ *Document, err error) {
	if s.Upstream.Kind != originKind {
		return nil, ErrKind
	}
	finder := &run.Finder{Runtime: cmp.Or(o.Runtime, run.RuntimeAuto), Self: o.Self, Say: o.Say}
	defer finder.Close()
	wanted := slices.DeleteFunc(slices.Clone(s.Proxies), func(p spec.Proxy) bool { return o.Proxy != "" && p.Name != o.Proxy })
	found, missing, err := finder.FindAll(ctx, wanted, o.Require)
	if err != nil {
		return nil, err
	}
	for _, u := range missing {
		o.Say("%s is not available: %s; to get it: %s", u.Proxy, u.Reason, u.Get)
	}
	if len(found) == 0 {
		return nil, errors.New("no proxy of the scenario can run here")
	}
	d := &Document{Schema: Schema, Idlerace: o.Version, Unavailable: append([]record.Unavailable{}, missing...)}
	var here []run.Found
	for _, p := range wanted {
		if f, ok := found[p.Name]; ok {
			here = append(here, f)
			d.Proxies = append(d.Proxies, f.Run)
		}
	}
	d.Trials = trials(d.Proxies, s.Axes.Retry)

	dir, err := os.MkdirTemp("", "idlerace-react-")
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	runtimes, closeAll := finder.Runtimes(here, run.ID("react-"+s.Name, time.Now()))
	defer func() { err = errors.Join(err, closeAll(context.WithoutCancel(ctx))) }()
	for _, rt := range runtimes {
		if err := runSide(ctx, rt, filepath.Join(dir, rt.Name()), found, d, o); err != nil {
			return nil, err
		}
	}
	d.conclude()
	return d, nil
}

// trials lists what is to be done, unsupported trials included.
func trials(proxies []record.ProxyRun, retries []spec.Retry) (out []Trial) {
	for _, p := range proxies {
		for _, retry := range retries {
			for _, c := range Cases() {
				for _, e := range Endings() {
					t := Trial{Proxy: p.Name, Retry: retry, Case: c.Name, Method: c.Method, Body: c.Body, Keyed: c.Keyed, Ending: e, Results: []Result{}}
					t.Unsupported = run.Unsupported(t.cell())
					out = append(out, t)
				}
			}
		}
	}
	return out
}

// cell is the trial as an adapter wants it.
func (t Trial) cell() spec.Cell {
	return spec.Cell{Proxy: t.Proxy, Upstream: originKind, ProxyIdle: proxyIdle, UpstreamIdle: upstreamIdle,
		Method: t.Method, Retry: t.Retry, Close: spec.ClosePlain}
}

// server is the origin's server of an ending.
func (e Ending) server(listen string) origin.Server {
	s := origin.Server{Name: string(e), Listen: listen, Close: spec.ClosePlain, Trap: &origin.Trap{After: 1}}
	switch e {
	case FINUnread:
		s.Trap.Unread = true
	case FINExecuted:
		s.Trap.Executed = true
	case RST:
		s.Close = spec.CloseRST
	case HalfClose:
		s.Close, s.Linger = spec.CloseHalfClose, origin.Duration(10*time.Second)
	}
	return s
}

// side is what one runtime runs: an origin and the proxies in front of it. Each
// trial has a route, and so a pool, of its own.
type side struct {
	origin  stack.Instance
	proxies map[string]stack.Instance
	admin   string         // listen address of the origin's journal
	routes  map[int]string // listen address of a trial, by its index

	faults map[string]error // proxies that did not come up
}

// runSide carries out the trials of the proxies that run on rt's side.
func runSide(ctx context.Context, rt stack.Runtime, dir string, found map[string]run.Found, d *Document, o Options) (err error) {
	var mine []int
	for i, t := range d.Trials {
		if t.Unsupported == "" && record.Side(found[t.Proxy].Run.Runtime) == rt.Name() {
			mine = append(mine, i)
		}
	}
	if len(mine) == 0 {
		return nil
	}
	var sd *side
	err = run.OnFreePorts(o.Say, func() (err error) {
		sd, err = start(ctx, rt, dir, found, d.Trials, mine)
		return err
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, sd.stop(ctx)) }()
	for round := range rounds {
		if err := sd.round(ctx, d.Trials, mine, round); err != nil {
			return err
		}
	}
	return nil
}

// start starts a side. A proxy that does not come up fails its own trials and
// no others. On an error nothing is left running.
func start(ctx context.Context, rt stack.Runtime, dir string, found map[string]run.Found, all []Trial, mine []int) (_ *side, err error) {
	addrs, err := rt.Reserve(1 + len(Endings()) + len(mine))
	if err != nil {
		return nil, err
	}
	defer addrs.Release()
	free := addrs.List()
	sd := &side{proxies: map[string]stack.Instance{}, admin: free[0], routes: map[int]string{}, faults: map[string]error{}}
	free = free[1:]
	cfg := origin.Config{Admin: sd.admin}
	servers := map[Ending]string{}
	svc := stack.Service{Name: "origin", Args: []string{"serve", "origin", "--config", "{dir}/origin.json"}, Ready: []string{sd.admin}}
	for i, e := range Endings() {
		servers[e] = free[i]
		cfg.Servers = append(cfg.Servers, e.server(free[i]))
		svc.Ready = append(svc.Ready, free[i])
	}
	free = free[len(servers):]
	text, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return nil, err
	}
	svc.Files = map[string]string{"origin.json": string(text) + "\n"}
	if err := addrs.Release(); err != nil {
		return nil, err
	}
	if sd.origin, err = rt.Start(ctx, svc, filepath.Join(dir, svc.Name)); err != nil {
		return nil, err
	}
	inputs := map[string]proxy.Input{}
	for n, i := range mine {
		t := all[i]
		in := inputs[t.Proxy]
		in.Lanes = 1
		in.Routes = append(in.Routes, proxy.Route{ID: t.id(i), Cell: t.cell(), Listen: free[n], Upstream: sd.origin.Peer(servers[t.Ending])})
		inputs[t.Proxy] = in
		sd.routes[i] = free[n]
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	var taken []error
	for name, in := range inputs {
		wg.Go(func() {
			svc, err := found[name].Service(in)
			var inst stack.Instance
			if err == nil {
				inst, err = rt.Start(ctx, svc, filepath.Join(dir, svc.Name))
			}
			mu.Lock()
			defer mu.Unlock()
			var exit *stack.ExitError
			switch {
			case err == nil:
				sd.proxies[name] = inst
			case errors.As(err, &exit) && exit.AddressInUse(): // the caller can cure it
				taken = append(taken, err)
			default:
				sd.faults[name] = err
			}
		})
	}
	wg.Wait()
	if len(taken) > 0 {
		return nil, errors.Join(append(taken, sd.stop(ctx))...)
	}
	return sd, nil
}

// stop ends the proxies, then the origin.
func (s *side) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	var wg sync.WaitGroup
	for _, inst := range s.proxies {
		wg.Go(func() { inst.Stop(ctx) }) // by force at the latest
	}
	wg.Wait()
	return s.origin.Stop(ctx)
}

// id is the first half of a trial's request ids, and its route's name.
func (t Trial) id(i int) string { return fmt.Sprintf("%s-%d", t.Proxy, i) }

// second is the second half of the id of a round's second request.
func second(round int) int { return secondSeq + round }

// round carries out each trial once, a few at a time. A result without a
// reused connection counts only as long as there is no other.
func (s *side) round(ctx context.Context, all []Trial, mine []int, round int) error {
	results := make([]Result, len(mine))
	errs := make([]error, len(mine))
	slots := make(chan struct{}, parallel)
	var wg sync.WaitGroup
	for n, i := range mine {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			results[n], errs[n] = s.try(ctx, all[i], i, round)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	events, err := s.journal(ctx)
	if err != nil {
		return err
	}
	arrivals := map[string][]record.Event{} // of this round's second requests
	for _, e := range events {
		if e.Kind == record.EventRequest && e.Seq == uint64(second(round)) {
			arrivals[e.Cell] = append(arrivals[e.Cell], e)
		}
	}
	for n, i := range mine {
		t, r := &all[i], results[n]
		for _, e := range arrivals[t.id(i)] {
			if r.Attempts == 0 {
				r.Reused = e.Nth == 2
			}
			r.Attempts++
			if e.Executed {
				r.Executed++
			}
		}
		if errs[n] == nil && r.Attempts == 0 {
			errs[n] = errors.New("the request never reached the origin: " + r.seen())
		}
		if errs[n] != nil {
			t.Err = record.Short(errs[n].Error())
			continue
		}
		r.settle()
		if r.Reused {
			t.Results = slices.DeleteFunc(t.Results, func(r Result) bool { return !r.Reused })
		}
		if r.Reused || !slices.ContainsFunc(t.Results, func(r Result) bool { return r.Reused }) {
			t.add(r)
		}
	}
	if round == rounds-1 {
		for _, i := range mine {
			if len(all[i].Results) > 0 {
				all[i].Err = "" // another round had a result
			}
		}
	}
	return nil
}

// try carries out one trial: a first request that opens the upstream
// connection, then the second one, both over one client connection.
func (s *side) try(ctx context.Context, t Trial, i, round int) (r Result, err error) {
	if err := s.faults[t.Proxy]; err != nil {
		return r, err
	}
	c, err := s.prime(ctx, s.proxies[t.Proxy].Address(s.routes[i]), t.id(i), firstSeq+round*primes)
	if err != nil {
		return r, err
	}
	defer c.close()
	r.Outcome, r.Status, err = c.do(ctx, Case{Method: t.Method, Body: t.Body, Keyed: t.Keyed}, t.id(i), second(round))
	return r, err
}

// prime gives a client connection whose first request was answered, so that
// the proxy's pool holds one idle connection that served one request. What an
// earlier round left there springs the trap on a first request; the next one
// finds the pool as it should be.
func (s *side) prime(ctx context.Context, addr, cell string, seq int) (*client, error) {
	var why error
	for n := range primes {
		c, err := dial(ctx, addr)
		if err != nil {
			return nil, err
		}
		o, status, err := c.do(ctx, Case{Method: http.MethodGet}, cell, seq+n)
		if o == OutcomeResponse && status/100 == 2 {
			return c, nil
		}
		c.close()
		why = cmp.Or(err, errors.New("the first request: "+Result{Outcome: o, Status: status}.seen()))
	}
	return nil, why
}

// journal reads the origin's journal. A request is in it before its connection
// is ended, and so before a client hears of it.
func (s *side) journal(ctx context.Context) ([]record.Event, error) {
	ctx, cancel := context.WithTimeout(ctx, trialTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+s.origin.Address(s.admin)+"/journal", nil)
	if err != nil {
		return nil, err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("origin: journal: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("origin: journal: %s", resp.Status)
	}
	var out []record.Event
	for dec := json.NewDecoder(resp.Body); dec.More(); {
		var e record.Event
		if err := dec.Decode(&e); err != nil {
			return nil, fmt.Errorf("origin: journal: %w", err)
		}
		if e.Kind == record.EventLost {
			return nil, fmt.Errorf("origin: journal: %d events were dropped", e.Nth)
		}
		out = append(out, e)
	}
	return out, nil
}
