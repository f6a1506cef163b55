package docker

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"

	"idlerace/harness/stack"
)

// Limits of each container. There is none on CPU time: CFS bandwidth control
// would stop a service for the rest of a 100 ms period, in the middle of a
// burst.
const (
	memoryLimit = 1 << 30 // bytes, and no swap beyond
	pidsLimit   = 512
	nofileLimit = 65536
	// The engine keeps what a container prints until that is removed. Beyond
	// this it begins anew; a run of 100,000 requests logs a twentieth.
	logLimit = "1g"
)

// Ports are below Linux' default range of ephemeral ports. Each container has
// all of them for itself; that no two services share one makes addresses in
// logs unique.
const (
	firstPort = 20000
	lastPort  = 32767
)

// folder is a service's folder as its container sees it.
const folder = "/idlerace.d"

// pathVar forces how containers are reached: "direct" or "mapped".
const pathVar = "IDLERACE_DOCKER_PATH"

// How long a local container may take to answer or refuse a connection before
// its address counts as not reachable from here.
const reachTimeout = 3 * time.Second

// How this program reaches containers.
const (
	undecided = ""
	direct    = "container addresses"
	mapped    = "mapped ports"
)

// Runtime starts the containers of one run, in a network of their own.
type Runtime struct {
	engine  *Engine
	run, id string
	own     Image

	choosing sync.Mutex // held by the Start that decides the path

	mu   sync.Mutex
	path string
	port int // the next free one

	joining sync.Mutex // held while the network is made or removed
	network *testcontainers.DockerNetwork
}

// Runtime gives a runtime for the run of that name, which is path-safe.
// Services without an Image run own. Close it after the last Stop.
func (e *Engine) Runtime(run string, own Image) *Runtime {
	// The id: two runs of one name may meet on an engine.
	return &Runtime{engine: e, run: run, id: strings.ToLower(rand.Text()[:8]), own: own, port: firstPort}
}

// Name is "docker".
func (r *Runtime) Name() string { return "docker" }

// Path says how this program reaches its services: by "container addresses" or
// by "mapped ports". It is empty until a service has been reached.
func (r *Runtime) Path() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.path
}

func (r *Runtime) setPath(path string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.path = path
}

// Limits says in one line what each container may use.
func (r *Runtime) Limits() string {
	files := strconv.Itoa(nofileLimit)
	if !r.engine.nofile.Load() {
		files = "as many as the engine has"
	}
	return fmt.Sprintf("memory %d MiB without swap, %d processes, %s open files, no limit on CPU time", memoryLimit>>20, pidsLimit, files)
}

type addresses []string

func (a addresses) List() []string { return a }
func (a addresses) Release() error { return nil } // nobody else can take them

// Reserve implements stack.Runtime.
func (r *Runtime) Reserve(n int) (stack.Addresses, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.port+n-1 > lastPort {
		return nil, fmt.Errorf("fewer than %d TCP ports are left between %d and %d", n, firstPort, lastPort)
	}
	a := make(addresses, n)
	for i := range a {
		a[i] = "0.0.0.0:" + strconv.Itoa(r.port+i)
	}
	r.port += n
	return a, nil
}

// Start implements stack.Runtime. Files are written below dir, too, as are
// stdout.log and stderr.log. An image that is not in the engine's store is an
// *AbsentError.
func (r *Runtime) Start(ctx context.Context, s stack.Service, dir string) (stack.Instance, error) {
	p, err := r.begin(ctx, s, dir)
	if err == nil {
		err = stack.AwaitReady(ctx, p, p.knocker())
	}
	if err == nil {
		return p, nil
	}
	if p != nil {
		now, cancel := context.WithCancel(context.Background())
		cancel()
		err = errors.Join(err, p.Stop(now))
	}
	if ctx.Err() == context.Canceled && !errors.Is(err, context.Canceled) {
		err = errors.Join(context.Cause(ctx), err)
	}
	if _, ok := errors.AsType[*stack.ExitError](err); !ok && !strings.HasPrefix(err.Error(), s.Name+": ") {
		err = fmt.Errorf("%s: %w", s.Name, err)
	}
	return nil, err
}

// begin starts the container and leaves nothing when it cannot.
func (r *Runtime) begin(ctx context.Context, s stack.Service, dir string) (*instance, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := stack.WriteFiles(dir, s.Files); err != nil {
		return nil, err
	}
	image := r.own
	if s.Image != "" {
		if image, err = r.engine.present(ctx, s.Image); err != nil {
			return nil, err
		}
	}
	r.choosing.Lock()
	path := r.Path()
	if path != undecided {
		r.choosing.Unlock()
		return r.launch(ctx, s, image, dir, path)
	}
	defer r.choosing.Unlock()
	path, err = wanted(os.Getenv(pathVar), r.engine.info.Local)
	if err != nil {
		return nil, err
	}
	if path == undecided {
		p, err := r.launch(ctx, s, image, dir, direct)
		if err != nil {
			return nil, err
		}
		switch reached, known := p.reached(ctx); {
		case reached:
			r.setPath(direct)
			return p, nil
		case !known:
			return p, nil
		}
		if err := p.Stop(ctx); err != nil {
			return nil, err
		}
		path = mapped
	}
	p, err := r.launch(ctx, s, image, dir, path)
	if err == nil {
		r.setPath(path)
	}
	return p, err
}

// wanted gives the path for the value of pathVar.
func wanted(value string, local bool) (string, error) {
	switch {
	case value == "direct":
		return direct, nil
	case value == "mapped", value == "" && !local:
		return mapped, nil
	case value == "":
		return undecided, nil
	}
	return "", fmt.Errorf("%s=%s: want direct, mapped or nothing", pathVar, value)
}

// launch starts a container and follows it.
func (r *Runtime) launch(ctx context.Context, s stack.Service, image Image, dir, path string) (_ *instance, err error) {
	p := &instance{
		engine: r.engine, service: s, name: r.name(s.Name),
		stdout: filepath.Join(dir, "stdout.log"), stderr: filepath.Join(dir, "stderr.log"),
		done: make(chan struct{}),
	}
	out, err := stack.CreateLog(p.stdout)
	if err != nil {
		return nil, err
	}
	errOut, err := stack.CreateLog(p.stderr)
	if err != nil {
		return nil, errors.Join(err, out.Close())
	}
	p.logs = &logs{out: grown{file: out}, err: grown{file: errOut}}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.logs.close())
		}
	}()
	net, err := r.join(ctx)
	if err != nil {
		return nil, err
	}
	want := box{name: p.name, labels: r.labels(), image: image, network: net, files: s.Files, entrypoint: []string{cmp.Or(s.Binary, ownPath)}, capabilities: s.Capabilities}
	for _, a := range s.Args {
		want.cmd = append(want.cmd, strings.ReplaceAll(a, "{dir}", folder))
	}
	if path == mapped {
		if p.host, err = r.engine.provider.DaemonHost(ctx); err != nil {
			return nil, err
		}
		if p.host == "localhost" {
			p.host = "127.0.0.1" // not ::1, where nothing is published
		}
		want.publish, want.publishOn = s.Ready, publishOn(p.host, r.engine.info.Host)
	}
	if p.container, err = r.engine.run(ctx, want); err != nil {
		if ctx.Err() != nil {
			return nil, err
		}
		return nil, &stack.ExitError{Service: s.Name, Reason: err.Error()}
	}
	p.id = p.container.GetContainerID()
	if err := p.place(ctx, net); err != nil {
		return nil, errors.Join(err, p.remove())
	}
	p.watch()
	return p, nil
}

func (r *Runtime) labels() map[string]string { return r.engine.host.labels(r.run, r.id) }

var unnameable = regexp.MustCompile(`[^a-zA-Z0-9_.-]+`)

// name is the engine's name for a service of this run, or for its network.
func (r *Runtime) name(service string) string {
	parts := []string{"idlerace", r.run, service, r.id}
	if service == "" {
		parts = slices.Delete(parts, 2, 3)
	}
	return unnameable.ReplaceAllString(strings.Join(parts, "-"), "-")
}

// join gives the name of the run's network, which the first call makes.
func (r *Runtime) join(ctx context.Context) (string, error) {
	r.joining.Lock()
	defer r.joining.Unlock()
	if r.network != nil {
		return r.network.Name, nil
	}
	if err := ctx.Err(); err != nil {
		return "", context.Cause(ctx)
	}
	// When its context ends in here testcontainers ends Ryuk, which other runs
	// may share.
	ctx, cancel := detached(ctx)
	defer cancel()
	//lint:ignore SA1019 network.New, which replaces it, takes no name
	made, err := r.engine.provider.CreateNetwork(ctx, testcontainers.NetworkRequest{Driver: "bridge", Name: r.name(""), Labels: r.labels()})
	if err != nil {
		if strings.Contains(err.Error(), "non-overlapping") {
			return "", errors.New("the engine has no address range left for another network: `idlerace clean` or `docker network prune` frees some")
		}
		return "", errors.New(oneLine(err))
	}
	r.network = made.(*testcontainers.DockerNetwork)
	return r.network.Name, nil
}

// Close removes the network, and containers that were not stopped. It does so
// although ctx is over. Closing twice is harmless.
func (r *Runtime) Close(ctx context.Context) error {
	r.joining.Lock()
	defer r.joining.Unlock()
	if r.network == nil {
		return nil
	}
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := r.engine.gone(ctx); err != nil {
		return fmt.Errorf("network %s may be left, `idlerace clean` removes it: %w", r.network.Name, err)
	}
	left, err := r.engine.client.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: make(client.Filters).Add("label", labelID+"="+r.id)})
	if err != nil {
		return errors.New(oneLine(err))
	}
	var errs []error
	for _, c := range left.Items {
		errs = append(errs, r.engine.remove(ctx, c.ID))
	}
	if err := r.network.Remove(ctx); err != nil && !errdefs.IsNotFound(err) {
		return errors.Join(append(errs, err)...)
	}
	r.network = nil
	return errors.Join(errs...)
}

// publishOn gives the address of the engine's host on which to publish ports
// that this program will reach at host; the zero address is every one.
func publishOn(host, engine string) netip.Addr {
	ip, err := netip.ParseAddr(host)
	_, overridden := os.LookupEnv(hostVar)
	switch {
	case err != nil:
		return netip.Addr{}
	case ip.IsLoopback():
		return ip
	case strings.HasPrefix(engine, "unix://") && !overridden:
		// This process is in a container: testcontainers takes its bridge's
		// gateway, an address of the engine's host that is not seen from
		// outside.
		return ip
	}
	return netip.Addr{}
}
