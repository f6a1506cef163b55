package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"idlerace/harness/stack/docker"
)

func cleanCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "clean",
		Short: "Remove the containers and networks that killed runs left in the container engine",
		Long: `Remove the containers and networks that killed runs left in the container
engine. Those of runs that still go on are kept, and so is what another machine
started. A run that ends by itself, also by interrupt, leaves nothing; after a
kill -9 Ryuk removes all, where it can run and once no other run of the same
shell goes on. This command is for engines without it
(TESTCONTAINERS_RYUK_DISABLED=true). Result folders are not touched.

Exit codes: 0 all leftovers of dead runs are gone; 4 the engine cannot be used
or did not remove something.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			e, err := docker.Connect(cmd.Context())
			if err != nil {
				return environmentExit(err)
			}
			defer e.Close()
			removed, kept, err := e.Clean(cmd.Context())
			for _, line := range removed {
				fmt.Fprintln(cmd.OutOrStdout(), "removed:", line)
			}
			for _, line := range kept {
				fmt.Fprintln(cmd.OutOrStdout(), "kept:   ", line)
			}
			if err != nil {
				return environmentExit(err)
			}
			if len(removed) == 0 {
				fmt.Fprintln(cmd.OutOrStdout(), "nothing to remove")
			}
			return nil
		},
	}
}
