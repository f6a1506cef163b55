package run

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/stack"
	"idlerace/harness/upstream"
)

// portAttempts is how often a side is started anew on other ports when another
// process took one.
const portAttempts = 3

// stopGrace is how long a service may take to end when asked politely.
const stopGrace = 3 * time.Second

// side is the part of a run's stack that one runtime runs: an origin, and the
// proxies in front of it. Nothing crosses from one side to another: a relay or
// a bridge between proxy and upstream would move the moment of the race.
type side struct {
	rt      stack.Runtime
	n       uint64 // of the run's sides; tells the connections of two origins apart
	origin  stack.Instance
	proxies map[string]stack.Instance

	// What is listened on. Where that is reached says the instance.
	admin   string
	servers map[string]string      // by server name
	routes  map[string]proxy.Route // by item id

	journal *journal
}

// server is where this program reaches one of the origin's servers.
func (s *side) server(name string) string { return s.origin.Address(s.servers[name]) }

// listener is where this program reaches the proxy's listener of an item.
func (s *side) listener(it plan.Item) string {
	return s.proxies[it.Cell.Proxy].Address(s.routes[it.ID].Listen)
}

// items are those that run on the side of a runtime.
func (r *run) items(rt stack.Runtime) []plan.Item {
	return slices.DeleteFunc(slices.Clone(r.plan.Items), func(it plan.Item) bool {
		return it.Unsupported != "" || record.Side(r.found[it.Cell.Proxy].Run.Runtime) != rt.Name()
	})
}

// start starts every side. One that does not come up breaks its own cells; an
// error means that none did, or that the run was interrupted.
func (r *run) start(ctx context.Context, runtimes []stack.Runtime) ([]*side, error) {
	var sides []*side
	var failed []stack.Runtime
	var errs []error
	for _, rt := range runtimes {
		sd, err := r.startSide(ctx, rt)
		switch {
		case err == nil:
			sd.n = uint64(len(sides))
			sides = append(sides, sd)
			continue
		case ctx.Err() != nil:
			stopAll(ctx, sides)
			return nil, err
		}
		errs = append(errs, err)
		failed = append(failed, rt)
	}
	if len(sides) == 0 {
		return nil, errors.Join(errs...)
	}
	for i, rt := range failed {
		for _, it := range r.items(rt) {
			r.fault(it.Cell.Proxy, errs[i])
		}
	}
	return sides, nil
}

// startSide starts one side, on other ports when another process took one.
func (r *run) startSide(ctx context.Context, rt stack.Runtime) (sd *side, err error) {
	err = OnFreePorts(r.Say, func() error {
		sd, err = r.startOnce(ctx, rt)
		return err
	})
	return sd, err
}

// OnFreePorts calls start again, a few times, when it failed because another
// process took a port. Each call reserves ports of its own.
func OnFreePorts(say func(format string, args ...any), start func() error) error {
	for attempt := 1; ; attempt++ {
		err := start()
		var exit *stack.ExitError
		if err == nil || attempt == portAttempts || !errors.As(err, &exit) || !exit.AddressInUse() {
			return err
		}
		say("%s: a port was taken by another process; starting again on others", exit.Service)
	}
}

func (r *run) startOnce(ctx context.Context, rt stack.Runtime) (*side, error) {
	items := r.items(rt)
	addrs, err := rt.Reserve(1 + len(r.plan.Servers) + len(items))
	if err != nil {
		return nil, err
	}
	defer addrs.Release()
	free := addrs.List()
	take := func() string {
		a := free[0]
		free = free[1:]
		return a
	}
	sd := &side{rt: rt, proxies: map[string]stack.Instance{}, admin: take(), servers: map[string]string{}, routes: map[string]proxy.Route{}}
	for _, srv := range r.plan.Servers {
		sd.servers[srv.Name] = take()
	}
	inputs := map[string]proxy.Input{}
	var names []string
	for _, it := range items {
		name := it.Cell.Proxy
		in, known := inputs[name]
		if !known {
			names = append(names, name)
			in.Lanes = r.scenario.Probe.Lanes
		}
		in.Routes = append(in.Routes, proxy.Route{ID: it.ID, Cell: it.Cell, Listen: take()})
		inputs[name] = in
	}
	svc, err := r.kind.Render(upstream.Input{Servers: r.plan.Servers, Addrs: sd.servers, Admin: sd.admin, Capture: !r.NoCapture})
	if err != nil {
		return nil, err
	}
	if err := addrs.Release(); err != nil {
		return nil, err
	}
	if sd.origin, err = rt.Start(ctx, svc, r.dir(rt, svc)); err != nil {
		return nil, err
	}
	upstream := map[string]string{}
	for _, it := range items {
		upstream[it.ID] = sd.origin.Peer(sd.servers[it.Server])
	}
	slices.Sort(names)
	for _, name := range names {
		in := inputs[name]
		for i := range in.Routes {
			in.Routes[i].Upstream = upstream[in.Routes[i].ID]
			sd.routes[in.Routes[i].ID] = in.Routes[i]
		}
		if err := r.startProxy(ctx, sd, name, in); err != nil {
			sd.stop(ctx)
			return nil, err
		}
	}
	sd.journal = newJournal(sd.origin.Address(sd.admin))
	return sd, nil
}

// startProxy starts one proxy. One that does not come up breaks its own cells
// and no others, unless a port was taken, which the caller can cure.
func (r *run) startProxy(ctx context.Context, sd *side, name string, in proxy.Input) error {
	f := r.found[name]
	svc, err := f.Service(in)
	if err != nil {
		return err
	}
	for _, route := range in.Routes {
		if err := r.folder.WriteFile(filepath.Join(results.CellsDir, route.ID, results.ConfigFile), []byte(f.Adapter.Excerpt(route, in))); err != nil {
			return err
		}
	}
	inst, err := sd.rt.Start(ctx, svc, r.dir(sd.rt, svc))
	var exit *stack.ExitError
	switch {
	case err == nil:
		sd.proxies[name] = inst
		delete(r.manifest.Faults, name)
		return nil
	case ctx.Err() != nil, errors.As(err, &exit) && exit.AddressInUse():
		return err
	}
	r.Say("%v", err)
	r.manifest.Faults[name] = err.Error()
	return nil
}

// Service is the proxy as it was found, serving all routes of in.
func (f Found) Service(in proxy.Input) (stack.Service, error) {
	svc, err := f.Adapter.Render(in)
	if err != nil {
		return svc, err
	}
	if svc.Binary != "" {
		svc.Image = f.Run.Image
		if f.Run.Path != "" {
			svc.Binary = f.Run.Path
		}
	}
	return svc, nil
}

// dir is a service's folder. Both sides have an origin.
func (r *run) dir(rt stack.Runtime, s stack.Service) string {
	name := s.Name
	if rt.Name() == record.RuntimeDocker {
		name += ".docker"
	}
	return filepath.Join(r.folder.Path, results.StackDir, name)
}

// stop ends the proxies, then the origin. A cancelled ctx makes it rude.
func (s *side) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, stopGrace)
	defer cancel()
	if s.journal != nil {
		s.journal.client.CloseIdleConnections()
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for name, inst := range s.proxies {
		wg.Go(func() {
			if err := inst.Stop(ctx); err != nil {
				mu.Lock()
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if err := s.origin.Stop(ctx); err != nil {
		errs = append(errs, fmt.Errorf("origin: %w", err))
	}
	return errors.Join(errs...)
}

func stopAll(ctx context.Context, sides []*side) error {
	var errs []error
	for _, s := range sides {
		errs = append(errs, s.stop(ctx))
	}
	return errors.Join(errs...)
}
