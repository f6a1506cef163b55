package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"idlerace/harness/report"
	"idlerace/harness/run"
)

// version is set by the linker: -X main.version=...
var version = "devel"

// Exit codes of every command.
const (
	exitOK           = 0
	exitViolated     = 1 // policy or baseline violated
	exitUsage        = 2 // usage or bad input
	exitInconclusive = 3 // inconclusive, or a control failed
	exitEnvironment  = 4 // the machine: a missing program, a taken port, a full disk
)

// exitError carries an exit code. Its error may be nil: all was said already.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// environmentExit marks err as the machine's fault.
func environmentExit(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{exitEnvironment, err}
}

// idlerace is the whole program: it runs args and returns the exit code.
func idlerace(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	code := exitUsage
	if errors.Is(err, run.ErrEnvironment) {
		code = exitEnvironment
	}
	var exit *exitError
	if errors.As(err, &exit) {
		code = exit.code
		err = exit.err
	}
	if err != nil {
		fmt.Fprintln(stderr, "idlerace:", err)
	}
	return code
}

func newRoot(stdout, stderr io.Writer) *cobra.Command {
	root := &cobra.Command{
		Use:   "idlerace",
		Short: "Prove which proxy and upstream idle timeouts race",
		Long: `idlerace proves, on real proxies and real sockets, which pairs of idle timeouts
lose requests to the keep-alive race: the sporadic 502 that appears when a
reverse proxy reuses a pooled upstream connection in the very moment the
upstream closes it.

stdout is the result, stderr the story. NO_COLOR is honoured.

Exit codes: 0 as wished; 1 a policy or baseline is violated; 2 usage or bad
input; 3 something stayed inconclusive or a control failed; 4 environment.`,
		Example: `  idlerace run scenarios/quickstart.yaml
  idlerace report results/latest --format markdown
  idlerace explain results/latest nginx_go_p2s_u1s_POST_default_fin_rtt0s`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; `idlerace --help` lists the commands", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return fmt.Errorf("%w; `%s --help` lists the flags", err, cmd.CommandPath())
	})
	root.AddCommand(runCommand(), mergeCommand(), reportCommand(), gateCommand(), compareCommand(), explainCommand(), reactCommand(), listCommand(), doctorCommand(), cleanCommand(), composeCommand(), versionCommand(), serveCommand())
	return root
}

// oneArg asks for exactly one argument, and says what it is.
func oneArg(name, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) == 1 {
			return nil
		}
		return fmt.Errorf("%s needs one %s: %s", cmd.CommandPath(), name, what)
	}
}

// self is this program's own path, for services that are this program again.
func self() (string, error) {
	path, err := os.Executable()
	if err != nil {
		return "", environmentExit(fmt.Errorf("own path: %w", err))
	}
	return path, nil
}

// terminalOptions fit a report to where it goes: colours on a terminal only,
// and not with NO_COLOR; the terminal's width, or 80.
func terminalOptions(w io.Writer) report.Options {
	var o report.Options
	width, tty := terminal(w)
	if !tty {
		return o
	}
	o.Width = min(width, 120)
	o.Color = os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return o
}

// terminal reports whether w is a terminal, and its width.
func terminal(w io.Writer) (width int, is bool) {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 40 {
		width = 80
	}
	return width, true
}
