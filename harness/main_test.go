package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/run"
)

// binary is idlerace as a user has it: a run's services are this program
// again, so tests of runs need the real thing.
var binary string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "idlerace-test-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer os.RemoveAll(dir)
		binary = filepath.Join(dir, "idlerace")
		if out, err := exec.Command("go", append(append([]string{"build"}, raceFlags...), "-o", binary, ".")...).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "go build: %v\n%s", err, out)
			return 1
		}
		os.Setenv("PATH", dir+string(os.PathListSeparator)+os.Getenv("PATH"))
		return m.Run()
	}())
}

// TestScripts runs the program as users do: testdata/script/*.txtar.
func TestScripts(t *testing.T) {
	linux, err := static()
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			// exits N PROGRAM ARGS...: runs it and wants exit code N; its output
			// is there for stdout and stderr.
			"exits": exits,
			// edit FILE OLD NEW: replaces every OLD, and wants one at least.
			"edit": edit,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("NO_COLOR", "1")
			e.Setenv(run.RequireVar, "")
			e.Setenv("IDLERACE_LINUX_BINARY", linux)
			e.Setenv("DOCKER_HOST", "unix:///no/such/engine.sock") // scripts are the same on every machine
			return nil
		},
	})
}

func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits N PROGRAM ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

func edit(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 3 {
		ts.Fatalf("usage: edit FILE OLD NEW")
	}
	path := ts.MkAbs(args[0])
	b, err := os.ReadFile(path)
	ts.Check(err)
	if !bytes.Contains(b, []byte(args[1])) {
		ts.Fatalf("%s does not hold %q", args[0], args[1])
	}
	ts.Check(os.WriteFile(path, bytes.ReplaceAll(b, []byte(args[1]), []byte(args[2])), 0o644))
}

// need skips a test whose proxy is not on this machine, or fails it where the
// environment asks for the proxy.
func need(t *testing.T, name string) {
	t.Helper()
	a, err := proxy.ByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&run.Finder{Runtime: record.RuntimeLocal, Self: binary}).Find(t.Context(), a, ""); err != nil {
		if slices.Contains(run.Required(), name) {
			t.Fatalf("%s is required by %s: %v", name, run.RequireVar, err)
		}
		t.Skipf("%s: %v; to get it: %s", name, err, a.Program().Get)
	}
}
