package main

import (
	"bytes"
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/gate"
	"idlerace/harness/judge"
	"idlerace/harness/results"
)

// Where a gate's findings are shown as well: the values of --annotations.
const (
	annotateAuto   = "auto"
	annotateGitHub = "github"
	annotateGitLab = "gitlab"
	annotateNone   = "none"
)

// codeQualityFile is what GitLab's own jobs call their report.
const codeQualityFile = "gl-code-quality-report.json"

type gateFlags struct{ baseline, annotations, codeQuality string }

func gateCommand() *cobra.Command {
	var f gateFlags
	kinds := []string{annotateAuto, annotateGitHub, annotateGitLab, annotateNone}
	cmd := &cobra.Command{
		Use:   "gate RUN",
		Short: "Fail when a run violates its policy or got worse than a baseline",
		Long: `Judge a stored run again and hold it against the policy of its scenario and,
with --baseline, against an earlier verdicts.json. Each cell that got worse
(safe, masked, races, in this order), lost its proof, appeared or vanished is
named.

In a runner of GitHub or GitLab the findings are shown at the scenario's file as
well: to GitHub they are printed as workflow commands (and nothing else of the
output is taken for one), for GitLab they are written as a Code Quality report,
` + codeQualityFile + `. --annotations decides where it is not as found.

Exit codes: 0 nothing got worse; 1 a cell got worse, vanished or violates the
policy; 2 bad input; 3 a cell lost its proof, stayed inconclusive or a control
failed; 4 environment.`,
		Example: `  idlerace gate results/latest
  idlerace gate results/latest --baseline results/reference/verdicts.json`,
		Args: oneArg("RUN", runArg),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(kinds, f.annotations) {
				return fmt.Errorf("--annotations: %q is none of %s", f.annotations, strings.Join(kinds, ", "))
			}
			return runGate(cmd, args[0], f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.baseline, "baseline", "", "verdicts.json of an earlier run (`FILE`)")
	fl.StringVar(&f.annotations, "annotations", annotateAuto, "the runner to show findings in: "+strings.Join(kinds, ", "))
	fl.StringVar(&f.codeQuality, "code-quality", "", "write a Code Quality report to `FILE`; in GitLab always, by default to "+codeQualityFile)
	cmd.RegisterFlagCompletionFunc("annotations", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runGate(cmd *cobra.Command, run string, f gateFlags) error {
	var old *judge.Document
	if f.baseline != "" {
		var err error
		if old, err = gate.ReadDocument(f.baseline); err != nil {
			return err
		}
	}
	folder, err := results.Open(run)
	if err != nil {
		return err
	}
	defer folder.Close()
	d, _, err := judged(folder)
	if err != nil {
		return err
	}
	if old != nil && d.Run.Shard != "" {
		return fmt.Errorf("%s: is shard %s of its scenario, and a baseline is for all of it; `idlerace merge` puts the shards together", run, d.Run.Shard)
	}
	changes := gate.Compare(old, d)
	if err := f.show(cmd.OutOrStdout(), folder, changes, d); err != nil {
		return err
	}
	if code := gate.Exit(changes, d.Violations, d); code != exitOK {
		return &exitError{code: code}
	}
	return nil
}

// show prints what the gate has to say, and in the runner's own format as well.
func (f gateFlags) show(stdout io.Writer, folder *results.Folder, changes []gate.Change, d *judge.Document) error {
	at, err := place(folder)
	if err != nil {
		return err
	}
	findings := gate.Findings(changes, d.Violations, d)
	text := func(w io.Writer) error { return gate.Write(w, changes, d.Violations, d) }
	kind := f.annotations
	if kind == annotateAuto {
		kind = runner()
	}
	if kind == annotateGitLab {
		f.codeQuality = cmp.Or(f.codeQuality, codeQualityFile)
	}
	if f.codeQuality != "" {
		var b bytes.Buffer
		if err := gate.CodeQuality(&b, findings, at); err != nil {
			return err
		}
		if err := os.WriteFile(f.codeQuality, b.Bytes(), 0o644); err != nil {
			return environmentExit(fmt.Errorf("--code-quality: %w", err))
		}
	}
	if kind != annotateGitHub {
		return text(stdout)
	}
	if err := gate.Quote(stdout, text); err != nil {
		return err
	}
	return gate.GitHub(stdout, findings, at)
}

// runner is the value of --annotations for where this program runs.
func runner() string {
	switch {
	case os.Getenv("GITHUB_ACTIONS") == "true":
		return annotateGitHub
	case os.Getenv("GITLAB_CI") == "true":
		return annotateGitLab
	}
	return annotateNone
}

// place is the scenario's file in the working directory, where a runner has the
// repository.
func place(folder *results.Folder) (gate.Place, error) {
	m, err := folder.Manifest()
	if err != nil {
		return gate.Place{}, err
	}
	s, err := folder.Scenario()
	if err != nil {
		return gate.Place{}, err
	}
	at := gate.Place{Line: s.Line}
	if len(m.Command) > 1 { // run FILE
		if path := relative(m.Command[1]); filepath.IsLocal(path) {
			at.File = filepath.ToSlash(path)
		}
	}
	return at, nil
}
