package proxy

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

var update = flag.Bool("update", false, "rewrite testdata/*/*.golden")

// fixedInput is one route of each kind: a plain cell, no keep-alive, the retry
// settings, and a timeout that no whole second holds.
func fixedInput(name string) Input {
	in := Input{Lanes: 40}
	add := func(role string, idle spec.Idle, method string, retry spec.Retry) {
		n := len(in.Routes)
		c := spec.Cell{Proxy: name, Upstream: "go", ProxyIdle: idle, UpstreamIdle: time.Second, Method: method, Retry: retry, Close: spec.CloseFIN}
		in.Routes = append(in.Routes, Route{ID: role + c.ID(), Cell: c, Listen: fmt.Sprintf("127.0.0.1:%d", 18001+n), Upstream: fmt.Sprintf("127.0.0.1:%d", 19001+n%2)})
	}
	add("", spec.Idle(time.Second), "GET", spec.RetryDefault)
	add("", spec.Off, "POST", spec.RetryDefault)
	add("", spec.Idle(1250*time.Millisecond), "POST", spec.RetryOn)
	add("", spec.Off, "GET", spec.RetryOn)
	add("control-must-race_", spec.Idle(time.Minute), "POST", spec.RetryOff)
	return in
}

func TestGolden(t *testing.T) {
	for _, a := range All() {
		t.Run(a.Name(), func(t *testing.T) {
			in := fixedInput(a.Name())
			s, err := a.Render(in)
			if err != nil {
				t.Fatal(err)
			}
			golden := map[string]string{"service": describe(s), "excerpt": a.Excerpt(in.Routes[2], in)}
			for name, content := range s.Files {
				if content != "" { // a file that only makes its folder
					golden[name] = content
				}
			}
			dir := filepath.Join("testdata", a.Name())
			for name, got := range golden {
				compareGolden(t, filepath.Join(dir, name+".golden"), got)
			}
			stale, err := filepath.Glob(filepath.Join(dir, "*.golden"))
			if err != nil {
				t.Fatal(err)
			}
			for _, path := range stale {
				if _, ok := golden[strings.TrimSuffix(filepath.Base(path), ".golden")]; !ok {
					t.Errorf("%s is of a file that is no longer rendered", path)
				}
			}
		})
	}
}

func compareGolden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v; -update writes it", err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got; -update rewrites it):\n%s", path, diff)
	}
}

func describe(s stack.Service) string {
	return fmt.Sprintf("name: %s\nbinary: %s\nargs: %q\nready: %q %s\n", s.Name, s.Binary, s.Args, s.Ready, s.ReadyPath)
}

func TestRender(t *testing.T) {
	for _, a := range All() {
		t.Run(a.Name(), func(t *testing.T) {
			in := fixedInput(a.Name())
			s, err := a.Render(in)
			if err != nil {
				t.Fatal(err)
			}
			if s.Name != a.Name() || s.Binary != a.Program().Binary {
				t.Errorf("service %q runs %q, want %q and %q", s.Name, s.Binary, a.Name(), a.Program().Binary)
			}
			if len(s.Ready) != len(in.Routes) {
				t.Errorf("%d ready addresses for %d routes", len(s.Ready), len(in.Routes))
			}
			var all strings.Builder
			for name, content := range s.Files {
				if !filepath.IsLocal(name) {
					t.Errorf("file %q leaves the service's folder", name)
				}
				all.WriteString(content)
			}
			again, err := a.Render(in)
			if err != nil || cmp.Diff(s, again) != "" {
				t.Errorf("the same input renders differently: %v\n%s", err, cmp.Diff(s, again))
			}
			for i, r := range in.Routes {
				_, port, _ := strings.Cut(r.Listen, ":")
				if !strings.Contains(all.String(), port) {
					t.Errorf("route %d does not listen on %s", i, r.Listen)
				}
				excerpt := a.Excerpt(r, in)
				if !strings.Contains(excerpt, port) {
					t.Errorf("excerpt of route %d does not listen on %s:\n%s", i, r.Listen, excerpt)
				}
				for j, other := range in.Routes {
					if _, port, _ := strings.Cut(other.Listen, ":"); j != i && strings.Contains(excerpt, port) {
						t.Errorf("excerpt of route %d holds route %d:\n%s", i, j, excerpt)
					}
				}
			}
		})
	}
}
