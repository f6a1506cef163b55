// Package run is the loop: it starts what a plan needs, probes every cell until
// it is decided or the budget is spent, and writes the run's folder.
package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"sort"
	"sync"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/load"
	"idlerace/harness/metrics"
	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
	"idlerace/harness/stack/local"
	"idlerace/harness/upstream"
)

// Options of a run beside its scenario.
type Options struct {
	Runtime string // one of Runtimes
	Out     string // folder of all results
	Self    string // path of this program, for the embedded services
	Version string // of this program
	Seed    uint64
	Command []string             // what repeats the run, see record.Manifest
	Only    func(plan.Item) bool // cells to run; nil: all
	Require []string             // proxies that must be there
	Metrics *metrics.Set         // may be nil
	// Progress is called now and then while probing lasts, from one goroutine.
	// May be nil.
	Progress func(Progress)
	// Say receives the story, a line at a time. May be nil.
	Say func(format string, args ...any)
}

// Progress of a run.
type Progress struct {
	Decided, Total int // cells and controls
	Failures       int // client-visible, so far
	Proven         int // cells and controls with an attributed failure
	Elapsed        time.Duration
	Left           time.Duration // estimated: the slowest cell's bursts still to come; at most the budget's rest
	Newly          []string      // ids decided since the last call, with their state
}

// ErrEnvironment marks errors that are the machine's fault and not the
// scenario's: a missing program, a port, a full disk.
var ErrEnvironment = errors.New("environment")

type environmentError struct{ error }

func (e environmentError) Unwrap() error        { return e.error }
func (e environmentError) Is(target error) bool { return target == ErrEnvironment }

func environment(err error) error {
	if err == nil {
		return nil
	}
	return environmentError{err}
}

// portAttempts is how often a stack is started anew on other ports when
// another process took one.
const portAttempts = 3

// staggerSlot is the distance between the first bursts of two cells, and
// staggerMost what all of them may take together.
const (
	staggerSlot = 12 * time.Millisecond
	staggerMost = 500 * time.Millisecond
)

// directProbes is the number of connections that measure a server's close
// without a proxy.
const directProbes = 4

// Run runs a scenario and returns the folder with everything but verdicts and
// report, for which see results.Folder.Judge. The folder is returned, if it
// could be made, together with an error.
//
// soft ends the run in order: bursts under way are finished, what there is is
// written. ctx ends it at once. Nothing is left running either way.
func Run(ctx context.Context, soft <-chan struct{}, s *spec.Scenario, o Options) (*results.Folder, error) {
	r, err := prepare(ctx, s, o)
	if err != nil {
		return nil, err
	}
	return r.folder, r.do(ctx, soft)
}

// prepare plans a run and makes its folder.
func prepare(ctx context.Context, s *spec.Scenario, o Options) (*run, error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	found, missing, err := find(ctx, s, o)
	if err != nil {
		return nil, environment(err)
	}
	// A proxy that nobody asked for is not missed.
	wanted := func(proxy string) bool {
		return o.Only == nil || slices.ContainsFunc(s.Cells(), func(c spec.Cell) bool {
			return c.Proxy == proxy && o.Only(plan.Item{ID: c.ID(), Role: plan.RoleCell, Cell: c})
		})
	}
	missing = slices.DeleteFunc(missing, func(u record.Unavailable) bool { return !wanted(u.Proxy) })
	for _, u := range missing {
		o.Say("%s is not available: %s; to get it: %s", u.Proxy, u.Reason, u.Get)
	}
	kind, err := upstream.ByName(s.Upstream.Kind)
	if err != nil {
		return nil, err
	}
	p := plan.New(s, Unsupported)
	p = p.Only(func(it plan.Item) bool {
		_, ok := found[it.Cell.Proxy]
		return ok && (o.Only == nil || o.Only(it))
	})
	if len(p.Items) == 0 {
		if len(found) == 0 {
			return nil, environment(errors.New("no proxy of the scenario can run here"))
		}
		return nil, errors.New("no cell is left to run")
	}
	if err := openFiles(s.Probe.Lanes * len(p.Items)); err != nil {
		return nil, environment(err)
	}
	m := record.Manifest{
		Schema: record.ManifestSchema, Scenario: s.Name, Seed: o.Seed, Started: time.Now().UTC(), Command: o.Command,
		Idlerace: o.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Kernel: kernel(), Cores: runtime.NumCPU(),
		Unavailable: missing, Items: p.Items, Faults: map[string]string{},
	}
	for _, px := range s.Proxies {
		if f, ok := found[px.Name]; ok && slices.ContainsFunc(p.Items, func(it plan.Item) bool { return it.Cell.Proxy == px.Name }) {
			m.Proxies = append(m.Proxies, f.Run)
		}
	}
	manifest, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	folder, err := results.Create(o.Out, s.Name, m.Started, o.Seed, map[string][]byte{
		results.ScenarioFile: s.Source, results.ManifestFile: manifest, results.ObservationsFile: nil,
	})
	if err != nil {
		return nil, environment(err)
	}
	return &run{Options: o, scenario: s, plan: p, folder: folder, manifest: m, found: found, kind: kind}, nil
}

// Unsupported says why no run of this version can express a cell, or "".
func Unsupported(c spec.Cell) string {
	if c.RTT != 0 {
		return "a round-trip time other than 0s needs a link between proxy and upstream, which this version does not have"
	}
	a, err := proxy.ByName(c.Proxy)
	if err != nil {
		return err.Error()
	}
	return a.Unsupported(c)
}

type run struct {
	Options
	scenario *spec.Scenario
	plan     plan.Plan
	folder   *results.Folder
	manifest record.Manifest
	found    map[string]Found
	kind     upstream.Kind

	hub   *hub
	cells []*cell

	mu sync.Mutex
}

// running is a started stack.
type running struct {
	origin  stack.Instance
	proxies map[string]stack.Instance
	servers map[string]string // the origin's addresses by server name
	admin   string
	routes  map[string]proxy.Route // by item id
}

func (r *run) do(ctx context.Context, soft <-chan struct{}) (err error) {
	begun := time.Now()
	rt := local.New(r.Self)
	defer rt.Close()
	st, err := r.start(ctx, rt)
	if err != nil {
		r.manifest.Ended = "the stack did not start: " + err.Error()
		return environment(errors.Join(err, r.folder.WriteJSON(results.ManifestFile, r.manifest)))
	}
	defer st.stop(ctx)
	r.manifest.StartUp = time.Since(begun)
	if err := r.folder.WriteJSON(results.ManifestFile, r.manifest); err != nil {
		return environment(err)
	}
	if err := r.openRecord(); err != nil {
		return environment(err)
	}
	// Fewer collections while it lasts, each may make a shot late; but not at
	// the price of all memory.
	defer debug.SetGCPercent(debug.SetGCPercent(400))
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(256 << 20))
	probing := time.Now()
	reason, err := r.probe(ctx, soft, st)
	r.manifest.Probing = time.Since(probing)
	r.manifest.Ended = reason
	err = errors.Join(err, r.hub.end(reason))
	if n := r.hub.behind; n > 0 {
		r.manifest.Warnings = append(r.manifest.Warnings,
			fmt.Sprintf("%d bursts were settled although the origin's journal was more than %s behind", n, journalBehind))
	}
	return environment(errors.Join(err, r.folder.WriteJSON(results.ManifestFile, r.manifest)))
}

func (r *run) openRecord() (err error) {
	r.hub, err = newHub(r.folder, r.Metrics)
	return err
}

// start starts the stack, on other ports when another process took one.
func (r *run) start(ctx context.Context, rt stack.Runtime) (*running, error) {
	for attempt := 1; ; attempt++ {
		st, err := r.startOnce(ctx, rt)
		var exit *stack.ExitError
		if err == nil || attempt == portAttempts || !errors.As(err, &exit) || !exit.AddressInUse() {
			return st, err
		}
		r.Say("%s: a port was taken by another process; starting again on others", exit.Service)
	}
}

func (r *run) startOnce(ctx context.Context, rt stack.Runtime) (*running, error) {
	var runnable []plan.Item
	for _, it := range r.plan.Items {
		if it.Unsupported == "" {
			runnable = append(runnable, it)
		}
	}
	ports, err := local.Reserve(1 + len(r.plan.Servers) + len(runnable))
	if err != nil {
		return nil, err
	}
	defer ports.Release()
	addrs := ports.Addrs
	st := &running{proxies: map[string]stack.Instance{}, servers: map[string]string{}, routes: map[string]proxy.Route{}, admin: addrs[0]}
	for i, srv := range r.plan.Servers {
		st.servers[srv.Name] = addrs[1+i]
	}
	inputs := map[string]proxy.Input{}
	for i, it := range runnable {
		route := proxy.Route{ID: it.ID, Cell: it.Cell, Listen: addrs[1+len(r.plan.Servers)+i], Upstream: st.servers[it.Server]}
		st.routes[it.ID] = route
		in := inputs[it.Cell.Proxy]
		in.Lanes = r.scenario.Probe.Lanes
		in.Routes = append(in.Routes, route)
		inputs[it.Cell.Proxy] = in
	}
	svc, err := r.kind.Render(r.plan.Servers, st.servers, st.admin)
	if err != nil {
		return nil, err
	}
	if err := ports.Release(); err != nil {
		return nil, err
	}
	if st.origin, err = rt.Start(ctx, svc, r.dir(svc)); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(inputs))
	for name := range inputs {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if err := r.startProxy(ctx, rt, st, name, inputs[name]); err != nil {
			st.stop(ctx)
			return nil, err
		}
	}
	return st, nil
}

// startProxy starts one proxy. One that does not come up breaks its own cells
// and no others, unless a port was taken, which the caller can cure.
func (r *run) startProxy(ctx context.Context, rt stack.Runtime, st *running, name string, in proxy.Input) error {
	a := r.found[name].Adapter
	svc, err := a.Render(in)
	if err != nil {
		return err
	}
	if svc.Binary != "" {
		svc.Binary = r.found[name].Run.Path
	}
	for _, route := range in.Routes {
		if err := r.folder.WriteFile(filepath.Join(results.CellsDir, route.ID, "proxy.conf"), []byte(a.Excerpt(route, in))); err != nil {
			return err
		}
	}
	inst, err := rt.Start(ctx, svc, r.dir(svc))
	var exit *stack.ExitError
	switch {
	case err == nil:
		st.proxies[name] = inst
		delete(r.manifest.Faults, name)
		return nil
	case ctx.Err() != nil, errors.As(err, &exit) && exit.AddressInUse():
		return err
	}
	r.Say("%v", err)
	r.manifest.Faults[name] = err.Error()
	return nil
}

func (r *run) dir(s stack.Service) string {
	return filepath.Join(r.folder.Path, results.StackDir, s.Name)
}

// stopGrace is how long a service may take to end when asked politely.
const stopGrace = 3 * time.Second

// stop ends the proxies, then the origin. A cancelled ctx makes it rude.
func (st *running) stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	var wg sync.WaitGroup
	for _, inst := range st.proxies {
		wg.Go(func() { inst.Stop(ctx) })
	}
	wg.Wait()
	st.origin.Stop(ctx)
}

// probe runs all cells side by side and says how it ended.
func (r *run) probe(ctx context.Context, soft <-chan struct{}, st *running) (reason string, err error) {
	budget, cancelBudget := context.WithTimeout(ctx, r.scenario.Probe.Budget)
	defer cancelBudget()
	calm, interrupted := context.WithCancelCause(budget)
	defer interrupted(nil)
	r.hub.with(func() { r.hub.abort = interrupted })
	watching, stopWatching := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer stopWatching()

	watchers.Go(func() {
		select {
		case <-soft:
			interrupted(errInterrupted)
		case <-watching.Done():
		}
	})

	alarm, err := load.NewAlarm()
	if err != nil {
		return err.Error(), err
	}
	defer alarm.Close()
	j := newJournal(st.admin)
	defer j.client.CloseIdleConnections()
	if err := r.makeCells(st, j); err != nil {
		return err.Error(), err
	}

	following := make(chan struct{})
	watchers.Go(func() {
		if err := j.follow(watching, r.hub, sync.OnceFunc(func() { close(following) })); err != nil && watching.Err() == nil {
			interrupted(err)
		}
	})
	select {
	case <-following:
	case <-calm.Done():
		return context.Cause(calm).Error(), context.Cause(calm)
	}
	perProxy := map[string]context.Context{}
	for name, inst := range st.proxies {
		c, cancel := context.WithCancelCause(calm)
		defer cancel(nil)
		perProxy[name] = c
		watchers.Go(func() { r.watch(watching, name, inst, cancel) })
		watchers.Go(func() {
			if err := tail(watching, r.found[name].Adapter, inst, r.hub); err != nil && watching.Err() == nil {
				r.fault(name, fmt.Errorf("log: %w", err))
			}
		})
	}
	watchers.Go(func() { r.watch(watching, "origin", st.origin, interrupted) })

	var attacks sync.WaitGroup
	for _, srv := range r.plan.Servers {
		attacks.Go(func() { r.measure(calm, srv, st.servers[srv.Name]) })
	}
	for _, c := range r.cells {
		proxyCtx, ok := perProxy[c.item.Cell.Proxy]
		if !ok {
			continue // its proxy did not start
		}
		attacks.Go(func() {
			if err := c.attack(proxyCtx, ctx, alarm); err != nil {
				r.fault(c.item.Cell.Proxy, err)
			}
			r.hub.with(func() { c.done = true })
		})
	}
	attacking := make(chan struct{})
	watchers.Go(func() { r.report(attacking) })
	attacks.Wait()
	close(attacking)

	switch {
	case ctx.Err() != nil:
		return record.EndInterrupted, nil
	case context.Cause(calm) == errInterrupted:
		return record.EndInterrupted, nil
	case errors.Is(context.Cause(calm), context.DeadlineExceeded) && budget.Err() != nil:
		return record.EndBudget, nil
	case calm.Err() != nil:
		return context.Cause(calm).Error(), context.Cause(calm)
	}
	done := true
	r.hub.with(func() {
		for _, c := range r.cells {
			done = done && c.tally.Done()
		}
	})
	if !done { // no burst was left that fits into the budget
		return record.EndBudget, nil
	}
	return record.EndDone, nil
}

var errInterrupted = errors.New(record.EndInterrupted)

func (r *run) makeCells(st *running, j *journal) error {
	slot := staggerSlot
	if n := len(r.plan.Items); n > 1 {
		slot = min(slot, staggerMost/time.Duration(n))
	}
	first := time.Now().Add(20 * time.Millisecond)
	// Controls first: nothing may be called safe before they are decided.
	items := slices.Clone(r.plan.Items)
	slots := &load.Stagger{}
	slices.SortStableFunc(items, func(a, b plan.Item) int { return rank(a) - rank(b) })
	for i, it := range items {
		if it.Unsupported != "" {
			continue
		}
		files, err := newCellFiles(r.folder, it)
		if err != nil {
			return err
		}
		sub := judge.SubjectOf(r.manifest, r.scenario, it)
		c := &cell{item: it, addr: st.routes[it.ID].Listen, lanes: r.scenario.Probe.Lanes, start: first.Add(time.Duration(i) * slot),
			hub: r.hub, mark: j.mark, aim: load.NewAim(it.Rand(r.Seed)), slots: slots, tally: judge.NewTally(sub), files: files,
			unproven: map[uint64]bool{}, lateSeen: map[uint64]bool{}}
		r.cells = append(r.cells, c)
		r.hub.with(func() { r.hub.cells[it.ID] = c })
	}
	return nil
}

func rank(it plan.Item) int {
	if it.Role == plan.RoleCell {
		return 1
	}
	return 0
}

// measure takes the idle close of one of the origin's servers without a proxy.
func (r *run) measure(ctx context.Context, srv plan.Server, addr string) {
	for _, d := range load.MeasureClose(ctx, srv.Name, addr, directProbes, generous(srv.IdleTimeout)) {
		if ctx.Err() != nil && d.Err != "" {
			continue
		}
		r.hub.add(record.Line{T: record.KindDirect, Direct: &d})
	}
}

// watch notices a service that ends in mid-run.
func (r *run) watch(ctx context.Context, name string, inst stack.Instance, cancel context.CancelCauseFunc) {
	select {
	case <-inst.Done():
		err := inst.Err()
		r.fault(name, err)
		cancel(err)
	case <-ctx.Done():
	}
}

func (r *run) fault(name string, err error) {
	r.Say("%s: %v", name, err)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifest.Faults[name] == "" {
		r.manifest.Faults[name] = err.Error()
	}
}

// reportEvery is how often Progress is called.
const reportEvery = 250 * time.Millisecond

// report calls Progress until attacking is closed, and once more then.
func (r *run) report(attacking <-chan struct{}) {
	begun := time.Now()
	told := map[string]bool{}
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-attacking:
			last = true
		case <-tick.C:
		}
		p := Progress{Total: len(r.cells), Elapsed: time.Since(begun)}
		rest := max(r.scenario.Probe.Budget-p.Elapsed, 0)
		states := map[string]int{}
		r.hub.flush()
		r.hub.with(func() {
			for _, c := range r.cells {
				state := string(c.tally.State())
				states[state]++
				p.Failures += c.tally.Failures()
				if c.tally.Proven() {
					p.Proven++
				}
				if !c.done {
					p.Left = max(p.Left, c.left(rest))
				} else {
					p.Decided++
					if !told[c.item.ID] {
						told[c.item.ID] = true
						p.Newly = append(p.Newly, c.item.ID+": "+state)
					}
				}
			}
		})
		p.Left = min(p.Left, rest)
		r.Metrics.States(states)
		if r.Progress != nil {
			r.Progress(p)
		}
	}
}
