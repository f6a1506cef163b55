package proxy

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

// binary finds an adapter's program, or skips the test by name.
// IDLERACE_REQUIRE, a comma-separated list, turns the skip into a failure.
func binary(t *testing.T, a Adapter) string {
	t.Helper()
	name := a.Program().Binary
	for _, path := range []string{name, "/usr/sbin/" + name, "/usr/local/sbin/" + name, "/usr/local/bin/" + name} {
		if path, err := exec.LookPath(path); err == nil {
			return path
		}
	}
	if slices.Contains(strings.Split(os.Getenv("IDLERACE_REQUIRE"), ","), a.Name()) {
		t.Fatalf("%s is required (IDLERACE_REQUIRE) and not here; to get it: %s", a.Name(), a.Program().Get)
	}
	t.Skipf("%s is not here; to get it: %s", a.Name(), a.Program().Get)
	return ""
}

// freePorts gives addresses that nobody listened on a moment ago.
func freePorts(t *testing.T, n int) []string {
	t.Helper()
	var out []string
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		out = append(out, l.Addr().String())
	}
	return out
}

// written writes a service's files and gives its command.
func written(ctx context.Context, t *testing.T, s stack.Service, path string, args ...string) *exec.Cmd {
	t.Helper()
	dir := t.TempDir()
	for name, content := range s.Files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range args {
		args[i] = strings.ReplaceAll(args[i], "{dir}", dir)
	}
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = dir
	return cmd
}

// TestValidate has each program that can check a configuration do so.
func TestValidate(t *testing.T) {
	check := map[string][]string{ // arguments added to those of the service
		"nginx": {"-t"},
		"envoy": {"--mode", "validate"},
	}
	for _, a := range All() {
		args, ok := check[a.Name()]
		if !ok {
			continue
		}
		t.Run(a.Name(), func(t *testing.T) {
			path := binary(t, a)
			in := fixedInput(a.Name())
			for i, addr := range freePorts(t, len(in.Routes)) { // a check may bind them
				in.Routes[i].Listen = addr
			}
			s, err := a.Render(in)
			if err != nil {
				t.Fatal(err)
			}
			cmd := written(t.Context(), t, s, path, append(slices.Clone(s.Args), args...)...)
			if out, err := cmd.CombinedOutput(); err != nil {
				logged, _ := os.ReadFile(filepath.Join(cmd.Dir, "stderr.log"))
				t.Errorf("%v: %v\n%s%s", cmd.Args, err, out, logged)
			}
		})
	}
}

// A version is in what the program prints today, not only in what it printed
// when TestVersion was written.
func TestVersionOfProgram(t *testing.T) {
	for _, a := range All() {
		if a.Program().Embedded {
			continue
		}
		t.Run(a.Name(), func(t *testing.T) {
			out, err := exec.CommandContext(t.Context(), binary(t, a), a.Program().Args...).CombinedOutput()
			if err != nil || a.Program().Version.FindSubmatch(out) == nil {
				t.Errorf("no version: %v: %s", err, out)
			}
		})
	}
}

// witness is an upstream that tells its connections apart.
type witness struct {
	*httptest.Server
	mu     sync.Mutex
	conns  map[string]string    // request path -> the proxy's address
	closed map[string]time.Time // the proxy's address -> end of the connection
}

func newWitness(t *testing.T) *witness {
	w := &witness{conns: map[string]string{}, closed: map[string]time.Time{}}
	w.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns[r.URL.Path] = r.RemoteAddr
	}))
	w.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.closed[c.RemoteAddr().String()] = time.Now()
		}
	}
	w.Start()
	t.Cleanup(w.Close)
	return w
}

func (w *witness) conn(path string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[path]
}

func (w *witness) closedAt(conn string) (time.Time, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	at, ok := w.closed[conn]
	return at, ok
}

// patience bounds the waits of TestServes; a loaded machine may need much of it.
const patience = 20 * time.Second

// eventually waits until cond holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// TestServes starts each program on its rendered configuration: every route
// answers, reuses its upstream connection or does not, closes it by its own
// idle timeout, and every request appears in the log.
func TestServes(t *testing.T) {
	for _, a := range All() {
		if a.Program().Embedded {
			continue // package gohttp's tests
		}
		t.Run(a.Name(), func(t *testing.T) {
			path := binary(t, a)
			up := newWitness(t)
			in := fixedInput(a.Name())
			in.Routes[0].Cell.ProxyIdle = spec.Idle(300 * time.Millisecond)
			for i, addr := range freePorts(t, len(in.Routes)) {
				in.Routes[i].Listen, in.Routes[i].Upstream = addr, up.Listener.Addr().String()
			}
			s, err := a.Render(in)
			if err != nil {
				t.Fatal(err)
			}
			logs := serve(t, s, path)
			client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}}
			defer client.CloseIdleConnections()
			for _, r := range in.Routes {
				eventually(t, "an answer of "+r.ID, func() bool { return ask(t, client, r, 0) == http.StatusOK })
			}
			for _, r := range in.Routes {
				for seq := range 2 {
					if status := ask(t, client, r, 1+seq); status != http.StatusOK {
						t.Errorf("%s: status %d", r.ID, status)
					}
				}
				first, second := up.conn(pathOf(r, 1)), up.conn(pathOf(r, 2))
				if reused := first == second; reused == (r.Cell.ProxyIdle == spec.Off) {
					t.Errorf("%s: connection reused: %t", r.ID, reused)
				}
			}
			// The first route's idle timeout, counted from before its last request.
			ask(t, client, in.Routes[0], 3)
			sent := time.Now()
			ask(t, client, in.Routes[0], 4)
			conn := up.conn(pathOf(in.Routes[0], 4))
			eventually(t, "the proxy closing its idle connection", func() bool { _, ok := up.closedAt(conn); return ok })
			at, _ := up.closedAt(conn)
			if d := at.Sub(sent); d < 290*time.Millisecond {
				t.Errorf("an idle timeout of 300ms closed after %v", d)
			}

			seen := map[string]record.LogLine{}
			eventually(t, "a log line of every request", func() bool {
				for _, line := range logs() {
					if l, ok := a.Parse(line); ok {
						seen[fmt.Sprintf("/%s/%d", l.Cell, l.Seq)] = l
					}
				}
				for _, r := range in.Routes {
					for _, seq := range []int{1, 2} {
						if _, ok := seen[pathOf(r, seq)]; !ok {
							return false
						}
					}
				}
				return true
			})
			for path, l := range seen {
				if l.Status != http.StatusOK && !strings.HasSuffix(path, "/0") {
					t.Errorf("the log of %s says status %d: %+v", path, l.Status, l)
				}
				for _, at := range l.Attempts {
					if at.Local != "" && at.Local != up.conn(path) {
						t.Errorf("the log of %s names the connection %s, the upstream saw %s", path, at.Local, up.conn(path))
					}
				}
			}
		})
	}
}

// serve starts a service until the test ends; the function it returns gives the
// lines logged so far.
func serve(t *testing.T, s stack.Service, path string) (logs func() []string) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	cmd := written(ctx, t, s, path, slices.Clone(s.Args)...)
	files := []string{filepath.Join(cmd.Dir, "stdout.log"), filepath.Join(cmd.Dir, "stderr.log")}
	for i, out := range []*io.Writer{&cmd.Stdout, &cmd.Stderr} {
		f, err := os.OpenFile(files[i], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		*out = f
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		cmd.Wait()
		if t.Failed() {
			for _, name := range files {
				b, _ := os.ReadFile(name)
				t.Logf("%s:\n%s", name, b[:min(len(b), 4<<10)])
			}
		}
	})
	return func() (lines []string) {
		for _, name := range files {
			b, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for sc := bufio.NewScanner(bytes.NewReader(b)); sc.Scan(); {
				lines = append(lines, sc.Text())
			}
		}
		return lines
	}
}

func pathOf(r Route, seq int) string { return fmt.Sprintf("/%s/%d", r.ID, seq) }

// ask sends one request as package load does; 0 without an answer.
func ask(t *testing.T, client *http.Client, r Route, seq int) int {
	t.Helper()
	var body io.Reader
	if r.Cell.Method == "POST" {
		body = strings.NewReader("idlerace=1\n")
	}
	req, err := http.NewRequestWithContext(t.Context(), r.Cell.Method, "http://"+r.Listen+pathOf(r, seq), body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Vegeta-Attack", r.ID)
	req.Header.Set("X-Vegeta-Seq", fmt.Sprint(seq))
	resp, err := client.Do(req)
	if err != nil {
		return 0
	}
	defer resp.Body.Close()
	io.Copy(io.Discard, resp.Body)
	return resp.StatusCode
}
