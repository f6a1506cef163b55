package main

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/compare"
	"idlerace/harness/report"
	"idlerace/harness/results"
)

func compareCommand() *cobra.Command {
	var format string
	formats := report.ComparisonFormats()
	cmd := &cobra.Command{
		Use:   "compare RUN RUN...",
		Short: "Compare runs cell by cell: two proxy versions, before and after a fix",
		Long: `Judge stored runs again and hold each against the first: which cells changed
their state, which of their rates by more than chance (Fisher's exact test,
Holm-corrected), which are gone or new, and what else the runs differ in: proxy
versions, runtime, kernel, cores.

Cells are joined by their id, which names everything but the proxy's version and
its runtime; so compare runs of one scenario. Where no request was lost in
either run, the test is on requests that met a closed connection.

Exit codes: 0 compared, whatever came of it ("idlerace gate" fails on a change);
2 bad input: no run's folder, one run twice, no cell in common.`,
		Example: `  idlerace compare results/quickstart/20260301T101500Z-1 results/latest
  idlerace compare BEFORE AFTER --format html > compare.html`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) >= 2 {
				return nil
			}
			return fmt.Errorf("%s needs two RUNs or more, the first to compare with: each %s", cmd.CommandPath(), runArg)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(formats, format) {
				return fmt.Errorf("--format: %q is none of %s", format, strings.Join(formats, ", "))
			}
			runs, err := readRuns(args)
			if err != nil {
				return err
			}
			c, err := compare.New(runs)
			if err != nil {
				return err
			}
			return report.WriteComparison(cmd.OutOrStdout(), format, c, terminalOptions(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&format, "format", "terminal", "one of: "+strings.Join(formats, ", "))
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

// readRuns judges the runs in these folders again. No folder may stand twice,
// under whatever name: that takes no judging to see.
func readRuns(paths []string) ([]compare.Input, error) {
	var infos []os.FileInfo
	for i, path := range paths {
		folder, err := results.Open(path)
		if err != nil {
			return nil, err
		}
		folder.Close()
		info, err := os.Stat(path)
		if err != nil {
			return nil, err
		}
		if at := slices.IndexFunc(infos, func(o os.FileInfo) bool { return os.SameFile(o, info) }); at >= 0 {
			return nil, fmt.Errorf("%s and %s are the same folder; a run is compared with another one", paths[at], paths[i])
		}
		infos = append(infos, info)
	}
	var out []compare.Input
	for _, path := range paths {
		in, err := readRun(path)
		if err != nil {
			return nil, err
		}
		out = append(out, in)
	}
	return out, nil
}

func readRun(path string) (compare.Input, error) {
	folder, err := results.Open(path)
	if err != nil {
		return compare.Input{}, err
	}
	defer folder.Close()
	d, s, err := folder.Judge()
	return compare.Input{Path: path, Document: d, Scenario: s}, err
}
