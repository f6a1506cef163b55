package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"

	"idlerace/harness/results"
	"idlerace/harness/spec"
)

const (
	actionDir   = "../.github/actions/idlerace"
	gitlabFile  = "../.gitlab/idlerace.gitlab-ci.yml"
	manifestDir = "../docker/kubernetes"
)

// action is what of an action.yml matters here.
type action struct {
	Inputs map[string]struct {
		Description string
		Default     *string
		Required    bool
	}
	Outputs map[string]struct{ Description, Value string }
	Runs    struct {
		Using string
		Steps []struct {
			Name, ID, If, Uses, Shell, Run string
			Env, With                      map[string]string
		}
	}
}

func readYAML(t *testing.T, path string, v any) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(b, v); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
}

var expression = regexp.MustCompile(`\$\{\{\s*(.*?)\s*\}\}`)

// TestAction: what a step refers to is there, programs of others are pinned, and
// nothing that a user writes becomes part of a script.
func TestAction(t *testing.T) {
	var a action
	readYAML(t, filepath.Join(actionDir, "action.yml"), &a)
	if a.Runs.Using != "composite" || len(a.Runs.Steps) == 0 {
		t.Fatalf("%+v", a.Runs)
	}
	known := map[string]bool{"github.action_path": true, "github.action_ref": true}
	for name, in := range a.Inputs {
		known["inputs."+name] = true
		if in.Description == "" || in.Default == nil {
			t.Errorf("input %s needs a description and a default", name)
		}
	}
	used := map[string]bool{}
	refer := func(step, text string) {
		for _, m := range expression.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
			if !known[m[1]] {
				t.Errorf("%s: nothing is called %s", step, m[1])
			}
		}
	}
	for _, s := range a.Runs.Steps {
		name := s.Name + s.Uses
		switch {
		case s.Uses != "":
			if !regexp.MustCompile(`^actions/[a-z-]+@v[0-9]+$`).MatchString(s.Uses) {
				t.Errorf("%s is not pinned, or not of GitHub's own", s.Uses)
			}
		case s.Shell != "bash" || s.Run == "":
			t.Errorf("%s: a script for bash is needed: %+v", name, s)
		case expression.MatchString(s.Run):
			t.Errorf("%s: an expression within a script is code", name)
		}
		for _, text := range slices.Concat(slices.Collect(maps.Values(s.Env)), slices.Collect(maps.Values(s.With))) {
			refer(name, text)
		}
		for _, m := range regexp.MustCompile(`inputs\.[a-z]+`).FindAllString(s.If, -1) {
			refer(name, "${{ "+m+" }}")
		}
		for _, m := range regexp.MustCompile(`echo "([a-z]+)=.*GITHUB_OUTPUT`).FindAllStringSubmatch(s.Run, -1) {
			known["steps."+s.ID+".outputs."+m[1]] = true
		}
		checkInvocations(t, name, s.Run)
	}
	for _, out := range a.Outputs {
		refer("outputs", out.Value)
	}
	for name := range a.Inputs {
		if !used["inputs."+name] {
			t.Errorf("no step uses input %s", name)
		}
	}
}

// actionRun plays GitHub's runner for the action's scripts.
type actionRun struct {
	t       *testing.T
	temp    string // what $RUNNER_TEMP names, for all runs
	dir     string // the repository
	summary string // what the job summary holds
	outputs map[string]string
	log     string
}

// run gives the exit code of the first script that fails, or 0.
func (r *actionRun) run(inputs map[string]string) int {
	t := r.t
	t.Helper()
	var a action
	readYAML(t, filepath.Join(actionDir, "action.yml"), &a)
	path, err := filepath.Abs(actionDir)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{"github.action_path": path, "github.action_ref": "v-test"}
	for name, in := range a.Inputs {
		values["inputs."+name] = *in.Default
	}
	for name, v := range inputs {
		values["inputs."+name] = v
	}
	r.summary, r.log, r.outputs = "", "", map[string]string{}
	for _, s := range a.Runs.Steps {
		if s.Run == "" || s.If == "inputs.shard == ''" && values["inputs.shard"] != "" {
			continue
		}
		work := t.TempDir()
		cmd := exec.Command("bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", s.Run)
		cmd.Dir = r.dir
		cmd.Env = append(os.Environ(), "GITHUB_ACTIONS=true", "RUNNER_TEMP="+r.temp,
			"GITHUB_OUTPUT="+filepath.Join(work, "output"), "GITHUB_STEP_SUMMARY="+filepath.Join(work, "summary"))
		for name, text := range s.Env {
			cmd.Env = append(cmd.Env, name+"="+expression.ReplaceAllStringFunc(text, func(e string) string {
				return values[expression.FindStringSubmatch(e)[1]]
			}))
		}
		out, err := cmd.CombinedOutput()
		r.log += "== " + s.Name + "\n" + string(out)
		if b, err := os.ReadFile(filepath.Join(work, "summary")); err == nil {
			r.summary += string(b)
		}
		if b, err := os.ReadFile(filepath.Join(work, "output")); err == nil {
			for line := range strings.Lines(string(b)) {
				k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
				values["steps."+s.ID+".outputs."+k], r.outputs[k] = v, v
			}
		}
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		} else if err != nil {
			t.Fatalf("%s: %v", s.Name, err)
		}
	}
	return 0
}

// TestE2EAction runs the action's own scripts: a run that its policy forbids, the
// same in shards that are merged, and what is no scenario.
func TestE2EAction(t *testing.T) {
	if _, err := exec.LookPath("make"); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	text := "version: 1\nname: act\nproxies: [gohttp]\n" + quickScenario + "\npolicy: {forbid: [races]}\n"
	if err := os.WriteFile(filepath.Join(dir, "a b.yaml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	r := &actionRun{t: t, temp: t.TempDir(), dir: dir}
	common := map[string]string{"scenario": "a b.yaml", "runtime": "embedded", "args": "--quiet --seed 3"}
	with := func(more map[string]string) map[string]string {
		all := maps.Clone(common)
		maps.Copy(all, more)
		return all
	}

	if code := r.run(common); code != exitViolated {
		t.Fatalf("the policy is violated: exit code %d\n%s", code, r.log)
	}
	for _, name := range []string{"junit.xml", results.ReportFile, results.VerdictsFile} {
		if _, err := os.Stat(filepath.Join(dir, r.outputs["folder"], name)); err != nil {
			t.Error(err)
		}
	}
	if !strings.HasPrefix(r.summary, "# idlerace: act\n") {
		t.Errorf("the job summary: %s", r.summary)
	}
	if !strings.Contains(r.log, "\n::error file=a b.yaml,line=9,title=idlerace%3A forbidden::") {
		t.Errorf("no annotation:\n%s", r.log)
	}
	// What it printed itself stands where the runner takes nothing for a command.
	if n := strings.Count(r.log, "::stop-commands::"); n != 2 {
		t.Errorf("%d quotations:\n%s", n, r.log)
	}

	// A baseline that calls the cell safe; the policy is gone.
	if err := os.WriteFile(filepath.Join(dir, "a b.yaml"), []byte(strings.Replace(text, "policy: {forbid: [races]}", "", 1)), 0o644); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(filepath.Join(dir, r.outputs["folder"], results.VerdictsFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "old.json"), bytes.ReplaceAll(b, []byte(`"state": "races"`), []byte(`"state": "safe"`)), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, i := range []int{1, 2} {
		if code := r.run(with(map[string]string{"shard": fmt.Sprintf("%d/2", i), "results": fmt.Sprint("shards/", i)})); code != 0 {
			t.Fatalf("shard %d: exit code %d\n%s", i, code, r.log)
		}
	}
	if code := r.run(map[string]string{"merge": "shards"}); code != 0 {
		t.Errorf("merged, nothing forbidden: exit code %d\n%s", code, r.log)
	}
	if code := r.run(map[string]string{"merge": "shards", "baseline": "old.json"}); code != exitViolated || !strings.Contains(r.log, "title=idlerace%3A worse::") {
		t.Errorf("merged, against a baseline: exit code %d\n%s", code, r.log)
	}

	if code := r.run(with(map[string]string{"scenario": "$(touch injected).yaml"})); code != exitUsage || !strings.Contains(r.log, "no such file") {
		t.Errorf("no scenario: exit code %d\n%s", code, r.log)
	}
	if _, err := os.Stat(filepath.Join(dir, "injected")); err == nil {
		t.Error("an input was run")
	}
}

// invocation is a command line of this program in a script or a text.
var invocation = regexp.MustCompile(`(?m)(?:^|[\s"'(/` + "`" + `])idlerace"?[ \t]+([a-z]+[^\n|;&>` + "`" + `)]*)`)

// checkInvocations wants the commands and flags of every call to be there. It
// gives the number of calls.
func checkInvocations(t *testing.T, where, text string) (n int) {
	t.Helper()
	for _, m := range invocation.FindAllStringSubmatch(text, -1) {
		n++
		checkCommand(t, where, strings.Fields(m[1]))
	}
	return n
}

func checkCommand(t *testing.T, where string, args []string) {
	t.Helper()
	root := newRoot(io.Discard, io.Discard)
	root.InitDefaultCompletionCmd()
	cmd, _, err := root.Find(args[:1])
	if err != nil || cmd.Parent() == nil {
		t.Errorf("%s: there is no command %q", where, args[0])
		return
	}
	for _, flag := range regexp.MustCompile(`(?:^|[\s"'+{=])--([a-z][a-z-]*)`).FindAllStringSubmatch(strings.Join(args[1:], " "), -1) {
		if !hasFlag(cmd, flag[1]) {
			t.Errorf("%s: idlerace %s has no --%s", where, args[0], flag[1])
		}
	}
}

func hasFlag(cmd *cobra.Command, name string) bool {
	if name == "help" || cmd.Flags().Lookup(name) != nil {
		return true
	}
	return slices.ContainsFunc(cmd.Commands(), func(c *cobra.Command) bool { return hasFlag(c, name) })
}

// The check itself must be able to fail.
func TestInvocations(t *testing.T) {
	for text, want := range map[string]int{
		`"$RUNNER_TEMP/idlerace" run "$S" --shard 1/2 || true`: 1,
		"    idlerace gate results/latest --baseline x":        1,
		"`idlerace merge RUN` and bin/idlerace report x":       2,
		"results/idlerace/run":                                 0,
	} {
		if got := len(invocation.FindAllString(text, -1)); got != want {
			t.Errorf("%s: %d calls, want %d", text, got, want)
		}
	}
	cmd, _, _ := newRoot(io.Discard, io.Discard).Find([]string{"run"})
	if !hasFlag(cmd, "shard") || hasFlag(cmd, "shards") || hasFlag(cmd, "baseline") {
		t.Error("flags of run")
	}
}

// TestReadmeCommands: what the READMEs say to type is there.
func TestReadmeCommands(t *testing.T) {
	for file, least := range map[string]int{readme: 25, "../docker/README.md": 2} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, m := range regexp.MustCompile("(?m)`(?:bin/)?(idlerace [^`]*)`|^    (?:bin/)?(idlerace .*)$").FindAllStringSubmatch(string(b), -1) {
			command, _, _ := strings.Cut(m[1]+m[2], " #") // a comment behind it
			n += checkInvocations(t, file, command)
		}
		if n < least {
			t.Errorf("%s: %d commands, %d at least were looked for", file, n, least)
		}
	}
}

// TestGitLab: the example is YAML of jobs whose scripts call what there is.
func TestGitLab(t *testing.T) {
	var jobs map[string]any
	readYAML(t, gitlabFile, &jobs)
	n := 0
	for name, job := range jobs {
		m, ok := job.(map[string]any)
		if !ok || m["script"] == nil {
			continue
		}
		var lines []string
		for _, l := range m["script"].([]any) {
			lines = append(lines, l.(string))
		}
		script := strings.Join(lines, "\n")
		n += checkInvocations(t, name, script)
		if out, err := exec.Command("bash", "-n", "-c", script).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
	if n != 4 {
		t.Errorf("%d calls of idlerace, 4 were looked for", n)
	}
}

// TestManifests: what the Kubernetes Jobs are told to do, this program can, and
// the shards are those of the Job. That they are what Kubernetes takes is the
// test in .ci/tools.
func TestManifests(t *testing.T) {
	type container struct{ Args []string }
	var job struct {
		Spec struct {
			Completions    int
			CompletionMode string `yaml:"completionMode"`
			Template       struct {
				Spec struct {
					Containers     []container
					InitContainers []container `yaml:"initContainers"`
				}
			}
		}
	}
	var scenario struct{ Data map[string]string }
	files, err := filepath.Glob(filepath.Join(manifestDir, "*.yaml"))
	if err != nil || len(files) != 2 {
		t.Fatalf("%q, %v", files, err)
	}
	n := 0
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		for _, doc := range strings.Split(string(b), "\n---\n") {
			job.Spec.Template.Spec.Containers, job.Spec.Template.Spec.InitContainers = nil, nil
			job.Spec.Completions = 0
			if err := yaml.Unmarshal([]byte(doc), &job); err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			for _, c := range append(job.Spec.Template.Spec.InitContainers, job.Spec.Template.Spec.Containers...) {
				n++
				checkCommand(t, file, c.Args)
				if i := slices.IndexFunc(c.Args, func(a string) bool { return strings.HasPrefix(a, "--shard=") }); i >= 0 {
					want := fmt.Sprintf("--shard=$(JOB_COMPLETION_INDEX)+1/%d", job.Spec.Completions)
					if c.Args[i] != want || job.Spec.CompletionMode != "Indexed" {
						t.Errorf("%s: %s of a Job with %d completions, mode %q", file, c.Args[i], job.Spec.Completions, job.Spec.CompletionMode)
					}
				}
			}
			if err := yaml.Unmarshal([]byte(doc), &scenario); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n != 3 {
		t.Errorf("%d containers, 3 were looked for", n)
	}
	if _, err := spec.Read("job.yaml: scenario.yaml", []byte(scenario.Data["scenario.yaml"]), []string{"gohttp"}); err != nil {
		t.Error(err)
	}
}
