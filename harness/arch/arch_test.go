// Package arch holds nothing but a test: the arrows between the packages of
// this module point one way.
package arch

import (
	"errors"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// program is the path of package main; below it are all others.
const program = "idlerace/harness"

// rule says what a package may not reach, on whatever way, or what alone it may
// import of this module itself. It repeats the package's comment.
type rule struct {
	never []string // packages of this module; what is below them included
	only  []string // nil: no such limit
}

// rules has every package. A new one belongs here, with what its comment says.
var rules = map[string]rule{
	"":             {},
	"spec":         {only: []string{}},
	"stack":        {only: []string{}},
	"plan":         {only: []string{"spec"}, never: []string{"stack", "load", "proxy", "run"}},
	"record":       {never: []string{"stack", "load", "proxy", "run", "judge", "report"}},
	"origin":       {only: []string{"origin/link", "origin/netem", "record", "spec", "wire"}},
	"origin/netem": {only: []string{}},
	"origin/link":  {only: []string{}},
	"wire":         {only: []string{"record"}},
	"gohttp":       {only: []string{"record", "spec"}},
	"stack/local":  {only: []string{"stack"}},
	"stack/docker": {only: []string{"stack"}},
	"proxy":        {never: []string{"stack/local", "stack/docker", "load", "judge", "report", "run"}},
	"upstream":     {never: []string{"stack/local", "stack/docker", "load", "judge", "report", "run"}},
	"compose":      {never: []string{"stack/local", "stack/docker", "load", "judge", "report", "run"}},
	"load":         {never: []string{"stack", "proxy", "judge", "report", "run"}},
	"judge":        {never: []string{"stack", "load", "proxy", "run", "report"}},
	"judge/window": {only: []string{}},
	"judge/advice": {only: []string{"judge", "judge/window", "spec"}},
	"compare":      {never: []string{"stack", "load", "proxy", "run", "report"}},
	"gate":         {never: []string{"stack", "load", "proxy", "run"}},
	"report":       {never: []string{"stack", "load", "proxy", "run"}},
	"results":      {never: []string{"stack", "load", "proxy", "run"}},
	"metrics":      {never: []string{"stack", "load", "proxy", "run"}},
	"screen":       {only: []string{}},
	"run":          {never: []string{"report", "gate"}},
	"react":        {never: []string{"report", "gate"}},
}

// outside names the packages that alone may import a dependency.
var outside = map[string][]string{
	"github.com/testcontainers/testcontainers-go": {"stack/docker"},
	"github.com/tsenart/vegeta":                   {"load", "run"},
	"github.com/spf13/cobra":                      {""},
	"github.com/aclements/go-moremath":            {"compare"},
	"github.com/vishvananda/netlink":              {"origin/netem"},
	"testing":                                     {},
}

// list gives the imports of every package of the module that has code, by its
// path below program.
func list(t *testing.T) map[string][]string {
	t.Helper()
	// `go test` sees what a test reads, not what its children read: without
	// this walk it would repeat an old result.
	if err := filepath.WalkDir("..", func(_ string, _ fs.DirEntry, err error) error { return err }); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("go", "list", "-f", "{{if .GoFiles}}{{.ImportPath}} {{join .Imports \" \"}}{{end}}", "idlerace/...").Output()
	if err != nil {
		if exit, ok := errors.AsType[*exec.ExitError](err); ok {
			t.Fatalf("go list: %v: %s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	imports := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 0 {
			imports[below(f[0])] = f[1:]
		}
	}
	return imports
}

// below is the short name of one of this module's packages, or the path itself.
func below(path string) string {
	if path == program {
		return ""
	}
	return strings.TrimPrefix(path, program+"/")
}

func ours(path string) bool { return path == program || strings.HasPrefix(path, program+"/") }

// within reports whether a package is pkg or below it.
func within(name, pkg string) bool { return name == pkg || strings.HasPrefix(name, pkg+"/") }

// reach gives every package of this module that one imports, on whatever way,
// and by which.
func reach(imports map[string][]string, from string) map[string]string {
	by := map[string]string{}
	var visit func(string)
	visit = func(name string) {
		for _, path := range imports[name] {
			to := below(path)
			if _, known := by[to]; ours(path) && !known {
				by[to] = name
				visit(to)
			}
		}
	}
	visit(from)
	return by
}

// way spells how from comes to import to.
func way(by map[string]string, from, to string) string {
	s := to
	for to != from {
		to = by[to]
		s = to + " -> " + s
	}
	return s
}

// check gives every breach of rules and outside.
func check(imports map[string][]string) (faults []string) {
	for name, direct := range imports {
		r, ok := rules[name]
		if !ok {
			faults = append(faults, name+": has no rule; give it one in harness/arch")
		}
		by := reach(imports, name)
		for to := range by {
			for _, no := range r.never {
				if within(to, no) {
					faults = append(faults, name+": must not import "+no+": "+way(by, name, to))
				}
			}
		}
		for _, path := range direct {
			if to := below(path); ours(path) && r.only != nil && !slices.Contains(r.only, to) {
				faults = append(faults, name+": may import of this module only "+strings.Join(r.only, ", ")+", not "+to)
			}
			for dep, may := range outside {
				if within(path, dep) && !slices.Contains(may, name) {
					faults = append(faults, name+": must not import "+path)
				}
			}
		}
	}
	used := reach(imports, "")
	for name := range imports {
		if _, ok := used[name]; !ok && name != "" {
			faults = append(faults, name+": the program does not need it")
		}
	}
	slices.Sort(faults)
	return faults
}

func TestArchitecture(t *testing.T) {
	imports := list(t)
	for _, f := range check(imports) {
		t.Error(f)
	}
	for name := range rules {
		if imports[name] == nil {
			t.Errorf("%s: has a rule and does not exist", name)
		}
	}
}

// The check itself must be able to fail.
func TestCheck(t *testing.T) {
	const h = program + "/"
	good := func() map[string][]string {
		return map[string][]string{
			"": {"fmt", h + "run", h + "report"}, "run": {h + "load", h + "stack", h + "judge"}, "load": {h + "record"},
			"judge": {h + "record", "fmt"}, "record": {h + "plan"}, "plan": {h + "spec", "fmt"}, "spec": {"fmt"}, "stack": {"fmt"}, "report": {h + "judge"},
		}
	}
	if got := check(good()); len(got) != 0 {
		t.Errorf("faults of nothing: %q", got)
	}
	for _, tt := range []struct {
		from, to string
		want     []string
	}{
		{"spec", "fmt", nil},
		{"spec", h + "stack", []string{
			"judge: must not import stack: judge -> record -> plan -> spec -> stack",
			"load: must not import stack: load -> record -> plan -> spec -> stack",
			"plan: must not import stack: plan -> spec -> stack",
			"record: must not import stack: record -> plan -> spec -> stack",
			"report: must not import stack: report -> judge -> record -> plan -> spec -> stack",
			"spec: may import of this module only , not stack",
		}},
		{"plan", h + "stack/local", []string{
			"judge: must not import stack: judge -> record -> plan -> stack/local",
			"load: must not import stack: load -> record -> plan -> stack/local",
			"plan: may import of this module only spec, not stack/local",
			"plan: must not import stack: plan -> stack/local",
			"record: must not import stack: record -> plan -> stack/local",
			"report: must not import stack: report -> judge -> record -> plan -> stack/local",
			"stack/local: the program does not need it",
		}},
		{"run", "github.com/testcontainers/testcontainers-go/wait", []string{"run: must not import github.com/testcontainers/testcontainers-go/wait"}},
		{"run", "github.com/testcontainers/testcontainers-gopher", nil},
		{"judge", "testing", []string{"judge: must not import testing"}},
		{"util", "fmt", []string{"util: has no rule; give it one in harness/arch", "util: the program does not need it"}},
	} {
		imports := good()
		imports[tt.from] = append(imports[tt.from], tt.to)
		if tt.to == h+"stack/local" {
			imports["stack/local"] = nil
			tt.want = slices.DeleteFunc(tt.want, func(s string) bool { return strings.HasPrefix(s, "stack/local:") })
		}
		if got := check(imports); !slices.Equal(got, tt.want) {
			t.Errorf("%s imports %s:\n got %s\nwant %s", tt.from, tt.to, strings.Join(got, "\n     "), strings.Join(tt.want, "\n     "))
		}
	}
}
