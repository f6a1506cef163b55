package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"github.com/hinshun/vt10x"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/run"
	"idlerace/harness/spec"
)

// shown is what is on a terminal, without blank lines at the end.
func shown(vt vt10x.Terminal) string {
	var out []string
	for l := range strings.SplitSeq(vt.String(), "\n") {
		out = append(out, strings.TrimRight(l, " "))
	}
	return strings.TrimRight(strings.Join(out, "\n"), "\n")
}

// found wants a terminal that is as programs find it.
func found(t *testing.T, vt vt10x.Terminal) {
	t.Helper()
	if !vt.CursorVisible() || vt.Mode()&vt10x.ModeWrap == 0 || vt.Mode()&vt10x.ModeAltScreen != 0 || vt.Cursor().X != 0 {
		t.Errorf("left behind: cursor visible %t, at column %d; lines wrap %t; other screen %t",
			vt.CursorVisible(), vt.Cursor().X, vt.Mode()&vt10x.ModeWrap != 0, vt.Mode()&vt10x.ModeAltScreen != 0)
	}
}

// progressed is a run of one cell after its first proof.
func progressed() run.Progress {
	it := plan.Item{ID: "a", Role: plan.RoleCell, Cell: spec.Cell{Proxy: "gohttp", ProxyIdle: spec.Idle(2 * time.Second), UpstreamIdle: time.Second, Method: "POST"}}
	return run.Progress{Decided: 1, Total: 1, Failures: 3, Proven: 1, Elapsed: 3 * time.Second, Left: time.Second, Budget: time.Minute, Newly: []string{"a: races"},
		Cells: []judge.Interim{{Counts: judge.Counts{Shots: 60, Aimed: 40, Failures: 3, Attributed: 3, Late: 3}, Item: &it, State: spec.Races, Asked: 300,
			Proven: 2300 * time.Millisecond, Decided: 3 * time.Second}}}
}

// TestProgress says the same in each form of stderr.
func TestProgress(t *testing.T) {
	const (
		line   = "[1/1, 3s] a: races\n"
		matrix = "gohttp 2s/1s POST: first failure proven after 2.3 s\n"
		plain  = "RACES 3/40\n"
		red    = "\x1b[1;31mRACES"
		escape = `\x1b`
		colour = `\x1b\[[0-9;]*m`
		brief  = `\[1/1`
	)
	for _, tt := range []struct {
		name          string
		pipe, quiet   bool
		width, height int
		term, noColor string
		want          string
		wantNot       string // an expression
	}{
		{name: "terminal", width: 80, height: 24, term: "xterm", want: matrix[:len(matrix)-1], wantNot: brief},
		{name: "coloured", width: 80, height: 24, term: "xterm", want: red, wantNot: brief},
		{name: "NO_COLOR", width: 80, height: 24, term: "xterm", noColor: "1", want: matrix, wantNot: colour},
		{name: "no colour", width: 80, height: 24, term: "xterm", noColor: "1", want: plain, wantNot: colour},
		{name: "narrow", width: 79, height: 24, term: "xterm", want: line, wantNot: escape},
		{name: "low", width: 80, height: 23, term: "xterm", want: line, wantNot: escape},
		{name: "dumb", width: 80, height: 24, term: "dumb", want: line, wantNot: escape},
		{name: "pipe", pipe: true, term: "xterm", want: line, wantNot: escape},
		{name: "quiet", width: 80, height: 24, quiet: true, term: "xterm", wantNot: `.`},
		{name: "quiet pipe", pipe: true, quiet: true, term: "xterm", wantNot: `.`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TERM", tt.term)
			t.Setenv("NO_COLOR", tt.noColor)
			ours, theirs, err := os.Pipe()
			if !tt.pipe {
				ours, theirs, err = pty.Open()
			}
			if err != nil {
				t.Fatal(err)
			}
			defer ours.Close()
			if !tt.pipe {
				if err := pty.Setsize(theirs, &pty.Winsize{Cols: uint16(tt.width), Rows: uint16(tt.height)}); err != nil {
					t.Fatal(err)
				}
			}
			p := newProgress(theirs, tt.quiet)
			p.say("found %s", "nginx")
			p.show(progressed())
			p.finish()
			theirs.Close()
			b, _ := io.ReadAll(ours) // a terminal ends with EIO
			got := strings.ReplaceAll(string(b), "\r", "")
			if !strings.Contains(got, tt.want) {
				t.Errorf("no %q in %q", tt.want, got)
			}
			if found := regexp.MustCompile(tt.wantNot).FindString(got); found != "" {
				t.Errorf("%q in %q", found, got)
			}
			if said := strings.Contains(got, "found nginx\n"); said == tt.quiet {
				t.Errorf("quiet %t, said %t", tt.quiet, said)
			}
		})
	}
}

// TestProgressSignals: a resized terminal is drawn on at once, and one that
// comes back to the foreground below what a shell has written.
func TestProgressSignals(t *testing.T) {
	t.Setenv("TERM", "xterm")
	ours, theirs, err := pty.Open()
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	size := func(width, height uint16) {
		if err := pty.Setsize(theirs, &pty.Winsize{Cols: width, Rows: height}); err != nil {
			t.Fatal(err)
		}
	}
	size(80, 24)
	vt := vt10x.New(vt10x.WithSize(80, 24))
	done := make(chan struct{})
	go func() { defer close(done); io.Copy(vt, ours) }()
	p := newProgress(theirs, false)
	p.show(progressed())
	waitFor(t, "a frame", func() bool { return strings.Contains(shown(vt), "RACES 3/40") })
	vt.Resize(20, 24)
	size(20, 24)
	syscall.Kill(os.Getpid(), syscall.SIGWINCH) // not our controlling terminal
	waitFor(t, "a narrow frame", func() bool { return strings.Contains(shown(vt), "RACES\n") && !strings.Contains(shown(vt), "3/40") })
	io.WriteString(theirs, "$ fg\n")
	syscall.Kill(os.Getpid(), syscall.SIGCONT)
	waitFor(t, "a frame below the shell's line", func() bool { _, below, _ := strings.Cut(shown(vt), "$ fg"); return strings.Contains(below, "RACES") })
	p.finish()
	p.finish() // harmless
	p.say("done")
	theirs.Close()
	<-done
	if _, below, _ := strings.Cut(shown(vt), "$ fg"); below != "\ndone" {
		t.Errorf("the end:\n%s", shown(vt))
	}
	found(t, vt)
}

// TestE2ETerminal watches a real run on a terminal that changes its size, and
// ends it: by one interrupt, by two, by killing its proxy.
func TestE2ETerminal(t *testing.T) {
	file := scenarioFile(t, "terminal", "gohttp", `axes:
  proxy_idle: [300ms, 2s]
  upstream_idle: [700ms, 1500ms]
probe: {lanes: 10, shots: 100000, until: shots, budget: 1h}`)
	for _, tt := range []struct {
		name       string
		interrupts string // typed at once: the echo of a later one may stand in the midst of the report
		first      string // line of what stays
		code       int
	}{
		{"interrupt", "\x03", "interrupted: finishing the bursts under way", exitInconclusive},
		{"two interrupts", "\x03\x03", "interrupted: finishing the bursts under way", exitInconclusive},
		{"killed proxy", "", "gohttp: gohttp: signal: killed", exitInconclusive},
	} {
		out := t.TempDir()
		// As under a shell: when the first process of a terminal ends, what it wrote
		// last may be lost.
		cmd := exec.Command("sh", "-c", `trap : INT; "$@"; echo "exit code $?"; read line`, "sh",
			binary, "run", file, "--runtime", record.RuntimeLocal, "--out", out)
		cmd.Env = append(os.Environ(), "TERM=xterm", "NO_COLOR=")
		p, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 80, Rows: 24})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		vt := vt10x.New(vt10x.WithSize(80, 24))
		done := make(chan struct{})
		go func() { defer close(done); io.Copy(vt, p) }()
		resize := func(width, height int) {
			vt.Resize(width, height)
			if err := pty.Setsize(p, &pty.Winsize{Cols: uint16(width), Rows: uint16(height)}); err != nil {
				t.Fatal(err)
			}
		}
		const status = "cells and controls decided"
		waitFor(t, "a proven failure", func() bool { return strings.Contains(shown(vt), "first failure proven") })
		resize(40, 10)
		waitFor(t, "a small frame", func() bool { return regexp.MustCompile(`(?m)^gohttp +\d/8`).MatchString(shown(vt)) })
		resize(100, 200) // from here on all stays visible
		waitFor(t, "a large frame", func() bool { return strings.Contains(shown(vt), "/100k") && strings.Count(shown(vt), status) == 1 })
		p.Write([]byte(tt.interrupts))
		if tt.interrupts == "" {
			for _, proc := range processesBelow(out) {
				var pid int
				if strings.HasSuffix(proc, "/stack/gohttp") {
					fmt.Sscan(proc, &pid)
					syscall.Kill(pid, syscall.SIGKILL)
				}
			}
		}
		waitFor(t, "the end", func() bool { return strings.Contains(shown(vt), "exit code") })
		found(t, vt)
		got := shown(vt)
		p.Write([]byte("\n"))
		cmd.Wait()
		<-done
		for _, left := range []string{status, "rows: proxy idle", "first failure proven", "^C"} {
			if strings.Contains(got, left) {
				t.Errorf("%s: %q is still there:\n%s", tt.name, left, got)
			}
		}
		last := regexp.MustCompile(fmt.Sprintf(`holds the record, report\.md and verdicts\.json\.For a browser: \S+report\.htmlexit code %d$`, tt.code))
		if !strings.HasPrefix(got, tt.first) || !strings.Contains(got, "PARTIAL") || !last.MatchString(strings.ReplaceAll(got, "\n", "")) {
			t.Errorf("%s:\n%s", tt.name, got)
		}
		noneLeft(t, out)

		// An interrupted run's metrics have every request as well.
		folder, err := results.Open(filepath.Join(out, results.Latest))
		if err != nil {
			t.Fatal(err)
		}
		defer folder.Close()
		d, _, err := folder.Judge()
		if err != nil {
			t.Fatal(err)
		}
		shots, failures := 0, 0
		for _, v := range append(d.Cells, d.Controls...) {
			shots += v.Shots
			failures += v.Failures
		}
		if m := metricsFile(t, folder); m["idlerace_shots_total"] != float64(shots) || m["idlerace_failures_total"] != float64(failures) || shots == 0 {
			t.Errorf("%s: %g requests and %g failures in %s, %d and %d in the verdicts", tt.name,
				m["idlerace_shots_total"], m["idlerace_failures_total"], results.MetricsFile, shots, failures)
		}
	}
}

// TestE2EPipe: stdout is the report and nothing else, stderr has no escapes; with
// --quiet it has nothing.
func TestE2EPipe(t *testing.T) {
	file := scenarioFile(t, "pipe", "gohttp", quickScenario)
	for _, quiet := range []bool{false, true} {
		out := t.TempDir()
		args := []string{"run", file, "--runtime", record.RuntimeLocal, "--out", out}
		if quiet {
			args = append(args, "--quiet")
		}
		cmd := exec.Command(binary, args...)
		var stdout, stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = &stdout, &stderr
		// A busy machine may leave a cell undecided, which is not what this is about.
		var undecided *exec.ExitError
		if err := cmd.Run(); errors.As(err, &undecided) && undecided.ExitCode() != exitInconclusive || err != nil && undecided == nil {
			t.Fatalf("%v\n%s", err, &stderr)
		}
		report, err := exec.Command(binary, "report", filepath.Join(out, results.Latest)).Output()
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(report), stdout.String()); diff != "" {
			t.Errorf("stdout is not the report (-report +stdout):\n%s", diff)
		}
		lines := regexp.MustCompile(`(?m)^\[[1-3]/3, \d+s\] \S+: (races|safe)$`).FindAllString(stderr.String(), -1)
		switch {
		case quiet && stderr.Len() > 0:
			t.Errorf("--quiet, and stderr says %q", &stderr)
		case !quiet && (len(lines) != 3 && undecided == nil || len(lines) == 0 || strings.Contains(stderr.String(), "\x1b")):
			t.Errorf("%d cells decided; stderr: %q", len(lines), &stderr)
		}
	}
}
