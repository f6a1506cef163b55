package run

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
	"idlerace/harness/stack/local"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const small = `version: 1
name: small
proxies: [gohttp]
axes: {proxy_idle: [1s], upstream_idle: [500ms], method: [POST]}
`

func prepared(t *testing.T, text string, o Options) *run {
	t.Helper()
	s, err := spec.Read("test.yaml", []byte(text), proxy.Names())
	if err != nil {
		t.Fatal(err)
	}
	o.Out, o.Self, o.Runtime = t.TempDir(), "/no/such/program", record.RuntimeEmbedded
	if o.Say == nil {
		o.Say = t.Logf
	}
	r, err := prepare(t.Context(), s, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.folder.Close() })
	return r
}

// fakeRuntime starts nothing; fail decides what Start returns.
type fakeRuntime struct {
	fail    func(service string) error
	started []string
	stopped []string
}

func (f *fakeRuntime) Name() string { return record.RuntimeLocal }

func (f *fakeRuntime) Reserve(n int) (stack.Addresses, error) { return local.Reserve(n) }

func (f *fakeRuntime) Start(_ context.Context, s stack.Service, _ string) (stack.Instance, error) {
	f.started = append(f.started, s.Name)
	if err := f.fail(s.Name); err != nil {
		return nil, err
	}
	return &fakeInstance{f, s}, nil
}

type fakeInstance struct {
	rt *fakeRuntime
	s  stack.Service
}

func (i *fakeInstance) Service() stack.Service       { return i.s }
func (i *fakeInstance) Address(ready string) string  { return ready }
func (i *fakeInstance) Peer(ready string) string     { return ready }
func (i *fakeInstance) Stdout() string               { return "" }
func (i *fakeInstance) Stderr() string               { return "" }
func (i *fakeInstance) Done() <-chan struct{}        { return nil }
func (i *fakeInstance) Err() error                   { return nil }
func (i *fakeInstance) Pause(context.Context) error  { return nil }
func (i *fakeInstance) Resume(context.Context) error { return nil }
func (i *fakeInstance) Stop(context.Context) error {
	i.rt.stopped = append(i.rt.stopped, i.s.Name)
	return nil
}

func taken(name string) error {
	return &stack.ExitError{Service: name, Reason: "exit status 1", Tail: []string{"bind: address already in use"}}
}

func TestTakenPortsAreTriedAnew(t *testing.T) {
	r := prepared(t, small, Options{})
	left := 2
	rt := &fakeRuntime{fail: func(name string) error {
		if name == "gohttp" && left > 0 {
			left--
			return taken(name)
		}
		return nil
	}}
	st, err := r.start(t.Context(), []stack.Runtime{rt})
	if err != nil {
		t.Fatal(err)
	}
	stopAll(t.Context(), st)
	if got := strings.Join(rt.started, " "); got != "origin gohttp origin gohttp origin gohttp" {
		t.Errorf("started %s", got)
	}
	if got := strings.Join(rt.stopped, " "); got != "origin origin gohttp origin" {
		t.Errorf("stopped %s: what came up must go down before another try", got)
	}
}

func TestPortsTakenForGood(t *testing.T) {
	r := prepared(t, small, Options{})
	rt := &fakeRuntime{fail: taken}
	_, err := r.start(t.Context(), []stack.Runtime{rt})
	var exit *stack.ExitError
	if !errors.As(err, &exit) || len(rt.started) != portAttempts {
		t.Errorf("%v after %d tries", err, len(rt.started))
	}
}

func TestProxyThatDoesNotStartBreaksItsCellsOnly(t *testing.T) {
	r := prepared(t, small, Options{})
	rt := &fakeRuntime{fail: func(name string) error {
		if name == "gohttp" {
			return &stack.ExitError{Service: name, Reason: "exit status 1", Tail: []string{"bad directive"}}
		}
		return nil
	}}
	st, err := r.start(t.Context(), []stack.Runtime{rt})
	if err != nil {
		t.Fatal(err)
	}
	if len(st[0].proxies) != 0 || !strings.Contains(r.manifest.Faults["gohttp"], "bad directive") {
		t.Errorf("proxies %v, faults %v", st[0].proxies, r.manifest.Faults)
	}
}

func TestOriginThatDoesNotStartEndsTheRun(t *testing.T) {
	s, err := spec.Read("test.yaml", []byte(small), nil)
	if err != nil {
		t.Fatal(err)
	}
	out := t.TempDir()
	folder, err := Run(t.Context(), nil, s, Options{Runtime: record.RuntimeEmbedded, Out: out, Self: filepath.Join(out, "nothing")})
	if !errors.Is(err, ErrEnvironment) || folder == nil {
		t.Fatalf("%v", err)
	}
	defer folder.Close()
	d, _, err := folder.Judge()
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(d.Run.Partial, "the stack did not start") || d.Cells[0].State != spec.Inconclusive {
		t.Errorf("%q, %s", d.Run.Partial, d.Cells[0].State)
	}
}

// An interrupt before there is a run leaves nothing behind.
func TestInterruptedAtOnce(t *testing.T) {
	s, err := spec.Read("test.yaml", []byte(small), nil)
	if err != nil {
		t.Fatal(err)
	}
	soft := make(chan struct{})
	close(soft)
	out := t.TempDir()
	if folder, err := Run(t.Context(), soft, s, Options{Runtime: record.RuntimeEmbedded, Out: out}); folder != nil || !errors.Is(err, ErrInterrupted) {
		t.Errorf("%v, %v", folder, err)
	}
	if entries, _ := os.ReadDir(out); len(entries) > 0 {
		t.Errorf("left: %v", entries)
	}
}

func TestPrepareErrors(t *testing.T) {
	s, err := spec.Read("test.yaml", []byte(small), nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Run(t.Context(), nil, s, Options{Runtime: record.RuntimeEmbedded, Out: filepath.Join(file, "results")}); !errors.Is(err, ErrEnvironment) {
		t.Errorf("results in a file: %v", err)
	}
	if _, err := Run(t.Context(), nil, s, Options{Runtime: record.RuntimeEmbedded, Out: t.TempDir(), Only: func(plan.Item) bool { return false }}); err == nil || !strings.Contains(err.Error(), "no cell is left") {
		t.Errorf("nothing to run: %v", err)
	}
	s.Proxies[0].Name = "ghost"
	if _, err := Run(t.Context(), nil, s, Options{Runtime: record.RuntimeEmbedded, Out: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "ghost") {
		t.Errorf("unknown proxy: %v", err)
	}
}

func TestFind(t *testing.T) {
	embedded, err := proxy.ByName("gohttp")
	if err != nil {
		t.Fatal(err)
	}
	nothing := &Finder{Runtime: record.RuntimeEmbedded, Self: "/self"}
	f, err := nothing.Find(t.Context(), embedded, "")
	if err != nil || f.Run.Runtime != record.RuntimeEmbedded || f.Run.Path != "/self" || f.Run.Version == "" {
		t.Errorf("%+v %v", f, err)
	}
	other, err := proxy.ByName("nginx")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nothing.Find(t.Context(), other, ""); err == nil {
		t.Error("the embedded runtime found a program")
	}
	// A program of that name that is no nginx.
	dir := t.TempDir()
	for name, script := range map[string]string{"no version in": "#!/bin/sh\necho hello\n", "exit status 3": "#!/bin/sh\nexit 3\n"} {
		if err := os.WriteFile(filepath.Join(dir, "nginx"), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
		t.Setenv("PATH", dir)
		if _, err := (&Finder{Runtime: record.RuntimeLocal, Self: "/self"}).Find(t.Context(), other, ""); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("want %q: %v", name, err)
		}
	}
}

// TestContained: what shapes a network runs in containers or not at all, and one
// error says so before anything is made.
func TestContained(t *testing.T) {
	s, err := spec.Read("test.yaml", []byte(strings.Replace(small, "}\n", ", rtt: [20ms]}\nlink: {driver: netem}\n", 1)), proxy.Names())
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_HOST", "unix:///no/such/engine.sock")
	for runtime, want := range map[string]string{
		record.RuntimeLocal:    "link.driver netem needs containers, not runtime local: it would be done to the network of this whole machine",
		record.RuntimeEmbedded: "link.driver netem needs containers, not runtime embedded: it would be done to the network of this whole machine",
		record.RuntimeDocker:   "link.driver netem needs containers: no container engine at DOCKER_HOST=unix:///no/such/engine.sock",
		RuntimeAuto:            "link.driver netem needs containers: no container engine at DOCKER_HOST=unix:///no/such/engine.sock",
	} {
		out := t.TempDir()
		folder, err := Run(t.Context(), nil, s, Options{Runtime: runtime, Out: out, Self: "/no/such/program"})
		if !errors.Is(err, ErrEnvironment) || !strings.HasPrefix(err.Error(), want) || folder != nil {
			t.Errorf("%s: %v, %v", runtime, folder, err)
		}
		if left, err := os.ReadDir(out); err != nil || len(left) > 0 {
			t.Errorf("%s: left behind: %v, %v", runtime, left, err)
		}
	}
	// Where an engine answers, a proxy without an image does not fall back to a
	// process.
	a, err := proxy.ByName("gohttp")
	if err != nil {
		t.Fatal(err)
	}
	f := &Finder{Runtime: RuntimeAuto, Self: "/self", Contained: "link.driver netem"}
	defer f.Close()
	if found, err := f.Find(t.Context(), a, ""); err == nil || err.Error() != "link.driver netem needs a container" {
		t.Errorf("%+v, %v", found.Run, err)
	}
	if got := f.Get(a, ""); !strings.HasPrefix(got, "docker pull ") {
		t.Errorf("to get it: %s", got)
	}
}

// TestSeenClosed: a network between server and capture holds the close back, and
// lets a request pass the capture before it arrives.
func TestSeenClosed(t *testing.T) {
	const at, ms = int64(time.Second), time.Millisecond
	for _, tt := range []struct {
		rtt  time.Duration
		link spec.Link
		want int64
	}{
		{0, spec.Link{}, 0},
		{0, spec.Link{Idle: time.Second, OnIdle: spec.ExpiryDrop}, 0},
		{20 * ms, spec.Link{}, at - int64(10*ms)},
		{20 * ms, spec.Link{Up: spec.Direction{Jitter: ms}}, at - int64(11*ms)},
		{20 * ms, spec.Link{Netem: true}, at},
		{0, spec.Link{Netem: true, Down: spec.Direction{Jitter: ms}}, at},
	} {
		c := &cell{link: tt.link}
		c.item.Cell.RTT = tt.rtt
		if got := c.seenClosed(at); got != tt.want {
			t.Errorf("%s %+v: %s, want %s", tt.rtt, tt.link, time.Duration(got), time.Duration(tt.want))
		}
	}
}

// TestSuspects: a late request is held against the close of its connection, and
// a connection without such a witness against its own.
func TestSuspects(t *testing.T) {
	const at = int64(time.Hour)
	closed := record.Event{At: at, Conn: 7, Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: time.Second}
	late := record.Event{At: at + 5, Conn: 7, Kind: record.EventLate, Idle: time.Second + 5}
	for style, events := range map[spec.Close][]record.Event{spec.CloseFIN: {closed, late}, spec.ClosePlain: {closed}} {
		c := &cell{packets: &packetSource{}, closes: map[uint64]int64{}, link: spec.Link{Netem: true}}
		c.item.Cell.Close, c.item.Cell.RTT = style, 20*time.Millisecond
		for _, e := range events {
			c.suspect(e)
		}
		if len(c.suspects) != 1 || c.suspects[0].closed != at || c.suspects[0].idle != at-int64(time.Second) || c.suspects[0].conn != 7 {
			t.Errorf("%s: %+v", style, c.suspects)
		}
	}
}

func TestOpenFiles(t *testing.T) {
	if err := openFiles(1); err != nil {
		t.Errorf("one lane: %v", err)
	}
	if err := openFiles(1 << 40); err == nil || !strings.Contains(err.Error(), "ulimit -n") {
		t.Errorf("too many lanes: %v", err)
	}
}

func TestRequired(t *testing.T) {
	t.Setenv(RequireVar, " nginx,envoy  docker,")
	if got := Required(); !slices.Equal(got, []string{"nginx", "envoy", "docker"}) {
		t.Errorf("%q", got)
	}
}

func TestLineReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	w, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &lineReader{f: f}
	var got []string
	read := func() {
		t.Helper()
		if err := r.each(func(line string) { got = append(got, line) }); err != nil {
			t.Fatal(err)
		}
	}
	read()
	w.WriteString("one\ntw")
	read()
	w.WriteString("o\n\nthree\n" + strings.Repeat("x", maxLogLine+1))
	read()
	w.WriteString("\nfour\n")
	read()
	want := []string{"one", "two", "", "three", "", "four"}
	if len(got) != len(want) {
		t.Fatalf("%d lines: %.80q", len(got), got)
	}
	for i := range want {
		if i != 4 && got[i] != want[i] {
			t.Errorf("line %d: %.40q, want %q", i, got[i], want[i])
		}
	}
	if len(got[4]) > maxLogLine {
		t.Errorf("a line of %d bytes", len(got[4]))
	}
}

func TestHubWait(t *testing.T) {
	folder, err := results.Create(t.TempDir(), "s", "run", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	h, err := newHub(folder, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer h.end(record.EndDone)
	j := &journal{}
	synctest.Test(t, func(t *testing.T) {
		if h.wait(t.Context(), time.Second, func() bool { return false }) {
			t.Error("waited for what never came")
		}
		go func() {
			time.Sleep(time.Second)
			h.addFrom(j, 7, record.Line{T: record.KindEvent, Event: &record.Event{N: 7}})
		}()
		begun := time.Now()
		if !h.wait(t.Context(), time.Minute, func() bool { return j.seen == 7 }) || time.Since(begun) != time.Second {
			t.Errorf("woken after %s", time.Since(begun))
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if h.wait(ctx, time.Minute, func() bool { return false }) {
			t.Error("a cancelled wait succeeded")
		}
	})
}

func TestNothingIsRecordedAfterTheEnd(t *testing.T) {
	folder, err := results.Create(t.TempDir(), "s", "run", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	h, err := newHub(folder, nil)
	if err != nil {
		t.Fatal(err)
	}
	h.add(record.Line{T: record.KindEvent, Event: &record.Event{N: 1}})
	if err := h.end(record.EndDone); err != nil {
		t.Fatal(err)
	}
	h.add(record.Line{T: record.KindEvent, Event: &record.Event{N: 2}})
	obs, err := folder.Observations()
	if err != nil {
		t.Fatal(err)
	}
	defer obs.Close()
	var kinds []string
	for l, err := range record.Read(obs) {
		if err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, l.T)
	}
	if !slices.Equal(kinds, []string{record.KindEvent, record.KindEnd}) {
		t.Errorf("%q", kinds)
	}
}
