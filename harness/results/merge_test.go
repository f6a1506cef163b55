package results

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

const sharded = `version: 1
name: quick
about: Does it race?
proxies: [gohttp, nginx]
axes:
  proxy_idle: [1s, 2s, 3s]
  upstream_idle: [500ms]
  method: [POST]
probe: {lanes: 2, shots: 2, budget: 5s, seed: 3}
`

// raced is the record of items that each lost two requests.
func raced(items ...plan.Item) []byte {
	var text bytes.Buffer
	w := record.NewWriter(&text)
	conn := uint64(0) // numbered anew in every shard
	for _, it := range items {
		event := func(e record.Event) {
			e.Server, e.Cell = it.Server, it.ID
			w.Write(record.Line{T: record.KindEvent, Event: &e})
		}
		shot := func(seq uint64, status int) {
			w.Write(record.Line{T: record.KindShot, Shot: &record.Shot{Cell: it.ID, Seq: seq, Phase: record.PhaseAimed, Target: record.TargetUpstream,
				Sent: int64(seq), Status: status, Outcome: record.OutcomeResponse}})
		}
		for seq := range uint64(2) {
			conn++
			event(record.Event{Kind: record.EventAccept, Conn: conn, Peer: fmt.Sprintf("127.0.0.1:%d", 4000+conn)})
			event(record.Event{Kind: record.EventRequest, Conn: conn, Seq: seq, Nth: 1, Executed: true})
			event(record.Event{Kind: record.EventIdle, Conn: conn, Seq: seq})
			shot(seq, 200)
			event(record.Event{Kind: record.EventClose, Conn: conn, Seq: seq, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: 500 * time.Millisecond})
			event(record.Event{Kind: record.EventLate, Conn: conn, Seq: seq + 2, Idle: 500 * time.Millisecond})
			shot(seq+2, 502)
		}
		w.Write(record.Line{T: record.KindSettled, Settled: &record.Settled{Cell: it.ID, Seq: 3}})
	}
	w.Write(record.Line{T: record.KindEnd, End: &record.End{Reason: record.EndDone}})
	if err := w.Flush(); err != nil {
		panic(err)
	}
	return text.Bytes()
}

// shardRun is shard i of 3: its cells and its positive controls race; in shard 2
// nginx's negative control fails as well.
func shardRun(t *testing.T, base string, i int, edit func(m *record.Manifest, source *string)) *Folder {
	t.Helper()
	sh := plan.Shard{I: i, N: 3}
	s, err := spec.Read(ScenarioFile, []byte(sharded), nil)
	if err != nil {
		t.Fatal(err)
	}
	mine := sh.Cells(s)
	items := plan.New(s, func(spec.Cell) string { return "" }).Only(func(it plan.Item) bool { return mine[it.ID] }).Items
	m := record.Manifest{Schema: record.ManifestSchema, Scenario: s.Name, Seed: 3, Started: moment.UTC().Add(time.Duration(3-i) * time.Second),
		Command: []string{"run", "quick.yaml"}, Idlerace: "v1", Kernel: "Linux 6", Cores: 2, Lanes: 2, Shard: sh, SHA256: Sum([]byte(sharded)), Items: items,
		Proxies: []record.ProxyRun{{Name: "gohttp", Runtime: "embedded", Version: "go1.26"}, {Name: "nginx", Runtime: "local", Version: "1.22.1"}},
		StartUp: time.Duration(i), Probing: time.Duration(i) * time.Second, Ended: record.EndDone}
	source := sharded
	if edit != nil {
		edit(&m, &source)
	}
	f, err := Create(base, s.Name, Name(m.Started, m.Seed, sh), map[string][]byte{ScenarioFile: []byte(source), MetricsFile: []byte("counters")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if err := f.WriteJSON(ManifestFile, m); err != nil {
		t.Fatal(err)
	}
	racing := slices.DeleteFunc(slices.Clone(m.Items), func(it plan.Item) bool {
		return it.Role == plan.RoleMustNotRace && !(i == 2 && it.Cell.Proxy == "nginx")
	})
	if err := f.WriteFile(ObservationsFile, raced(racing...)); err != nil {
		t.Fatal(err)
	}
	for _, it := range m.Items {
		if err := f.WriteFile(filepath.Join(CellsDir, it.ID, "proxy.conf"), []byte(it.ID)); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestMerge(t *testing.T) {
	base := t.TempDir()
	shards := []*Folder{shardRun(t, base, 3, nil), shardRun(t, base, 1, nil), shardRun(t, base, 2, nil)}
	before := tree(t, base)
	parts, err := ReadShards(shards)
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "results")
	f, err := parts.Merge(out)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if diff := cmp.Diff(before, tree(t, base)); diff != "" {
		t.Errorf("the shards' own folders changed: %s", diff)
	}
	if want := filepath.Join(out, "quick", "20310203T030506Z-3"); f.Path != want {
		t.Errorf("path %s, want %s", f.Path, want)
	}

	f, err = Open(filepath.Join(out, Latest))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m, err := f.Manifest()
	if err != nil {
		t.Fatal(err)
	}
	if m.Shards != 3 || m.Shard != (plan.Shard{}) || m.StartUp != 3 || m.Probing != 3*time.Second || m.Ended != record.EndDone || len(m.Proxies) != 2 || m.Cores != 2 || m.Lanes != 2 || len(m.Warnings) != 0 {
		t.Errorf("%+v", m)
	}
	d, s, err := f.Judge()
	if err != nil {
		t.Fatal(err)
	}
	if d.Run.Shards != 3 || d.Run.Shard != "" || d.Run.Partial != "" || len(d.Run.Warnings) != 0 {
		t.Errorf("%+v", d.Run)
	}
	second := plan.Shard{I: 2, N: 3}.Cells(s)
	var ids []string
	for i, c := range s.Cells() {
		ids = append(ids, c.ID())
		if i >= len(d.Cells) || d.Cells[i].ID != c.ID() {
			t.Fatalf("cells are not those of the scenario in its order: %+v", d.Cells)
		}
		want := spec.Races
		if c.Proxy == "nginx" && second[c.ID()] {
			want = spec.Broken // by the control of its own shard
		}
		if v := d.Cells[i]; v.State != want || v.Attributed != 2 || v.Shots != 4 {
			t.Errorf("%s is %s, want %s: %s", v.ID, v.State, want, v.Why)
		}
	}
	for i := 1; i <= 3; i++ {
		for _, it := range parts[i-1].manifest.Items {
			if it.Role != plan.RoleCell {
				ids = append(ids, plan.Shard{I: i, N: 3}.Control(it.ID))
			}
		}
	}
	var items, folders []string
	for _, it := range m.Items {
		items = append(items, it.ID)
	}
	if diff := cmp.Diff(ids, items); diff != "" {
		t.Errorf("items: %s", diff)
	}
	if n := len(d.Controls); n != len(ids)-len(d.Cells) || d.Controls[0].ID != ids[len(d.Cells)] {
		t.Errorf("%d controls of %d", n, len(ids)-len(d.Cells))
	}
	entries, err := os.ReadDir(filepath.Join(f.Path, CellsDir))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		folders = append(folders, e.Name())
	}
	slices.Sort(ids)
	if diff := cmp.Diff(ids, folders); diff != "" {
		t.Errorf("cells/: %s", diff)
	}
	for _, name := range []string{"shards/1/metrics.prom", "shards/2/observations.jsonl", "shards/3/manifest.json", "shards/3/scenario.yaml", ScenarioFile} {
		if _, err := os.Stat(filepath.Join(f.Path, name)); err != nil {
			t.Error(err)
		}
	}

	// Every item is found in the record of its shard.
	for _, it := range m.Items {
		r, id, err := f.CellObservations(it.ID)
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		r.Close()
		if err != nil || it.Role != plan.RoleMustNotRace && !bytes.Contains(text, []byte(`"cell":"`+id+`"`)) {
			t.Errorf("%s as %s: %v", it.ID, id, err)
		}
	}
}

// Where the shards' machines differ in what does not decide, the merged run says
// so.
func TestMergeSaysWhatDiffers(t *testing.T) {
	base := t.TempDir()
	parts, err := ReadShards([]*Folder{
		shardRun(t, base, 1, func(m *record.Manifest, _ *string) {
			m.Kernel, m.Cores, m.Lanes, m.Ended, m.NoPackets = "Linux 5", 8, 20, "", "no right"
		}),
		shardRun(t, base, 2, func(m *record.Manifest, _ *string) {
			m.Ended, m.Warnings, m.Proxies[1].ImageID = record.EndInterrupted, []string{"late"}, "sha256:1"
		}),
		shardRun(t, base, 3, func(m *record.Manifest, _ *string) {
			m.Items = slices.DeleteFunc(m.Items, func(it plan.Item) bool { return it.Cell.Proxy == "nginx" })
			m.Proxies, m.Unavailable = m.Proxies[:1], []record.Unavailable{{Proxy: "nginx", Reason: "no nginx on PATH", Get: "apt-get install nginx"}}
		}),
	})
	if err != nil {
		t.Fatal(err)
	}
	f, err := parts.Merge(base)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	d, s, err := f.Judge()
	if err != nil {
		t.Fatal(err)
	}
	r := d.Run
	if r.Kernel != "Linux 5, Linux 6" || r.Cores != 0 || r.Lanes != 0 || r.NoPackets != "shard 1/3: no right" {
		t.Errorf("%+v", r)
	}
	if want := "the run ended early: shard 1/3: killed before its end; shard 2/3: interrupted"; r.Partial != want {
		t.Errorf("partial: %s\nwant %s", r.Partial, want)
	}
	want := []string{"the shards had different kernels: Linux 5, Linux 6", "the shards had different numbers of cores: 8, 2",
		"the shards had different numbers of lanes: 20, 2", "shard 2/3: late"}
	if diff := cmp.Diff(want, r.Warnings); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]judge.Unavailable{{Proxy: "nginx", Reason: "shard 3/3: no nginx on PATH", Get: "apt-get install nginx"}}, d.Unavailable); diff != "" {
		t.Error(diff)
	}
	third := plan.Shard{I: 3, N: 3}.Cells(s)
	for _, c := range s.Cells() {
		is := slices.ContainsFunc(d.Cells, func(v judge.Verdict) bool { return v.ID == c.ID() })
		if want := c.Proxy != "nginx" || !third[c.ID()]; is != want {
			t.Errorf("%s is there: %v", c.ID(), is)
		}
	}
}

func TestMergeRefuses(t *testing.T) {
	type edit = func(m *record.Manifest, source *string)
	for _, tt := range []struct {
		name   string
		shards []int
		edit   edit // of the second named
		want   string
	}{
		{"none", nil, nil, "no shard is named"},
		{"one is missing", []int{1, 3}, nil, "no run of shard 2/3 is named; all 3 are needed"},
		{"two are missing", []int{2}, nil, "no run of shard 1/3, 3/3 is named; all 3 are needed"},
		{"twice", []int{1, 2, 2, 3}, nil, "A and A.2 are both shard 2/3; name one of them"},
		{"a whole run", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Shard = plan.Shard{} },
			"A: is no shard but a whole run; `idlerace run FILE --shard I/N` makes shards"},
		{"merged", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Shard, m.Shards = plan.Shard{}, 3 },
			"A: is merged already, from 3 shards; name the shards' own folders"},
		{"another scenario", []int{1, 2, 3}, func(m *record.Manifest, s *string) {
			*s = strings.Replace(*s, "seed: 3", "seed: 4", 1)
			m.SHA256 = Sum([]byte(*s))
		}, "B/scenario.yaml and A/scenario.yaml differ from line 9 on; shards of one run have the same scenario"},
		{"a scenario changed since", []int{1, 2, 3}, func(m *record.Manifest, s *string) { *s += "# later\n" },
			"A/scenario.yaml: is not what ran; its SHA-256 must be scenario_sha256 of manifest.json"},
		{"another seed", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Seed = 4 },
			"B and A differ in the seed: 3 and 4; shards of one run have the same"},
		{"another idlerace", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Idlerace = "v2" },
			"B and A differ in the version of idlerace: v1 and v2; shards of one run have the same"},
		{"another proxy", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Proxies[1].Version = "1.28.0" },
			"nginx is 1.22.1 (local) in B and 1.28.0 (local) in A; shards of one run have the same"},
		{"another runtime", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Proxies[1].Runtime = "docker" },
			"nginx is 1.22.1 (local) in B and 1.22.1 (docker) in A; shards of one run have the same"},
		{"a cell of another shard", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Shard.I = 3 }, "A: has cell "},
		{"a lost cell", []int{1, 2, 3}, func(m *record.Manifest, _ *string) { m.Items = m.Items[1:] }, "A: lacks cell "},
		{"another number of shards", []int{1, 2, 3}, func(m *record.Manifest, _ *string) {
			m.Shard, m.Items, m.Unavailable = plan.Shard{I: 2, N: 2}, nil, []record.Unavailable{{Proxy: "gohttp"}, {Proxy: "nginx"}}
		}, "B and A differ in the number of shards: 3 and 2; shards of one run have the same"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			base := t.TempDir()
			var folders []*Folder
			names := map[string]string{}
			for i, n := range tt.shards {
				var e edit
				if i == 1 {
					e = tt.edit
				}
				f := shardRun(t, base, n, e)
				folders = append(folders, f)
				if i < 2 {
					names[f.Path] = []string{"B", "A"}[i]
				}
			}
			before := tree(t, base)
			_, err := ReadShards(folders)
			if err == nil {
				t.Fatal("accepted")
			}
			got := err.Error()
			for path, name := range names {
				got = strings.ReplaceAll(got, path, name)
			}
			if got != tt.want && !(strings.HasSuffix(tt.want, " ") && strings.HasPrefix(got, tt.want)) || strings.Contains(got, "\n") {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
			if diff := cmp.Diff(before, tree(t, base)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// What cannot be written whole is not there, and the shards are as they were.
func TestMergeLeavesNothing(t *testing.T) {
	base := t.TempDir()
	shards := []*Folder{shardRun(t, base, 1, nil), shardRun(t, base, 2, nil), shardRun(t, base, 3, nil)}
	parts, err := ReadShards(shards)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(shards[2].Path, ObservationsFile)); err != nil {
		t.Fatal(err)
	}
	before := tree(t, base)
	out := t.TempDir()
	if f, err := parts.Merge(out); f != nil || err == nil || !strings.Contains(err.Error(), shards[2].Path+"/observations.jsonl: ") {
		t.Errorf("%v, %v", f, err)
	}
	if diff := cmp.Diff([]string{"quick/"}, tree(t, out)); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(before, tree(t, base)); diff != "" {
		t.Error(diff)
	}

	if err := os.Symlink("/etc/passwd", filepath.Join(shards[0].Path, "link")); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadShards(shards); err == nil || err.Error() != shards[0].Path+"/link: is no plain file; a run's folder has no others" {
		t.Error(err)
	}
}

func TestOpenShards(t *testing.T) {
	base := t.TempDir()
	for i := range 3 {
		shardRun(t, filepath.Join(base, fmt.Sprint("job-", i)), i+1, nil)
	}
	find := func(dir string) (out []string) {
		t.Helper()
		folders, err := OpenShards(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range folders {
			defer f.Close()
			out = append(out, f.Path)
		}
		return out
	}
	all := find(base)
	if len(all) != 3 {
		t.Fatalf("%q", all)
	}
	if got := find(all[1]); len(got) != 1 || got[0] != all[1] {
		t.Errorf("a run's folder itself: %q", got)
	}
	if got := find(filepath.Join(base, "job-0", Latest)); len(got) != 1 {
		t.Errorf("a link to one: %q", got)
	}
	// Merged runs, whole ones and unfinished ones beside them are no shards.
	folders, err := OpenShards(base)
	if err != nil {
		t.Fatal(err)
	}
	parts, err := ReadShards(folders)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := parts.Merge(base); err != nil {
		t.Fatal(err)
	}
	shardRun(t, base, 1, func(m *record.Manifest, _ *string) { m.Shard = plan.Shard{} })
	if err := os.Rename(shardRun(t, base, 1, nil).Path, filepath.Join(base, "quick", ".new-1")); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(all, find(base)); diff != "" {
		t.Error(diff)
	}

	for dir, want := range map[string]string{
		t.TempDir():                          ": is no run's folder, and has no shard's below it",
		filepath.Join(base, "nowhere"):       ": there is no such run",
		filepath.Join(all[0], "cells"):       ": is no run's folder",
		filepath.Join(all[0], CellsDir, "x"): ": there is no such run",
	} {
		if _, err := OpenShards(dir); err == nil || !strings.HasPrefix(err.Error(), dir+want) {
			t.Errorf("%s: %v", dir, err)
		}
	}
}
