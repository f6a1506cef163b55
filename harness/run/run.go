// Package run is the loop: it starts what a plan needs, probes every cell until
// it is decided or the budget is spent, and writes the run's folder.
package run

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"slices"
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
	"idlerace/harness/stack/docker"
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
	Shard   plan.Shard           // what of the scenario to run; zero: all. Not together with Only
	Require []string             // proxies that must be there
	// NoCapture leaves the packets out of the evidence.
	NoCapture bool
	Metrics   *metrics.Set // may be nil
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
	Budget         time.Duration
	Newly          []string // ids decided since the last call, with their state
	// Cells are all of the plan, in its order. The next call changes them.
	Cells []judge.Interim
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

// directProbes is the number of connections that measure a server's close
// without a proxy.
const directProbes = 4

// directRounds is how often at most that is done; directTries counts those that
// a disturbance spoiled as well.
const (
	directRounds = 3
	directTries  = 4 * directRounds
)

// Run runs a scenario and returns the folder with everything but verdicts and
// report, for which see results.Folder.Judge. The folder is returned, if it
// could be made, together with an error.
//
// soft ends the run in order: bursts under way are finished, what there is is
// written. ctx ends it at once. Nothing is left running either way.
func Run(ctx context.Context, soft <-chan struct{}, s *spec.Scenario, o Options) (*results.Folder, error) {
	// Before there is anything to finish, the first interrupt ends all.
	early, interrupted := context.WithCancelCause(ctx)
	defer interrupted(nil)
	select {
	case <-soft:
		interrupted(ErrInterrupted)
	default:
		go func() {
			select {
			case <-soft:
				interrupted(ErrInterrupted)
			case <-early.Done():
			}
		}()
	}
	r, err := prepare(early, s, o)
	if early.Err() != nil && err != nil {
		return nil, ErrInterrupted
	}
	if err != nil {
		return nil, err
	}
	defer r.finder.Close()
	return r.folder, r.do(ctx, early, soft)
}

// prepare plans a run and makes its folder.
func prepare(ctx context.Context, s *spec.Scenario, o Options) (_ *run, err error) {
	if o.Say == nil {
		o.Say = func(string, ...any) {}
	}
	if o.Shard.N > 0 {
		mine := o.Shard.Cells(s)
		o.Only = func(it plan.Item) bool { return mine[it.ID] }
	}
	finder := &Finder{Runtime: cmp.Or(o.Runtime, RuntimeAuto), Self: o.Self, Say: o.Say}
	if s.Link.Netem {
		finder.Contained = "link.driver " + string(spec.DriverNetem)
	}
	defer func() {
		if err != nil {
			finder.Close()
		}
	}()
	found, missing, err := finder.all(ctx, s, o.Require)
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
	whole := plan.New(s, Unsupported).Only(func(it plan.Item) bool {
		_, ok := found[it.Cell.Proxy]
		return ok
	})
	p := whole
	if o.Only != nil {
		p = whole.Only(o.Only)
	}
	switch {
	case len(found) == 0:
		return nil, environment(errors.New("no proxy of the scenario can run here"))
	case len(p.Items) == 0 && o.Shard.N == 0:
		return nil, errors.New("no cell is left to run")
	case len(p.Items) == 0:
		// Of more shards than cells some have none: that is no fault of the job's.
		o.Say("shard %s has no cell that can run here", o.Shard)
	}
	if s.Probe.Lanes == 0 {
		among := p.Items
		if o.Shard.N > 0 {
			among = whole.Items // what a cell is asked does not depend on the number of shards
		}
		adapted := *s
		adapted.Probe.Lanes = lanes(among, s.Probe, runtime.NumCPU())
		s = &adapted
	}
	if err := openFiles(s.Probe.Lanes * len(p.Items)); err != nil {
		return nil, environment(err)
	}
	m := record.Manifest{
		Schema: record.ManifestSchema, Scenario: s.Name, Seed: o.Seed, Started: time.Now().UTC(), Command: o.Command,
		Idlerace: o.Version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Kernel: kernel(), Cores: runtime.NumCPU(),
		Lanes: s.Probe.Lanes, Unavailable: missing, Items: p.Items, Shard: o.Shard, SHA256: results.Sum(s.Source), Faults: map[string]string{},
	}
	for _, px := range s.Proxies {
		if f, ok := found[px.Name]; ok && slices.ContainsFunc(p.Items, func(it plan.Item) bool { return it.Cell.Proxy == px.Name }) {
			m.Proxies = append(m.Proxies, f.Run)
		}
	}
	if finder.engine != nil && slices.ContainsFunc(m.Proxies, func(p record.ProxyRun) bool { return p.Runtime == record.RuntimeDocker }) {
		i := finder.engine.Info()
		m.Engine = &record.Engine{Name: i.Name, Version: i.Version, Host: i.Host, OS: i.OS, Arch: i.Arch, Reaper: i.Reaper}
	}
	manifest, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	folder, err := results.Create(o.Out, s.Name, results.Name(m.Started, o.Seed, o.Shard), map[string][]byte{
		results.ScenarioFile: s.Source, results.ManifestFile: manifest, results.ObservationsFile: nil,
	})
	if err != nil {
		return nil, environment(err)
	}
	o.Metrics.Begin(m, s.Probe.Budget)
	return &run{Options: o, scenario: s, plan: p, folder: folder, manifest: m, finder: finder, found: found, kind: kind}, nil
}

// Unsupported says why no run of this version can express a cell, or "".
func Unsupported(c spec.Cell) string {
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
	finder   *Finder
	found    map[string]Found
	kind     upstream.Kind
	docker   *docker.Runtime // nil: no proxy is a container

	hub   *hub
	cells []*cell

	mu sync.Mutex
}

func (r *run) do(ctx, early context.Context, soft <-chan struct{}) (err error) {
	if len(r.plan.Items) == 0 {
		r.manifest.Ended = record.EndDone
		return environment(r.folder.WriteJSON(results.ManifestFile, r.manifest))
	}
	begun := time.Now()
	runtimes, closeRuntimes := r.runtimes()
	defer func() { err = errors.Join(err, environment(closeRuntimes(ctx))) }()
	sides, err := r.start(early, runtimes)
	if err != nil && early.Err() != nil {
		r.manifest.Ended = record.EndInterrupted
		return environment(r.folder.WriteJSON(results.ManifestFile, r.manifest))
	}
	if err != nil {
		r.manifest.Ended = "the stack did not start: " + err.Error()
		return environment(errors.Join(err, r.folder.WriteJSON(results.ManifestFile, r.manifest)))
	}
	defer func() { err = errors.Join(err, environment(stopAll(ctx, sides))) }()
	if d := r.docker; d != nil {
		r.manifest.Engine.Path, r.manifest.Engine.Limits = d.Path(), d.Limits()
	}
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
	reason, err := r.probe(ctx, soft, sides)
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

// probe runs all cells side by side and says how it ended.
func (r *run) probe(ctx context.Context, soft <-chan struct{}, sides []*side) (reason string, err error) {
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
			interrupted(ErrInterrupted)
		case <-watching.Done():
		}
	})

	alarm, err := load.NewAlarm()
	if err != nil {
		return err.Error(), err
	}
	defer alarm.Close()
	if err := r.makeCells(sides); err != nil {
		return err.Error(), err
	}

	// A side that loses its origin ends, and with the last one the run.
	ends := make([]context.CancelCauseFunc, len(sides))
	contexts := make([]context.Context, len(sides))
	for i := range sides {
		contexts[i], ends[i] = context.WithCancelCause(calm)
		defer ends[i](nil)
		if len(sides) == 1 {
			ends[i] = interrupted
		}
	}
	var following sync.WaitGroup
	for i, sd := range sides {
		connected := make(chan struct{})
		watchers.Go(func() {
			err := sd.journal.follow(watching, r.hub, sd.n, sync.OnceFunc(func() { close(connected) }))
			if err == nil || watching.Err() != nil {
				return
			}
			select {
			case <-sd.origin.Done(): // that is why, and watchOrigin tells
			case <-time.After(originGrace):
				r.lose(sd, len(sides) == 1, err, ends[i])
			case <-watching.Done():
			}
		})
		following.Go(func() {
			select {
			case <-connected:
			case <-contexts[i].Done():
			}
		})
		watchers.Go(func() {
			select {
			case <-sd.origin.Done():
				r.lose(sd, len(sides) == 1, sd.origin.Err(), ends[i])
			case <-watching.Done():
			}
		})
	}
	following.Wait()
	if calm.Err() != nil {
		return context.Cause(calm).Error(), context.Cause(calm)
	}
	if err := r.findPackets(calm, sides); err != nil {
		return err.Error(), err
	}
	perProxy := map[string]context.Context{}
	for i, sd := range sides {
		for name, inst := range sd.proxies {
			c, cancel := context.WithCancelCause(contexts[i])
			defer cancel(nil)
			perProxy[name] = c
			watchers.Go(func() { r.watch(watching, name, inst, cancel) })
			watchers.Go(func() {
				if err := tail(watching, r.found[name].Adapter, inst, r.hub); err != nil && watching.Err() == nil {
					r.fault(name, fmt.Errorf("log: %w", err))
				}
			})
		}
	}

	var attacks sync.WaitGroup
	for _, sd := range sides {
		for _, srv := range r.plan.Servers {
			attacks.Go(func() { r.measure(calm, sd, srv) })
		}
	}
	for _, c := range r.cells {
		proxyCtx := perProxy[c.item.Cell.Proxy]
		attacks.Go(func() {
			if err := c.attack(proxyCtx, ctx, alarm); err != nil {
				r.fault(c.item.Cell.Proxy, err)
			}
			r.hub.with(func() { c.done = true })
		})
	}
	disturbing, stopDisturbing := context.WithCancel(calm)
	defer stopDisturbing()
	watchers.Go(func() { r.disturb(disturbing, sides) })
	attacking := make(chan struct{})
	watchers.Go(func() { r.report(attacking) })
	attacks.Wait()
	stopDisturbing()
	close(attacking)

	switch {
	case ctx.Err() != nil:
		return record.EndInterrupted, nil
	case context.Cause(calm) == ErrInterrupted:
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
	if !done {
		if lost := r.lostAll(); lost != "" {
			return lost, nil
		}
		return record.EndBudget, nil // no burst was left that fits into it
	}
	return record.EndDone, nil
}

// lostAll says why no proxy is left; empty: one is. An engine that goes takes
// all of them, and whether they or their origin are missed first is chance.
func (r *run) lostAll() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	why := ""
	for _, p := range r.manifest.Proxies {
		fault := r.manifest.Faults[p.Name]
		if fault == "" {
			return ""
		}
		why = cmp.Or(why, "every proxy was lost: "+fault)
	}
	return why
}

// findPackets learns which origins capture packets, and says once that one does
// not.
func (r *run) findPackets(ctx context.Context, sides []*side) error {
	if r.NoCapture {
		return nil
	}
	for _, sd := range sides {
		var once sync.Once
		p, why, err := newPacketSource(ctx, sd, func(err error) {
			once.Do(func() { r.warn("packets of late requests could not be read: " + err.Error()) })
		})
		if err != nil {
			return err
		}
		if p == nil {
			r.Say("%s; the evidence is the journal alone", why)
			r.manifest.NoPackets = why
			continue
		}
		for _, c := range r.cells {
			if c.journal == sd.journal {
				r.hub.with(func() {
					c.packets = p
					c.tally.Captured()
				})
			}
		}
	}
	return nil
}

func (r *run) warn(text string) {
	r.Say("%s", text)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.manifest.Warnings = append(r.manifest.Warnings, text)
}

// ErrInterrupted is the error of a run that was interrupted before it had a
// folder.
var ErrInterrupted = errors.New(record.EndInterrupted)

func (r *run) makeCells(sides []*side) error {
	begin := time.Now().Add(20 * time.Millisecond)
	start := starts(r.plan.Items, r.scenario.Probe)
	slots := &load.Stagger{}
	for _, it := range r.plan.Items {
		at := slices.IndexFunc(sides, func(sd *side) bool { return sd.routes[it.ID].ID != "" && sd.proxies[it.Cell.Proxy] != nil })
		if at < 0 {
			continue // unsupported, or its proxy did not start
		}
		sd := sides[at]
		files, err := newCellFiles(r.folder, it)
		if err != nil {
			return err
		}
		sub := judge.SubjectOf(r.manifest, r.scenario, it)
		c := &cell{item: it, addr: sd.listener(it), lanes: r.scenario.Probe.Lanes, start: begin.Add(start[it.ID]),
			hub: r.hub, journal: sd.journal, side: sd.rt.Name(), link: sub.Link, aim: load.NewAim(it.Rand(r.Seed), sub.RTT, sub.Window), slots: slots, tally: judge.NewTally(sub), files: files,
			unproven: map[uint64]bool{}, lateSeen: map[uint64]bool{}, closes: map[uint64]int64{}}
		r.cells = append(r.cells, c)
		r.hub.with(func() { r.hub.cells[it.ID] = c })
	}
	return nil
}

// measure takes the idle close of one of an origin's servers without a proxy.
// What looks like a server late by design is measured again: a run's first
// seconds are its busiest.
func (r *run) measure(ctx context.Context, sd *side, srv plan.Server) {
	for round, tries := 0, 0; round < directRounds && tries < directTries; tries++ {
		late, begun := true, time.Now()
		measured := load.MeasureClose(ctx, srv.Name, sd.server(srv.Name), directProbes, generous(srv.IdleTimeout))
		var disturbed []string
		r.hub.with(func() { disturbed = r.hub.joiner.Disturbed(begun.UnixNano(), time.Now().UnixNano()) })
		if len(disturbed) > 0 {
			continue
		}
		round++
		for _, d := range measured {
			if ctx.Err() != nil && d.Err != "" {
				continue
			}
			d.Runtime = sd.rt.Name()
			r.hub.add(record.Line{T: record.KindDirect, Direct: &d})
			late = late && (d.Err != "" || d.After > srv.IdleTimeout+judge.LateByDesign)
		}
		if !late || ctx.Err() != nil {
			return
		}
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

// originGrace is how long an origin whose journal broke off may take to be
// known as dead.
const originGrace = 2 * time.Second

// lose ends a side whose origin is lost.
func (r *run) lose(sd *side, only bool, err error, end context.CancelCauseFunc) {
	if only {
		r.fault(record.FaultOrigin, err)
	} else {
		for name := range sd.proxies {
			r.fault(name, err)
		}
	}
	end(err)
}

// fault keeps the first thing that went wrong with a proxy.
func (r *run) fault(name string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.manifest.Faults[name] == "" {
		r.manifest.Faults[name] = err.Error()
		r.Say("%s: %v", name, err)
	}
}

// survey is every item of the plan as it is before probing.
func (r *run) survey() []judge.Interim {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]judge.Interim, len(r.plan.Items))
	for i := range out {
		it := &r.plan.Items[i]
		out[i] = judge.Interim{Item: it, State: spec.Inconclusive, Asked: r.scenario.Probe.Shots}
		switch {
		case it.Unsupported != "":
			out[i].State = spec.Unsupported
		case r.manifest.Faults[it.Cell.Proxy] != "":
			out[i].State = spec.Broken // did not start
		}
	}
	return out
}

// reportEvery is how often Progress is called.
const reportEvery = 250 * time.Millisecond

// report calls Progress until attacking is closed, and once more then.
func (r *run) report(attacking <-chan struct{}) {
	begun := time.Now()
	cells := r.survey()
	tick := time.NewTicker(reportEvery)
	defer tick.Stop()
	for last := false; !last; {
		select {
		case <-attacking:
			last = true
		case <-tick.C:
		}
		p := Progress{Total: len(r.cells), Elapsed: time.Since(begun), Budget: r.scenario.Probe.Budget, Cells: cells}
		rest := max(p.Budget-p.Elapsed, 0)
		kinds := map[metrics.Kind]int{}
		r.hub.flush()
		r.hub.with(func() {
			for i := range cells {
				o := &cells[i]
				if c := r.hub.cells[o.Item.ID]; c != nil {
					o.Counts, o.State = c.tally.Counts(), c.tally.State()
					p.Failures += o.Failures
					if !c.proven.IsZero() {
						p.Proven++
						o.Proven = max(c.proven.Sub(begun), 1)
					}
					if !c.done {
						p.Left = max(p.Left, c.left(rest))
					} else {
						p.Decided++
						if o.Decided == 0 {
							o.Decided = p.Elapsed
							p.Newly = append(p.Newly, o.Item.ID+": "+string(o.State))
						}
					}
				}
				kinds[metrics.Kind{Role: o.Item.Role, State: o.State}]++
			}
		})
		p.Left = min(p.Left, rest)
		r.Metrics.Cells(kinds, p.Decided, p.Total)
		if r.Progress != nil {
			r.Progress(p)
		}
	}
}
