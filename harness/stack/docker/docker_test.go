package docker

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"go.uber.org/goleak"

	"idlerace/harness/stack"
)

// patience bounds every wait for something that must happen. No test passes or
// fails by how long it took.
const patience = time.Minute

// childVar turns this test binary into another process of the tests.
const childVar = "IDLERACE_DOCKER_CHILD"

func TestMain(m *testing.M) {
	if role := os.Getenv(childVar); role != "" {
		os.Exit(child(role))
	}
	goleak.VerifyTestMain(tests{m})
}

// tests ends with nothing of ours on the engine.
type tests struct{ m *testing.M }

func (t tests) Run() int {
	code := t.m.Run()
	if shared.engine == nil {
		return code
	}
	defer shared.engine.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, left := range ours(ctx, shared.engine, labelPID+"="+fmt.Sprint(os.Getpid())) {
		fmt.Println("left on the engine:", left)
		code = 1
	}
	if _, err := shared.engine.client.ImageRemove(ctx, shared.image.ID, client.ImageRemoveOptions{}); err != nil {
		fmt.Println(err)
		code = 1
	}
	os.RemoveAll(shared.dir)
	return code
}

// shared is what the tests with an engine use.
var shared struct {
	once   sync.Once
	engine *Engine
	image  Image // of testdata/service
	binary string
	dir    string
	err    error
}

// engine gives the real one, or skips the test, by name; IDLERACE_REQUIRE with
// "docker" makes that a failure.
func engine(t testing.TB) *Engine {
	t.Helper()
	shared.once.Do(func() { shared.engine, shared.err = prepare() })
	if shared.err != nil {
		if slices.Contains(strings.Split(os.Getenv("IDLERACE_REQUIRE"), ","), "docker") {
			t.Fatal(shared.err)
		}
		t.Skip("docker: ", shared.err) // no engine here, and none is required
	}
	return shared.engine
}

func prepare() (*Engine, error) {
	withoutRyuk()
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	e, err := Connect(ctx)
	if err != nil {
		return nil, err
	}
	if shared.dir, err = os.MkdirTemp("", "idlerace-docker"); err != nil {
		return nil, err
	}
	shared.binary = filepath.Join(shared.dir, "service")
	if err := build(shared.binary, "GOOS=linux", "GOARCH="+e.Info().Arch); err != nil {
		return nil, err
	}
	shared.image, err = e.pack(ctx, shared.binary, func(string, ...any) {})
	return e, err
}

// withoutRyuk goes without Ryuk where its image is not present. It must come
// before testcontainers reads its settings, which it does once.
func withoutRyuk() {
	c, err := client.New(client.FromEnv)
	if err != nil {
		return
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	defer cancel()
	//lint:ignore SA1019 as in EnsureReaper
	if _, err := c.ImageInspect(ctx, testcontainers.ReaperDefaultImage); err != nil {
		os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true")
	}
}

// build makes the program of testdata/service.
func build(to string, env ...string) error {
	cmd := exec.Command("go", "build", "-o", to, "./testdata/service")
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build: %w: %s", err, out)
	}
	return nil
}

// ours lists what has all these labels on the engine, and this host's.
func ours(ctx context.Context, e *Engine, labels ...string) (names []string) {
	// An engine may still have what another host, or this one before it
	// restarted, left there: not ours.
	host := e.host.machine + "/" + e.host.boot
	f := make(client.Filters).Add("label", append(labels, labelHost+"="+host)...)
	containers, err := e.client.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: f})
	if err != nil {
		return []string{err.Error()}
	}
	for _, c := range containers.Items {
		names = append(names, "container "+strings.Join(c.Names, " "))
	}
	networks, err := e.client.NetworkList(ctx, client.NetworkListOptions{Filters: f})
	if err != nil {
		return append(names, err.Error())
	}
	for _, n := range networks.Items {
		names = append(names, "network "+n.Name)
	}
	return names
}

// newRuntime gives a runtime whose test must leave nothing.
func newRuntime(t *testing.T, e *Engine) *Runtime {
	t.Helper()
	r := e.Runtime(strings.ReplaceAll(t.Name(), "/", "-"), shared.image)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := r.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
		if left := ours(ctx, shared.engine, labelID+"="+r.id); len(left) > 0 {
			t.Errorf("left on the engine: %q", left)
		}
	})
	return r
}

// reserve gives n addresses.
func reserve(t *testing.T, r *Runtime, n int) []string {
	t.Helper()
	a, err := r.Reserve(n)
	if err != nil {
		t.Fatal(err)
	}
	return a.List()
}

// server is a service that listens on n addresses and ends when asked.
func server(t *testing.T, r *Runtime, name string, n int) stack.Service {
	t.Helper()
	a := reserve(t, r, n)
	return stack.Service{Name: name, Args: append([]string{"server"}, a...), Ready: a}
}

// start starts a service that must come up.
func start(t *testing.T, r *Runtime, s stack.Service) *instance {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	inst, err := r.Start(ctx, s, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, inst, 0) })
	return inst.(*instance)
}

// stop ends inst, by force after grace.
func stop(t *testing.T, inst stack.Instance, grace time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), grace)
	defer cancel()
	if err := inst.Stop(ctx); err != nil {
		t.Errorf("Stop: %v", err)
	}
	select {
	case <-inst.Done():
	default:
		t.Error("Stop has returned, Done is open")
	}
}

// greeted fails unless a server answers at addr.
func greeted(t *testing.T, addr string) {
	t.Helper()
	c, err := net.DialTimeout("tcp", addr, patience)
	if err != nil {
		t.Errorf("it is said to be ready: %v", err)
		return
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(c); err != nil || string(b) != "hi" {
		t.Errorf("%s says %q, %v", addr, b, err)
	}
}

// eventually waits for cond.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %s", what, patience)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func exitError(t *testing.T, err error) *stack.ExitError {
	t.Helper()
	exit, ok := errors.AsType[*stack.ExitError](err)
	if !ok {
		t.Fatalf("%v (%T) is no ExitError", err, err)
	}
	return exit
}

// done waits for the end of inst.
func done(t *testing.T, inst stack.Instance) *stack.ExitError {
	t.Helper()
	select {
	case <-inst.Done():
	case <-time.After(patience):
		t.Fatal("Done stays open")
	}
	return exitError(t, inst.Err())
}
