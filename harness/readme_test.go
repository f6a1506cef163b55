package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/run"
	"idlerace/harness/spec"
)

var update = flag.Bool("update", false, "rewrite the generated parts of README.md")

const readme = "../README.md"

// TestReadmeListsWhatThereIs keeps the README's table the output of `idlerace
// list`.
func TestReadmeListsWhatThereIs(t *testing.T) {
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	var list strings.Builder
	if err := listAll(&list); err != nil {
		t.Fatal(err)
	}
	block := regexp.MustCompile(`(?s)<!-- list -->\n.*?<!-- /list -->`)
	if !block.Match(b) {
		t.Fatal("README.md has no <!-- list --> block")
	}
	var indented strings.Builder
	for line := range strings.Lines(list.String()) {
		indented.WriteString("    " + line)
	}
	want := block.ReplaceAllLiteral(b, []byte("<!-- list -->\n\n"+indented.String()+"\n<!-- /list -->"))
	if bytes.Equal(b, want) {
		return
	}
	if *update {
		if err := os.WriteFile(readme, want, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Error("README.md does not list what `idlerace list` lists; run: make golden")
}

// TestReadmeScenarios reads every scenario that the README shows.
func TestReadmeScenarios(t *testing.T) {
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	found := regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllSubmatch(b, -1)
	if len(found) == 0 {
		t.Fatal("README.md shows no scenario")
	}
	for _, m := range found {
		if _, err := spec.Read("README.md", m[1], proxy.Names()); err != nil {
			t.Errorf("%v in:\n%s", err, m[1])
		}
	}
}

// TestReadmeLinks wants every file that the README links to, and every
// scenario that it names.
func TestReadmeLinks(t *testing.T) {
	b, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range regexp.MustCompile(`\]\(([^)#:]+)\)|(scenarios/[a-z0-9-]+\.yaml)`).FindAllSubmatch(b, -1) {
		path := string(m[1]) + string(m[2])
		if path == "scenarios/my-pair.yaml" { // the reader's own
			continue
		}
		if _, err := os.Stat(filepath.Join("..", path)); err != nil {
			t.Errorf("README.md names %s: %v", path, err)
		}
	}
}

// TestScenarios reads and plans every scenario we ship.
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("../scenarios/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenarios: %v", err)
	}
	for _, f := range files {
		s, err := spec.ReadFile(f, proxy.Names())
		if err != nil {
			t.Error(err)
			continue
		}
		if want := strings.TrimSuffix(filepath.Base(f), ".yaml"); s.Name != want {
			t.Errorf("%s is named %q", f, s.Name)
		}
		if !bytes.HasPrefix(s.Source, []byte("# ")) || s.About == "" {
			t.Errorf("%s does not say what it shows", f)
		}
		for _, it := range plan.New(s, run.Unsupported).Items {
			if it.Unsupported != "" && it.Role == plan.RoleCell {
				t.Logf("%s: %s: %s", f, it.ID, it.Unsupported)
			}
		}
	}
}
