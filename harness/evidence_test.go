package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/proxy"
	"idlerace/harness/results"
	"idlerace/harness/spec"
)

// needPackets skips a test where packets cannot be captured: that takes a
// right which not every user has.
func needPackets(t *testing.T, d *judge.Document) {
	t.Helper()
	if why := d.Run.NoPackets; why != "" {
		t.Skipf("packets: %s", why)
	}
}

// TestE2EEvidence: every failure of a racing cell has its packets, the close
// style without a witness of its own reaches the states of the witnessed one,
// and the capture files say the same to tshark.
func TestE2EEvidence(t *testing.T) {
	for _, a := range proxy.All() {
		t.Run(a.Name(), func(t *testing.T) {
			need(t, a.Name())
			d, folder := runScenarioFile(t, scenarioFile(t, "evidence", a.Name(), `axes:
  proxy_idle: [300ms, 1200ms]
  upstream_idle: [600ms]
  close: [fin, plain]
probe: {lanes: 30, shots: 120, budget: 120s}`))
			needPackets(t, d)
			for _, v := range d.Cells {
				want := spec.Safe
				if v.ProxyIdle == "1.2s" {
					want = racingState(a.Name(), v.Method)
				}
				if v.State != want {
					t.Errorf("%s: %s, want %s: %s", v.ID, v.State, want, v.Why)
				}
				// A request that never left the proxy has no packets: its log tells.
				if sent := v.Late - v.Retried; v.State == spec.Races && (v.OnWire == 0 || v.OnWire < sent) {
					t.Errorf("%s: %d of %d failed late requests have packets", v.ID, v.OnWire, sent)
				}
				path := filepath.Join(folder.Path, results.CellsDir, v.ID, results.EvidenceFile)
				_, err := os.Stat(path)
				if raced := v.Late > 0; raced != (err == nil) {
					t.Errorf("%s: %d late requests, and %v", v.ID, v.Late, err)
				}
				if err == nil {
					readByTshark(t, path)
				}
			}
		})
	}
}

// readByTshark wants tshark to read a file without a warning, and on every
// stream the late request and the upstream's end: a FIN, and no RST before it.
// A RST without one is what a kernel sends for a socket that is closed with a
// request in it, unread; none at all is there when the proxy has closed, too.
func readByTshark(t *testing.T, path string) {
	t.Helper()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Log("no tshark: the file is not read by another program") // the rest of the test holds without
		return
	}
	cmd := exec.Command("tshark", "-r", path, "-T", "fields", "-e", "frame.number", "-e", "tcp.stream", "-e", "tcp.flags.fin", "-e", "tcp.flags.reset", "-e", "frame.comment")
	var warnings strings.Builder
	cmd.Stderr = &warnings
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v\n%s", err, warnings.String())
	}
	for line := range strings.Lines(warnings.String()) {
		if !strings.HasPrefix(line, "Running as user") {
			t.Errorf("tshark: %s", line)
		}
	}
	type stream struct{ fin, late, reset int }
	streams := map[string]*stream{}
	for line := range strings.Lines(string(out)) {
		f := append(strings.Split(strings.TrimRight(line, "\n"), "\t"), "", "", "", "", "")
		s := streams[f[1]]
		if s == nil {
			s = &stream{}
			streams[f[1]] = s
		}
		n, err := strconv.Atoi(f[0])
		if err != nil {
			t.Fatalf("tshark: %q", line)
		}
		set := func(to *int, is string) {
			if *to == 0 && (is == "1" || is == "True") {
				*to = n
			}
		}
		if strings.HasPrefix(f[4], "FIN: idle timer") {
			set(&s.fin, f[2])
		}
		set(&s.reset, f[3])
		if strings.Contains(f[4], "the idle timer has closed") {
			set(&s.late, "1")
		}
	}
	if len(streams) == 0 {
		t.Error("no stream")
	}
	for id, s := range streams {
		if s.late == 0 || s.fin+s.reset == 0 || s.reset > 0 && s.reset < max(s.fin, s.late) {
			t.Errorf("%s: stream %s: %s", filepath.Base(filepath.Dir(path)), id, fmt.Sprintf("FIN in packet %d, late request in %d, RST in %d", s.fin, s.late, s.reset))
		}
	}
}

// TestE2EWindow: with a round trip between proxy and upstream the danger window
// begins one round trip before the close, and a margin of less races.
func TestE2EWindow(t *testing.T) {
	d, _ := runScenarioFile(t, scenarioFile(t, "window", "gohttp", `axes:
  proxy_idle: [300ms, 570ms, 2s]
  upstream_idle: [600ms]
  method: [POST]
  rtt: [60ms]
probe: {lanes: 30, shots: 600, budget: 120s, aim: window, until: shots}`))
	for _, v := range d.Cells {
		want := spec.Races
		if v.ProxyIdle == "300ms" { // far more than a round trip
			want = spec.Safe
		}
		if v.State != want {
			t.Errorf("%s: %s, want %s: %s", v.ID, v.State, want, v.Why)
		}
		if v.ProxyIdle != "2s" {
			continue
		}
		// How near it is to the law is the machine's: the README has
		// figures. That it is a round trip before the close shows on any.
		if f := v.Fit; f == nil || f.Lower == nil || time.Duration(f.Lower.At) > -30*time.Millisecond || time.Duration(f.Lower.At) < -90*time.Millisecond {
			t.Errorf("%s: %+v", v.ID, f)
		}
	}
}
