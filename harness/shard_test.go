package main

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/results"
)

// TestE2EShards: three shards merged have the cells and states of one run of
// the whole, in its order, and a control of each kind per shard.
func TestE2EShards(t *testing.T) {
	file := scenarioFile(t, "shards", "gohttp", `axes:
  proxy_idle: [300ms, 1200ms, off]
  upstream_idle: [600ms]
probe: {lanes: 30, shots: 120, budget: 120s}`)
	whole, _ := runScenarioFile(t, file)

	out := t.TempDir()
	args := []string{"merge", "--out", out}
	for _, i := range []int{3, 1, 2} {
		dir := filepath.Join(out, fmt.Sprint("job-", i))
		cmd := exec.Command(binary, "run", file, "--runtime", record.RuntimeLocal, "--out", dir, "--quiet", "--shard", fmt.Sprintf("%d/3", i))
		text, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != exitInconclusive) {
			t.Fatalf("shard %d: %v\n%s", i, err, text)
		}
		args = append(args, filepath.Join(dir, results.Latest))
	}
	if text, err := exec.Command(binary, args...).CombinedOutput(); err != nil {
		t.Fatalf("merge: %v\n%s", err, text)
	}
	folder, err := results.Open(filepath.Join(out, results.Latest))
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	merged, _, err := folder.Judge()
	if err != nil {
		t.Fatal(err)
	}
	states := func(d *judge.Document) (out []string) {
		for _, v := range d.Cells {
			out = append(out, fmt.Sprint(v.ID, " ", v.State))
		}
		return out
	}
	if diff := cmp.Diff(states(whole), states(merged)); diff != "" {
		t.Errorf("one run and three shards merged: %s", diff)
		for _, v := range merged.Cells {
			t.Logf("%s: %s: %s", v.ID, v.State, v.Why)
		}
	}
	if len(whole.Cells) != 6 || len(whole.Controls) != 2 || len(merged.Controls) != 6 {
		t.Errorf("%d cells; %d controls, %d merged", len(whole.Cells), len(whole.Controls), len(merged.Controls))
	}
	attackFilesAreVegetas(t, folder, merged)
}
