package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/proxy"
	"idlerace/harness/react"
	"idlerace/harness/run"
	"idlerace/harness/spec"
)

type reactFlags struct {
	runtime, proxy, format, expect string
}

// reactFormats are the values of --format.
var reactFormats = []string{"terminal", "json"}

func reactCommand() *cobra.Command {
	var f reactFlags
	cmd := &cobra.Command{
		Use:   "react FILE",
		Short: "Test how proxies react to an upstream that ends a reused connection",
		Long: `Test, without any idle timer, how each proxy of a scenario reacts when the
upstream ends a reused connection instead of answering the request on it. Of the
scenario count the proxies, axes.retry and upstream.kind; its timeouts and all
else play no part.

A trial is one kind of request and one ending: a first request opens the
upstream connection, the second one meets the ending on it.

  fin-unread    FIN at the request's first bytes, RST right behind it: unread
  fin-read      the request read in full, not executed; FIN
  fin-executed  the request executed; FIN
  rst           the request read in full, not executed; RST
  half-close    the request read in full, not executed; FIN, and never a RST

A cell of the card says what the client got ("closed": no response), whether the
proxy sent the request again, and whether it was executed although the client
got no answer, or twice.

Exit codes: 0 all trials done; 1 --expect: something differs; 2 bad scenario or
usage; 4 environment.`,
		Example: `  idlerace react scenarios/reaction.yaml
  idlerace react scenarios/reaction.yaml --format json > reaction.json
  idlerace react scenarios/reaction.yaml --expect reaction.json   # after an upgrade`,
		Args: oneArg("FILE", "a scenario file, such as scenarios/reaction.yaml"),
		RunE: func(cmd *cobra.Command, args []string) error { return runReact(cmd, args[0], f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.runtime, "runtime", run.RuntimeAuto, "where proxies come from: "+strings.Join(run.Runtimes(), ", "))
	fl.StringVar(&f.proxy, "proxy", "", "test this proxy only (`NAME`)")
	fl.StringVar(&f.format, "format", "terminal", "one of: "+strings.Join(reactFormats, ", "))
	fl.StringVar(&f.expect, "expect", "", "compare with `FILE`, an earlier --format json")
	cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(run.Runtimes(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("proxy", cobra.FixedCompletions(proxy.Names(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(reactFormats, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runReact(cmd *cobra.Command, file string, f reactFlags) error {
	stdout, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
	s, err := spec.ReadFile(file, proxy.Names())
	if err != nil {
		return err
	}
	switch {
	case !slices.Contains(run.Runtimes(), f.runtime):
		return fmt.Errorf("--runtime: %q is none of %s", f.runtime, strings.Join(run.Runtimes(), ", "))
	case !slices.Contains(reactFormats, f.format):
		return fmt.Errorf("--format: %q is none of %s", f.format, strings.Join(reactFormats, ", "))
	case f.proxy != "" && !slices.ContainsFunc(s.Proxies, func(p spec.Proxy) bool { return p.Name == f.proxy }):
		return fmt.Errorf("--proxy: the scenario has no proxy %q", f.proxy)
	}
	var old *react.Document
	if f.expect != "" {
		if old, err = readReaction(f.expect); err != nil {
			return fmt.Errorf("--expect: %w", err)
		}
		old = old.Only(f.proxy)
	}
	me, err := self()
	if err != nil {
		return err
	}
	say := func(format string, args ...any) { fmt.Fprintf(stderr, format+"\n", args...) }
	hard, soft, stop := interrupts(cmd.Context(), say)
	defer stop()
	ctx, cancel := context.WithCancelCause(hard)
	defer cancel(nil)
	go func() {
		select {
		case <-soft:
			cancel(run.ErrInterrupted)
		case <-ctx.Done():
		}
	}()
	d, err := react.Run(ctx, s, react.Options{Runtime: f.runtime, Self: me, Version: version, Proxy: f.proxy, Require: run.Required(), Say: say})
	switch {
	case errors.Is(err, react.ErrKind):
		return fmt.Errorf("%s: %w", file, err)
	case ctx.Err() != nil:
		return &exitError{exitInconclusive, context.Cause(ctx)}
	case err != nil:
		return environmentExit(err)
	}
	if old != nil {
		d.Expect(old)
	}
	write := d.WriteText
	if f.format == "json" {
		write = d.WriteJSON
	}
	if err := write(stdout); err != nil {
		return err
	}
	if err := d.Err(); err != nil {
		return environmentExit(err)
	}
	if len(d.Differences) > 0 {
		return &exitError{exitViolated, fmt.Errorf("%d trials differ from %s", len(d.Differences), f.expect)}
	}
	return nil
}

func readReaction(path string) (*react.Document, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	d, err := react.Read(file)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return d, nil
}
