package run

import (
	"strings"
	"testing"

	"idlerace/harness/judge"
	"idlerace/harness/load"
	"idlerace/harness/metrics"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/results"
)

// What no settled burst has covered counts all the same, as it does for the
// judge.
func TestUnsettledShotsCount(t *testing.T) {
	folder, err := results.Create(t.TempDir(), "unsettled", "run", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	m := metrics.New()
	h, err := newHub(folder, m)
	if err != nil {
		t.Fatal(err)
	}
	it := plan.Item{ID: "a"}
	files, err := newCellFiles(folder, it)
	if err != nil {
		t.Fatal(err)
	}
	h.cells["a"] = &cell{item: it, aim: load.NewAim(it.Rand(1), 0, false), tally: judge.NewTally(judge.Subject{Item: it}), files: files,
		unproven: map[uint64]bool{}, lateSeen: map[uint64]bool{}}
	h.add(record.Line{T: record.KindShot, Shot: &record.Shot{Cell: "a", Seq: 1, Status: 502, Outcome: record.OutcomeResponse}})
	count := func() int {
		text, err := m.Text()
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), `idlerace_shots_total{cell="a",outcome="response"} 1`) +
			strings.Count(string(text), `idlerace_failures_total{cause="unknown",cell="a"} 1`)
	}
	if n := count(); n != 0 {
		t.Errorf("%d numbers before the end", n)
	}
	if err := h.end(record.EndInterrupted); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 2 {
		t.Errorf("%d of the request's 2 numbers", n)
	}
}
