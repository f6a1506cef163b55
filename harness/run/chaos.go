package run

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"idlerace/harness/origin"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
	"idlerace/harness/stack/local"
)

// chaosPatience bounds what a disturbance takes beyond its length: an engine
// that pauses containers, an origin that is itself paused.
const chaosPatience = 15 * time.Second

// Disturbance is one of a run's schedule.
type Disturbance struct {
	What spec.What
	At   time.Duration // since probing began
	For  time.Duration
}

// Schedule draws the moments of a run's disturbances, in order of At. Those of
// one kind do not overlap and do not depend on the other kinds. All end within
// the budget.
func Schedule(seed uint64, entries []spec.Chaos, budget time.Duration) []Disturbance {
	var out []Disturbance
	for _, e := range entries {
		kind := fnv.New64a()
		io.WriteString(kind, string(e.What))
		rng := rand.New(rand.NewPCG(seed, kind.Sum64()))
		at := spec.ChaosFrom + time.Duration(rng.Int64N(int64(e.Every)))
		for at+e.For < budget {
			out = append(out, Disturbance{e.What, at, e.For})
			// Every on average, and more than For.
			at += e.For + 1 + time.Duration(rng.Int64N(int64(2*(e.Every-e.For))))
		}
	}
	slices.SortStableFunc(out, func(a, b Disturbance) int { return int(a.At - b.At) })
	return out
}

// disturber does one kind of disturbance.
type disturber struct {
	target string
	do     func(ctx context.Context, d time.Duration) error
}

// disturb follows the scenario's schedule until ctx is done. Nothing is paused
// or burning when it returns.
func (r *run) disturb(ctx context.Context, sides []*side) {
	disturbers := r.disturbers(sides)
	begun := time.Now()
	byKind := map[spec.What][]Disturbance{}
	for _, d := range Schedule(r.Seed, r.scenario.Chaos, r.scenario.Probe.Budget) {
		byKind[d.What] = append(byKind[d.What], d)
	}
	var kinds sync.WaitGroup
	for what, list := range byKind {
		kinds.Go(func() {
			var ended time.Time
			for _, d := range list {
				at := begun.Add(d.At)
				if at.Before(ended) {
					continue // the one before took longer than planned
				}
				if !sleep(ctx, time.Until(at)) {
					return
				}
				err := r.disturbOnce(ctx, what, disturbers[what], d.For)
				ended = time.Now()
				if err != nil && ctx.Err() == nil {
					r.warn(fmt.Sprintf("chaos: no more %s: %v", what, err))
					return
				}
			}
		})
	}
	kinds.Wait()
}

// disturbOnce records that a disturbance begins before anything is done, and
// its end.
func (r *run) disturbOnce(ctx context.Context, what spec.What, d disturber, length time.Duration) error {
	said := record.Disturbance{What: string(what), Target: d.target, From: time.Now().UnixNano()}
	begins, ended := said, &said
	r.hub.add(record.Line{T: record.KindDisturbance, Disturbance: &begins})
	err := d.do(ctx, length)
	ended.To = time.Now().UnixNano()
	r.hub.add(record.Line{T: record.KindDisturbance, Disturbance: ended})
	r.hub.flush()
	return err
}

func (r *run) disturbers(sides []*side) map[spec.What]disturber {
	var proxies, origins []stack.Instance
	names := map[string]bool{}
	for _, sd := range sides {
		origins = append(origins, sd.origin)
		for name, inst := range sd.proxies {
			proxies = append(proxies, inst)
			names[name] = true
		}
	}
	return map[spec.What]disturber{
		spec.PauseProxy: {strings.Join(slices.Sorted(maps.Keys(names)), ", "), func(ctx context.Context, d time.Duration) error {
			return pause(ctx, proxies, d)
		}},
		spec.PauseOrigin: {record.FaultOrigin, func(ctx context.Context, d time.Duration) error {
			return pause(ctx, origins, d)
		}},
		spec.RestartOrigin: {record.FaultOrigin, func(ctx context.Context, _ time.Duration) error {
			for _, sd := range sides {
				if err := sd.journal.recycle(ctx); err != nil {
					return err
				}
			}
			return nil
		}},
		spec.BurnCPU: {"machine", r.burn},
	}
}

// pause makes instances stand still for d, or until ctx is done.
func pause(ctx context.Context, instances []stack.Instance, d time.Duration) (err error) {
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), d+chaosPatience)
	defer cancel()
	for _, inst := range instances {
		// Also after an error: it may be paused all the same.
		defer func() { err = errors.Join(err, inst.Resume(limited)) }()
		if err := inst.Pause(limited); err != nil {
			return err
		}
	}
	sleep(ctx, d)
	return nil
}

// recycle has the origin end its connections, see origin.Recycled.
func (j *journal) recycle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, chaosPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, j.base+"/recycle", nil)
	if err != nil {
		return err
	}
	resp, err := j.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("origin: POST /recycle: %s", resp.Status)
	}
	var recycled origin.Recycled
	return json.NewDecoder(resp.Body).Decode(&recycled)
}

// burn runs a process of its own: goroutines of this one would take the moments
// of its shots from the scheduler, as no neighbour could.
func (r *run) burn(ctx context.Context, d time.Duration) error {
	rt := local.New(r.Self)
	defer rt.Close()
	inst, err := rt.Start(ctx, stack.Service{Name: "burn-cpu", Args: []string{"serve", "burn"}}, filepath.Join(r.folder.Path, results.StackDir, "burn-cpu"))
	if err != nil {
		return err
	}
	sleep(ctx, d)
	// It has nothing to finish.
	now, cancel := context.WithCancel(context.Background())
	cancel()
	return inst.Stop(now)
}

// sleep waits for d and reports whether ctx let it.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}
