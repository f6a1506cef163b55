package docker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/pkg/stdcopy"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"

	"idlerace/harness/stack"
)

const (
	retryPause  = 100 * time.Millisecond
	killTimeout = 20 * time.Second
	killed      = 128 + int(syscall.SIGKILL)
	// A connection to a published port that nobody serves is accepted by the
	// engine's proxy and ended at once.
	heldFor = 150 * time.Millisecond
)

// instance is a service's container.
type instance struct {
	engine         *Engine
	service        stack.Service
	name           string
	stdout, stderr string
	logs           *logs

	container testcontainers.Container
	id        string
	ip        string            // in the run's network
	host      string            // of published ports, "" when there are none
	published map[string]string // port -> port of host

	unwatch context.CancelFunc
	lives   context.Context // over when done is closed
	done    chan struct{}
	lost    bool  // the engine went away; set, as err is, before done is closed
	err     error // Err

	pausing sync.Mutex
	paused  bool

	term     sync.Once
	removing sync.Mutex
	removed  bool
}

// place learns where a started container is.
func (p *instance) place(ctx context.Context, network string) error {
	// Once: an inspection lists every published port.
	is, err := p.engine.client.ContainerInspect(ctx, p.id, client.ContainerInspectOptions{})
	if err != nil {
		return errors.New(oneLine(err))
	}
	// One that ended at once has no address any more.
	if end := is.Container.NetworkSettings.Networks[network]; end != nil && end.IPAddress.IsValid() {
		p.ip = end.IPAddress.String()
	}
	if p.host != "" {
		p.published = map[string]string{}
		for port, bindings := range is.Container.NetworkSettings.Ports {
			if len(bindings) > 0 {
				p.published[port.Port()] = bindings[0].HostPort
			}
		}
	}
	return nil
}

func (p *instance) Service() stack.Service { return p.service }
func (p *instance) Stdout() string         { return p.stdout }
func (p *instance) Stderr() string         { return p.stderr }
func (p *instance) Done() <-chan struct{}  { return p.done }

// Peer is the container's address.
func (p *instance) Peer(ready string) string {
	_, port, _ := net.SplitHostPort(ready)
	return net.JoinHostPort(p.ip, port)
}

func (p *instance) Address(ready string) string {
	if p.host == "" {
		return p.Peer(ready)
	}
	_, port, _ := net.SplitHostPort(ready)
	return net.JoinHostPort(p.host, p.published[port])
}

func (p *instance) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// watch follows the container until it has ended.
func (p *instance) watch() {
	var watching context.Context
	watching, p.unwatch = context.WithCancel(context.Background())
	var died context.CancelFunc
	p.lives, died = context.WithCancel(context.Background())
	go func() {
		p.follow(watching)
		close(p.done)
		died()
	}()
}

func (p *instance) follow(ctx context.Context) {
	following, unfollow := context.WithCancel(ctx)
	var follower sync.WaitGroup
	follower.Go(func() {
		for following.Err() == nil {
			p.logs.copy(following, p.engine, p.id, true)
			select {
			case <-following.Done():
			case <-time.After(retryPause):
			}
		}
	})
	reason := p.ended(ctx)
	// The engine says so after the last line is in its log. The follower may not
	// be that far; the rest is read from there, without following.
	unfollow()
	follower.Wait()
	if !p.lost {
		reading, cancel := context.WithTimeout(ctx, 2*callTimeout)
		if err := p.logs.copy(reading, p.engine, p.id, false); err != nil && !errdefs.IsNotFound(err) {
			reason += "; its log is not complete: " + oneLine(err)
		}
		cancel()
	}
	p.logs.close()
	p.err = &stack.ExitError{Service: p.service.Name, Reason: reason, Tail: stack.Tail(p)}
}

// ended returns when the container has, and says how.
func (p *instance) ended(ctx context.Context) string {
	for {
		wait := p.engine.client.ContainerWait(ctx, p.id, client.ContainerWaitOptions{Condition: container.WaitConditionNotRunning})
		code := -1
		var err error
		select {
		case r := <-wait.Result:
			code = int(r.StatusCode)
		case err = <-wait.Error:
		}
		limited, cancel := context.WithTimeout(ctx, callTimeout)
		is, lookErr := p.engine.client.ContainerInspect(limited, p.id, client.ContainerInspectOptions{})
		cancel()
		switch {
		case lookErr == nil && !is.Container.State.Running:
			return exitReason(is.Container.State.ExitCode, is.Container.State.OOMKilled)
		case errdefs.IsNotFound(lookErr) && err == nil:
			return exitReason(code, false)
		case errdefs.IsNotFound(lookErr):
			return "its container was removed"
		case ctx.Err() != nil:
			return "the engine does not end it"
		case lookErr != nil:
			if gone := p.engine.gone(ctx); gone != nil {
				p.lost = true
				return gone.Error()
			}
		}
		// It runs: only the question was cut off.
		select {
		case <-ctx.Done():
		case <-time.After(retryPause):
		}
	}
}

func exitReason(code int, outOfMemory bool) string {
	switch {
	case outOfMemory:
		return fmt.Sprintf("out of memory: it may use %d MiB", memoryLimit>>20)
	case code == killed:
		return fmt.Sprintf("killed (%d)", code)
	}
	return fmt.Sprintf("exit status %d", code)
}

// Pause implements stack.Instance.
func (p *instance) Pause(ctx context.Context) error {
	p.pausing.Lock()
	defer p.pausing.Unlock()
	if _, err := p.engine.client.ContainerPause(ctx, p.id, client.ContainerPauseOptions{}); err != nil {
		// A call cut short may have been heard.
		p.paused = p.paused || ctx.Err() != nil
		return p.unlessEnded(err)
	}
	p.paused = true
	return nil
}

// Resume implements stack.Instance.
func (p *instance) Resume(ctx context.Context) error {
	p.pausing.Lock()
	defer p.pausing.Unlock()
	if !p.paused {
		return nil
	}
	p.paused = false
	_, err := p.engine.client.ContainerUnpause(ctx, p.id, client.ContainerUnpauseOptions{})
	return p.unlessEnded(err)
}

func (p *instance) unlessEnded(err error) error {
	if err == nil || p.lives.Err() != nil {
		return nil
	}
	return fmt.Errorf("container %s: %s", p.name, oneLine(err))
}

// Stop implements stack.Instance, and removes the container.
func (p *instance) Stop(ctx context.Context) error {
	resuming, cancelResume := context.WithTimeout(context.WithoutCancel(ctx), callTimeout)
	p.Resume(resuming) // a paused container hears no signal; what fails here fails below
	cancelResume()
	if ctx.Err() == nil {
		p.term.Do(func() { p.kill(ctx, "SIGTERM") })
	}
	answers := true
	select {
	case <-p.done:
	case <-ctx.Done():
		forced, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		p.kill(forced, "SIGKILL")
		select {
		case <-p.done:
		case <-forced.Done():
			answers = false
		}
		cancel()
	}
	p.unwatch()
	<-p.done
	if p.lost || !answers {
		if err := p.engine.gone(context.WithoutCancel(ctx)); err != nil {
			return fmt.Errorf("container %s may be left, `idlerace clean` removes it: %w", p.name, err)
		}
	}
	return p.remove()
}

// kill may fail: the container may have ended. Whether it has, watch tells.
func (p *instance) kill(ctx context.Context, signal string) {
	p.engine.client.ContainerKill(ctx, p.id, client.ContainerKillOptions{Signal: signal})
}

// remove is done once it has succeeded.
func (p *instance) remove() error {
	p.removing.Lock()
	defer p.removing.Unlock()
	if p.removed {
		return nil
	}
	if err := p.engine.discard(context.Background(), p.container); err != nil {
		return fmt.Errorf("container %s: %s", p.name, oneLine(err))
	}
	p.removed = true
	return nil
}

// errNowhere is for a container that ended before it could be asked for its
// address. To connect to none is to connect to this machine.
var errNowhere = errors.New("its container has no address")

// reached says whether the container's own address can be reached from here,
// and whether that is known: one that has ended tells nothing.
func (p *instance) reached(ctx context.Context) (yes, known bool) {
	if len(p.service.Ready) == 0 || p.ip == "" {
		return false, false
	}
	limited, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	err := p.whileAlive(limited, func(ctx context.Context) error {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.Peer(p.service.Ready[0]))
		if err == nil {
			conn.Close()
		}
		return err
	})
	if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
		return true, true
	}
	if ctx.Err() != nil || p.lives.Err() != nil {
		return false, false
	}
	// Its log may still be read.
	is, err := p.engine.client.ContainerInspect(ctx, p.id, client.ContainerInspectOptions{})
	return false, err == nil && is.Container.State.Running
}

// whileAlive calls f with a context that ends when the container does: nobody
// refuses a connection to an address that is gone.
func (p *instance) whileAlive(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(p.lives, cancel)()
	return f(ctx)
}

// knocker gives the test for stack.AwaitReady.
func (p *instance) knocker() func(ctx context.Context, addr, path string) error {
	knock := stack.Knock
	switch {
	case p.ip == "":
		knock = func(context.Context, string, string) error { return errNowhere }
	case p.host != "" && p.service.ReadyPath == "":
		knock = p.holdAll()
	}
	return func(ctx context.Context, addr, path string) error {
		return p.whileAlive(ctx, func(ctx context.Context) error { return knock(ctx, addr, path) })
	}
}

// holdAll gives a knock at published ports. As it takes its time it tries all
// addresses at once, whichever is asked for.
func (p *instance) holdAll() func(ctx context.Context, addr, path string) error {
	waiting := p.service.Ready
	return func(ctx context.Context, _, _ string) error {
		errs := make([]error, len(waiting))
		var all sync.WaitGroup
		for i, ready := range waiting {
			all.Go(func() { errs[i] = held(ctx, p.Address(ready)) })
		}
		all.Wait()
		var still []string
		for i, err := range errs {
			if err != nil {
				still = append(still, waiting[i])
			}
		}
		waiting = still
		return cmp.Or(errs...)
	}
}

// held connects to a published port and wants the connection to last.
func held(ctx context.Context, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetReadDeadline(time.Now().Add(heldFor))
	_, err = conn.Read(make([]byte, 1))
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return fmt.Errorf("%s: nobody listens behind the published port: %w", addr, err)
}

// logs copies what a container prints into two files. It reads the engine's
// log, not an attached terminal: there a slow reader would stop the service,
// and a stream that is cut off could not be resumed. Nor does it use
// testcontainers' LogConsumer, which resumes by the time of day and loses or
// repeats lines.
type logs struct{ out, err grown }

// grown is a file and how much of its stream is in it.
type grown struct {
	file *os.File
	n    int64
}

// copy copies what is not yet copied. A log always begins with the container's
// first byte, so counting tells where to resume.
func (l *logs) copy(ctx context.Context, e *Engine, id string, follow bool) error {
	stream, err := e.client.ContainerLogs(ctx, id, client.ContainerLogsOptions{ShowStdout: true, ShowStderr: true, Follow: follow})
	if err != nil {
		return err
	}
	defer stream.Close()
	out, errOut := &resumed{to: &l.out, skip: l.out.n}, &resumed{to: &l.err, skip: l.err.n}
	_, err = stdcopy.StdCopy(out, errOut, stream)
	if err == nil && out.skip+errOut.skip > 0 {
		return errors.New("the engine's log has begun anew after " + logLimit)
	}
	return err
}

func (l *logs) close() error { return errors.Join(l.out.file.Close(), l.err.file.Close()) }

// resumed drops the first skip bytes.
type resumed struct {
	to   *grown
	skip int64
}

var _ io.Writer = (*resumed)(nil)

func (r *resumed) Write(b []byte) (int, error) {
	dropped := int(min(r.skip, int64(len(b))))
	r.skip -= int64(dropped)
	n, err := r.to.file.Write(b[dropped:])
	r.to.n += int64(n)
	return dropped + n, err
}
