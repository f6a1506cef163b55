package compose

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/google/go-cmp/cmp"

	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/spec"
	"idlerace/harness/upstream"
)

var update = flag.Bool("update", false, "rewrite testdata/*.golden")

func cell(t *testing.T, name string) Cell {
	t.Helper()
	a, err := proxy.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	k, err := upstream.ByName("go")
	if err != nil {
		t.Fatal(err)
	}
	c := spec.Cell{Proxy: name, Upstream: "go", ProxyIdle: spec.Idle(2 * time.Second), UpstreamIdle: time.Second, Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN}
	return Cell{Item: plan.Item{ID: c.ID(), Cell: c}, Adapter: a, Kind: k, Lanes: 40,
		Server: plan.Server{Name: "u1s-fin", IdleTimeout: time.Second, Close: spec.CloseFIN}}
}

func TestGolden(t *testing.T) {
	for _, a := range proxy.All() {
		t.Run(a.Name(), func(t *testing.T) {
			files, err := Files(cell(t, a.Name()))
			if err != nil {
				t.Fatal(err)
			}
			got := files["compose.yaml"] + "\n# Files: " + strings.Join(slices.Sorted(maps.Keys(files)), " ") + "\n"
			path := filepath.Join("testdata", a.Name()+".golden")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Error(diff)
			}
			var doc struct {
				Services map[string]struct {
					Image, Build string
					Entrypoint   []string
				}
			}
			if err := yaml.Unmarshal([]byte(got), &doc); err != nil {
				t.Fatal(err)
			}
			for name, s := range doc.Services {
				if len(s.Entrypoint) == 0 || (s.Image == "") == (s.Build == "") {
					t.Errorf("%s: %+v", name, s)
				}
			}
			// No address of another machine or namespace has slipped in.
			for name, content := range files {
				if strings.Contains(strings.ReplaceAll(content, `"127.0.0.1:20`, ""), "127.0.0.1:1") {
					t.Errorf("%s holds a loopback address: %s", name, content)
				}
			}
		})
	}
}

func TestImage(t *testing.T) {
	c := cell(t, "nginx")
	c.Image = "registry:5000/team/nginx:1"
	files, err := Files(c)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(files["compose.yaml"], "image: registry:5000/team/nginx:1\n") {
		t.Errorf("%s", files["compose.yaml"])
	}
}

// A netem link takes a right that the proxy does not get.
func TestNetem(t *testing.T) {
	c := cell(t, "gohttp")
	c.Server.RTT, c.Server.Link.Netem = 20*time.Millisecond, true
	files, err := Files(c)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Services map[string]struct {
			CapAdd []string `yaml:"cap_add"`
		}
	}
	if err := yaml.Unmarshal([]byte(files["compose.yaml"]), &doc); err != nil {
		t.Fatal(err)
	}
	if o, p := doc.Services["origin"].CapAdd, doc.Services["proxy"].CapAdd; !slices.Equal(o, []string{"NET_ADMIN"}) || p != nil {
		t.Errorf("origin %v, proxy %v", o, p)
	}
}
