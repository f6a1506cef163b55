package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/run"
	"idlerace/harness/spec"
)

// TestE2EChaos disturbs a run in every way: what that makes fail is no race, and
// hides none.
func TestE2EChaos(t *testing.T) {
	d, folder := runScenarioFile(t, scenarioFile(t, "chaos", "gohttp", `axes:
  proxy_idle: [200ms, 1200ms]
  upstream_idle: [600ms]
  method: [POST]
chaos:
  - {what: pause-proxy, for: 150ms, every: 3s}
  - {what: pause-origin, for: 100ms, every: 3500ms}
  - {what: restart-origin, every: 2s}
  - {what: burn-cpu, for: 200ms, every: 4s}
probe: {lanes: 20, shots: 160, until: shots, budget: 120s}`))
	for _, v := range d.Cells {
		ok := v.State == spec.Races && v.Attributed > 0
		if v.ProxyIdle == "200ms" {
			ok = v.State == spec.Safe || v.State == spec.Inconclusive
		}
		if !ok {
			t.Errorf("%s: %s: %s", v.ID, v.State, v.Why)
		}
		if v.SetAside == 0 {
			t.Errorf("%s: no request met a disturbance", v.ID)
		}
		t.Logf("%s: %s, %d of %d requests set aside, causes %v", v.ID, v.State, v.SetAside, v.Shots, v.Causes)
	}
	for _, v := range d.Controls {
		if v.Role == judge.RoleMustNotRace && v.State == spec.Races {
			t.Errorf("%s: %s", v.ID, v.Why)
		}
	}
	obs, err := folder.Observations()
	if err != nil {
		t.Fatal(err)
	}
	defer obs.Close()
	begun, ended, restarted := map[string]int{}, map[string]int{}, 0
	for l, err := range record.Read(obs) {
		if err != nil {
			t.Fatal(err)
		}
		switch d := l.Disturbance; {
		case l.Event != nil && l.Event.Restarted():
			restarted++
		case d == nil:
		case d.To == 0:
			begun[d.What]++
		default:
			ended[d.What]++
			if took := time.Duration(d.To - d.From); d.What == string(spec.PauseProxy) && (took < 150*time.Millisecond || d.Target != "gohttp") {
				t.Errorf("%+v took %s", d, took)
			}
		}
	}
	for _, w := range spec.Whats() {
		if n := begun[string(w)]; n == 0 || ended[string(w)] != n || d.Run.Disturbances[string(w)] != n {
			t.Errorf("%s: %d begun, %d ended, %d told", w, n, ended[string(w)], d.Run.Disturbances[string(w)])
		}
	}
	if restarted == 0 {
		t.Error("no connection was closed by a restart")
	}
}

// TestE2EChaosEnds ends runs while the proxy is paused: nothing may be left
// running, nor standing still.
func TestE2EChaosEnds(t *testing.T) {
	file := pausing(t, "ends")
	for _, sig := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(sig.String(), func(t *testing.T) {
			t.Parallel()
			endedWhilePaused(t, record.RuntimeLocal, file, sig)
		})
	}
}

// TestDockerChaos pauses containers, and interrupts a run while one is paused.
func TestDockerChaos(t *testing.T) {
	needImages(t, "gohttp")
	d, _ := runOn(t, record.RuntimeDocker, scenarioFile(t, mark+"-chaos", "gohttp", `axes:
  proxy_idle: [1200ms]
  upstream_idle: [600ms]
  method: [POST]
chaos:
  - {what: pause-proxy, for: 150ms, every: 1500ms}
  - {what: pause-origin, for: 100ms, every: 1500ms}
  - {what: restart-origin, every: 2s}
probe: {lanes: 20, shots: 100, until: shots, budget: 120s}`))
	if v := d.Cells[0]; v.State != spec.Races || v.SetAside == 0 {
		t.Errorf("%s, %d requests set aside: %s", v.State, v.SetAside, v.Why)
	}
	if len(d.Run.Disturbances) != 3 || len(d.Run.Warnings) > 0 {
		t.Errorf("disturbances %v, warnings %v", d.Run.Disturbances, d.Run.Warnings)
	}
	endedWhilePaused(t, record.RuntimeDocker, pausing(t, mark+"-ends"), syscall.SIGINT)
}

// pausing is a scenario whose proxy is paused for long, soon after the begin.
func pausing(t *testing.T, name string) string {
	t.Helper()
	pause := spec.Chaos{What: spec.PauseProxy, For: 9 * time.Second, Every: 10 * time.Second}
	seed := uint64(1)
	for run.Schedule(seed, []spec.Chaos{pause}, time.Hour)[0].At > spec.ChaosFrom+time.Second/4 {
		seed++
	}
	return scenarioFile(t, name, "gohttp", fmt.Sprintf(`axes:
  proxy_idle: [20m]
  upstream_idle: [10m]
  method: [POST]
chaos: [{what: %s, for: %s, every: %s}]
probe: {lanes: 5, budget: 1h, seed: %d}`, pause.What, pause.For, pause.Every, seed))
}

func endedWhilePaused(t *testing.T, runtime, file string, sig syscall.Signal) {
	t.Helper()
	out := t.TempDir()
	cmd := exec.Command(binary, "run", file, "--runtime", runtime, "--out", out, "--quiet")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	read := func() string {
		b, _ := os.ReadFile(filepath.Join(out, results.Latest, results.ObservationsFile))
		return string(b)
	}
	waitFor(t, "a paused proxy", func() bool { return strings.Contains(read(), `"what":"pause-proxy"`) })
	cmd.Process.Signal(sig)
	cmd.Wait()
	noneLeft(t, out)
	if text := read(); sig == syscall.SIGINT && (!strings.Contains(text, `"to":`) || !strings.Contains(text, record.EndInterrupted)) {
		t.Errorf("the record says neither that the pause ended nor that the run did:\n%s", text)
	}
}
