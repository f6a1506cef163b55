package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

var moment = time.Date(2031, 2, 3, 4, 5, 6, 789, time.FixedZone("elsewhere", 3600))

func begin(t *testing.T, base, scenario string, seed uint64) *Folder {
	t.Helper()
	f, err := Create(base, scenario, Name(moment, seed, plan.Shard{}), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// tree lists the files, links and empty folders below dir.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var out []string
	err := fs.WalkDir(os.DirFS(dir), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		switch {
		case d.Type()&fs.ModeSymlink != 0:
			target, err := os.Readlink(filepath.Join(dir, path))
			if err != nil {
				return err
			}
			out = append(out, path+" -> "+target)
		case !d.IsDir():
			out = append(out, path)
		default:
			if below, err := os.ReadDir(filepath.Join(dir, path)); err != nil || len(below) == 0 {
				out = append(out, path+"/")
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCreate(t *testing.T) {
	base := filepath.Join(t.TempDir(), "results")
	for i, tt := range []struct {
		scenario string
		seed     uint64
		path     string
	}{
		{"quick", 1, "quick/20310203T030506Z-1"},
		{"quick", 1, "quick/20310203T030506Z-1.2"},
		{"quick", 1, "quick/20310203T030506Z-1.3"},
		{"quick", 18446744073709551615, "quick/20310203T030506Z-18446744073709551615"},
		{"another", 1, "another/20310203T030506Z-1"},
	} {
		f := begin(t, base, tt.scenario, tt.seed)
		if want := filepath.Join(base, tt.path); f.Path != want {
			t.Errorf("%d: path %s, want %s", i, f.Path, want)
		}
		target, err := os.Readlink(filepath.Join(base, Latest))
		if err != nil || target != tt.path {
			t.Errorf("%d: latest points at %q, %v", i, target, err)
		}
		if err := f.WriteFile(ManifestFile, []byte("{}")); err != nil {
			t.Error(err)
		}
		latest, err := Open(filepath.Join(base, Latest))
		if err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		if err := latest.Close(); err != nil {
			t.Error(err)
		}
	}
	want := []string{
		"another/20310203T030506Z-1/manifest.json",
		"latest -> another/20310203T030506Z-1",
		"quick/20310203T030506Z-1/manifest.json",
		"quick/20310203T030506Z-1.2/manifest.json",
		"quick/20310203T030506Z-1.3/manifest.json",
		"quick/20310203T030506Z-18446744073709551615/manifest.json",
	}
	if diff := cmp.Diff(want, tree(t, base)); diff != "" {
		t.Error(diff)
	}
}

// latest is replaced in one step: whoever looks at any time finds a run.
func TestLatestIsAlwaysThere(t *testing.T) {
	base := t.TempDir()
	begin(t, base, "quick", 0)
	stop, missing := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(missing)
		for {
			select {
			case <-stop:
				return
			default:
				if _, err := os.Stat(filepath.Join(base, Latest)); err != nil {
					missing <- err
					return
				}
			}
		}
	}()
	for seed := range uint64(200) {
		f := begin(t, base, "quick", seed+1)
		f.Close()
	}
	close(stop)
	if err := <-missing; err != nil {
		t.Error(err)
	}
}

// A harness that was killed while it made the link left it behind.
func TestCreateAfterCrash(t *testing.T) {
	base := t.TempDir()
	begin(t, base, "quick", 1)
	left := filepath.Join(base, ".latest-"+strconv.Itoa(os.Getpid()))
	if err := os.Rename(filepath.Join(base, Latest), left); err != nil {
		t.Fatal(err)
	}
	begin(t, base, "quick", 2)
	want := []string{"latest -> quick/20310203T030506Z-2", "quick/20310203T030506Z-1/", "quick/20310203T030506Z-2/"}
	if diff := cmp.Diff(want, tree(t, base)); diff != "" {
		t.Error(diff)
	}
}

func TestCreateErrors(t *testing.T) {
	base := t.TempDir()
	if err := os.WriteFile(filepath.Join(base, "file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	f, err := Create(filepath.Join(base, "file"), "quick", Name(moment, 1, plan.Shard{}), nil)
	if f != nil || err == nil || !strings.HasPrefix(err.Error(), "results: ") {
		t.Errorf("below a file: %v, %v", f, err)
	}
	// Somebody's own folder called latest is not replaced; the run's folder is
	// there all the same.
	if err := os.MkdirAll(filepath.Join(base, Latest, "mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err = Create(base, "quick", Name(moment, 1, plan.Shard{}), nil)
	if f == nil || err == nil || !strings.HasPrefix(err.Error(), "results: ") {
		t.Fatalf("latest is a folder: %v, %v", f, err)
	}
	defer f.Close()
	want := []string{"file", "latest/mine/", "quick/20310203T030506Z-1/"}
	if diff := cmp.Diff(want, tree(t, base)); diff != "" {
		t.Error(diff)
	}
}

func TestCreateWithFiles(t *testing.T) {
	base := t.TempDir()
	f, err := Create(base, "quick", Name(moment, 1, plan.Shard{}), map[string][]byte{ManifestFile: []byte("{}"), "cells/a/proxy.conf": []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.WriteFile("later", nil); err != nil {
		t.Error(err)
	}
	want := []string{
		"latest -> quick/20310203T030506Z-1",
		"quick/20310203T030506Z-1/cells/a/proxy.conf",
		"quick/20310203T030506Z-1/later",
		"quick/20310203T030506Z-1/manifest.json",
	}
	if diff := cmp.Diff(want, tree(t, base)); diff != "" {
		t.Error(diff)
	}
	st, err := os.Stat(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	if st.Mode().Perm()&0o055 != 0o055 {
		t.Errorf("others cannot read a run's folder: %s", st.Mode())
	}
}

// A folder that cannot be made whole is not made at all.
func TestCreateAllOrNothing(t *testing.T) {
	base := t.TempDir()
	f, err := Create(base, "quick", Name(moment, 1, plan.Shard{}), map[string][]byte{"../x": nil})
	if f != nil || err == nil || !strings.HasPrefix(err.Error(), "results: ") {
		t.Errorf("%v, %v", f, err)
	}
	if diff := cmp.Diff([]string{"quick/"}, tree(t, base)); diff != "" {
		t.Error(diff)
	}
}

func TestOpenErrors(t *testing.T) {
	t.Chdir(t.TempDir())
	if err := os.WriteFile("file", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("empty", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("gone", "dangling"); err != nil {
		t.Fatal(err)
	}
	const noRun = "there is no such run (a run's folder is results/<scenario>/<time>-<seed>; results/latest is the newest)"
	for path, want := range map[string]string{
		"gone":      "gone: " + noRun,
		"dangling":  "dangling: " + noRun,
		"file":      "file: is a file (a run's folder is needed, which holds a manifest.json)",
		"empty":     "empty: holds no manifest.json, so it is no run's folder",
		"file/file": "stat file/file: not a directory",
	} {
		f, err := Open(path)
		if f != nil || err == nil || err.Error() != want {
			t.Errorf("%s: %v, %v\nwant %s", path, f, err, want)
		}
	}
}

func TestWriteFile(t *testing.T) {
	f := begin(t, t.TempDir(), "quick", 1)
	for _, content := range []string{"a first and longer text", "b", ""} {
		for _, name := range []string{"report.md", "cells/a/proxy.conf"} {
			if err := f.WriteFile(name, []byte(content)); err != nil {
				t.Fatal(err)
			}
			got, err := os.ReadFile(filepath.Join(f.Path, name))
			if err != nil || string(got) != content {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	if err := f.WriteJSON("v.json", map[string]int{"b": 1, "a": 2}); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(filepath.Join(f.Path, "v.json")); err != nil || string(got) != "{\n  \"a\": 2,\n  \"b\": 1\n}\n" {
		t.Errorf("%q, %v", got, err)
	}
	if err := f.WriteJSON("bad.json", func() {}); err == nil || err.Error() != "bad.json: json: unsupported type: func()" {
		t.Errorf("%v", err)
	}
	if err := f.WriteFile("cells", []byte("x")); err == nil {
		t.Error("a folder was replaced by a file")
	}
	want := []string{"cells/a/proxy.conf", "report.md", "v.json"}
	if diff := cmp.Diff(want, tree(t, f.Path)); diff != "" {
		t.Error(diff)
	}
}

// A reader sees the old text or the new one, whole.
func TestWriteFileAtomic(t *testing.T) {
	f := begin(t, t.TempDir(), "quick", 1)
	texts := [][]byte{bytes.Repeat([]byte("a"), 1<<16), bytes.Repeat([]byte("b"), 1<<16)}
	if err := f.WriteFile("x", texts[0]); err != nil {
		t.Fatal(err)
	}
	stop, torn := make(chan struct{}), make(chan string, 1)
	go func() {
		defer close(torn)
		for {
			select {
			case <-stop:
				return
			default:
			}
			b, err := os.ReadFile(filepath.Join(f.Path, "x"))
			if err != nil || !bytes.Equal(b, texts[0]) && !bytes.Equal(b, texts[1]) {
				torn <- "torn"
				return
			}
		}
	}()
	for i := range 300 {
		if err := f.WriteFile("x", texts[i%2]); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	if s := <-torn; s != "" {
		t.Error("a reader saw a part of a file, or none")
	}
}

// Everything is written below the folder, whatever a cell is called.
func TestEscape(t *testing.T) {
	base := t.TempDir()
	f := begin(t, base, "quick", 1)
	if err := os.Symlink(base, filepath.Join(f.Path, "out")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(base, "file"), filepath.Join(f.Path, "link")); err != nil {
		t.Fatal(err)
	}
	before := tree(t, base)
	if file, err := f.CreateFile("link"); err == nil {
		file.Close()
		t.Error("CreateFile follows a link out of the folder")
	}
	for _, name := range []string{
		filepath.Join(CellsDir, "../../../cell", "journal.jsonl"),
		CellsDir + "/../../../cell/journal.jsonl",
		"../x", "..", "out/x", "out/cell/x", filepath.Join(base, "x"), "/x",
	} {
		if file, err := f.CreateFile(name); err == nil {
			file.Close()
			t.Errorf("CreateFile(%s) did", name)
		}
		if err := f.WriteFile(name, []byte("x")); err == nil {
			t.Errorf("WriteFile(%s) did", name)
		}
		if err := f.WriteJSON(name, "x"); err == nil {
			t.Errorf("WriteJSON(%s) did", name)
		}
	}
	if diff := cmp.Diff(before, tree(t, base)); diff != "" {
		t.Error(diff)
	}
	// What it can be called does work.
	file, err := f.CreateFile(filepath.Join(CellsDir, "a b:ü", "journal.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Error(err)
	}
}

func TestManifestErrors(t *testing.T) {
	f := begin(t, t.TempDir(), "quick", 1)
	path := filepath.Join(f.Path, ManifestFile)
	for text, want := range map[string]string{
		"nonsense":                          path + ": invalid character 'o' in literal null (expecting 'u')",
		"{}":                                path + `: schema is "", this program reads "idlerace/manifest/v1"`,
		`{"schema":"idlerace/manifest/v2"}`: path + `: schema is "idlerace/manifest/v2", this program reads "idlerace/manifest/v1"`,
	} {
		if err := f.WriteFile(ManifestFile, []byte(text)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Manifest(); err == nil || err.Error() != want {
			t.Errorf("%s:\n got %v\nwant %s", text, err, want)
		}
		if _, _, err := f.Judge(); err == nil || err.Error() != want {
			t.Errorf("Judge, %s:\n got %v\nwant %s", text, err, want)
		}
	}
}

const scenario = `version: 1
name: quick
about: Does it race?
proxies: [gohttp]
upstream: {kind: go, close: fin}
axes:
  proxy_idle: [1s]
  upstream_idle: [500ms]
  method: [POST]
probe: {lanes: 2, shots: 2, budget: 5s, seed: 3}
`

// run is a small run: a cell whose second burst raced.
func run(t *testing.T, ended string) (*Folder, plan.Item, []byte) {
	t.Helper()
	f := begin(t, t.TempDir(), "quick", 3)
	s, err := spec.Read(ScenarioFile, []byte(scenario), nil)
	if err != nil {
		t.Fatal(err)
	}
	item := plan.New(s, func(spec.Cell) string { return "" }).Items[0]
	m := record.Manifest{Schema: record.ManifestSchema, Scenario: s.Name, Seed: 3, Started: moment.UTC(), Command: []string{"run", "quick.yaml"},
		Proxies: []record.ProxyRun{{Name: "gohttp", Runtime: "embedded", Version: "go1.26"}}, Items: []plan.Item{item}, Ended: ended}
	if err := f.WriteJSON(ManifestFile, m); err != nil {
		t.Fatal(err)
	}
	if err := f.WriteFile(ScenarioFile, []byte(scenario)); err != nil {
		t.Fatal(err)
	}
	var text bytes.Buffer
	w := record.NewWriter(&text)
	event := func(e record.Event) {
		e.Server, e.Cell = item.Server, item.ID
		w.Write(record.Line{T: record.KindEvent, Event: &e})
	}
	shot := func(seq uint64, status int) {
		w.Write(record.Line{T: record.KindShot, Shot: &record.Shot{Cell: item.ID, Seq: seq, Phase: record.PhaseAimed, Target: record.TargetUpstream,
			Sent: int64(seq), Status: status, Outcome: record.OutcomeResponse}})
	}
	for conn := range uint64(2) {
		event(record.Event{Kind: record.EventAccept, Conn: conn, Peer: "127.0.0.1:4000" + string(rune('0'+conn))})
		event(record.Event{Kind: record.EventRequest, Conn: conn, Seq: conn, Nth: 1, Executed: true})
		event(record.Event{Kind: record.EventIdle, Conn: conn, Seq: conn})
		shot(conn, 200)
	}
	w.Write(record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: item.ID, Seq: 1}})
	for conn := range uint64(2) {
		event(record.Event{Kind: record.EventClose, Conn: conn, Seq: conn, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: 500 * time.Millisecond})
		event(record.Event{Kind: record.EventLate, Conn: conn, Seq: conn + 2, Idle: 500 * time.Millisecond})
		shot(conn+2, 502)
	}
	w.Write(record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: item.ID, Seq: 3}})
	w.Write(record.Line{T: record.KindEnd, End: &record.End{Reason: record.EndDone}})
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return f, item, text.Bytes()
}

func TestJudge(t *testing.T) {
	cut := func(lines int) func([]byte) []byte {
		return func(b []byte) []byte {
			all := bytes.SplitAfter(b, []byte("\n"))
			return bytes.Join(all[:len(all)-1-lines], nil) // the last is what follows the last newline
		}
	}
	for _, tt := range []struct {
		name     string
		ended    string
		change   func([]byte) []byte
		state    spec.State
		shots    int
		partial  string
		warnings []string
	}{
		{name: "whole", ended: record.EndDone, state: spec.Races, shots: 4},
		{name: "out of budget", ended: record.EndBudget, state: spec.Races, shots: 4},
		{name: "interrupted", ended: record.EndInterrupted, state: spec.Races, shots: 4, partial: "the run ended early: interrupted"},
		{name: "killed, without its last line", change: cut(1), state: spec.Races, shots: 4,
			partial: "the run was killed before its end; what follows is judged from what it had written"},
		{name: "killed in the middle of a line", change: func(b []byte) []byte { return b[:len(b)-20] }, state: spec.Races, shots: 4,
			partial:  "the run was killed before its end; what follows is judged from what it had written",
			warnings: []string{"the record ends in the middle of a line"}},
		{name: "killed before the second burst", change: cut(8), state: spec.Inconclusive, shots: 2,
			partial: "the run was killed before its end; what follows is judged from what it had written"},
		{name: "killed before the first", change: func([]byte) []byte { return nil }, state: spec.Inconclusive,
			partial: "the run was killed before its end; what follows is judged from what it had written"},
		{name: "a bad line", ended: record.EndDone, change: func(b []byte) []byte { return append([]byte("nonsense\n"), b...) }, state: spec.Races, shots: 4,
			warnings: []string{"1 lines of the record could not be read; the first: line 1: invalid character 'o' in literal null (expecting 'u')"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f, item, text := run(t, tt.ended)
			if tt.change != nil {
				text = tt.change(text)
			}
			if err := f.WriteFile(ObservationsFile, text); err != nil {
				t.Fatal(err)
			}
			reopened, err := Open(f.Path)
			if err != nil {
				t.Fatal(err)
			}
			defer reopened.Close()
			d, s, err := reopened.Judge()
			if err != nil {
				t.Fatal(err)
			}
			if s.Name != "quick" || d.Run.Scenario != "quick" || len(d.Cells) != 1 || len(d.Controls) != 0 {
				t.Fatalf("%+v of %+v", d, s)
			}
			v := d.Cells[0]
			if v.ID != item.ID || v.State != tt.state || v.Shots != tt.shots {
				t.Errorf("cell %s is %s after %d shots, want %s after %d: %s", v.ID, v.State, v.Shots, tt.state, tt.shots, v.Why)
			}
			if d.Run.Partial != tt.partial {
				t.Errorf("partial: %q, want %q", d.Run.Partial, tt.partial)
			}
			if want := append([]string{}, tt.warnings...); !cmp.Equal(d.Run.Warnings, want) {
				t.Errorf("warnings %q, want %q", d.Run.Warnings, want)
			}
		})
	}
}

func TestJudgeMissingFile(t *testing.T) {
	for _, name := range []string{ScenarioFile, ObservationsFile} {
		f, _, text := run(t, record.EndDone)
		if err := f.WriteFile(ObservationsFile, text); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(f.Path, name)); err != nil {
			t.Fatal(err)
		}
		_, _, err := f.Judge()
		if !errors.Is(err, fs.ErrNotExist) || !strings.HasPrefix(err.Error(), filepath.Join(f.Path, name)+": ") {
			t.Errorf("%s is missing: %v", name, err)
		}
	}
}

func TestScenarioErrors(t *testing.T) {
	f, _, _ := run(t, record.EndDone)
	if err := f.WriteFile(ScenarioFile, []byte("version: 2\n")); err != nil {
		t.Fatal(err)
	}
	_, err := f.Scenario()
	if _, ok := errors.AsType[*spec.Error](err); !ok || !strings.HasPrefix(err.Error(), filepath.Join(f.Path, ScenarioFile)+":1: ") {
		t.Errorf("%v", err)
	}
}

// The names of a run's files are what users' scripts look for.
func TestManifestRoundTrip(t *testing.T) {
	f, item, _ := run(t, record.EndDone)
	m, err := f.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if len(m.Items) != 1 || m.Items[0] != item || !m.Started.Equal(moment) || m.Seed != 3 {
		t.Errorf("%+v", m)
	}
	text, err := os.ReadFile(filepath.Join(f.Path, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(text, &keys); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"schema", "scenario", "seed", "started", "command", "proxies", "items", "ended"} {
		if keys[key] == nil {
			t.Errorf("manifest.json has no %q", key)
		}
	}
}

func TestObservations(t *testing.T) {
	f, _, text := run(t, record.EndDone)
	file, err := f.CreateFile(ObservationsFile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(text); err != nil {
		t.Fatal(err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	r, err := f.Observations()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	got, err := io.ReadAll(r)
	if err != nil || !bytes.Equal(got, text) {
		t.Errorf("%d bytes of %d, %v", len(got), len(text), err)
	}
}
