// Package local runs services as child processes of this one. It must not
// import proxy, load, judge or report.
package local

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"idlerace/harness/stack"
)

// Defaults of a Runtime.
const (
	// A killed process takes a moment to be gone, one in an uninterruptible
	// sleep may take long.
	groupGrace = time.Second
	groupPoll  = time.Millisecond
)

// Runtime starts child processes: each in a process group of its own, with a
// parent-death signal where the system has one, so that not even a killed
// harness leaves one behind. It owns an OS thread; Close frees it.
type Runtime struct {
	self  string
	forks chan func()
	close sync.Once
}

// New returns a runtime whose embedded services execute self, this program's
// own path.
func New(self string) *Runtime {
	r := &Runtime{self: self, forks: make(chan func())}
	go func() {
		// Linux sends the parent-death signal when the THREAD that forked ends,
		// so all forks come from one thread that lives as long as the runtime.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		for f := range r.forks {
			f()
		}
	}()
	return r
}

// Name is "local".
func (r *Runtime) Name() string { return "local" }

// Close ends the runtime; call it after the last Stop. Children that still run
// are ended by their parent-death signal at the latest when this process ends.
func (r *Runtime) Close() { r.close.Do(func() { close(r.forks) }) }

// Start implements stack.Runtime. Files are written below dir, as are
// stdout.log and stderr.log.
func (r *Runtime) Start(ctx context.Context, s stack.Service, dir string) (stack.Instance, error) {
	if len(s.Capabilities) > 0 {
		return nil, fmt.Errorf("%s: %s is for containers only: a process would have it over this machine's own network", s.Name, strings.Join(s.Capabilities, ", "))
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	if err := stack.WriteFiles(dir, s.Files); err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	binary := s.Binary
	if binary == "" {
		binary = r.self
	}
	binary, err = exec.LookPath(binary)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	// The process works in dir; a relative path means one from here.
	binary, err = filepath.Abs(binary)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	if err := notTaken(s); err != nil {
		return nil, err
	}
	args := make([]string, len(s.Args))
	for i, a := range s.Args {
		args[i] = strings.ReplaceAll(a, "{dir}", dir)
	}
	p := &process{service: s, stdout: filepath.Join(dir, "stdout.log"), stderr: filepath.Join(dir, "stderr.log"), done: make(chan struct{})}
	p.cmd = exec.Command(binary, args...)
	p.cmd.Dir = dir
	p.cmd.SysProcAttr = childAttr()
	// Files, not pipes: a child must never wait for this process to read.
	out, err := stack.CreateLog(p.stdout)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	defer out.Close()
	errOut, err := stack.CreateLog(p.stderr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	defer errOut.Close()
	p.cmd.Stdout, p.cmd.Stderr = out, errOut

	started := make(chan error)
	r.forks <- func() { started <- p.cmd.Start() }
	if err := <-started; err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	go p.wait()
	if err := stack.AwaitReady(ctx, p, stack.Knock); err != nil {
		stopNow, cancel := context.WithCancel(context.Background())
		cancel()
		return nil, errors.Join(err, p.Stop(stopNow))
	}
	return p, nil
}

// notTaken fails when somebody listens on an address of s already: whoever
// answers there would pass for s, which is about to die of it.
func notTaken(s stack.Service) error {
	for _, addr := range s.Ready {
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EADDRINUSE) {
			return &stack.ExitError{Service: s.Name, Reason: err.Error()}
		}
		if err == nil {
			l.Close()
		}
	}
	return nil
}

type process struct {
	service        stack.Service
	cmd            *exec.Cmd
	stdout, stderr string
	done           chan struct{}

	mu       sync.Mutex
	err      error // set before done is closed
	stopping bool
}

func (p *process) Service() stack.Service { return p.service }

// Address and Peer: all services share this machine's network.
func (p *process) Address(ready string) string { return ready }
func (p *process) Peer(ready string) string    { return ready }

func (p *process) Stdout() string        { return p.stdout }
func (p *process) Stderr() string        { return p.stderr }
func (p *process) Done() <-chan struct{} { return p.done }

func (p *process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *process) wait() {
	err := p.cmd.Wait()
	reason := "exit status 0"
	if err != nil {
		reason = err.Error()
	}
	// What it started shares its process group; nothing of it may stay.
	killGroup(p.cmd.Process.Pid)
	for end := time.Now().Add(groupGrace); !groupGone(p.cmd.Process.Pid) && time.Now().Before(end); {
		time.Sleep(groupPoll)
	}
	p.mu.Lock()
	p.err = &stack.ExitError{Service: p.service.Name, Reason: reason, Tail: stack.Tail(p)}
	p.mu.Unlock()
	close(p.done)
}

// Pause implements stack.Instance.
func (p *process) Pause(context.Context) error { return p.signal(stopGroup) }

// Resume implements stack.Instance.
func (p *process) Resume(context.Context) error { return p.signal(continueGroup) }

// signal calls f unless the process has ended.
func (p *process) signal(f func(pid int) error) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := f(p.cmd.Process.Pid); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("%s: %w", p.service.Name, err)
	}
	return nil
}

func (p *process) Stop(ctx context.Context) error {
	p.mu.Lock()
	first := !p.stopping
	p.stopping = true
	p.mu.Unlock()
	if first {
		select {
		case <-p.done:
			return nil
		default:
		}
		terminate(p.cmd.Process.Pid)
		continueGroup(p.cmd.Process.Pid) // a paused one would not hear it
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		killGroup(p.cmd.Process.Pid)
		<-p.done
	}
	return nil
}
