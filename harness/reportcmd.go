package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/report"
	"idlerace/harness/results"
)

const runArg = "a run's folder, such as results/latest"

func reportCommand() *cobra.Command {
	var format string
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

Formats:
` + strings.Join(about, "\n"),
		Example: `  idlerace report results/latest
  idlerace report results/latest --format markdown > report.md`,
		Args: oneArg("RUN", runArg),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := report.ByName(format)
			if err != nil {
				return fmt.Errorf("--format: %w", err)
			}
			folder, err := results.Open(args[0])
			if err != nil {
				return err
			}
			defer folder.Close()
			d, _, err := judged(folder)
			if err != nil {
				return err
			}
			return f.Write(cmd.OutOrStdout(), d, terminalOptions(cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&format, "format", "terminal", strings.Join(names, ", "))
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}
