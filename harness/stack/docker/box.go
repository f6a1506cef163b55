package docker

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
)

// box is what there is to say about a container before it exists.
type box struct {
	name            string
	labels          map[string]string
	image           Image
	entrypoint, cmd []string
	network         string
	files           map[string]string
	publish         []string // host:port as the service listens
	publishOn       netip.Addr
	capabilities    []string
}

// run starts a container and leaves nothing when it cannot.
func (e *Engine) run(ctx context.Context, b box) (testcontainers.Container, error) {
	for {
		limited := e.nofile.Load()
		c, err := e.create(ctx, b)
		if err != nil {
			return nil, err
		}
		if err = e.fill(ctx, c.GetContainerID(), b.files); err == nil {
			if err = c.Start(ctx); err == nil {
				return c, nil
			}
		}
		if left := e.discard(ctx, c); left != nil {
			return nil, errors.New(oneLine(errors.Join(err, left)))
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		// An engine whose own limit is lower may not be able to set this one.
		if !strings.Contains(err.Error(), "rlimit") || !limited {
			return nil, errors.New(notStarted(err))
		}
		e.nofile.Store(false)
	}
}

// create makes a container, not started, and leaves nothing when it cannot.
func (e *Engine) create(ctx context.Context, b box) (testcontainers.Container, error) {
	if err := ctx.Err(); err != nil {
		return nil, context.Cause(ctx)
	}
	// When its context ends in here testcontainers ends Ryuk, which other runs
	// may share, and the engine may create what nobody waits for. It is over
	// soon.
	ctx, cancel := detached(ctx)
	defer cancel()
	exposed, bound := network.PortSet{}, network.PortMap{}
	for _, addr := range b.publish {
		_, number, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		port, err := network.ParsePort(number + "/tcp")
		if err != nil {
			return nil, err
		}
		exposed[port] = struct{}{}
		bound[port] = []network.PortBinding{{HostIP: b.publishOn, HostPort: ""}}
	}
	var config *container.Config
	var host *container.HostConfig
	image := b.image.ID
	if e.substitute(b.image.Ref) != b.image.Ref {
		image = b.image.Ref // testcontainers will substitute this, but not know an id
	}
	c, err := e.provider.CreateContainer(ctx, testcontainers.ContainerRequest{
		Image: image, Name: b.name, Labels: b.labels, Entrypoint: b.entrypoint, Cmd: b.cmd,
		ConfigModifier: func(c *container.Config) {
			config = c
			c.Image = b.image.ID // not what its name may mean by now
			c.WorkingDir = folder
			c.User = "0" // the folder is root's; an image's own user could write nothing there
			// An image's health check may send requests of its own.
			c.Healthcheck = &container.HealthConfig{Test: []string{"NONE"}}
		},
		HostConfigModifier: func(h *container.HostConfig) {
			host = h
			h.NetworkMode = container.NetworkMode(b.network)
			h.CapAdd = b.capabilities
			pids := int64(pidsLimit)
			h.Resources = container.Resources{Memory: memoryLimit, MemorySwap: memoryLimit, PidsLimit: &pids}
			if e.nofile.Load() {
				h.Ulimits = []*units.Ulimit{{Name: "nofile", Soft: nofileLimit, Hard: nofileLimit}}
			}
			h.LogConfig = container.LogConfig{Type: "json-file", Config: map[string]string{"max-size": logLimit, "max-file": "1"}}
		},
		// Where testcontainers finds no default bridge it adds a network.
		EndpointSettingsModifier: func(m map[string]*network.EndpointSettings) { clear(m) },
		// Without ports of ours testcontainers publishes what the image exposes,
		// on every address of the host.
		LifecycleHooks: []testcontainers.ContainerLifecycleHooks{{PreCreates: []testcontainers.ContainerRequestHook{
			func(context.Context, testcontainers.ContainerRequest) error {
				config.ExposedPorts, host.PortBindings = exposed, bound
				return nil
			},
		}}},
	})
	if err != nil {
		return nil, errors.New(oneLine(errors.Join(err, e.remove(ctx, b.name))))
	}
	return c, nil
}

// fill copies files into a service's folder, in one go.
func (e *Engine) fill(ctx context.Context, id string, files map[string]string) error {
	var b bytes.Buffer
	t := tar.NewWriter(&b)
	dirs := map[string]bool{}
	now := time.Now()
	var dir func(name string) error
	dir = func(name string) error {
		if name == "." || dirs[name] {
			return nil
		}
		dirs[name] = true
		if err := dir(path.Dir(name)); err != nil {
			return err
		}
		return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: 0o755, ModTime: now})
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		full := path.Join(folder[1:], name)
		if err := dir(path.Dir(full)); err != nil {
			return err
		}
		if err := t.WriteHeader(&tar.Header{Name: full, Mode: 0o644, Size: int64(len(files[name])), ModTime: now}); err != nil {
			return err
		}
		if _, err := io.WriteString(t, files[name]); err != nil {
			return err
		}
	}
	if err := errors.Join(dir(folder[1:]), t.Close()); err != nil {
		return err
	}
	_, err := e.client.CopyToContainer(ctx, id, client.CopyToContainerOptions{DestinationPath: "/", Content: &b})
	return err
}

var execFailed = regexp.MustCompile(`exec: .*`)

// notStarted is one line that says why a container did not start.
func notStarted(err error) string {
	s := oneLine(err)
	if exec := execFailed.FindString(s); exec != "" {
		return "does not start: " + strings.TrimSuffix(exec, ": unknown")
	}
	return "does not start: " + s
}

// outputTimeout is for a program that prints its version.
const outputTimeout = 15 * time.Second

// Output runs a program of an image in a container of its own, without a
// network, and gives what it printed. The error is one line.
func (e *Engine) Output(ctx context.Context, image Image, binary string, args ...string) ([]byte, error) {
	printed, err := e.output(ctx, image, binary, args)
	if err != nil {
		return printed, fmt.Errorf("%s: %s: %w", cmp.Or(image.Ref, image.ID), binary, err)
	}
	return printed, nil
}

func (e *Engine) output(ctx context.Context, image Image, binary string, args []string) (_ []byte, err error) {
	r := e.Runtime("output", image)
	limited, cancel := context.WithTimeoutCause(ctx, outputTimeout, fmt.Errorf("not over after %s", outputTimeout))
	defer cancel()
	c, err := e.run(limited, box{name: r.name(""), labels: r.labels(), image: image, entrypoint: []string{binary}, cmd: args, network: "none"})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, e.discard(ctx, c)) }()
	code, err := int64(0), error(nil)
	wait := e.client.ContainerWait(limited, c.GetContainerID(), client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
	select {
	case ended := <-wait.Result:
		if code = ended.StatusCode; code != 0 {
			err = fmt.Errorf("exit status %d", code)
		}
	case err = <-wait.Error:
		if limited.Err() != nil {
			err = context.Cause(limited)
		}
	}
	reading, cancel := detached(ctx)
	defer cancel()
	var printed bytes.Buffer
	if stream, logErr := e.client.ContainerLogs(reading, c.GetContainerID(), client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true}); logErr == nil {
		defer stream.Close()
		_, logErr = stdcopy.StdCopy(&printed, &printed, stream)
		err = errors.Join(err, logErr)
	}
	if err != nil {
		said := strings.Fields(printed.String())
		tail := strings.Join(said, " ")
		if len(tail) > 200 {
			tail = "..." + tail[len(tail)-200:]
		}
		if tail != "" {
			tail = ": " + tail
		}
		return printed.Bytes(), fmt.Errorf("%s%s", oneLine(err), strings.ToValidUTF8(tail, "?"))
	}
	return printed.Bytes(), nil
}

// discard removes a container, although ctx may be over, and ends its
// connection to Ryuk.
func (e *Engine) discard(ctx context.Context, c testcontainers.Container) error {
	ctx, cancel := detached(ctx)
	defer cancel()
	if err := e.remove(ctx, c.GetContainerID()); err != nil {
		return err
	}
	// Only this ends the connection; that there is nothing left to remove is
	// what it would complain about.
	c.Terminate(ctx, testcontainers.StopTimeout(0))
	return nil
}
