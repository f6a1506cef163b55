// Package docker runs services as containers through testcontainers-go. It
// must not import proxy, load, judge or report.
package docker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// Limits of a conversation with an engine.
const (
	connectTimeout = 5 * time.Second
	callTimeout    = time.Minute // a call that moves no data; to close 130 published ports takes 8 s
	pingTimeout    = 2 * time.Second
)

// hostVar is testcontainers' setting for where published ports are.
const hostVar = "TESTCONTAINERS_HOST_OVERRIDE"

// Engine is a container engine that answers.
type Engine struct {
	client   *client.Client
	provider *testcontainers.DockerProvider
	info     Info
	host     identity
	prefix   string        // of images without a registry
	nofile   atomic.Bool   // the limit can be set
	silence  time.Duration // pullSilence
}

// Info describes an engine, for a run's manifest.
type Info struct {
	Name    string // "Docker" or "Podman", as far as known
	Version string // "20.10.24+dfsg1"
	Host    string // "unix:///var/run/docker.sock"
	OS      string // "Debian GNU/Linux 12 (bookworm)"
	Arch    string // as in GOARCH
	// Local says that the addresses of containers look reachable from here.
	Local bool
	// Reaper says that Ryuk is on: it removes what a killed run leaves.
	Reaper bool
}

// Info says what Connect has found.
func (e *Engine) Info() Info { return e.info }

// Close frees connections. Containers stay as they are.
func (e *Engine) Close() error { return errors.Join(e.provider.Close(), e.client.Close()) }

// quiet is done once: the logger is testcontainers' global.
var quiet = sync.OnceFunc(func() { tclog.SetDefault(tclog.NewNoopLogger()) })

// Connect finds the engine that testcontainers would use: tc.host and
// docker.host of ~/.testcontainers.properties, DOCKER_HOST, the usual sockets.
// The error is one line. testcontainers looks once per process: a second
// Connect finds the same engine, or repeats the first error.
func Connect(ctx context.Context) (*Engine, error) {
	quiet()
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	type result struct {
		engine *Engine
		err    error
	}
	// testcontainers makes some of these calls without our context.
	found := make(chan result, 1)
	go func() {
		e, err := connect(ctx)
		found <- result{e, err}
	}()
	var err error
	select {
	case r := <-found:
		if r.err == nil {
			return r.engine, nil
		}
		err = r.err
	case <-ctx.Done():
		err = ctx.Err()
	}
	where := "at the usual sockets"
	if h := os.Getenv("DOCKER_HOST"); h != "" {
		where = "at DOCKER_HOST=" + h
	}
	why := oneLine(err)
	if errors.Is(err, context.DeadlineExceeded) {
		why = fmt.Sprintf("no answer within %s", connectTimeout)
	}
	return nil, fmt.Errorf("no container engine %s: %s", where, why)
}

func connect(ctx context.Context) (_ *Engine, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("testcontainers panics: %v", p)
		}
	}()
	// The first one reads the settings and finds the host, under ctx.
	c, err := testcontainers.NewDockerClientWithOpts(ctx)
	if err != nil {
		return nil, err
	}
	if asked := os.Getenv("DOCKER_HOST"); asked != "" && asked != c.DaemonHost() && testcontainers.ReadConfig().Config.TestcontainersHost != c.DaemonHost() {
		return nil, fmt.Errorf("%w (testcontainers would use %s instead)", unanswered(ctx, asked), c.DaemonHost())
	}
	// testcontainers remembers Info for ever; only this asks.
	if _, err := c.Ping(ctx, client.PingOptions{NegotiateAPIVersion: true}); err != nil {
		return nil, err
	}
	version, err := c.Client.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return nil, err
	}
	system, err := c.Client.Info(ctx, client.InfoOptions{})
	if err != nil {
		return nil, err
	}
	host, err := thisProcess()
	if err != nil {
		return nil, err
	}
	kind := testcontainers.ProviderDefault
	i := Info{Name: "Docker", Version: version.Version, Host: c.DaemonHost(), OS: system.Info.OperatingSystem, Arch: version.Arch}
	for _, part := range version.Components {
		if strings.Contains(part.Name, "Podman") {
			i.Name, i.Version = "Podman", part.Version
			kind = testcontainers.ProviderPodman // its bridge has another name
		}
	}
	p, err := kind.GetProvider(testcontainers.WithLogger(tclog.NewNoopLogger()))
	if err != nil {
		return nil, err
	}
	provider, ok := p.(*testcontainers.DockerProvider)
	if !ok {
		return nil, fmt.Errorf("testcontainers gives a %T", p)
	}
	i.Reaper = !provider.Config().Config.RyukDisabled
	// Elsewhere the bridge is in a virtual machine or in another network
	// namespace.
	i.Local = runtime.GOOS == "linux" && strings.HasPrefix(i.Host, "unix://") && version.Os == "linux" &&
		i.OS != "Docker Desktop" &&
		!slices.ContainsFunc(system.Info.SecurityOptions, func(o string) bool { return strings.Contains(o, "rootless") })
	e := &Engine{client: c.Client, provider: provider, info: i, host: host, prefix: provider.Config().Config.HubImageNamePrefix, silence: pullSilence}
	if strings.HasPrefix(i.Host, "unix://") && os.Getenv(hostVar) == "" && e.sharesNetwork(ctx) {
		// Where /.dockerenv exists testcontainers looks for published ports at a
		// gateway, although the engine may be in this very container. It takes
		// advice from nowhere else.
		os.Setenv(hostVar, "127.0.0.1")
	}
	e.nofile.Store(true)
	return e, nil
}

// unanswered says why there is no engine at host.
func unanswered(ctx context.Context, host string) error {
	c, err := client.New(client.WithHost(host))
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = c.Ping(ctx, client.PingOptions{}); err == nil {
		err = errors.New("it answers only now")
	}
	return err
}

// sharesNetwork reports whether the engine's bridge is an interface here.
func (e *Engine) sharesNetwork(ctx context.Context) bool {
	bridge, err := e.client.NetworkInspect(ctx, "bridge", client.NetworkInspectOptions{})
	if err != nil {
		return false
	}
	here, err := net.InterfaceByName(bridge.Network.Options["com.docker.network.bridge.name"])
	if err != nil {
		return false
	}
	addrs, _ := here.Addrs()
	for _, a := range addrs {
		prefix, err := netip.ParsePrefix(a.String())
		for _, c := range bridge.Network.IPAM.Config {
			if err == nil && c.Subnet.Contains(prefix.Addr()) {
				return true
			}
		}
	}
	return false
}

// gone says why the engine cannot be spoken to, nil when it can.
func (e *Engine) gone(ctx context.Context) error {
	var err error
	for range 3 {
		limited, cancel := context.WithTimeout(ctx, pingTimeout)
		_, err = e.client.Ping(limited, client.PingOptions{})
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	return fmt.Errorf("the engine at %s went away: %s", e.info.Host, oneLine(err))
}

// remove removes a container by its id or name, running or not, and returns
// when it is gone. None there is fine.
func (e *Engine) remove(ctx context.Context, id string) error {
	for {
		_, err := e.client.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		switch {
		case err == nil, errdefs.IsNotFound(err):
			return nil
		case !errdefs.IsConflict(err):
			return err
		}
		// Somebody else is removing it.
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// detached gives a context for what must be done although ctx may be over.
func detached(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
}

// oneLine is err without line breaks and without what says nothing.
func oneLine(err error) string {
	s := strings.ReplaceAll(err.Error(), "Error response from daemon: ", "")
	var lines []string
	for l := range strings.Lines(s) {
		if l = strings.TrimSpace(l); l != "" && !slices.Contains(lines, l) {
			lines = append(lines, l)
		}
	}
	s = strings.Join(lines, "; ")
	const long = 400
	if r := []rune(s); len(r) > long {
		s = string(r[:long]) + "..."
	}
	return s
}
