package docker

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// Clean removes the containers and networks of runs whose process is gone, of
// this host's runs only. removed has a line for each, kept one for each that
// stays, with the reason.
func (e *Engine) Clean(ctx context.Context) (removed, kept []string, err error) {
	ours := make(client.Filters).Add("label", labelRun)
	var errs []error
	visit := func(kind, name string, labels map[string]string, remove func() error) {
		what := kind + " " + strings.TrimPrefix(name, "/")
		dead, why := e.host.dead(labels, processStarted)
		if !dead {
			kept = append(kept, what+": "+why)
			return
		}
		if err := remove(); err != nil {
			errs = append(errs, fmt.Errorf("%s: %s", what, oneLine(err)))
			return
		}
		removed = append(removed, what+": "+why)
	}
	containers, err := e.client.ContainerList(ctx, client.ContainerListOptions{All: true, Filters: ours})
	if err != nil {
		return nil, nil, errors.New(oneLine(err))
	}
	for _, c := range containers.Items {
		name := c.ID
		if len(c.Names) > 0 {
			name = c.Names[0]
		}
		visit("container", name, c.Labels, func() error { return e.remove(ctx, c.ID) })
	}
	networks, err := e.client.NetworkList(ctx, client.NetworkListOptions{Filters: ours})
	if err != nil {
		return removed, kept, errors.Join(append(errs, errors.New(oneLine(err)))...)
	}
	for _, n := range networks.Items {
		visit("network", n.Name, n.Labels, func() error {
			if _, err := e.client.NetworkRemove(ctx, n.ID, client.NetworkRemoveOptions{}); !errdefs.IsNotFound(err) {
				return err
			}
			return nil // somebody else was faster
		})
	}
	return removed, kept, errors.Join(errs...)
}
