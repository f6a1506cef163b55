package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"idlerace/harness/stack"
)

// patience bounds every wait for something that must happen. No test passes or
// fails by how long it took.
const patience = 10 * time.Second

// helperVar turns this test binary into a service of its tests.
const helperVar = "IDLERACE_LOCAL_HELPER"

func init() {
	if os.Getenv(helperVar) != "" {
		// Keeps main on the first thread, which no goroutine can end: the role
		// "parent" needs a thread that ends.
		runtime.LockOSThread()
	}
}

func TestMain(m *testing.M) {
	if os.Getenv(helperVar) != "" {
		os.Exit(help(os.Args[1], os.Args[2:]))
	}
	os.Setenv(helperVar, "1")
	os.Setenv("GORACE", "atexit_sleep_ms=0") // under -race every helper would take a second to end
	goleak.VerifyTestMain(m)
}

// helpParent is set where there is a parent-death signal to be tested.
var helpParent func(dir, addr string) int

// help plays a service.
func help(role string, args []string) int {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	switch role {
	case "server": // listens on every argument until told to end
		for _, addr := range args {
			if err := listen(addr); err != nil {
				fmt.Fprintln(os.Stderr, err)
				return 1
			}
		}
		fmt.Println("listening")
		<-terminated
		fmt.Println("terminated")
	case "stubborn": // as server, but never ends
		if err := listen(args[0]); err != nil {
			return 1
		}
		for range terminated {
			fmt.Println("no")
		}
	case "talker": // says a lot and dies
		for i := range 5000 {
			fmt.Fprintf(os.Stdout, "out %d\n", i)
			fmt.Fprintf(os.Stderr, "err %d \xff\n", i)
		}
		return 3
	case "printer": // says its words on stdout and dies well
		fmt.Println(strings.Join(args, "\n"))
	case "where":
		dir, err := os.Getwd()
		fmt.Println(dir, err)
	case "mute": // never listens
		fmt.Println("looking at the wall")
		<-terminated
	case "family": // has a child that ignores SIGTERM
		child := exec.Command(os.Args[0], "stubborn", args[1])
		if err := child.Start(); err != nil {
			return 1
		}
		if err := os.WriteFile("pid", []byte(strconv.Itoa(child.Process.Pid)), 0o644); err != nil {
			return 1
		}
		if err := listen(args[0]); err != nil {
			return 1
		}
		<-terminated
	case "parent": // starts a child and waits to be killed
		return helpParent(args[0], args[1])
	}
	return 0
}

func listen(addr string) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("hi"))
			c.Close()
		}
	}()
	return nil
}

// alive reports whether a process runs; one that only waits to be reaped does
// not.
func alive(t *testing.T, pid int) bool {
	t.Helper()
	if runtime.GOOS != "linux" {
		return syscall.Kill(pid, 0) == nil
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
		return false
	}
	if err != nil {
		t.Fatal(err)
	}
	_, state, _ := strings.Cut(string(b), ") ") // the name before it may hold anything
	return !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
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

func newRuntime(t *testing.T) *Runtime {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	r := New(self)
	t.Cleanup(r.Close)
	return r
}

// addrs gives n free addresses.
func addrs(t *testing.T, n int) []string {
	t.Helper()
	p, err := Reserve(n)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Release(); err != nil {
		t.Fatal(err)
	}
	return p.Addrs
}

// start starts a service that must come up. It is ended by force at the end of
// the test.
func start(t *testing.T, s stack.Service) *process {
	t.Helper()
	inst, err := newRuntime(t).Start(t.Context(), s, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, inst, 0) })
	return inst.(*process)
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

func TestStartStop(t *testing.T) {
	a := addrs(t, 2)
	s := stack.Service{Name: "server", Args: append([]string{"server"}, a...), Ready: a}
	p := start(t, s)
	for _, addr := range a {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatalf("it is said to be ready: %v", err)
		}
		c.Close()
	}
	if diff := cmp.Diff(s, p.Service()); diff != "" {
		t.Error(diff)
	}
	if err := p.Err(); err != nil {
		t.Errorf("Err of a running service: %v", err)
	}
	select {
	case <-p.Done():
		t.Error("Done of a running service is closed")
	default:
	}
	stop(t, p, patience)
	if got := read(t, p.Stdout()); got != "listening\nterminated\n" {
		t.Errorf("stdout %q: it was not asked politely", got)
	}
	if got := exitError(t, p.Err()); got.Service != "server" || got.Reason != "exit status 0" {
		t.Errorf("%+v", got)
	}
	stop(t, p, 0)
	if alive(t, p.cmd.Process.Pid) {
		t.Error("it lives")
	}
}

func TestStopByForce(t *testing.T) {
	a := addrs(t, 1)
	p := start(t, stack.Service{Name: "stubborn", Args: append([]string{"stubborn"}, a...), Ready: a})
	ctx, cancel := context.WithCancel(context.Background())
	stopped := make(chan error)
	go func() { stopped <- p.Stop(ctx) }()
	eventually(t, "the signal", func() bool { return read(t, p.Stdout()) == "no\n" })
	select {
	case <-p.Done():
		t.Fatal("it ended before force was allowed")
	default:
	}
	cancel()
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if got := exitError(t, p.Err()).Reason; got != "signal: killed" {
		t.Errorf("it ended with %q", got)
	}
}

func TestStopConcurrently(t *testing.T) {
	a := addrs(t, 1)
	p := start(t, stack.Service{Name: "server", Args: append([]string{"server"}, a...), Ready: a})
	stopped := make(chan error)
	for range 4 {
		go func() { stopped <- p.Stop(t.Context()) }()
	}
	for range 4 {
		if err := <-stopped; err != nil {
			t.Error(err)
		}
	}
	if got := read(t, p.Stdout()); got != "listening\nterminated\n" {
		t.Errorf("stdout %q", got)
	}
}

func TestStopWithGrandchildren(t *testing.T) {
	for name, grace := range map[string]time.Duration{"polite": patience, "by force": 0} {
		t.Run(name, func(t *testing.T) {
			a := addrs(t, 2)
			p := start(t, stack.Service{Name: "family", Args: append([]string{"family"}, a...), Ready: a})
			grandchild, err := strconv.Atoi(read(t, filepath.Join(filepath.Dir(p.Stdout()), "pid")))
			if err != nil {
				t.Fatal(err)
			}
			if !alive(t, grandchild) {
				t.Fatal("the grandchild is gone before Stop")
			}
			stop(t, p, grace)
			if alive(t, grandchild) {
				t.Error("Stop has returned, the grandchild lives")
			}
		})
	}
}

// A service that ends by itself takes its children along.
func TestDeathWithGrandchildren(t *testing.T) {
	a := addrs(t, 2)
	p := start(t, stack.Service{Name: "family", Args: append([]string{"family"}, a...), Ready: a})
	grandchild, err := strconv.Atoi(read(t, filepath.Join(filepath.Dir(p.Stdout()), "pid")))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	select {
	case <-p.Done():
	case <-time.After(patience):
		t.Fatal("Done stays open")
	}
	if got := exitError(t, p.Err()).Reason; got != "signal: killed" {
		t.Errorf("reason %q", got)
	}
	if alive(t, grandchild) {
		t.Error("Done is closed, the grandchild lives")
	}
}

func TestNotReady(t *testing.T) {
	a := addrs(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	dir := t.TempDir()
	inst, err := newRuntime(t).Start(ctx, stack.Service{Name: "mute", Args: []string{"mute"}, Ready: a}, dir)
	if inst != nil {
		t.Error("an instance comes with the error")
	}
	exit := exitError(t, err)
	if !strings.HasPrefix(exit.Reason, "not ready after ") || !strings.Contains(exit.Reason, a[0]) || !strings.Contains(exit.Reason, "connection refused") {
		t.Errorf("reason %q", exit.Reason)
	}
	if strings.Contains(exit.Reason, stack.ReadyTimeout.String()) {
		t.Errorf("reason %q, but nobody waited for that long", exit.Reason)
	}
	if diff := cmp.Diff([]string{"looking at the wall"}, exit.Tail); diff != "" {
		t.Error(diff)
	}
	nobodyIn(t, dir)
}

// nobodyIn fails when a process works in dir.
func nobodyIn(t *testing.T, dir string) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cwd")
	if err != nil {
		t.Fatal(err)
	}
	for _, cwd := range all {
		if at, err := os.Readlink(cwd); err == nil && at == dir {
			t.Errorf("%s was left running", filepath.Dir(cwd))
		}
	}
}

func TestCancelledStart(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	_, err := newRuntime(t).Start(ctx, stack.Service{Name: "mute", Args: []string{"mute"}, Ready: addrs(t, 1)}, dir)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v is not context.Canceled", err)
	}
	nobodyIn(t, dir)
}

func TestDiesAtOnce(t *testing.T) {
	a := addrs(t, 1)
	_, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "talker", Args: []string{"talker"}, Ready: a}, t.TempDir())
	exit := exitError(t, err)
	var want []string
	for i := 4990; i < 5000; i++ {
		want = append(want, fmt.Sprintf("err %d ?", i))
	}
	if diff := cmp.Diff(&stack.ExitError{Service: "talker", Reason: "exit status 3", Tail: want}, exit); diff != "" {
		t.Error(diff)
	}
	if exit.AddressInUse() {
		t.Error("taken for an address in use")
	}
}

// Without a word on stderr, stdout speaks.
func TestTailOfStdout(t *testing.T) {
	_, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "printer", Args: []string{"printer", "a", "b"}, Ready: addrs(t, 1)}, t.TempDir())
	want := &stack.ExitError{Service: "printer", Reason: "exit status 0", Tail: []string{"a", "b"}}
	if diff := cmp.Diff(want, exitError(t, err)); diff != "" {
		t.Error(diff)
	}
}

// A right over the network would be one over this machine's.
func TestCapabilities(t *testing.T) {
	dir := t.TempDir()
	_, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "server", Args: []string{"server"}, Capabilities: []string{"NET_ADMIN"}}, dir)
	if want := "server: NET_ADMIN is for containers only: a process would have it over this machine's own network"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
	nobodyIn(t, dir)
}

func TestAddressInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	free := addrs(t, 1)[0]
	for name, ready := range map[string][]string{
		"as the service says":         {free},
		"the other process answers":   {taken.Addr().String()},
		"the other answers, at first": {taken.Addr().String(), free},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			_, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "server", Args: []string{"server", taken.Addr().String(), free}, Ready: ready}, dir)
			if err == nil {
				t.Fatal("it is said to be ready")
			}
			if exit := exitError(t, err); !exit.AddressInUse() {
				t.Errorf("not recognised: %v", exit)
			}
			nobodyIn(t, dir)
		})
	}
}

func TestDirAndFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "stack", "printer")
	s := stack.Service{
		Name:  "printer",
		Files: map[string]string{"a.conf": "a", "sub/dir/b.conf": "b", "sub/.keep": ""},
		Args:  []string{"printer", "{dir}", "--x={dir}/a.conf:{dir}", "dir"},
	}
	t.Chdir(filepath.Dir(filepath.Dir(dir)))
	inst, err := newRuntime(t).Start(t.Context(), s, "stack/printer")
	if err != nil {
		t.Fatal(err)
	}
	<-inst.Done()
	want := dir + "\n--x=" + dir + "/a.conf:" + dir + "\ndir\n"
	if got := read(t, inst.Stdout()); got != want {
		t.Errorf("arguments %q, want %q", got, want)
	}
	var files []string
	if err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path+"="+read(t, filepath.Join(dir, path)))
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	wantFiles := []string{"a.conf=a", "stderr.log=", "stdout.log=" + want, "sub/.keep=", "sub/dir/b.conf=b"}
	if diff := cmp.Diff(wantFiles, files); diff != "" {
		t.Error(diff)
	}
	if inst.Stdout() != filepath.Join(dir, "stdout.log") || inst.Stderr() != filepath.Join(dir, "stderr.log") {
		t.Errorf("logs %q, %q", inst.Stdout(), inst.Stderr())
	}
}

func TestWorkingDirectory(t *testing.T) {
	dir := t.TempDir()
	inst, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "where", Args: []string{"where"}}, dir)
	if err != nil {
		t.Fatal(err)
	}
	<-inst.Done()
	if got, want := read(t, inst.Stdout()), dir+" <nil>\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// A second start in the same folder begins its logs anew.
func TestLogsBeginAnew(t *testing.T) {
	dir := t.TempDir()
	for _, word := range []string{"a long first word", "b"} {
		inst, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "printer", Args: []string{"printer", word}}, dir)
		if err != nil {
			t.Fatal(err)
		}
		<-inst.Done()
		if got := read(t, inst.Stdout()); got != word+"\n" {
			t.Errorf("stdout %q", got)
		}
	}
}

func TestFilesOutside(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "service")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(base, filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"../x", "sub/../../x", "out/x", filepath.Join(base, "x")} {
		s := stack.Service{Name: "printer", Args: []string{"printer"}, Files: map[string]string{name: "mine"}}
		inst, err := newRuntime(t).Start(t.Context(), s, dir)
		if err == nil {
			<-inst.Done()
			t.Errorf("%s: accepted", name)
		} else if !strings.HasPrefix(err.Error(), "printer: ") {
			t.Errorf("%s: %v does not name the service", name, err)
		}
	}
	entries, err := os.ReadDir(base)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 {
		t.Errorf("%v lies beside the service's folder", entries)
	}
}

func TestBinary(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(t.TempDir(), "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(bin, "idlerace-helper")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin)
	t.Chdir(filepath.Dir(bin))
	for _, binary := range []string{"", "idlerace-helper", filepath.Join(bin, "idlerace-helper"), "./bin/idlerace-helper", "bin/idlerace-helper"} {
		inst, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "printer", Binary: binary, Args: []string{"printer", "hi"}}, t.TempDir())
		if err != nil {
			t.Errorf("%q: %v", binary, err)
			continue
		}
		<-inst.Done()
		if got := read(t, inst.Stdout()); got != "hi\n" {
			t.Errorf("%q: stdout %q, %v", binary, got, inst.Err())
		}
	}
	for binary, want := range map[string]string{
		"idlerace-nothing":   `ghost: exec: "idlerace-nothing": executable file not found in $PATH`,
		"./idlerace-nothing": `ghost: exec: "./idlerace-nothing": stat ./idlerace-nothing: no such file or directory`,
	} {
		_, err := newRuntime(t).Start(t.Context(), stack.Service{Name: "ghost", Binary: binary}, t.TempDir())
		if err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", binary, err, want)
		}
	}
}

func TestName(t *testing.T) {
	r := New("self")
	r.Close()
	r.Close()
	if got := r.Name(); got != "local" {
		t.Errorf("%q", got)
	}
}

func TestReserve(t *testing.T) {
	const n = 50
	a, err := Reserve(n)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Release()
	b, err := Reserve(n)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Release()
	all := slices.Concat(a.Addrs, b.Addrs)
	slices.Sort(all)
	if got := len(slices.Compact(all)); got != 2*n {
		t.Errorf("%d distinct addresses of %d", got, 2*n)
	}
	limit := ephemeral(t)
	for _, addr := range a.Addrs {
		host, port, err := net.SplitHostPort(addr)
		if err != nil {
			t.Fatal(err)
		}
		if p, err := strconv.Atoi(port); err != nil || host != "127.0.0.1" || p < 1024 || p >= limit {
			t.Errorf("%s is not below the ephemeral ports, which begin at %d", addr, limit)
		}
		if l, err := net.Listen("tcp", addr); err == nil {
			l.Close()
			t.Errorf("%s is not held", addr)
		}
	}
	if err := a.Release(); err != nil {
		t.Error(err)
	}
	if err := a.Release(); err != nil {
		t.Errorf("the second time: %v", err)
	}
	for _, addr := range a.Addrs {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Errorf("after Release: %v", err)
			continue
		}
		l.Close()
	}
	if l, err := net.Listen("tcp", b.Addrs[0]); err == nil {
		l.Close()
		t.Error("releasing one reservation frees the other")
	}
}

// ephemeral is the first port that the system gives to outgoing connections.
func ephemeral(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return 32768
	}
	var low, high int
	if _, err := fmt.Sscan(string(b), &low, &high); err != nil {
		t.Fatal(err)
	}
	return low
}

func TestReserveNone(t *testing.T) {
	p, err := Reserve(0)
	if err != nil || len(p.Addrs) != 0 {
		t.Fatalf("%v, %v", p, err)
	}
	if err := p.Release(); err != nil {
		t.Error(err)
	}
}

func TestReserveTooMany(t *testing.T) {
	p, err := Reserve(lastPort - firstPort + 2)
	if err == nil {
		p.Release()
		t.Fatal("no error")
	}
	const want = "fewer than 17002 free TCP ports between 15000 and 32000 on 127.0.0.1"
	if err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
