package main

import (
	"context"
	"crypto/rand"
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
	"syscall"
	"testing"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/origin/netem"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/run"
	"idlerace/harness/spec"
	"idlerace/harness/stack/docker"
)

// static is this program for containers: for Linux, and without the race
// detector, for which they have no C library.
var static = sync.OnceValues(func() (string, error) {
	path := filepath.Join(filepath.Dir(binary), "idlerace-static")
	cmd := exec.Command("go", "build", "-o", path, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

// needEngine skips a test where no container engine can be used, or fails it
// where the environment asks for one.
func needEngine(t *testing.T) {
	t.Helper()
	lack := func(err error) {
		if slices.Contains(run.Required(), record.RuntimeDocker) {
			t.Fatalf("%s is required by %s: %v", record.RuntimeDocker, run.RequireVar, err)
		}
		t.Skipf("%s: %v", record.RuntimeDocker, err)
	}
	e, err := docker.Connect(t.Context())
	if err != nil {
		lack(err)
	}
	defer e.Close()
	path, err := static()
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("IDLERACE_LINUX_BINARY", path)
	if err := e.EnsureReaper(t.Context(), t.Logf); err != nil {
		lack(err)
	}
	t.Cleanup(func() { nothingInEngine(t) })
}

// needImages does the same for proxies' images.
func needImages(t *testing.T, names ...string) {
	t.Helper()
	needEngine(t)
	f := &run.Finder{Runtime: record.RuntimeDocker, Self: binary, Say: t.Logf}
	defer f.Close()
	for _, name := range names {
		a, err := proxy.ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Find(t.Context(), a, ""); err != nil {
			if slices.Contains(run.Required(), name) {
				t.Fatalf("%s is required by %s: %v", name, run.RequireVar, err)
			}
			t.Skipf("%s: %v", name, err)
		}
	}
}

// mark is in the names of this process' runs in an engine, which may also hold
// runs of other tests, and leftovers of tests that somebody killed.
var mark = "e2e" + strings.ToLower(rand.Text()[:6])

// inEngine names the containers and networks of this process' runs.
func inEngine(t *testing.T) []string {
	t.Helper()
	var out []string
	for _, args := range [][]string{
		{"ps", "-a", "--filter", "label=idlerace.run", "--filter", "name=idlerace-" + mark, "--format", "{{.Names}}"},
		{"network", "ls", "--filter", "label=idlerace.run", "--filter", "name=idlerace-" + mark, "--format", "{{.Name}}"},
	} {
		text, err := exec.Command("docker", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, text)
		}
		out = append(out, strings.Fields(string(text))...)
	}
	return out
}

func nothingInEngine(t *testing.T) {
	t.Helper()
	if left := inEngine(t); len(left) > 0 {
		t.Errorf("left in the engine: %v", left)
	}
}

// TestE2EDockerStates runs every proxy in containers and as a process: the
// states are the same wherever the version is.
func TestE2EDockerStates(t *testing.T) {
	for _, a := range proxy.All() {
		t.Run(a.Name(), func(t *testing.T) {
			needImages(t, a.Name())
			file := scenarioFile(t, mark+"-states", a.Name(), `axes:
  proxy_idle: [300ms, 1200ms, off]
  upstream_idle: [600ms]
probe: {lanes: 30, shots: 120, budget: 120s}`)
			d, folder := runOn(t, record.RuntimeDocker, file)
			if len(d.Cells) != 6 {
				t.Fatalf("%d cells", len(d.Cells))
			}
			for _, v := range append(d.Controls, d.Cells...) {
				want := spec.Safe
				switch {
				case v.Role == judge.RoleMustRace:
					want = spec.Races
				case v.ProxyIdle == "1.2s":
					want = racingState(a.Name(), v.Method)
				}
				if v.State != want || v.Runtime != record.RuntimeDocker || v.Version == "" {
					t.Errorf("%s (%s %s, %s): %s, want %s: %s", v.ID, v.Proxy, v.Version, v.Runtime, v.State, want, v.Why)
				}
			}
			e := d.Run.Engine
			if e == nil || e.Version == "" || e.Path == "" || e.Limits == "" {
				t.Errorf("engine %+v", e)
			}
			if p := d.Run.Proxies; len(p) != 1 || p[0].Image == "" || !strings.HasPrefix(p[0].ImageID, "sha256:") {
				t.Errorf("proxies %+v", p)
			}
			lateIsFailed(t, folder)
		})
	}
}

// TestE2EDockerNetem: where containers' kernel has netem the danger window begins
// a round trip before the close, as with the relay; where it has not the run is
// refused with the reason, and nothing is left.
func TestE2EDockerNetem(t *testing.T) {
	needEngine(t)
	file := scenarioFile(t, mark+"-netem", "gohttp", `axes: {proxy_idle: [2s], upstream_idle: [600ms], method: [POST], rtt: [60ms]}
link: {driver: netem}
probe: {lanes: 30, shots: 600, budget: 120s, aim: window, until: shots}`)
	if err := netem.Probe(); err == nil {
		d, _ := runOn(t, record.RuntimeDocker, file)
		v := d.Cells[0]
		if f := v.Fit; v.State != spec.Races || f == nil || f.Lower == nil || time.Duration(f.Lower.At) > -30*time.Millisecond || time.Duration(f.Lower.At) < -90*time.Millisecond {
			t.Errorf("%s: %s %+v: %s", v.ID, v.State, f, v.Why)
		}
		return
	} else if missing, ok := errors.AsType[*netem.MissingError](err); !ok {
		t.Skipf("netem: %v", err)
	} else {
		cmd := exec.Command(binary, "run", file, "--runtime", record.RuntimeDocker, "--out", t.TempDir())
		text, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != exitEnvironment || !strings.Contains(string(text), missing.Error()) {
			t.Errorf("exit code %d\n%s", code, text)
		}
	}
}

// TestE2EDockerAuto has a proxy whose image cannot be had: auto takes the
// executable, and both sides of the run, an origin each, are judged together.
func TestE2EDockerAuto(t *testing.T) {
	needEngine(t)
	need(t, "nginx")
	file := scenarioFile(t, mark+"-mixed", "gohttp, nginx", quickScenario)
	d, folder := runOn(t, run.RuntimeAuto, file, run.ImageVar("nginx")+"=idlerace.invalid/no/such:1", run.RequireVar+"=")
	got := map[string]string{}
	for _, p := range d.Run.Proxies {
		got[p.Name] = p.Runtime
		if p.Name == "nginx" && !strings.Contains(p.Why, "idlerace.invalid/no/such:1") {
			t.Errorf("why nginx is local: %s", p.Why)
		}
	}
	if got["gohttp"] != record.RuntimeDocker || got["nginx"] != record.RuntimeLocal {
		t.Errorf("runtimes %v", got)
	}
	for _, v := range append(d.Controls, d.Cells...) {
		if v.State == spec.Inconclusive || v.State == spec.Broken {
			t.Errorf("%s: %s: %s", v.ID, v.State, v.Why)
		}
		if v.Direct == nil {
			t.Errorf("%s: the upstream's close was not measured on its side", v.ID)
		}
	}
	lateIsFailed(t, folder)
}

// TestE2EDockerImages: an image that cannot be had, and one that does not hold
// the proxy, make that proxy unavailable, or fail the run where it is required.
func TestE2EDockerImages(t *testing.T) {
	needEngine(t)
	file := scenarioFile(t, mark+"-images", "gohttp, nginx", `axes: {proxy_idle: [off], upstream_idle: [300ms], method: [POST]}
probe: {lanes: 5, shots: 20}`)
	e, err := docker.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	path, err := static()
	if err != nil {
		t.Fatal(err)
	}
	own, err := e.Own(t.Context(), path, t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	for _, image := range []string{"idlerace.invalid/no/such:1", own.Ref} {
		d, _ := runOn(t, record.RuntimeDocker, file, run.ImageVar("nginx")+"="+image, run.RequireVar+"=")
		if len(d.Unavailable) != 1 || !strings.Contains(d.Unavailable[0].Reason, image) || strings.Contains(d.Unavailable[0].Reason, "\n") {
			t.Errorf("%s: unavailable %+v", image, d.Unavailable)
		}
		if len(d.Cells) != 1 || d.Cells[0].State != spec.Safe {
			t.Errorf("%s: the other proxy's cells: %+v", image, d.Cells)
		}
		out := t.TempDir()
		cmd := exec.Command(binary, "run", file, "--runtime", record.RuntimeDocker, "--out", out)
		cmd.Env = append(os.Environ(), run.ImageVar("nginx")+"="+image, run.RequireVar+"=nginx")
		text, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != exitEnvironment || !strings.Contains(string(text), image) {
			t.Errorf("%s, required: exit code %d\n%s", image, code, text)
		}
	}
}

const endless = `axes: {proxy_idle: [2s], upstream_idle: [600ms], method: [POST]}
probe: {lanes: 10, shots: 1000000, budget: 10m, until: shots}`

// startDocker starts a run that does not end by itself and waits until it
// probes.
func startDocker(t *testing.T, proxies string, env ...string) (cmd *exec.Cmd, out string, text *lockedBuffer) {
	t.Helper()
	return startRun(t, record.RuntimeDocker, proxies, env...)
}

func startRun(t *testing.T, runtime, proxies string, env ...string) (cmd *exec.Cmd, out string, text *lockedBuffer) {
	t.Helper()
	out = t.TempDir()
	cmd = exec.Command(binary, "run", scenarioFile(t, mark+"-endless", proxies, endless), "--runtime", runtime, "--out", out)
	cmd.Env = append(os.Environ(), env...)
	text = &lockedBuffer{}
	cmd.Stdout, cmd.Stderr = text, text
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill() })
	waitFor(t, "aimed shots", func() bool {
		b, _ := os.ReadFile(filepath.Join(out, results.Latest, results.ObservationsFile))
		return strings.Contains(string(b), `"phase":"aimed"`)
	})
	return cmd, out, text
}

func TestE2EDockerInterrupted(t *testing.T) {
	needEngine(t)
	cmd, _, text := startDocker(t, "gohttp")
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitInconclusive || !strings.Contains(text.String(), "the run ended early: interrupted") {
		t.Errorf("exit code %d\n%s", code, text.String())
	}
}

// clean runs `idlerace clean`. It sees leftovers of other packages' tests, too,
// one of which wants to remove its own: the lock is shared with that.
func clean(t *testing.T) string {
	t.Helper()
	lock, err := os.Create(filepath.Join(os.TempDir(), "idlerace-test-clean.lock"))
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	text, err := exec.Command(binary, "clean").CombinedOutput()
	if err != nil {
		t.Errorf("idlerace clean: %v\n%s", err, text)
	}
	return string(text)
}

// TestE2EDockerKilled kills the program. Ryuk, or where there is none
// `idlerace clean`, removes what it left, and leaves a live run alone.
func TestE2EDockerKilled(t *testing.T) {
	needEngine(t)
	live, _, _ := startDocker(t, "gohttp")
	lives := inEngine(t)
	dead, _, _ := startDocker(t, "gohttp")
	dead.Process.Kill()
	dead.Wait()
	text := clean(t)
	left := inEngine(t)
	slices.Sort(left)
	slices.Sort(lives)
	if !slices.Equal(left, lives) {
		t.Errorf("after `idlerace clean` there is %v, the live run has %v\n%s", left, lives, text)
	}
	live.Process.Signal(syscall.SIGINT)
	live.Wait()
	if code := live.ProcessState.ExitCode(); code != exitInconclusive {
		t.Errorf("the live run: exit code %d", code)
	}
}

// TestE2EDockerOriginDies kills one of the two origins of a run in mid-run: the
// other side goes on.
func TestE2EDockerOriginDies(t *testing.T) {
	needEngine(t)
	need(t, "nginx")
	cmd, out, text := startRun(t, run.RuntimeAuto, "gohttp, nginx", run.ImageVar("nginx")+"=idlerace.invalid/no/such:1", run.RequireVar+"=")
	i := slices.IndexFunc(inEngine(t), func(name string) bool { return strings.Contains(name, "origin") })
	if i < 0 {
		t.Fatalf("no container of the origin\n%s", text.String())
	}
	if b, err := exec.Command("docker", "kill", inEngine(t)[i]).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	waitFor(t, "the loss to be told, and the other side to race", func() bool {
		return lateIn(out, "nginx") >= 5 && strings.Contains(text.String(), "gohttp: origin: killed")
	})
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	for _, v := range judgedFolder(t, out).Cells {
		if v.State != spec.Races && (v.Proxy != "gohttp" || v.State != spec.Broken) {
			t.Errorf("%s: %s: %s", v.ID, v.State, v.Why)
		}
	}
}

// lateIn counts the late requests of a proxy's cells that a run has recorded.
func lateIn(out, proxy string) (n int) {
	b, _ := os.ReadFile(filepath.Join(out, results.Latest, results.ObservationsFile))
	for line := range strings.Lines(string(b)) {
		if strings.Contains(line, `"kind":"late"`) && strings.Contains(line, `"cell":"`+proxy+`_`) {
			n++
		}
	}
	return n
}

// TestE2EDockerProxyDies kills a proxy's container in mid-run.
func TestE2EDockerProxyDies(t *testing.T) {
	needImages(t, "nginx")
	cmd, out, text := startDocker(t, "gohttp, nginx")
	i := slices.IndexFunc(inEngine(t), func(name string) bool { return strings.Contains(name, "nginx") })
	if i < 0 {
		t.Fatal("no container of nginx")
	}
	if b, err := exec.Command("docker", "kill", inEngine(t)[i]).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	waitFor(t, "the loss to be told, and the other proxy to race", func() bool {
		return lateIn(out, "gohttp") >= 5 && strings.Contains(text.String(), "nginx: ")
	})
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Wait()
	d := judgedFolder(t, out)
	for _, v := range d.Cells {
		// What nginx lost before it died stays proven.
		if v.State != spec.Races && (v.Proxy != "nginx" || v.State != spec.Broken) {
			t.Errorf("%s: %s: %s", v.ID, v.State, v.Why)
		}
	}
	b, err := os.ReadFile(filepath.Join(out, results.Latest, results.ManifestFile))
	if err != nil || !strings.Contains(string(b), `"nginx": "nginx: killed (137)`) {
		t.Errorf("%v: the manifest does not tell nginx' fault:\n%s", err, b)
	}
}

func judgedFolder(t *testing.T, out string) *judge.Document {
	t.Helper()
	folder, err := results.Open(filepath.Join(out, results.Latest))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	d, _, err := folder.Judge()
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestE2EDockerEngineGoes cuts the connection to the engine in mid-run: what
// was seen until then is judged, and the exit code is the environment's.
func TestE2EDockerEngineGoes(t *testing.T) {
	needEngine(t)
	e, err := docker.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	socket, unix := strings.CutPrefix(e.Info().Host, "unix://")
	e.Close()
	if !unix {
		// What is cut off must be a way of this test's own to an engine that stays.
		t.Skipf("the engine is not at a socket of this machine: %s", e.Info().Host)
	}
	addr, cut := relay(t, socket)
	cmd, out, text := startDocker(t, "gohttp", "DOCKER_HOST=tcp://"+addr, "TESTCONTAINERS_RYUK_DISABLED=true")
	cut()
	cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != exitEnvironment || !strings.Contains(text.String(), "engine") {
		t.Errorf("exit code %d\n%s", code, text.String())
	}
	if d := judgedFolder(t, out); d.Run.Partial == "" {
		t.Errorf("the report does not say that the run is partial")
	}
	clean(t)
}

func TestE2EDockerFullDisk(t *testing.T) {
	needEngine(t)
	fullDisk(t, record.RuntimeDocker)
}

// relay passes TCP connections on to a Unix socket until it is cut.
func relay(t *testing.T, socket string) (addr string, cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			u, err := net.Dial("unix", socket)
			if err != nil {
				c.Close()
				continue
			}
			context.AfterFunc(ctx, func() { c.Close(); u.Close() })
			for _, pair := range [][2]net.Conn{{c, u}, {u, c}} {
				wg.Go(func() {
					io.Copy(pair[0], pair[1])
					if w, ok := pair[0].(interface{ CloseWrite() error }); ok {
						w.CloseWrite()
					}
				})
			}
		}
	})
	cut = sync.OnceFunc(func() { cancel(); l.Close(); wg.Wait() })
	t.Cleanup(cut)
	return l.Addr().String(), cut
}

// TestE2EDockerUnreachable asks for an engine that is not there.
func TestE2EDockerUnreachable(t *testing.T) {
	file := scenarioFile(t, "unreachable", "gohttp", "axes: {proxy_idle: [off], upstream_idle: [300ms]}")
	begun := time.Now()
	cmd := exec.Command(binary, "run", file, "--runtime", record.RuntimeDocker, "--out", t.TempDir())
	cmd.Env = append(os.Environ(), "DOCKER_HOST=tcp://127.0.0.1:9", "HOME="+t.TempDir())
	text, _ := cmd.CombinedOutput()
	if code := cmd.ProcessState.ExitCode(); code != exitEnvironment || !strings.Contains(string(text), "127.0.0.1:9") {
		t.Errorf("exit code %d\n%s", code, text)
	}
	t.Logf("told after %s", time.Since(begun))
}
