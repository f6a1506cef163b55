package upstream

import (
	"encoding/json"
	"fmt"

	"idlerace/harness/origin"
	"idlerace/harness/plan"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

func init() { register(goServer{}) }

// goServer is the origin of this module: net/http servers with a journal.
type goServer struct{}

func (goServer) Name() string { return "go" }

func (goServer) About() string {
	return "Go net/http servers of this program, with a journal of every connection and request"
}

func (goServer) Render(in Input) (stack.Service, error) {
	cfg := origin.Config{Admin: in.Admin, Capture: in.Capture}
	s := stack.Service{Name: "origin", Args: []string{"serve", "origin", "--config", "{dir}/origin.json"}, Ready: []string{in.Admin}}
	for _, srv := range in.Servers {
		cfg.Servers = append(cfg.Servers, origin.Server{Name: srv.Name, Listen: in.Addrs[srv.Name],
			IdleTimeout: origin.Duration(srv.IdleTimeout), Close: srv.Close, Link: linkOf(srv)})
		s.Ready = append(s.Ready, in.Addrs[srv.Name])
		if srv.Link.Netem {
			cfg.Contained, s.Capabilities = true, []string{"NET_ADMIN"}
		}
	}
	if err := cfg.Validate(); err != nil {
		return s, fmt.Errorf("origin: render: %w", err)
	}
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return s, fmt.Errorf("origin: render: %w", err)
	}
	s.Files = map[string]string{"origin.json": string(b) + "\n"}
	return s, nil
}

// linkOf is the network in front of a server; nil where there is nothing.
func linkOf(srv plan.Server) *origin.Link {
	l := srv.Link
	if srv.RTT == 0 && l == (spec.Link{}) {
		return nil
	}
	up, down := l.Delays(srv.RTT)
	return &origin.Link{
		Netem: l.Netem,
		Up:    origin.Duration(up), Down: origin.Duration(down),
		JitterUp: origin.Duration(l.Up.Jitter), JitterDown: origin.Duration(l.Down.Jitter),
		Idle: origin.Duration(l.Idle), OnIdle: l.OnIdle, HalfClosed: origin.Duration(l.HalfClosed),
		Seed: 1,
	}
}
