package proxy

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"idlerace/harness/spec"
)

var pathSafe = regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)

func TestRegistry(t *testing.T) {
	names := Names()
	if !slices.IsSorted(names) || len(names) != len(All()) {
		t.Errorf("Names() = %v: want every adapter's, sorted", names)
	}
	for _, a := range All() {
		t.Run(a.Name(), func(t *testing.T) {
			if got, err := ByName(a.Name()); err != nil || got.Name() != a.Name() {
				t.Errorf("ByName(%q) = %v, %v", a.Name(), got, err)
			}
			// Names become parts of cell ids and of paths.
			if !pathSafe.MatchString(a.Name()) {
				t.Errorf("the name %q is not path-safe", a.Name())
			}
			if about := a.About(); about == "" || strings.Contains(about, "\n") {
				t.Errorf("About() = %q: want one line", about)
			}
			p := a.Program()
			if p.Embedded {
				if p.Binary != "" || p.Get != "" {
					t.Errorf("Program() = %+v: an embedded proxy needs nothing installed", p)
				}
				return
			}
			if p.Binary == "" || len(p.Args) == 0 || p.Get == "" || strings.Contains(p.Get, "\n") {
				t.Errorf("Program() = %+v: want a binary, arguments that print its version and one command to get it", p)
			}
			if p.Version == nil || p.Version.NumSubexp() < 1 {
				t.Errorf("Program().Version = %v: want a first group", p.Version)
			}
		})
	}
	if _, err := ByName("nosuch"); err == nil || !strings.Contains(err.Error(), "nosuch") || !strings.Contains(err.Error(), names[0]) {
		t.Errorf("ByName(nosuch): %v: want an error that says which and what there is", err)
	}
}

// What each program really prints.
func TestVersion(t *testing.T) {
	tests := []struct{ name, out, want string }{
		{"nginx", "nginx version: nginx/1.22.1\n", "1.22.1"},
		{"envoy", "\n/usr/local/bin/envoy  version: 9e5580933739775e8bce696a57a2e1bc99368f23/1.40.0/Clean/RELEASE/BoringSSL\n\n", "1.40.0"},
		{"traefik", "Version:      3.6.12\nCodename:     cheddar\nGo version:   go1.26.8\nBuilt:        I don't remember exactly\nOS/Arch:      linux/amd64\n", "3.6.12"},
		{"traefik", "Version:      dev\nCodename:     cheddar\nGo version:   go1.26.8\n", "dev"},
	}
	for _, tt := range tests {
		a, err := ByName(tt.name)
		if err != nil {
			t.Fatal(err)
		}
		m := a.Program().Version.FindStringSubmatch(tt.out)
		if len(m) < 2 || m[1] != tt.want {
			t.Errorf("%s: version in %q: %q, want %s", tt.name, tt.out, m, tt.want)
		}
	}
}

// A race that every proxy must be able to show, or its silence proves nothing.
func TestControlsAreSupported(t *testing.T) {
	for _, a := range All() {
		for _, c := range []spec.Cell{
			{Method: "POST", Retry: spec.RetryDefault, ProxyIdle: 1},
			{Method: "POST", Retry: spec.RetryDefault, ProxyIdle: spec.Off},
		} {
			if why := a.Unsupported(c); why != "" {
				t.Errorf("%s: %+v is a control and unsupported: %s", a.Name(), c, why)
			}
		}
	}
}

func TestUnsupported(t *testing.T) {
	got := map[string][]string{}
	for _, a := range All() {
		for _, retry := range spec.Retries() {
			for _, m := range spec.Methods() {
				if why := a.Unsupported(spec.Cell{Method: m, Retry: retry, ProxyIdle: 1}); why != "" {
					got[a.Name()] = append(got[a.Name()], string(retry)+" "+m)
				}
			}
		}
	}
	if want := []string{"off GET", "off HEAD", "off OPTIONS", "off DELETE"}; !slices.Equal(got["traefik"], want) {
		t.Errorf("traefik cannot express %v, want %v", got["traefik"], want)
	}
	delete(got, "traefik")
	if len(got) > 0 {
		t.Errorf("unsupported: %v, want none", got)
	}
}

// A proxy is added or removed as one file: nothing else may know its name. The
// embedded one is played by a package of its own, which a command serves.
func TestNamesStayInTheirFiles(t *testing.T) {
	owns := func(name, file string) bool {
		return file == "proxy/"+name+".go" || name == "gohttp" && (file == "serve.go" || strings.HasPrefix(file, "gohttp/"))
	}
	names := map[string]*regexp.Regexp{}
	for _, n := range Names() {
		names[n] = regexp.MustCompile(`(?i)` + regexp.QuoteMeta(n))
	}
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && d.Name() == "testdata" {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		file, err := filepath.Rel("..", path)
		if err != nil {
			return err
		}
		file = filepath.ToSlash(file)
		for pos, text := range codeWords(t, path) {
			for n, re := range names {
				if re.MatchString(text) && !owns(n, file) {
					t.Errorf("%s names the proxy %s: %s", pos, n, text)
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// codeWords gives a Go file's identifiers and string literals by position, but
// for its package name and for prose, that is any literal with a space: help
// texts and hints may give examples.
func codeWords(t *testing.T, path string) map[token.Position]string {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, path, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	out := map[token.Position]string{}
	for _, d := range f.Decls {
		ast.Inspect(d, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.Ident:
				out[fset.Position(n.Pos())] = n.Name
			case *ast.BasicLit:
				if text, err := strconv.Unquote(n.Value); err == nil && !strings.Contains(text, " ") {
					out[fset.Position(n.Pos())] = text
				}
			}
			return true
		})
	}
	return out
}

// What the scripts below docker/ get is what containers run.
func TestPins(t *testing.T) {
	b, err := os.ReadFile("../../docker/pins")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"envoy", "traefik"} {
		a, err := ByName(name)
		if err != nil {
			t.Fatal(err)
		}
		_, tag, _ := strings.Cut(a.Program().Image, ":v")
		if m := regexp.MustCompile(`(?m)^` + name + `_version=(\S+)`).FindSubmatch(b); m == nil || string(m[1]) != tag {
			t.Errorf("%s: the image's tag is %q, docker/pins has %q", name, tag, m)
		}
	}
}
