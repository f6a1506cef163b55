package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"idlerace/harness/gate"
	"idlerace/harness/judge"
	"idlerace/harness/judge/advice"
	"idlerace/harness/metrics"
	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/report"
	"idlerace/harness/results"
	"idlerace/harness/run"
	"idlerace/harness/spec"
)

type runFlags struct {
	runtime, out, cell, proxy, metrics string
	metricsWait                        time.Duration
	shard                              string
	seed                               uint64
	lanes                              int
	quiet, noCapture                   bool
}

func runCommand() *cobra.Command {
	var f runFlags
	cmd := &cobra.Command{
		Use:   "run FILE",
		Short: "Run a scenario and print its matrix",
		Long: `Run a scenario: start the proxies and the upstream, measure when both sides
really close, aim requests at that moment until every cell is decided or the
budget is spent, judge, and print the matrix. Everything is kept in
OUT/<scenario>/<UTC time>-<seed>/; OUT/latest is the newest run.

Runtimes: "docker" means containers of pinned images, pulled where they are not
there yet (IDLERACE_IMAGE_NGINX=... names another one); "local" executables from
PATH; "embedded" nothing but this program; "auto" takes for each proxy the first
of these that this machine offers. A proxy that cannot run is listed with the
reason, and the run goes on. ` + run.RequireVar + `=nginx,docker,... turns that
into an error.

The first interrupt finishes the bursts under way, writes what there is and
ends; the second ends at once. Nothing is left running either way.

stdout is the matrix, stderr the story: on a terminal of 80 x 24 or more a matrix
that fills while the run goes on, else a line for each decided cell. --quiet
leaves the result and errors.

--metrics ADDR serves Prometheus. A scrape hardly ever falls between the last
request and the end, so that --metrics-wait D keeps the address up to D longer,
until the final numbers were fetched; they are in the run's metrics.prom as well.

Exit codes: 0 all cells decided and the scenario's policy kept; 1 the policy is
violated; 2 bad scenario or usage; 3 a cell stayed inconclusive, a control
failed or the run was interrupted; 4 environment.`,
		Example: `  idlerace run scenarios/quickstart.yaml
  idlerace run scenarios/nginx-matrix.yaml --runtime local --seed 7
  idlerace run scenarios/quickstart.yaml --cell nginx_go_p2s_u1s_POST_default_fin_rtt0s`,
		Args: oneArg("FILE", "a scenario file, such as scenarios/quickstart.yaml"),
		RunE: func(cmd *cobra.Command, args []string) error { return runScenario(cmd, args[0], f) },
	}
	fl := cmd.Flags()
	fl.StringVar(&f.runtime, "runtime", run.RuntimeAuto, "where proxies come from: "+strings.Join(run.Runtimes(), ", "))
	fl.StringVar(&f.out, "out", "results", "`DIR` of all results")
	fl.Uint64Var(&f.seed, "seed", 0, "`N` instead of the scenario's probe.seed")
	fl.IntVar(&f.lanes, "lanes", 0, "`N` client connections per cell instead of the scenario's probe.lanes")
	fl.StringVar(&f.cell, "cell", "", "run this cell only (`ID` as in a report), with its proxy's controls")
	fl.StringVar(&f.proxy, "proxy", "", "run this proxy's cells only (`NAME`)")
	fl.StringVar(&f.shard, "shard", "", "run this part of the cells only (`I/N`, I from 1; or I+1/N, I from 0); `idlerace merge` puts all N together")
	fl.StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics on `ADDR` (host:port) while the run lasts")
	fl.DurationVar(&f.metricsWait, "metrics-wait", 0, "and then until they were scraped once more, at most for `D`")
	fl.BoolVar(&f.noCapture, "no-capture", false, "leave packets out of the evidence")
	fl.BoolVarP(&f.quiet, "quiet", "q", false, "nothing but the result and errors")
	cmd.RegisterFlagCompletionFunc("runtime", cobra.FixedCompletions(run.Runtimes(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("proxy", cobra.FixedCompletions(proxy.Names(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func runScenario(cmd *cobra.Command, file string, f runFlags) error {
	stdout, stderr := cmd.OutOrStdout(), cmd.ErrOrStderr()
	s, err := spec.ReadFile(file, proxy.Names())
	if err != nil {
		return err
	}
	only, err := f.only(s)
	if err != nil {
		return err
	}
	var shard plan.Shard
	if cmd.Flags().Changed("shard") {
		if shard, err = plan.ParseShard(f.shard); err != nil {
			return fmt.Errorf("--shard: %w", err)
		}
		if f.cell != "" || f.proxy != "" {
			return errors.New("--shard deals out the whole scenario, --cell and --proxy pick from it; give one or the other")
		}
		only = nil
	}
	if !cmd.Flags().Changed("seed") {
		f.seed = s.Probe.Seed
	}
	if cmd.Flags().Changed("lanes") {
		if err := s.SetLanes(f.lanes); err != nil {
			return fmt.Errorf("--lanes: %w", err)
		}
	}
	if f.metricsWait < 0 {
		return fmt.Errorf("--metrics-wait: %s is below 0", f.metricsWait)
	}
	if f.metricsWait > 0 && f.metrics == "" {
		return errors.New("--metrics-wait needs --metrics ADDR: nothing is served")
	}
	me, err := self()
	if err != nil {
		return err
	}
	prog := newProgress(stderr, f.quiet)
	defer prog.finish()
	m := metrics.New()
	var endpoint *metrics.Endpoint
	if f.metrics != "" {
		if endpoint, err = m.Serve(f.metrics); err != nil {
			return &exitError{exitEnvironment, fmt.Errorf("--metrics: %w", err)}
		}
		defer endpoint.Stop()
		prog.say("metrics: http://%s/metrics", endpoint.Addr)
	}
	hard, soft, stop := interrupts(cmd.Context(), prog.say)
	defer stop()
	folder, runErr := run.Run(hard, soft, s, run.Options{
		Runtime: f.runtime, Out: f.out, Self: me, Version: version, Seed: f.seed, Command: f.command(file), Only: only, Shard: shard,
		Require: run.Required(), NoCapture: f.noCapture, Metrics: m, Progress: prog.show, Say: prog.say,
	})
	prog.finish()
	if errors.Is(runErr, run.ErrInterrupted) {
		return &exitError{exitInconclusive, errors.New("interrupted before anything was probed")}
	}
	if folder == nil {
		return runErr
	}
	defer folder.Close()
	d, err := publish(folder, m)
	if err != nil {
		return errors.Join(runErr, environmentExit(err))
	}
	matrix, err := report.ByName("terminal")
	if err != nil {
		return err
	}
	if err := matrix.Write(stdout, d, terminalOptions(stdout)); err != nil {
		return err
	}
	path := relative(folder.Path)
	prog.say("\n%s holds the record, report.md and verdicts.json.\nFor a browser: %s", path, filepath.Join(path, results.PageFile))
	if f.metricsWait > 0 {
		lastScrape(hard, soft, endpoint, f.metricsWait, prog.say)
	}
	if runErr != nil {
		return runErr
	}
	return verdictExit(d)
}

// only is the filter that --cell and --proxy ask for.
func (f runFlags) only(s *spec.Scenario) (func(plan.Item) bool, error) {
	if !slices.Contains(run.Runtimes(), f.runtime) {
		return nil, fmt.Errorf("--runtime: %q is none of %s", f.runtime, strings.Join(run.Runtimes(), ", "))
	}
	known := false
	for _, c := range s.Cells() {
		known = known || (f.cell == "" || c.ID() == f.cell) && (f.proxy == "" || c.Proxy == f.proxy)
	}
	if !known {
		return nil, fmt.Errorf("the scenario has no cell for --cell %q --proxy %q; `idlerace list %s` names them", f.cell, f.proxy, s.File)
	}
	return func(it plan.Item) bool {
		return (f.cell == "" || it.ID == f.cell) && (f.proxy == "" || it.Cell.Proxy == f.proxy)
	}, nil
}

// command repeats the run, but for --cell, --proxy, --seed and --shard.
func (f runFlags) command(file string) []string {
	out := []string{"run", file}
	if f.runtime != run.RuntimeAuto {
		out = append(out, "--runtime", f.runtime)
	}
	if f.lanes != 0 {
		out = append(out, "--lanes", strconv.Itoa(f.lanes))
	}
	if f.noCapture {
		out = append(out, "--no-capture")
	}
	return out
}

// publish judges a run from its record and writes verdicts, reports and metrics
// beside it.
func publish(folder *results.Folder, m *metrics.Set) (*judge.Document, error) {
	d, _, err := judged(folder)
	if err != nil {
		return nil, err
	}
	if err := folder.WriteJSON(results.VerdictsFile, d); err != nil {
		return nil, err
	}
	for name, format := range map[string]string{results.ReportFile: "markdown", results.PageFile: "html"} {
		f, err := report.ByName(format)
		if err != nil {
			return nil, err
		}
		var b bytes.Buffer
		if err := f.Write(&b, d, folderOptions(folder, "")); err != nil {
			return nil, err
		}
		if err := folder.WriteFile(name, b.Bytes()); err != nil {
			return nil, err
		}
	}
	if m == nil {
		return d, nil // merged: metrics.prom is each shard's
	}
	m.Judged(d, time.Now())
	text, err := m.Text()
	if err != nil {
		return nil, err
	}
	return d, folder.WriteFile(results.MetricsFile, text)
}

// judged judges a stored run, applies its scenario's policy and says what the
// cells support.
func judged(folder *results.Folder) (*judge.Document, *spec.Scenario, error) {
	d, s, err := folder.Judge()
	if err != nil {
		return nil, nil, err
	}
	v, err := gate.Policy(s.Policy, d)
	if err != nil {
		return nil, nil, err
	}
	if v != nil {
		d.Violations = v
	}
	d.Advice = advice.Of(d)
	return d, s, nil
}

// verdictExit is the exit of a run: its policy, then its cells and controls.
func verdictExit(d *judge.Document) error {
	if d.Run.Shard != "" && len(d.Cells) == 0 {
		return nil // of more shards than cells some have none
	}
	if code := gate.Exit(nil, d.Violations, d); code != exitOK {
		return &exitError{code: code}
	}
	undecided := func(v judge.Verdict) bool { return v.State == spec.Inconclusive || v.State == spec.Broken }
	if d.Run.Partial != "" || slices.ContainsFunc(d.Cells, undecided) {
		return &exitError{code: exitInconclusive}
	}
	return nil
}

// lastScrape waits until somebody has fetched the final metrics. Any interrupt,
// also an earlier one, ends it.
func lastScrape(ctx context.Context, interrupted <-chan struct{}, e *metrics.Endpoint, most time.Duration, say func(string, ...any)) {
	select {
	case <-interrupted:
		return
	default:
	}
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	go func() {
		select {
		case <-interrupted:
			cancel()
		case <-ctx.Done():
		}
	}()
	say("metrics: waiting for a last scrape, at most %s", spec.FormatDuration(most))
	if !e.Scraped(ctx) {
		say("metrics: nobody came for the final ones; they are in %s", results.MetricsFile)
	}
}

// interrupts gives the two stages of an interrupted run: soft is closed by the
// first signal, hard is done with the second.
func interrupts(ctx context.Context, say func(string, ...any)) (hard context.Context, soft <-chan struct{}, stop func()) {
	hard, cancel := context.WithCancel(ctx)
	first := make(chan struct{})
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	go func() {
		select {
		case <-signals:
		case <-hard.Done():
			return
		}
		close(first)
		go func() { // a terminal that does not take our words must not keep a run from ending
			select {
			case <-signals:
				cancel()
			case <-hard.Done():
			}
		}()
		say("interrupted: finishing the bursts under way; interrupt again to end at once")
	}()
	return hard, first, func() { signal.Stop(signals); cancel() }
}

// relative shortens a path below the working directory.
func relative(path string) string {
	wd, err := os.Getwd()
	if err != nil {
		return path
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return path
	}
	if rel, err := filepath.Rel(wd, abs); err == nil && !strings.HasPrefix(rel, "..") {
		return rel
	}
	return path
}
