package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"idlerace/harness/report"
	"idlerace/harness/results"
)

func mergeCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "merge RUN|DIR...",
		Short: "Put the shards of one run together",
		Long: `Put the runs of all shards (idlerace run --shard I/N) of one scenario together,
in whatever order, and print the matrix. A DIR stands for all shards below it.
What is made is a run's folder in
OUT/<scenario>/, and OUT/latest, for report, gate and explain like any other:
each shard's record stands in it and is judged by itself. Every shard ran the
controls of its proxies; they speak for its own cells, and all of them stay.

Shards of different scenarios, seeds, versions of idlerace or of a proxy are
refused, and so is a shard that is missing or named twice.

Exit codes: 0 merged (idlerace gate says whether all is as wished); 2 usage, or
shards that do not belong together; 4 environment.`,
		Example: `  idlerace merge results/my-pair/*-shard*
  idlerace merge downloads && idlerace gate results/latest`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("idlerace merge needs a RUN for each shard (a folder that `idlerace run --shard I/N` made), or a DIR with all of them")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return merge(cmd, args, out) },
	}
	cmd.Flags().StringVar(&out, "out", "results", "`DIR` of all results")
	return cmd
}

func merge(cmd *cobra.Command, args []string, out string) error {
	var shards []*results.Folder
	for _, arg := range args {
		found, err := results.OpenShards(arg)
		if err != nil {
			return err
		}
		for _, f := range found {
			defer f.Close()
		}
		shards = append(shards, found...)
	}
	parts, err := results.ReadShards(shards)
	if err != nil {
		return err
	}
	folder, err := parts.Merge(out)
	if err != nil {
		return environmentExit(err)
	}
	defer folder.Close()
	d, err := publish(folder, nil)
	if err != nil {
		return environmentExit(err)
	}
	matrix, err := report.ByName("terminal")
	if err != nil {
		return err
	}
	if err := matrix.Write(cmd.OutOrStdout(), d, terminalOptions(cmd.OutOrStdout())); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "\n%s holds the records, report.md and verdicts.json.\n", relative(folder.Path))
	return nil
}
