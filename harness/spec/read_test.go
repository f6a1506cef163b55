package spec

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "rewrite testdata/bad/*.err")

var knownProxies = []string{"envoy", "gohttp", "haproxy", "nginx", "traefik"}

// Each testdata/bad/*.yaml has its exact error text, without the folder, in a
// file of its name ending in .err.
func TestReadBad(t *testing.T) {
	files := glob(t, "testdata/bad/*.yaml")
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		t.Run(name, func(t *testing.T) {
			_, err := Read(filepath.Base(path), readFile(t, path), knownProxies)
			if err == nil {
				t.Fatal("no error")
			}
			if _, ok := err.(*Error); !ok {
				t.Fatalf("error is a %T, want *Error", err)
			}
			want := strings.TrimSuffix(path, ".yaml") + ".err"
			got := err.Error() + "\n"
			if *update {
				if err := os.WriteFile(want, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(readFile(t, want)), got); diff != "" {
				t.Errorf("error text (-want +got), -update rewrites it:\n%s", diff)
			}
		})
	}
	if errs := glob(t, "testdata/bad/*.err"); len(errs) != len(files) {
		t.Errorf("%d .err files for %d .yaml files", len(errs), len(files))
	}
}

func TestReadGood(t *testing.T) {
	for file, want := range map[string]*Scenario{
		"minimal.yaml": {
			Version:  1,
			Name:     "minimal",
			Proxies:  []Proxy{{Name: "gohttp"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Idle(time.Second)},
				UpstreamIdle: []time.Duration{500 * time.Millisecond},
				Method:       []string{"GET", "POST"},
				Retry:        []Retry{RetryDefault},
				Close:        []Close{CloseFIN},
				RTT:          []time.Duration{0},
			},
			Probe: Probe{Shots: 300, Budget: time.Minute, Seed: 1, Until: UntilDecided, Aim: AimProof},
		},
		"design.yaml": {
			Version:  1,
			Name:     "quickstart",
			About:    "One sentence that a report can print.",
			Proxies:  []Proxy{{Name: "gohttp"}, {Name: "nginx"}, {Name: "envoy"}, {Name: "traefik", Image: "traefik:v3.6"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Idle(500 * time.Millisecond), Idle(time.Second), Idle(2 * time.Second), Off},
				UpstreamIdle: []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second},
				Method:       []string{"GET", "POST"},
				Retry:        []Retry{RetryDefault},
				Close:        []Close{CloseFIN},
				RTT:          []time.Duration{0},
			},
			Probe:  Probe{Lanes: 40, Shots: 300, Budget: time.Minute, Seed: 1, Until: UntilDecided, Aim: AimProof},
			Policy: &Policy{Forbid: []State{Races}, Where: "upstream_idle > proxy_idle"},
		},
		"block-style.yaml": {
			Version:  1,
			Name:     "block-style",
			About:    "Folded over two lines, with CRLF and a byte order mark.",
			Proxies:  []Proxy{{Name: "haproxy"}, {Name: "nginx", Image: "registry:5000/nginx@sha256:0123"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Off, Idle(90 * time.Second)},
				UpstreamIdle: []time.Duration{24 * time.Hour, time.Millisecond},
				Method:       []string{"DELETE"},
				Retry:        []Retry{RetryOff, RetryOn},
				Close:        []Close{CloseRST, CloseHalfClose, ClosePlain},
				RTT:          []time.Duration{0, 40 * time.Millisecond},
			},
			Probe:  Probe{Lanes: 1, Shots: 1, Budget: 1500 * time.Millisecond, Seed: 1<<64 - 1, Until: UntilShots, Aim: AimProof},
			Policy: &Policy{Forbid: []State{Races, Masked}},
		},
		"link.yaml": {
			Version:  1,
			Name:     "link",
			Proxies:  []Proxy{{Name: "nginx"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Idle(time.Second)},
				UpstreamIdle: []time.Duration{time.Second},
				Method:       []string{"POST"},
				Retry:        []Retry{RetryDefault},
				Close:        []Close{CloseFIN},
				RTT:          []time.Duration{20 * time.Millisecond},
			},
			Link: Link{
				Up:   Direction{Delay: 5 * time.Millisecond},
				Down: Direction{Delay: 15 * time.Millisecond, Jitter: 2 * time.Millisecond},
				Idle: 350 * time.Millisecond, OnIdle: ExpiryResetLate, HalfClosed: time.Minute,
			},
			Probe: Probe{Shots: 300, Budget: time.Minute, Seed: 1, Until: UntilShots, Aim: AimWindow},
		},
		"link-netem.yaml": {
			Version:  1,
			Name:     "link-netem",
			Proxies:  []Proxy{{Name: "nginx"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Idle(time.Second)},
				UpstreamIdle: []time.Duration{time.Second},
				Method:       []string{"POST"},
				Retry:        []Retry{RetryDefault},
				Close:        []Close{CloseFIN},
				RTT:          []time.Duration{15 * time.Millisecond},
			},
			Link:  Link{Netem: true, Down: Direction{Delay: 15 * time.Millisecond, Jitter: 2 * time.Millisecond}},
			Probe: Probe{Shots: 300, Budget: time.Minute, Seed: 1, Until: UntilDecided, Aim: AimProof},
		},
		"chaos.yaml": {
			Version:  1,
			Name:     "chaos",
			Proxies:  []Proxy{{Name: "nginx"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Idle(time.Second)},
				UpstreamIdle: []time.Duration{time.Second},
				Method:       []string{"POST"},
				Retry:        []Retry{RetryDefault},
				Close:        []Close{CloseFIN},
				RTT:          []time.Duration{0},
			},
			Chaos: []Chaos{
				{PauseProxy, 300 * time.Millisecond, 5 * time.Second},
				{PauseOrigin, 10 * time.Second, 20 * time.Second},
				{RestartOrigin, 0, 100 * time.Millisecond},
				{BurnCPU, time.Millisecond, 100 * time.Millisecond},
			},
			Probe: Probe{Shots: 300, Budget: time.Minute, Seed: 1, Until: UntilDecided, Aim: AimProof},
		},
		"upstream-close.yaml": {
			Version:  1,
			Name:     "0",
			Proxies:  []Proxy{{Name: "gohttp"}},
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				ProxyIdle:    []Idle{Idle(time.Second)},
				UpstreamIdle: []time.Duration{time.Second},
				Method:       []string{"GET", "POST"},
				Retry:        []Retry{RetryDefault},
				Close:        []Close{CloseHalfClose},
				RTT:          []time.Duration{0},
			},
			Probe:  Probe{Shots: 300, Budget: time.Minute, Seed: 0, Until: UntilDecided, Aim: AimProof},
			Policy: &Policy{Forbid: []State{Broken}, Where: "method == \"POST\" and\nupstream_idle >= \"1s\""},
		},
	} {
		t.Run(file, func(t *testing.T) {
			path := filepath.Join("testdata", "good", file)
			got, err := ReadFile(path, knownProxies)
			if err != nil {
				t.Fatal(err)
			}
			want.File, want.Source = path, readFile(t, path)
			if diff := diffScenarios(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadLargeFiles(t *testing.T) {
	valid := string(readFile(t, "testdata/good/minimal.yaml"))
	for _, tt := range []struct{ name, text, want string }{
		{"bytes", valid + "#" + strings.Repeat("x", maxBytes), "f: the file is larger than 1 MiB (a scenario is a few kilobytes)"},
		{"lines", valid + strings.Repeat("\n", maxLines), "f:10001: the file has more than 10000 lines (a scenario is a few dozen lines)"},
		{"nesting", "version: " + strings.Repeat("[", maxBytes/2), "f:1: the file has more than 20000 YAML tokens (a scenario of 1024 cells needs far fewer)"},
		{"lone carriage returns", strings.Repeat("\r", 4) + "about: 7\r", `f:5: about: want text, got the number 7 (put it in quotes)`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Read("f", []byte(tt.text), nil)
			if err == nil || err.Error() != tt.want {
				t.Errorf("error %v\nwant  %s", err, tt.want)
			}
		})
	}
}

func TestReadTakesAnyProxyNameWhenNoneIsKnown(t *testing.T) {
	text := strings.Replace(string(readFile(t, "testdata/good/minimal.yaml")), "gohttp", "pingora-0", 1)
	if _, err := Read("f", []byte(text), nil); err != nil {
		t.Error(err)
	}
	_, err := Read("f", []byte(strings.Replace(text, "pingora-0", "../x", 1)), nil)
	if err == nil {
		t.Error("no error for a proxy name that is not path-safe")
	}
}

func TestReadKeepsItsOwnSource(t *testing.T) {
	data := readFile(t, "testdata/good/minimal.yaml")
	s, err := Read("f", data, nil)
	if err != nil {
		t.Fatal(err)
	}
	want := slices.Clone(data)
	clear(data)
	if string(s.Source) != string(want) {
		t.Error("Source changed with the caller's slice")
	}
}

func TestReadFileErrors(t *testing.T) {
	dir := t.TempDir()
	secret := filepath.Join(dir, "secret.yaml")
	if err := os.WriteFile(secret, nil, 0); err != nil {
		t.Fatal(err)
	}
	tests := []struct{ path, want string }{
		{filepath.Join(dir, "none.yaml"), "cannot open: no such file or directory (examples are in scenarios/)"},
		{dir, "cannot read: is a directory (name a file in that folder)"},
	}
	if os.Geteuid() != 0 {
		tests = append(tests, struct{ path, want string }{secret, "cannot open: permission denied (make the file readable)"})
	}
	for _, tt := range tests {
		_, err := ReadFile(tt.path, nil)
		e, ok := errors.AsType[*Error](err)
		if !ok {
			t.Fatalf("error %v is a %T, want *Error", err, err)
		}
		if want := tt.path + ": " + tt.want; e.Error() != want || e.Line != 0 {
			t.Errorf("error %v\nwant  %s", err, want)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, path := range slices.Concat(glob(f, "testdata/good/*.yaml"), glob(f, "testdata/bad/*.yaml")) {
		f.Add(readFile(f, path))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := Read("fuzz.yaml", data, nil)
		if err != nil {
			checkError(t, err, data)
			return
		}
		checkLimits(t, s)
		again, err := Read(s.File, s.Source, nil)
		if err != nil {
			t.Fatalf("second reading: %v", err)
		}
		if diff := diffScenarios(s, again); diff != "" {
			t.Errorf("second reading (-first +second):\n%s", diff)
		}
	})
}

func checkError(t *testing.T, err error, data []byte) {
	e, ok := err.(*Error)
	if !ok {
		t.Fatalf("error %v is a %T, want *Error", err, err)
	}
	lines := 1 + strings.Count(string(data), "\n") + strings.Count(string(data), "\r")
	if e.File != "fuzz.yaml" || e.Msg == "" || e.Hint == "" || e.Line < 0 || e.Line > lines {
		t.Errorf("error %+v of a file with at most %d lines", e, lines)
	}
	unprintable := func(r rune) bool { return !unicode.IsGraphic(r) }
	if text := e.Error(); len(text) > 2000 || strings.ContainsFunc(text, unprintable) {
		t.Errorf("error text %q is not one printable line", text)
	}
}

func checkLimits(t *testing.T, s *Scenario) {
	cells := s.Cells()
	if n := len(cells); n == 0 || n > MaxCells || n*s.Probe.Lanes > MaxTotalLanes {
		t.Errorf("%d cells x %d lanes", n, s.Probe.Lanes)
	}
	ids := map[string]bool{}
	for _, c := range cells {
		if ids[c.ID()] {
			t.Errorf("two cells %s", c.ID())
		}
		ids[c.ID()] = true
		if !pathSafe(c.ID()) {
			t.Errorf("id %q is not path-safe", c.ID())
		}
		if c.ProxyIdle < 0 || c.ProxyIdle > Idle(MaxDuration) || c.UpstreamIdle <= 0 || c.UpstreamIdle > MaxDuration ||
			c.RTT < 0 || c.RTT > MaxDuration {
			t.Errorf("duration out of range in %+v", c)
		}
		if s.Policy != nil {
			if _, err := s.Policy.Match(c); err != nil {
				t.Error(err)
			}
		}
	}
	if p := s.Probe; p.Lanes < 0 || p.Lanes > MaxLanes || p.Shots < 1 || p.Shots > MaxShots || p.Budget <= 0 || p.Budget > MaxDuration {
		t.Errorf("probe %+v", p)
	}
	if s.Version != Version || !pathSafe(s.Name) || s.Policy != nil && len(s.Policy.Forbid) == 0 {
		t.Errorf("scenario %+v", s)
	}
}

func diffScenarios(want, got *Scenario) string {
	return cmp.Diff(want, got, cmpopts.IgnoreUnexported(Policy{}))
}

func pathSafe(s string) bool {
	return s != "" && s[0] != '.' && s[0] != '-' && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r)
	})
}

func glob(t testing.TB, pattern string) []string {
	files, err := filepath.Glob(pattern)
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %d files, error %v", pattern, len(files), err)
	}
	return files
}

func readFile(t testing.TB, path string) []byte {
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestLine(t *testing.T) {
	s, err := Read("a.yaml", []byte(`# policy: not here
version: 1
name: a
about: >-
  proxies, and
  policy: neither here
proxies: [gohttp]
axes:
  proxy_idle: [1s]
  upstream_idle: [2s]
policy: {forbid: [races]}
`), nil)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]int{"version": 2, "proxies": 7, "axes": 8, "policy": 11, "proxy_idle": 0, "link": 0} {
		if got := s.Line(key); got != want {
			t.Errorf("%s is on line %d, want %d", key, got, want)
		}
	}
	if got := (&Scenario{}).Line("axes"); got != 0 {
		t.Errorf("a scenario built in code: %d", got)
	}
}
