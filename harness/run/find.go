package run

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
	"idlerace/harness/stack/docker"
	"idlerace/harness/stack/local"
)

// RuntimeAuto takes, per proxy, what this machine offers: a container where an
// engine answers and the image can be had, else an executable.
const RuntimeAuto = "auto"

// Runtimes lists what a run can be asked for.
func Runtimes() []string {
	return []string{RuntimeAuto, record.RuntimeDocker, record.RuntimeLocal, record.RuntimeEmbedded}
}

// ImageVar names the environment variable that overrides a proxy's image.
func ImageVar(proxy string) string {
	return "IDLERACE_IMAGE_" + strings.ToUpper(strings.ReplaceAll(proxy, "-", "_"))
}

// Image is the container image of a proxy: the environment's, the scenario's or
// the adapter's own, in this order.
func Image(a proxy.Adapter, scenario string) string {
	return cmp.Or(os.Getenv(ImageVar(a.Name())), scenario, a.Program().Image)
}

// Found says where a proxy comes from on this machine.
type Found struct {
	Adapter proxy.Adapter
	Run     record.ProxyRun
}

// Finder looks for proxies. It must be closed.
type Finder struct {
	Runtime string // one of Runtimes
	Self    string // path of this program
	// Look only: nothing is pulled, built or left in the engine. A proxy whose
	// image would have to be pulled is found without a version.
	Look bool
	// Contained, unless empty, says what of a scenario needs containers: no proxy
	// runs as a process then.
	Contained string
	Say       func(format string, args ...any)

	once   sync.Once
	engine *docker.Engine
	own    docker.Image
	err    error // why no container can be started
}

// Engine gives the container engine, or the reason why none can be used.
func (f *Finder) Engine(ctx context.Context) (*docker.Engine, error) {
	f.once.Do(func() {
		if f.engine, f.err = docker.Connect(ctx); f.err != nil {
			return
		}
		if f.Look {
			if f.err = f.engine.LookupReaper(ctx); f.err == nil {
				_, f.err = docker.LinuxBinary(f.Self, f.engine.Info().Arch)
			}
			return
		}
		if f.err = f.engine.EnsureReaper(ctx, f.Say); f.err == nil {
			f.own, f.err = f.engine.Own(ctx, f.Self, f.Say)
		}
	})
	return f.engine, f.err
}

// Close frees the connection to the engine.
func (f *Finder) Close() {
	if f.engine != nil {
		f.engine.Close()
	}
}

// Find looks for a proxy; image is the scenario's wish, or empty. An error is
// the reason why it cannot run here.
func (f *Finder) Find(ctx context.Context, a proxy.Adapter, image string) (Found, error) {
	out := Found{Adapter: a, Run: record.ProxyRun{Name: a.Name()}}
	switch f.Runtime {
	case record.RuntimeDocker:
		out.Run.Why = "asked for"
		return out, f.container(ctx, &out, image)
	case RuntimeAuto:
		noContainer := f.container(ctx, &out, image)
		if noContainer == nil {
			out.Run.Why = "a container engine answers and has the image"
			return out, nil
		}
		out.Run = record.ProxyRun{Name: a.Name(), Why: "no container: " + noContainer.Error()}
		err := f.executable(ctx, &out)
		if err != nil && f.err == nil { // else the engine's reason is everybody's, and told once
			err = fmt.Errorf("%w; %w", err, noContainer)
		}
		return out, err
	}
	out.Run.Why = "asked for"
	return out, f.executable(ctx, &out)
}

// Get is one command that may make a proxy available that was not found.
func (f *Finder) Get(a proxy.Adapter, image string) string {
	p := a.Program()
	if f.Runtime != record.RuntimeDocker && f.Contained == "" {
		return p.Get
	}
	return "docker pull " + Image(a, image) + "   # or, without a registry: eval \"$(docker/local-images)\""
}

// container fills in a proxy that runs as a container.
func (f *Finder) container(ctx context.Context, out *Found, image string) error {
	e, err := f.Engine(ctx)
	if err != nil {
		return err
	}
	p := out.Adapter.Program()
	out.Run.Runtime = record.RuntimeDocker
	if p.Embedded {
		out.Run.Version, out.Run.Image, out.Run.ImageID = runtime.Version(), f.own.Ref, f.own.ID
		return nil
	}
	image = Image(out.Adapter, image)
	var img docker.Image
	if f.Look {
		img, err = e.Lookup(ctx, image)
		if absent, ok := errors.AsType[*docker.AbsentError](err); ok && absent.Pullable {
			out.Run.Image = image
			return nil
		}
	} else {
		img, err = e.Pull(ctx, image, f.Say)
	}
	if err != nil {
		return err
	}
	out.Run.Image, out.Run.ImageID = img.Ref, img.ID
	if f.Look && e.Info().Reaper {
		return nil // a container that says its version would start Ryuk, too
	}
	text, err := e.Output(ctx, img, p.Binary, p.Args...)
	if err != nil {
		return err
	}
	out.Run.Version, err = version(p, text)
	if err != nil {
		return fmt.Errorf("image %s: %w", image, err)
	}
	return nil
}

// executable fills in a proxy that runs as a process of this machine.
func (f *Finder) executable(ctx context.Context, out *Found) error {
	if f.Contained != "" {
		return errors.New(f.Contained + " needs a container")
	}
	p := out.Adapter.Program()
	if p.Embedded {
		out.Run.Runtime, out.Run.Version, out.Run.Path = record.RuntimeEmbedded, runtime.Version(), f.Self
		return nil
	}
	if f.Runtime == record.RuntimeEmbedded {
		return errors.New("runtime embedded uses nothing but this program")
	}
	path, err := lookPath(p.Binary)
	if err != nil {
		return fmt.Errorf("no %s on PATH", p.Binary)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	text, err := exec.CommandContext(ctx, path, p.Args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %s: %w: %s", path, strings.Join(p.Args, " "), err, bytes.TrimSpace(text))
	}
	out.Run.Runtime, out.Run.Path = record.RuntimeLocal, path
	if out.Run.Version, err = version(p, text); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

func version(p proxy.Program, text []byte) (string, error) {
	m := p.Version.FindSubmatch(text)
	if m == nil {
		return "", fmt.Errorf("`%s %s`: no version in %q", p.Binary, strings.Join(p.Args, " "), bytes.TrimSpace(text))
	}
	return string(m[1]), nil
}

// all looks for all proxies of a scenario.
func (f *Finder) all(ctx context.Context, s *spec.Scenario, required []string) (map[string]Found, []record.Unavailable, error) {
	return f.FindAll(ctx, s.Proxies, required)
}

// FindAll looks for proxies, side by side. One that cannot run here is missing,
// or an error if it is required.
func (f *Finder) FindAll(ctx context.Context, proxies []spec.Proxy, required []string) (found map[string]Found, missing []record.Unavailable, err error) {
	if f.Runtime != RuntimeAuto && f.Runtime != record.RuntimeDocker && f.Contained != "" {
		return nil, nil, fmt.Errorf("%s needs containers, not runtime %s: it would be done to the network of this whole machine", f.Contained, f.Runtime)
	}
	if f.Runtime == RuntimeAuto || f.Runtime == record.RuntimeDocker {
		_, err := f.Engine(ctx)
		switch {
		case err != nil && f.Contained != "":
			return nil, nil, fmt.Errorf("%s needs containers: %w", f.Contained, err)
		case err != nil && slices.Contains(required, record.RuntimeDocker):
			return nil, nil, fmt.Errorf("%s is required (%s) and cannot be used: %w", record.RuntimeDocker, RequireVar, err)
		case err != nil && f.Runtime == record.RuntimeDocker:
			return nil, nil, fmt.Errorf("runtime %s: %w", record.RuntimeDocker, err)
		case err != nil:
			f.Say("no containers: %v", err)
		}
	}
	type result struct {
		Found
		err error
	}
	// Side by side: an image's version takes a container's start to learn.
	results := make([]result, len(proxies))
	var wg sync.WaitGroup
	for i, px := range proxies {
		a, err := proxy.ByName(px.Name)
		if err != nil {
			return nil, nil, err
		}
		wg.Go(func() { results[i].Found, results[i].err = f.Find(ctx, a, px.Image) })
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	found = map[string]Found{}
	for i, px := range proxies {
		r := results[i]
		get := f.Get(r.Adapter, px.Image)
		switch {
		case r.err == nil:
			found[px.Name] = r.Found
		case slices.Contains(required, px.Name):
			return nil, nil, fmt.Errorf("%s is required (%s) and cannot run: %w; to get it: %s", px.Name, RequireVar, r.err, get)
		default:
			missing = append(missing, record.Unavailable{Proxy: px.Name, Reason: r.err.Error(), Get: get})
		}
	}
	return found, missing, nil
}

// runtimes makes those that the found proxies need, and what ends them.
func (r *run) runtimes() (out []stack.Runtime, closeAll func(context.Context) error) {
	var needed []Found
	for _, it := range r.plan.Items {
		needed = append(needed, r.found[it.Cell.Proxy])
	}
	out, closeAll = r.finder.Runtimes(needed, r.runID())
	for _, rt := range out {
		if d, ok := rt.(*docker.Runtime); ok {
			r.docker = d
		}
	}
	return out, closeAll
}

// Runtimes makes those that found proxies need, one per side (record.Side),
// and what ends them. id names the run in the engine.
func (f *Finder) Runtimes(found []Found, id string) (out []stack.Runtime, closeAll func(context.Context) error) {
	needed := map[string]bool{}
	for _, p := range found {
		needed[record.Side(p.Run.Runtime)] = true
	}
	var closers []func(context.Context) error
	if needed[record.RuntimeDocker] {
		rt := f.engine.Runtime(id, f.own)
		out = append(out, rt)
		closers = append(closers, rt.Close)
	}
	if needed[record.RuntimeLocal] {
		rt := local.New(f.Self)
		out = append(out, rt)
		closers = append(closers, func(context.Context) error { rt.Close(); return nil })
	}
	return out, func(ctx context.Context) error {
		var errs []error
		for _, c := range closers {
			errs = append(errs, c(ctx))
		}
		return errors.Join(errs...)
	}
}

var notInID = regexp.MustCompile(`[^a-zA-Z0-9_.-]+`)

// runID names the run in the engine.
func (r *run) runID() string { return ID(r.scenario.Name, r.manifest.Started) }

// ID names in the engine what a scenario started at a time.
func ID(scenario string, started time.Time) string {
	return notInID.ReplaceAllString(scenario, "-") + "-" + started.UTC().Format("20060102T150405Z")
}
