package docker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/moby/client"

	"idlerace/harness/stack"
)

func TestStartStop(t *testing.T) {
	r := newRuntime(t, engine(t))
	s := server(t, r, "server", 2)
	begun := time.Now()
	p := start(t, r, s)
	t.Logf("started in %s, by %s", time.Since(begun), r.Path())
	for _, a := range s.Ready {
		greeted(t, p.Address(a))
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
	begun = time.Now()
	stop(t, p, patience)
	t.Logf("stopped in %s", time.Since(begun))
	if got := read(t, p.Stdout()); got != "listening\nterminated\n" {
		t.Errorf("stdout %q: it was not asked politely", got)
	}
	if got := exitError(t, p.Err()); got.Service != "server" || got.Reason != "exit status 0" {
		t.Errorf("%+v", got)
	}
	if left := ours(t.Context(), r.engine, labelID+"="+r.id); len(left) != 1 || left[0] != "network "+r.name("") {
		t.Errorf("after Stop there are %q", left)
	}
	stop(t, p, 0)
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestStopByForce(t *testing.T) {
	r := newRuntime(t, engine(t))
	a := reserve(t, r, 1)
	p := start(t, r, stack.Service{Name: "stubborn", Args: append([]string{"stubborn"}, a...), Ready: a})
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
	if got := exitError(t, p.Err()).Reason; got != "killed (137)" {
		t.Errorf("it ended with %q", got)
	}
}

func TestStopConcurrently(t *testing.T) {
	r := newRuntime(t, engine(t))
	p := start(t, r, server(t, r, "server", 1))
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

func TestPeers(t *testing.T) {
	r := newRuntime(t, engine(t))
	upstream := server(t, r, "upstream", 1)
	u := start(t, r, upstream)
	a := reserve(t, r, 1)
	p := start(t, r, stack.Service{Name: "proxy", Args: []string{"peer", u.Peer(upstream.Ready[0]), a[0]}, Ready: a})
	greeted(t, p.Address(a[0]))
	stop(t, p, patience)
	if got := read(t, p.Stdout()); got != "hi <nil>\nlistening\nterminated\n" {
		t.Errorf("the peer says %q", got)
	}
}

func TestFiles(t *testing.T) {
	r := newRuntime(t, engine(t))
	dir := t.TempDir()
	files := map[string]string{"proxy.conf": "listen {dir}\n", "tmp/.keep": "", "a/b/c": "deep"}
	_, err := r.Start(t.Context(), stack.Service{Name: "look", Args: []string{"look", "{dir}"}, Files: files, Ready: reserve(t, r, 1)}, dir)
	exitError(t, err)
	want := `/idlerace.d <nil>
/idlerace.d drwxr-xr-x ""
/idlerace.d/a drwxr-xr-x ""
/idlerace.d/a/b drwxr-xr-x ""
/idlerace.d/a/b/c -rw-r--r-- "deep"
/idlerace.d/proxy.conf -rw-r--r-- "listen {dir}\n"
/idlerace.d/tmp drwxr-xr-x ""
/idlerace.d/tmp/.keep -rw-r--r-- ""
<nil>
`
	if diff := cmp.Diff(want, read(t, filepath.Join(dir, "stdout.log"))); diff != "" {
		t.Error(diff)
	}
	for name, content := range files {
		if got := read(t, filepath.Join(dir, name)); got != content {
			t.Errorf("%s here is %q", name, got)
		}
	}
	_, err = r.Start(t.Context(), stack.Service{Name: "escape", Files: map[string]string{"../x": ""}}, dir)
	if err == nil || !strings.HasPrefix(err.Error(), "escape: ") {
		t.Errorf("a file outside the folder: %v", err)
	}
}

// A service that dies at once: all its lines are there, whatever it died of.
func TestDiesAtOnce(t *testing.T) {
	r := newRuntime(t, engine(t))
	for _, n := range []int{0, 1, 20000} {
		dir := t.TempDir()
		_, err := r.Start(t.Context(), stack.Service{Name: "talker", Args: []string{"talker", strconv.Itoa(n)}, Ready: reserve(t, r, 1)}, dir)
		exit := exitError(t, err)
		var tail []string
		for i := max(0, n-10); i < n; i++ {
			tail = append(tail, fmt.Sprint("err ", i))
		}
		if diff := cmp.Diff(&stack.ExitError{Service: "talker", Reason: "exit status 3", Tail: tail}, exit); diff != "" {
			t.Error(diff)
		}
		for _, stream := range []string{"out", "err"} {
			var want strings.Builder
			for i := range n {
				fmt.Fprintf(&want, "%s %d\n", stream, i)
			}
			if got := read(t, filepath.Join(dir, "std"+stream+".log")); got != want.String() {
				t.Errorf("std%s: %d bytes of %d, or others", stream, len(got), want.Len())
			}
		}
	}
}

// What is printed is in the file soon, and once.
func TestLogIsLive(t *testing.T) {
	r := newRuntime(t, engine(t))
	a := reserve(t, r, 1)
	p := start(t, r, stack.Service{Name: "clock", Args: append([]string{"clock"}, a...), Ready: a})
	var late []time.Duration
	seen := 0
	eventually(t, "200 lines", func() bool {
		lines := strings.SplitAfter(read(t, p.Stdout()), "\n")
		lines = lines[:len(lines)-1]
		for _, l := range lines[seen:] {
			said, err := strconv.ParseInt(strings.TrimSpace(l), 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			late = append(late, time.Since(time.Unix(0, said)))
		}
		seen = len(lines)
		return seen >= 200
	})
	slices.Sort(late)
	t.Logf("a line arrives after %s, the slowest of %d after %s", late[len(late)/2], len(late), late[len(late)-1])
	stop(t, p, patience)
	lines := strings.Fields(read(t, p.Stdout()))
	if !slices.IsSorted(lines) || len(slices.Compact(slices.Clone(lines))) != len(lines) {
		t.Error("lines are out of order or repeated")
	}
}

func TestNotReady(t *testing.T) {
	r := newRuntime(t, engine(t))
	start(t, r, server(t, r, "first", 1)) // the network and the path take their time
	a := reserve(t, r, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	inst, err := r.Start(ctx, stack.Service{Name: "mute", Args: []string{"mute"}, Ready: a}, t.TempDir())
	if inst != nil {
		t.Error("an instance comes with the error")
	}
	exit := exitError(t, err)
	_, port, _ := strings.Cut(a[0], ":")
	if !strings.HasPrefix(exit.Reason, "not ready after ") || !strings.Contains(exit.Reason, ":"+port) || !strings.Contains(exit.Reason, "refused") {
		t.Errorf("reason %q", exit.Reason)
	}
	if diff := cmp.Diff([]string{"looking at the wall"}, exit.Tail); diff != "" {
		t.Error(diff)
	}
}

func TestKilledInMidLife(t *testing.T) {
	r := newRuntime(t, engine(t))
	p := start(t, r, server(t, r, "server", 1))
	if _, err := r.engine.client.ContainerKill(t.Context(), p.id, client.ContainerKillOptions{Signal: "SIGKILL"}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&stack.ExitError{Service: "server", Reason: "killed (137)", Tail: []string{"listening"}}, done(t, p)); diff != "" {
		t.Error(diff)
	}
	stop(t, p, patience)
}

func TestRemovedInMidLife(t *testing.T) {
	r := newRuntime(t, engine(t))
	p := start(t, r, server(t, r, "server", 1))
	if err := r.engine.remove(t.Context(), p.id); err != nil {
		t.Fatal(err)
	}
	if got := done(t, p); !strings.HasPrefix(got.Reason, "killed (137)") && got.Reason != "its container was removed" {
		t.Errorf("reason %q", got.Reason)
	}
	stop(t, p, patience)
}

func TestOutOfMemory(t *testing.T) {
	r := newRuntime(t, engine(t))
	_, err := r.Start(t.Context(), stack.Service{Name: "hog", Args: []string{"hog"}, Ready: reserve(t, r, 1)}, t.TempDir())
	if got := exitError(t, err).Reason; got != "out of memory: it may use 1024 MiB" {
		t.Errorf("reason %q", got)
	}
}

func TestLimits(t *testing.T) {
	r := newRuntime(t, engine(t))
	dir := t.TempDir()
	r.Start(t.Context(), stack.Service{Name: "limits", Args: []string{"limits"}, Ready: reserve(t, r, 1)}, dir)
	got := read(t, filepath.Join(dir, "stdout.log"))
	wants := []string{" 1073741824\n", "pids.max 512\n"}
	files := "as many as the engine has"
	if r.engine.nofile.Load() {
		files = "65536"
		wants = append(wants, "nofile 65536\n")
	}
	for _, want := range wants {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	if got, want := r.Limits(), "memory 1024 MiB without swap, 512 processes, "+files+" open files, no limit on CPU time"; got != want {
		t.Error(got)
	}
}

func TestCapabilities(t *testing.T) {
	r := newRuntime(t, engine(t))
	const netAdmin = 1 << 12 // capabilities(7)
	may := func(capabilities ...string) uint64 {
		dir := t.TempDir()
		r.Start(t.Context(), stack.Service{Name: "capabilities", Args: []string{"capabilities"}, Ready: reserve(t, r, 1), Capabilities: capabilities}, dir)
		mask, err := strconv.ParseUint(strings.TrimSpace(read(t, filepath.Join(dir, "stdout.log"))), 16, 64)
		if err != nil {
			t.Fatal(err)
		}
		return mask
	}
	usual := may()
	if usual&netAdmin != 0 {
		t.Errorf("%#x without asking", usual)
	}
	if got := may("NET_ADMIN"); got != usual|netAdmin {
		t.Errorf("%#x, want NET_ADMIN and no more than %#x besides", got, usual)
	}
}

func TestCancelledStart(t *testing.T) {
	r := newRuntime(t, engine(t))
	start(t, r, server(t, r, "first", 1))
	before := ours(t.Context(), r.engine, labelID+"="+r.id)
	// How long a whole start takes is not known; every stage is hit some time.
	for after := time.Duration(0); after < 2*time.Second; after = after*3/2 + time.Millisecond {
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(after, cancel)
		_, err := r.Start(ctx, stack.Service{Name: "mute", Args: []string{"mute"}, Ready: reserve(t, r, 1)}, t.TempDir())
		timer.Stop()
		cancel()
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("after %s: %v is not context.Canceled", after, err)
		}
		if diff := cmp.Diff(before, ours(context.Background(), r.engine, labelID+"="+r.id)); diff != "" {
			t.Fatalf("after %s: %s", after, diff)
		}
	}
}

func TestTwoRuntimes(t *testing.T) {
	e := engine(t)
	one, two := newRuntime(t, e), newRuntime(t, e)
	var ps [2]*instance
	var both sync.WaitGroup
	for i, r := range []*Runtime{one, two} {
		both.Go(func() {
			a, err := r.Reserve(1)
			if err != nil {
				t.Error(err)
				return
			}
			inst, err := r.Start(t.Context(), stack.Service{Name: "server", Args: append([]string{"server"}, a.List()...), Ready: a.List()}, t.TempDir())
			if err != nil {
				t.Error(err)
				return
			}
			ps[i] = inst.(*instance)
		})
	}
	both.Wait()
	if t.Failed() {
		return
	}
	if err := one.Close(t.Context()); err != nil { // not stopped: Close does it
		t.Error(err)
	}
	done(t, ps[0])
	stop(t, ps[0], 0)
	greeted(t, ps[1].Address(ps[1].service.Ready[0]))
	stop(t, ps[1], patience)
}

func TestBrokenImage(t *testing.T) {
	r := newRuntime(t, engine(t))
	_, err := r.Start(t.Context(), stack.Service{Name: "nginx", Image: shared.image.Ref, Binary: "nginx", Ready: reserve(t, r, 1)}, t.TempDir())
	exit := exitError(t, err)
	if !strings.HasPrefix(exit.Reason, `does not start: exec: "nginx": executable file not found`) || strings.Contains(exit.Reason, "\n") {
		t.Errorf("reason %q", exit.Reason)
	}
	_, err = r.Start(t.Context(), stack.Service{Name: "nginx", Image: "idlerace:absent"}, t.TempDir())
	if _, ok := errors.AsType[*AbsentError](err); !ok || err.Error() != "nginx: idlerace:absent: no such image here" {
		t.Errorf("%v", err)
	}
}

// mappedPath makes this test's runtimes publish ports.
func mappedPath(t *testing.T) { t.Setenv(pathVar, "mapped") }

func TestMappedPorts(t *testing.T) {
	e := engine(t)
	mappedPath(t)
	r := newRuntime(t, e)
	s := server(t, r, "server", 130)
	s.Args[0] = "late" // the engine's proxy accepts already
	begun := time.Now()
	p := start(t, r, s)
	t.Logf("%d ports in %s, of which the service slept one second", len(s.Ready), time.Since(begun))
	if r.Path() != mapped {
		t.Errorf("path %q", r.Path())
	}
	seen := map[string]bool{}
	for _, a := range s.Ready {
		at := p.Address(a)
		if seen[at] || strings.HasPrefix(at, p.ip+":") {
			t.Errorf("%s is at %s", a, at)
		}
		seen[at] = true
		greeted(t, at)
	}
	greeted(t, p.Peer(s.Ready[0]))
	is, err := e.client.ContainerInspect(t.Context(), p.id, client.ContainerInspectOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for port, bindings := range is.Container.NetworkSettings.Ports {
		for _, b := range bindings {
			if e.Info().Local && b.HostIP.IsUnspecified() {
				t.Errorf("%s is published on every address", port)
			}
		}
	}
	begun = time.Now()
	stop(t, p, patience)
	t.Logf("stopped in %s", time.Since(begun))
}

func TestMappedNotReady(t *testing.T) {
	e := engine(t)
	mappedPath(t)
	r := newRuntime(t, e)
	start(t, r, server(t, r, "first", 1))
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	_, err := r.Start(ctx, stack.Service{Name: "mute", Args: []string{"mute"}, Ready: reserve(t, r, 2)}, t.TempDir())
	if exit := exitError(t, err); !strings.HasPrefix(exit.Reason, "not ready after ") {
		t.Errorf("reason %q", exit.Reason)
	}
}

func TestPathOverride(t *testing.T) {
	for _, tt := range []struct {
		value string
		local bool
		want  string
	}{
		{"", true, undecided}, {"", false, mapped},
		{"direct", true, direct}, {"direct", false, direct},
		{"mapped", true, mapped}, {"mapped", false, mapped},
	} {
		if got, err := wanted(tt.value, tt.local); err != nil || got != tt.want {
			t.Errorf("%q, local %t: %q, %v", tt.value, tt.local, got, err)
		}
	}
	_, err := wanted("Mapped", true)
	if err == nil || err.Error() != "IDLERACE_DOCKER_PATH=Mapped: want direct, mapped or nothing" {
		t.Error(err)
	}
}

func TestReserve(t *testing.T) {
	r := (&Engine{}).Runtime("run", Image{})
	one, err := r.Reserve(2)
	if err != nil {
		t.Fatal(err)
	}
	two, err := r.Reserve(1)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"0.0.0.0:20000", "0.0.0.0:20001", "0.0.0.0:20002"}, append(one.List(), two.List()...)); diff != "" {
		t.Error(diff)
	}
	if err := errors.Join(one.Release(), one.Release()); err != nil {
		t.Error(err)
	}
	if _, err := r.Reserve(lastPort - firstPort + 1 - 3 + 1); err == nil {
		t.Error("one port too many")
	}
	if _, err := r.Reserve(lastPort - firstPort + 1 - 3); err != nil {
		t.Error(err)
	}
}

func TestNames(t *testing.T) {
	r := (&Engine{}).Runtime("quick start/2026", Image{})
	if got, want := r.name("origin"), "idlerace-quick-start-2026-origin-"+r.id; got != want {
		t.Error(got)
	}
	if got, want := r.name(""), "idlerace-quick-start-2026-"+r.id; got != want {
		t.Error(got)
	}
}

func TestExitReason(t *testing.T) {
	for want, got := range map[string]string{
		"exit status 0":                      exitReason(0, false),
		"exit status 143":                    exitReason(143, false),
		"killed (137)":                       exitReason(137, false),
		"out of memory: it may use 1024 MiB": exitReason(137, true),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// A log that is read again from its beginning, whatever was cut where.
func TestResumed(t *testing.T) {
	whole := []byte("one\ntwo\nthree\n")
	for cut := range len(whole) + 1 {
		for _, chunk := range []int{1, 4, len(whole)} {
			f, err := os.Create(filepath.Join(t.TempDir(), "log"))
			if err != nil {
				t.Fatal(err)
			}
			g := &grown{file: f}
			(&resumed{to: g}).Write(whole[:cut])
			again := &resumed{to: g, skip: g.n}
			for part := range slices.Chunk(whole, chunk) {
				if n, err := again.Write(part); n != len(part) || err != nil {
					t.Fatal(n, err)
				}
			}
			f.Close()
			if got := read(t, f.Name()); !bytes.Equal([]byte(got), whole) || g.n != int64(len(whole)) {
				t.Fatalf("cut at %d: %q, %d", cut, got, g.n)
			}
		}
	}
}
