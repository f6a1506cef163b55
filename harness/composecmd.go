package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"

	"github.com/spf13/cobra"

	"idlerace/harness/compose"
	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/results"
	"idlerace/harness/run"
	"idlerace/harness/spec"
	"idlerace/harness/stack/docker"
	"idlerace/harness/upstream"
)

func composeCommand() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "compose RUN CELL",
		Short: "Write a compose file that starts one cell by hand",
		Long: `Write a folder with a compose file that starts the upstream and the proxy of one
cell of a run, configured as in the run, for everybody who wants to poke at it
themselves. The folder holds all it needs, this program included.

Exit codes: 0 written; 2 no such run or cell, or the folder exists; 4 environment.`,
		Example: `  idlerace compose results/latest nginx_go_p2s_u1s_POST_default_fin_rtt0s
  cd compose-nginx_go_p2s_u1s_POST_default_fin_rtt0s && docker compose up --build`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return errors.New("idlerace compose needs a RUN (" + runArg + ") and a CELL (its id, as in the report)")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if out == "" {
				out = "compose-" + args[1]
			}
			c, err := composeCell(args[0], args[1])
			if err != nil {
				return err
			}
			files, err := compose.Files(c)
			if err != nil {
				return err
			}
			me, err := self()
			if err != nil {
				return err
			}
			program, err := docker.LinuxBinary(me, runtime.GOARCH)
			if err != nil {
				return environmentExit(err)
			}
			if err := writeCompose(out, files, program); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s holds the cell; compose.yaml says what to do with it.\n", out)
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "new folder `DIR` instead of compose-CELL")
	cmd.ValidArgsFunction = completeCell
	return cmd
}

// composeCell finds a cell or control of a stored run.
func composeCell(runPath, id string) (compose.Cell, error) {
	folder, err := results.Open(runPath)
	if err != nil {
		return compose.Cell{}, err
	}
	defer folder.Close()
	m, err := folder.Manifest()
	if err != nil {
		return compose.Cell{}, err
	}
	s, err := folder.Scenario()
	if err != nil {
		return compose.Cell{}, err
	}
	i := slices.IndexFunc(m.Items, func(it plan.Item) bool { return it.ID == id })
	if i < 0 {
		var ids []string
		for _, it := range m.Items {
			ids = append(ids, it.ID)
		}
		return compose.Cell{}, noCell(id, ids)
	}
	c := compose.Cell{Item: m.Items[i], Lanes: cmp.Or(m.Lanes, s.Probe.Lanes)}
	if u := c.Item.Unsupported; u != "" {
		return c, fmt.Errorf("%s is unsupported: %s", id, u)
	}
	if c.Adapter, err = proxy.ByName(c.Item.Cell.Proxy); err != nil {
		return c, err
	}
	if c.Kind, err = upstream.ByName(c.Item.Cell.Upstream); err != nil {
		return c, err
	}
	for _, p := range m.Proxies {
		if p.Name == c.Item.Cell.Proxy {
			c.Image = p.Image
		}
	}
	if c.Image == "" { // it ran as a process
		j := slices.IndexFunc(s.Proxies, func(p spec.Proxy) bool { return p.Name == c.Item.Cell.Proxy })
		c.Image = run.Image(c.Adapter, s.Proxies[j].Image)
	}
	servers := plan.New(s, run.Unsupported).Servers
	c.Server = servers[slices.IndexFunc(servers, func(p plan.Server) bool { return p.Name == c.Item.Server })]
	return c, nil
}

// writeCompose makes the folder, which must not exist: nothing of somebody's
// is overwritten.
func writeCompose(dir string, files map[string]string, program string) error {
	if _, err := os.Lstat(dir); err == nil {
		return fmt.Errorf("%s exists; --out names another folder", dir)
	}
	bin, err := os.ReadFile(program)
	if err != nil {
		return environmentExit(err)
	}
	write := func(name string, content []byte, mode os.FileMode) error {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		return os.WriteFile(path, content, mode)
	}
	err = write("idlerace", bin, 0o755)
	for name, content := range files {
		if err == nil {
			err = write(name, []byte(content), 0o644)
		}
	}
	return environmentExit(err)
}
