package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"idlerace/harness/gohttp"
	"idlerace/harness/origin"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one of the servers that a run is made of, by hand",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(serveOriginCommand(), serveGoHTTPCommand())
	return cmd
}

func serveGoHTTPCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "gohttp --config FILE",
		Short: "Run the embedded proxy: httputil.ReverseProxy, a listener and a pool per route",
		Long: `Run the embedded proxy until it is interrupted. Each request becomes a line of
JSON on stdout: request id, status, and every attempt with the proxy's own
address of the upstream connection. The configuration is JSON:

  {"pool_size": 80, "routes": [
    {"listen": "127.0.0.1:8080", "upstream": "127.0.0.1:9000", "idle": "1s", "retry": "default"}]}

idle is a Go duration or "off"; retry is "default", "off" or "on".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := os.Open(config)
			if err != nil {
				return err
			}
			defer f.Close()
			cfg, err := gohttp.ReadConfig(f)
			if err != nil {
				return fmt.Errorf("%s: %w", config, err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return environmentExit(gohttp.Run(ctx, cfg, cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `FILE`")
	cmd.MarkFlagRequired("config")
	return cmd
}

func serveOriginCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use: "origin --config FILE",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := os.Open(config)
			if err != nil {
				return err
			}
			defer f.Close()
			cfg, err := origin.ReadConfig(f)
			if err != nil {
				return fmt.Errorf("%s: %w", config, err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return environmentExit(origin.Run(ctx, cfg, nil))
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `FILE`")
	return cmd
}
