package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"idlerace/harness/origin/netem"
	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/run"
	"idlerace/harness/spec"
	"idlerace/harness/stack/docker"
)

func doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Say what can run on this machine, and how to get what cannot",
		Long: `Say whether a container engine can be used, whether this kernel has netem (for
scenarios with link.driver netem; to try takes root), and for each proxy what
runtime auto would take on this machine, in which version, and why; for one that
cannot run the reason and the one command that gets it. Nothing is pulled or
built.

Exit codes: 0 at least one proxy can run; 4 one named in ` + run.RequireVar + ` cannot.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			me, err := self()
			if err != nil {
				return err
			}
			lacking, err := examine(cmd.Context(), cmd.OutOrStdout(), me, run.Required())
			if err != nil {
				return err
			}
			if len(lacking) > 0 {
				return environmentExit(fmt.Errorf("%s asks for what is not here: %s", run.RequireVar, strings.Join(lacking, ", ")))
			}
			return nil
		},
	}
}

// forTests are programs that no run needs, only tests: by which names each may be
// on PATH, and the command that gets it. They may be required all the same.
var forTests = map[string]struct {
	names []string
	get   string
}{
	"chromium":   {[]string{"chromium", "chromium-browser", "google-chrome"}, "apt-get install -y chromium"},
	"prometheus": {[]string{"prometheus"}, "apt-get install -y prometheus"},
}

// examine prints what can run and gives the names that are required and
// cannot.
func examine(ctx context.Context, w io.Writer, self string, required []string) (lacking []string, err error) {
	finder := &run.Finder{Runtime: run.RuntimeAuto, Self: self, Look: true}
	defer finder.Close()
	var b strings.Builder
	missing := func(name, reason string) {
		fmt.Fprintf(&b, "missing  %-8s %s\n", name, reason)
		if slices.Contains(required, name) {
			lacking = append(lacking, name)
		}
	}
	e, noEngine := finder.Engine(ctx)
	if err := noEngine; err != nil {
		missing(record.RuntimeDocker, err.Error())
	} else {
		i := e.Info()
		reaper := "Ryuk removes what a killed run leaves"
		if !i.Reaper {
			reaper = "without Ryuk: `idlerace clean` removes what a killed run leaves"
		}
		fmt.Fprintf(&b, "ok       %-8s %s %s at %s; %s\n", record.RuntimeDocker, i.Name, i.Version, i.Host, reaper)
	}
	switch known, err := hasNetem(e, noEngine); {
	case err == nil:
		fmt.Fprintf(&b, "ok       %-8s this kernel has it, for link.driver %s in containers\n", spec.DriverNetem, spec.DriverNetem)
	case known:
		missing(string(spec.DriverNetem), err.Error())
	default:
		fmt.Fprintf(&b, "unknown  %-8s %v\n", spec.DriverNetem, err)
		if slices.Contains(required, string(spec.DriverNetem)) {
			lacking = append(lacking, string(spec.DriverNetem))
		}
	}
	for _, a := range proxy.All() {
		f, err := finder.Find(ctx, a, "")
		if err != nil {
			missing(a.Name(), err.Error())
			fmt.Fprintf(&b, "         %-8s to get it: %s\n", "", finder.Get(a, ""))
			continue
		}
		fmt.Fprintf(&b, "ok       %-8s %s\n", a.Name(), source(f.Run))
		if noEngine == nil {
			fmt.Fprintf(&b, "         %-8s %s\n", "", f.Run.Why)
		}
	}
	for _, name := range required {
		if p, ok := forTests[name]; ok {
			if !slices.ContainsFunc(p.names, func(n string) bool { _, err := exec.LookPath(n); return err == nil }) {
				lacking = append(lacking, fmt.Sprintf("%s (to get it: %s)", name, p.get))
			}
		} else if name != record.RuntimeDocker && name != string(spec.DriverNetem) && !slices.Contains(proxy.Names(), name) {
			lacking = append(lacking, name+" (not a proxy this version knows)")
		}
	}
	_, err = io.WriteString(w, b.String())
	return lacking, err
}

// hasNetem tries whether the kernel of containers has netem. An error says why
// it has not, or why that is not known.
func hasNetem(e *docker.Engine, noEngine error) (known bool, err error) {
	if noEngine == nil && !e.Info().Local {
		return false, errors.New("containers run on another machine's kernel, which only a run can try")
	}
	err = netem.Probe()
	_, missing := errors.AsType[*netem.MissingError](err)
	switch {
	case errors.Is(err, netem.ErrNoRight):
		err = fmt.Errorf("to try it takes root: %w", err)
	case errors.Is(err, netem.ErrNoSystem):
		err = errors.New("containers run on a kernel of their own here, which only a run can try")
	}
	return missing, err
}

// source says where a proxy comes from: "1.26.3 (local, /usr/sbin/nginx)".
func source(p record.ProxyRun) string {
	version, from := p.Version, p.Path
	if p.Runtime == record.RuntimeDocker {
		from = p.Image
		switch {
		case from == "":
			from = "an image of this program"
		case p.ImageID == "":
			from += ", which a run would pull"
		}
	}
	if version != "" {
		version += " "
	}
	return fmt.Sprintf("%s(%s, %s)", version, p.Runtime, from)
}
