package main

import (
	"fmt"
	"io"
	"runtime/debug"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/report"
	"idlerace/harness/run"
	"idlerace/harness/spec"
	"idlerace/harness/upstream"
)

func listCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "list [FILE]",
		Short: "List proxies, upstreams and formats, or the cells of a scenario",
		Example: `  idlerace list
  idlerace list scenarios/quickstart.yaml`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return listAll(cmd.OutOrStdout())
			}
			s, err := spec.ReadFile(args[0], proxy.Names())
			if err != nil {
				return err
			}
			p := plan.New(s, run.Unsupported)
			for _, it := range p.Items {
				line := it.ID
				if it.Unsupported != "" {
					line += "  unsupported: " + it.Unsupported
				}
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func listAll(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, a := range proxy.All() {
		fmt.Fprintf(t, "proxy\t%s\t%s\n", a.Name(), a.About())
	}
	for _, k := range upstream.All() {
		fmt.Fprintf(t, "upstream\t%s\t%s\n", k.Name(), k.About())
	}
	for _, f := range report.All() {
		fmt.Fprintf(t, "format\t%s\t%s\n", f.Name(), f.About())
	}
	return t.Flush()
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintf(cmd.OutOrStdout(), "idlerace %s", version)
			if b, ok := debug.ReadBuildInfo(); ok {
				fmt.Fprintf(cmd.OutOrStdout(), " (%s)", b.GoVersion)
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout())
			return err
		},
	}
}
