package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"idlerace/harness/judge"
	"idlerace/harness/report"
	"idlerace/harness/results"
	"idlerace/harness/spec"
)

// TestReference holds the published reports to their verdicts: what people read
// is what was measured, as this code writes it, and all of it was decided.
func TestReference(t *testing.T) {
	files, err := filepath.Glob("../results/reference/*/" + results.VerdictsFile)
	if err != nil || len(files) == 0 {
		t.Fatalf("no published report: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var d judge.Document
		if err := json.Unmarshal(b, &d); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		if len(d.Cells) == 0 || len(d.Controls) == 0 || d.Run.Partial != "" {
			t.Errorf("%s: %d cells, %d controls, partial %q", file, len(d.Cells), len(d.Controls), d.Run.Partial)
		}
		for _, v := range d.Cells {
			if v.State == spec.Inconclusive || v.State == spec.Broken {
				t.Errorf("%s: %s is %s", file, v.ID, v.State)
			}
		}
		for name, format := range map[string]string{results.ReportFile: "markdown", "picture.svg": "picture"} {
			path := filepath.Join(filepath.Dir(file), name)
			published, err := os.ReadFile(path)
			if err != nil {
				t.Error(err)
				continue
			}
			f, err := report.ByName(format)
			if err != nil {
				t.Fatal(err)
			}
			var is bytes.Buffer
			if err := f.Write(&is, &d, report.Options{}); err != nil {
				t.Fatal(err)
			}
			switch {
			case bytes.Equal(is.Bytes(), published):
			case *update:
				if err := os.WriteFile(path, is.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			default:
				t.Errorf("%s is not what its %s gives; run: make golden", path, results.VerdictsFile)
			}
		}
		if _, err := os.Stat(filepath.Join(filepath.Dir(file), results.PageFile)); err != nil {
			t.Error(err)
		}
	}
}
