package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"

	"idlerace/harness/stack"
)

// What a child is told: where the program of testdata/service is, and the name
// of its run.
const (
	binaryVar = "IDLERACE_DOCKER_CHILD_BINARY"
	runVar    = "IDLERACE_DOCKER_CHILD_RUN"
)

// child plays another process: testcontainers reads its settings once in each.
func child(role string) int {
	err := func() error {
		ctx := context.Background()
		e, err := Connect(ctx)
		if err != nil {
			return err
		}
		defer e.Close()
		if role == "connect" {
			fmt.Printf("%+v\n", e.Info())
			return nil
		}
		image, err := e.pack(ctx, os.Getenv(binaryVar), quietly)
		if err != nil {
			return err
		}
		r := e.Runtime(os.Getenv(runVar), image)
		a, err := r.Reserve(1)
		if err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "idlerace-docker")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		inst, err := r.Start(ctx, stack.Service{Name: "server", Args: append([]string{"server"}, a.List()...), Ready: a.List()}, dir)
		if err != nil {
			return err
		}
		if role == "leave" { // in mid-pause
			if err := inst.Pause(ctx); err != nil {
				return err
			}
		}
		fmt.Println("started")
		if role == "leave" {
			os.RemoveAll(dir)
			io.Copy(io.Discard, os.Stdin) // to be killed in here
		}
		return errors.Join(inst.Stop(ctx), r.Close(ctx))
	}()
	if err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func childCommand(t *testing.T, role string, env ...string) *exec.Cmd {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), self)
	cmd.Env = append(append(os.Environ(), childVar+"="+role, binaryVar+"="+shared.binary, "GORACE=atexit_sleep_ms=0"), env...)
	cmd.Stderr = os.Stderr
	return cmd
}

func playChild(t *testing.T, role string, env ...string) (string, error) {
	t.Helper()
	out, err := childCommand(t, role, env...).Output()
	return string(out), err
}

// relay carries connections to an engine's socket until it is cut. It stands
// for an engine on another machine.
type relay struct {
	listener net.Listener
	to       string

	mu    sync.Mutex
	ended bool
	conns map[net.Conn]bool
	all   sync.WaitGroup
}

func newRelay(t *testing.T, e *Engine) *relay {
	t.Helper()
	path, unix := strings.CutPrefix(e.info.Host, "unix://")
	if !unix {
		// What is cut off must be a way of this test's own to an engine that stays.
		t.Skip("docker: the engine has no socket here")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{listener: l, to: path, conns: map[net.Conn]bool{}}
	r.all.Go(r.serve)
	t.Cleanup(r.cut)
	return r
}

func (r *relay) serve() {
	for {
		c, err := r.listener.Accept()
		if err != nil {
			return
		}
		r.mu.Lock()
		r.conns[c] = true
		if r.ended {
			c.Close()
		}
		r.mu.Unlock()
		r.all.Go(func() {
			defer c.Close()
			up, err := net.Dial("unix", r.to)
			if err != nil {
				return
			}
			defer up.Close()
			r.all.Go(func() { io.Copy(up, c); up.Close() })
			io.Copy(c, up)
			r.mu.Lock()
			delete(r.conns, c)
			r.mu.Unlock()
		})
	}
}

// hiccup ends all connections; new ones are welcome.
func (r *relay) hiccup() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for c := range r.conns {
		c.Close()
	}
}

// cut is the end of the engine, seen from here.
func (r *relay) cut() {
	r.mu.Lock()
	r.ended = true
	r.mu.Unlock()
	r.listener.Close()
	r.hiccup()
	r.all.Wait()
}

// through gives the engine as it is seen through a relay.
func through(t *testing.T, e *Engine, r *relay) *Engine {
	t.Helper()
	host := "tcp://" + r.listener.Addr().String()
	c, err := client.New(client.WithHost(host))
	if err != nil {
		t.Fatal(err)
	}
	p, err := testcontainers.ProviderDefault.GetProvider(testcontainers.WithLogger(tclog.NewNoopLogger()))
	if err != nil {
		t.Fatal(err)
	}
	provider := p.(*testcontainers.DockerProvider)
	provider.SetClient(c)
	far := &Engine{client: c, provider: provider, info: e.info, host: e.host}
	far.info.Host, far.info.Local = host, false
	t.Cleanup(func() { far.Close() })
	return far
}

func TestRemoteEngine(t *testing.T) {
	e := engine(t)
	r := newRuntime(t, through(t, e, newRelay(t, e)))
	s := server(t, r, "server", 2)
	p := start(t, r, s)
	if r.Path() != mapped {
		t.Errorf("path %q", r.Path())
	}
	for _, a := range s.Ready {
		if !strings.HasPrefix(p.Address(a), "127.0.0.1:") {
			t.Error(p.Address(a))
		}
		greeted(t, p.Address(a))
	}
	stop(t, p, patience)
}

// A cut connection is not the end of a container, and loses no line.
func TestHiccup(t *testing.T) {
	e := engine(t)
	line := newRelay(t, e)
	r := newRuntime(t, through(t, e, line))
	a := reserve(t, r, 1)
	p := start(t, r, stack.Service{Name: "clock", Args: append([]string{"clock"}, a...), Ready: a})
	for range 5 {
		size := len(read(t, p.Stdout()))
		line.hiccup()
		eventually(t, "more lines", func() bool { return len(read(t, p.Stdout())) > size+100 })
	}
	select {
	case <-p.Done():
		t.Fatalf("Done: %v", p.Err())
	default:
	}
	// What the engine has is what we have.
	if _, err := e.client.ContainerKill(t.Context(), p.id, client.ContainerKillOptions{Signal: "SIGTERM"}); err != nil {
		t.Fatal(err)
	}
	done(t, p)
	out, err := exec.CommandContext(t.Context(), "docker", "logs", p.id).Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Log("no docker command to compare with")
	} else if err != nil {
		t.Error(err)
	} else if !bytes.Equal(out, []byte(read(t, p.Stdout()))) {
		t.Errorf("the engine has %d bytes, we have %d, or others", len(out), len(read(t, p.Stdout())))
	}
	stop(t, p, 0)
}

func TestEngineGoesAway(t *testing.T) {
	e := engine(t)
	line := newRelay(t, e)
	far := through(t, e, line)
	r := far.Runtime(t.Name(), shared.image)
	a := reserve(t, r, 1)
	inst, err := r.Start(t.Context(), stack.Service{Name: "server", Args: append([]string{"server"}, a...), Ready: a}, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	p := inst.(*instance)
	eventually(t, "its first line", func() bool { return read(t, p.Stdout()) == "listening\n" })
	line.cut()
	exit := done(t, p)
	if !strings.HasPrefix(exit.Reason, "the engine at "+far.info.Host+" went away: ") || strings.Contains(exit.Reason, "\n") {
		t.Errorf("reason %q", exit.Reason)
	}
	if diff := cmp.Diff([]string{"listening"}, exit.Tail); diff != "" {
		t.Error(diff)
	}
	for _, err := range []error{p.Stop(t.Context()), p.Stop(t.Context()), r.Close(t.Context())} {
		if err == nil || !strings.Contains(err.Error(), "may be left, `idlerace clean` removes it: the engine at ") {
			t.Errorf("%v", err)
		}
	}
	_, err = r.Start(t.Context(), stack.Service{Name: "other", Ready: a}, t.TempDir())
	if err == nil || strings.Contains(err.Error(), "\n") {
		t.Errorf("%v", err)
	}
	// The engine has not heard of it.
	for _, err := range []error{e.remove(t.Context(), p.id), func() error {
		_, err := e.client.NetworkRemove(t.Context(), r.network.ID, client.NetworkRemoveOptions{})
		return err
	}()} {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestConnect(t *testing.T) {
	e := engine(t)
	t.Logf("%+v", e.Info())
	again, err := Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if again.Info() != e.Info() {
		t.Errorf("%+v", again.Info())
	}
	if i := e.Info(); i.Name == "" || i.Version == "" || i.Host == "" || i.OS == "" || i.Arch == "" {
		t.Errorf("%+v", i)
	}
	line := newRelay(t, e)
	out, err := playChild(t, "connect", "DOCKER_HOST=tcp://"+line.listener.Addr().String())
	if err != nil || !strings.Contains(out, "Host:tcp://127.0.0.1:") || !strings.Contains(out, "Local:false") {
		t.Errorf("%v: %s", err, out)
	}
}

func TestCannotConnect(t *testing.T) {
	hole, err := net.Listen("tcp", "127.0.0.1:0") // accepts and says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	for host, want := range map[string]string{
		"tcp://" + hole.Addr().String(): "no answer within 5s",
		"tcp://127.0.0.1:1":             "Is the docker daemon running?",
		"unix:///none.sock":             "/none.sock",
		"ssh://nobody@127.0.0.1":        "ssh",
		"nonsense":                      "nonsense",
	} {
		out, err := playChild(t, "connect", "DOCKER_HOST="+host, "HOME="+t.TempDir())
		if err == nil || !strings.HasPrefix(out, "no container engine at DOCKER_HOST="+host+": ") || !strings.Contains(out, want) || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %s", host, out)
		}
		t.Log(out)
	}
}

// Nothing but what dead processes have left is removed, paused or not.
func TestClean(t *testing.T) {
	e := engine(t)
	// The program's own tests call `idlerace clean`, at the same time perhaps.
	lock, err := os.Create(filepath.Join(os.TempDir(), "idlerace-test-clean.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	r := newRuntime(t, e)
	p := start(t, r, server(t, r, "server", 1))
	cmd := childCommand(t, "leave", runVar+"=child-"+r.id)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said := make([]byte, len("started\n"))
	if _, err := io.ReadFull(stdout, said); err != nil || string(said) != "started\n" {
		rest, _ := io.ReadAll(stdout)
		t.Fatalf("%s%s, %v", said, rest, err)
	}
	pid := strconv.Itoa(cmd.Process.Pid)
	clean := func() (removed, kept []string) {
		removed, kept, err := e.Clean(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		mine := func(lines []string) (some []string) {
			for _, l := range lines {
				if strings.Contains(l, r.id) { // the child's run is named after it
					some = append(some, l)
				}
			}
			return some
		}
		return mine(removed), mine(kept)
	}
	removed, kept := clean()
	if len(removed) != 0 || len(kept) != 4 {
		t.Errorf("while both live: removed %q, kept %q", removed, kept)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Dead, even before anybody asks how it ended.
	eventually(t, "its death", func() bool {
		_, err := processStarted(cmd.Process.Pid)
		return errors.Is(err, fs.ErrNotExist)
	})
	removed, kept = clean()
	cmd.Wait()
	if len(removed) != 2 || !strings.HasPrefix(removed[0], "container idlerace-child-"+r.id+"-server-") || !strings.HasPrefix(removed[1], "network idlerace-child-"+r.id) ||
		!strings.HasSuffix(removed[1], ": its process "+pid+" is gone") {
		t.Errorf("removed %q", removed)
	}
	want := []string{
		"container " + p.name + ": its process " + strconv.Itoa(os.Getpid()) + " runs",
		"network " + r.name("") + ": its process " + strconv.Itoa(os.Getpid()) + " runs",
	}
	if diff := cmp.Diff(want, kept); diff != "" {
		t.Error(diff)
	}
	if left := ours(t.Context(), e, labelPID+"="+pid); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	greeted(t, p.Address(p.service.Ready[0]))
}

func TestDead(t *testing.T) {
	me := identity{machine: "box.1234", boot: "b1/pid:[1]", pid: 7, started: "100"}
	running := func(pid int) (string, error) {
		switch pid {
		case 7:
			return "100", nil
		case 8:
			return "", os.ErrPermission
		}
		return "", fs.ErrNotExist
	}
	for _, tt := range []struct {
		change    map[string]string
		dead      bool
		why       string
		unchanged bool
	}{
		{nil, false, "its process 7 runs", true},
		{map[string]string{labelPID: "9"}, true, "its process 9 is gone", false},
		{map[string]string{labelStarted: "99"}, true, "its process 7 is gone", false},
		{map[string]string{labelPID: "8"}, false, "permission denied", false},
		{map[string]string{labelHost: "box.1234/b0/pid:[1]"}, true, "this host has restarted since", false},
		{map[string]string{labelHost: "box.1234/b1/pid:[2]"}, false, "belongs to another pid namespace of this host", false},
		{map[string]string{labelHost: "other.1234/b1/pid:[1]", labelPID: "9"}, false, "belongs to another host: other.1234", false},
		{map[string]string{labelHost: "box"}, false, "its labels do not tell whose it is", false},
		{map[string]string{labelPID: ""}, false, "its labels do not tell whose it is", false},
	} {
		labels := me.labels("run", "id")
		for k, v := range tt.change {
			labels[k] = v
		}
		if dead, why := me.dead(labels, running); dead != tt.dead || why != tt.why {
			t.Errorf("%v: %t, %s", tt.change, dead, why)
		}
	}
	self, err := thisProcess()
	if err != nil {
		t.Fatal(err)
	}
	if dead, why := self.dead(self.labels("run", "id"), processStarted); dead {
		t.Error("this test is dead: ", why)
	}
}
