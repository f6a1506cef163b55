package upstream

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/origin"
	"idlerace/harness/plan"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

// servers has one of each close style.
func servers() (out []plan.Server, addrs map[string]string) {
	addrs = map[string]string{}
	for i, c := range spec.Closes() {
		s := plan.Server{Name: "u600ms-" + string(c), IdleTimeout: 600 * time.Millisecond, Close: c}
		out = append(out, s)
		addrs[s.Name] = "127.0.0.1:2000" + string(rune('1'+i))
	}
	return out, addrs
}

const admin = "127.0.0.1:20000"

// Every kind, those to come included.
func TestAll(t *testing.T) {
	all := All()
	if len(all) == 0 {
		t.Fatal("no kind is registered")
	}
	if !slices.IsSortedFunc(all, func(a, b Kind) int { return strings.Compare(a.Name(), b.Name()) }) {
		t.Error("All is not sorted")
	}
	srvs, addrs := servers()
	for _, k := range all {
		t.Run(k.Name(), func(t *testing.T) {
			if got, err := ByName(k.Name()); err != nil || got != k {
				t.Errorf("ByName: %v, %v", got, err)
			}
			if about := k.About(); about == "" || strings.ContainsAny(about, "\n") {
				t.Errorf("About is no line: %q", about)
			}
			s, err := k.Render(Input{Servers: srvs, Addrs: addrs, Admin: admin})
			if err != nil {
				t.Fatal(err)
			}
			want := []string{admin}
			for _, srv := range srvs {
				want = append(want, addrs[srv.Name])
			}
			ready := slices.Sorted(slices.Values(s.Ready))
			if diff := cmp.Diff(want, ready); diff != "" {
				t.Errorf("ready when these answer: %s", diff)
			}
			if s.Name == "" || strings.ContainsAny(s.Name, `/\ `) {
				t.Errorf("name %q", s.Name)
			}
			again, err := k.Render(Input{Servers: srvs, Addrs: addrs, Admin: admin})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(s, again); diff != "" {
				t.Errorf("rendered twice: %s", diff)
			}
		})
	}
}

func TestByNameUnknown(t *testing.T) {
	_, err := ByName("iis")
	if want := `no upstream is called "iis"`; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}

func TestRegisterTwice(t *testing.T) {
	defer func() {
		if got, want := recover(), "upstream: registered twice: go"; got != want {
			t.Errorf("panic %v, want %s", got, want)
		}
	}()
	register(goServer{})
}

func TestGoRender(t *testing.T) {
	srvs, addrs := servers()
	got, err := goServer{}.Render(Input{Servers: srvs, Addrs: addrs, Admin: admin, Capture: true})
	if err != nil {
		t.Fatal(err)
	}
	config := got.Files["origin.json"]
	got.Files = nil
	want := stack.Service{Name: "origin", Args: []string{"serve", "origin", "--config", "{dir}/origin.json"},
		Ready: []string{admin, "127.0.0.1:20001", "127.0.0.1:20002", "127.0.0.1:20003", "127.0.0.1:20004"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	cfg, err := origin.ReadConfig(strings.NewReader(config))
	if err != nil {
		t.Fatalf("the origin does not read %s: %v", config, err)
	}
	wantConfig := origin.Config{Admin: admin, Capture: true}
	for _, s := range srvs {
		wantConfig.Servers = append(wantConfig.Servers, origin.Server{Name: s.Name, Listen: addrs[s.Name],
			IdleTimeout: origin.Duration(600 * time.Millisecond), Close: s.Close})
	}
	if diff := cmp.Diff(wantConfig, cfg); diff != "" {
		t.Error(diff)
	}
}

// A netem link takes a right over the container's network; without one none is
// asked for (TestGoRender).
func TestGoRenderNetem(t *testing.T) {
	link := spec.Link{Netem: true, Down: spec.Direction{Jitter: 2 * time.Millisecond}}
	got, err := goServer{}.Render(Input{Admin: "0.0.0.0:20000", Addrs: map[string]string{"near": "0.0.0.0:20001", "far": "0.0.0.0:20002"},
		Servers: []plan.Server{{Name: "near"}, {Name: "far", RTT: 20 * time.Millisecond, Link: link}}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"NET_ADMIN"}, got.Capabilities); diff != "" {
		t.Error(diff)
	}
	cfg, err := origin.ReadConfig(strings.NewReader(got.Files["origin.json"]))
	if err != nil {
		t.Fatal(err)
	}
	want := &origin.Link{Netem: true, Down: origin.Duration(20 * time.Millisecond), JitterDown: origin.Duration(2 * time.Millisecond), Seed: 1}
	if diff := cmp.Diff(want, cfg.Servers[1].Link); diff != "" || !cfg.Contained || cfg.Servers[0].Link != nil {
		t.Errorf("%+v %s", cfg, diff)
	}
}

// A server without an address is an error of the caller, told by name.
func TestRenderWithoutAddress(t *testing.T) {
	srvs, addrs := servers()
	delete(addrs, "u600ms-rst")
	for _, k := range All() {
		_, err := k.Render(Input{Servers: srvs, Addrs: addrs, Admin: admin})
		if err == nil || !strings.Contains(err.Error(), "u600ms-rst") {
			t.Errorf("%s: %v", k.Name(), err)
		}
	}
}
