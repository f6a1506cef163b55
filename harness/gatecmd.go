package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"idlerace/harness/gate"
	"idlerace/harness/judge"
	"idlerace/harness/results"
)

func gateCommand() *cobra.Command {
	var baseline string
	cmd := &cobra.Command{
		Use:   "gate RUN",
		Short: "Fail when a run violates its policy or got worse than a baseline",
		Long: `Judge a stored run again and hold it against the policy of its scenario and,
with --baseline, against an earlier verdicts.json. Each cell that got worse
(safe, masked, races, in this order), lost its proof, appeared or vanished is
named.

Exit codes: 0 nothing got worse; 1 a cell got worse, vanished or violates the
policy; 2 bad input; 3 a cell lost its proof, stayed inconclusive or a control
failed.`,
		Example: `  idlerace gate results/latest
  idlerace gate results/latest --baseline results/reference/verdicts.json`,
		Args: oneArg("RUN", runArg),
		RunE: func(cmd *cobra.Command, args []string) error {
			var old *judge.Document
			if baseline != "" {
				var err error
				if old, err = gate.ReadDocument(baseline); err != nil {
					return err
				}
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
			var changes []gate.Change
			if old != nil && d.Run.Shard != "" {
				return fmt.Errorf("%s: is shard %s of its scenario, and a baseline is for all of it; `idlerace merge` puts the shards together", args[0], d.Run.Shard)
			}
			if old != nil {
				changes = gate.Compare(old, d)
			}
			if err := gate.Write(cmd.OutOrStdout(), changes, d.Violations, d); err != nil {
				return err
			}
			if code := gate.Exit(changes, d.Violations, d); code != exitOK {
				return &exitError{code: code}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&baseline, "baseline", "", "verdicts.json of an earlier run (`FILE`)")
	return cmd
}
