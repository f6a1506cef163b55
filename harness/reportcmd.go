package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/report"
	"idlerace/harness/results"
)

const runArg = "a run's folder, such as results/latest"

type reportFlags struct{ format, out, reaction string }

func reportCommand() *cobra.Command {
	var f reportFlags
	var names, about []string
	for _, f := range report.All() {
		names = append(names, f.Name())
		about = append(about, fmt.Sprintf("  %-10s %s", f.Name(), f.About()))
	}
	cmd := &cobra.Command{
		Use:   "report RUN",
		Short: "Judge a stored run again and print it",
		Long: `Judge a stored run again, from its record, and print it. A run that was killed
is judged by what it had written, and the report says so.

The html report shows the reaction cards of ` + "`idlerace react FILE --format json`" + `, which
it takes from --reaction, or else from RUN/` + results.ReactionFile + `. Its links to packets lead to the
run's folder from the place of --out; without --out they hold in that folder.

Formats:
` + strings.Join(about, "\n"),
		Example: `  idlerace report results/latest
  idlerace report results/latest --format markdown > report.md
  idlerace report results/latest --format html --out page.html`,
		Args: oneArg("RUN", runArg),
		RunE: func(cmd *cobra.Command, args []string) error { return writeReport(cmd, args[0], f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.format, "format", "terminal", strings.Join(names, ", "))
	fl.StringVarP(&f.out, "out", "o", "", "write to `FILE` instead of stdout")
	fl.StringVar(&f.reaction, "reaction", "", "html: the reaction cards are in `FILE`")
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func writeReport(cmd *cobra.Command, run string, f reportFlags) error {
	format, err := report.ByName(f.format)
	if err != nil {
		return fmt.Errorf("--format: %w", err)
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
	o := folderOptions(folder, f.reaction)
	if f.out == "" {
		t := terminalOptions(cmd.OutOrStdout())
		o.Color, o.Width = t.Color, t.Width
		return format.Write(cmd.OutOrStdout(), d, o)
	}
	if o.Folder, err = wayTo(folder.Path, f.out); err != nil {
		return environmentExit(err)
	}
	var b bytes.Buffer
	if err := format.Write(&b, d, o); err != nil {
		return err
	}
	return environmentExit(os.WriteFile(f.out, b.Bytes(), 0o644))
}

// folderOptions are what a report may take from a run's folder. The reaction
// cards are from a file, or else from the folder, if it has some.
func folderOptions(folder *results.Folder, reaction string) report.Options {
	return report.Options{Files: folder.FS(), Reactions: func() ([]report.Reaction, error) {
		path := reaction
		if path == "" {
			path = filepath.Join(folder.Path, results.ReactionFile)
		}
		d, err := readReaction(path)
		switch {
		case err == nil:
		case reaction != "":
			return nil, fmt.Errorf("--reaction: %w", err)
		case errors.Is(err, fs.ErrNotExist):
			return nil, nil
		default:
			return nil, err
		}
		var out []report.Reaction
		for _, t := range d.Tables() {
			out = append(out, report.Reaction(t))
		}
		return out, nil
	}}
}

// wayTo is the relative path, with slashes, from the folder of a file to a run's
// folder; empty: it is the same. Links are followed: results/latest will be
// another run.
func wayTo(folder, file string) (string, error) {
	var real [2]string
	for i, dir := range []string{filepath.Dir(file), folder} {
		abs, err := filepath.Abs(dir)
		if err != nil {
			return "", err
		}
		if real[i], err = filepath.EvalSymlinks(abs); err != nil {
			return "", err
		}
	}
	rel, err := filepath.Rel(real[0], real[1])
	if err != nil || rel == "." {
		return "", err
	}
	return filepath.ToSlash(rel), nil
}
