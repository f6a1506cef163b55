package upstream

import (
	"encoding/json"
	"fmt"

	"idlerace/harness/origin"
	"idlerace/harness/plan"
	"idlerace/harness/stack"
)

func init() { register(goServer{}) }

// goServer is the origin of this module: net/http servers with a journal.
type goServer struct{}

func (goServer) Name() string { return "go" }

func (goServer) About() string {
	return "Go net/http servers of this program, with a journal of every connection and request"
}

func (goServer) Render(servers []plan.Server, addrs map[string]string, admin string) (stack.Service, error) {
	cfg := origin.Config{Admin: admin}
	s := stack.Service{Name: "origin", Args: []string{"serve", "origin", "--config", "{dir}/origin.json"}, Ready: []string{admin}}
	for _, srv := range servers {
		cfg.Servers = append(cfg.Servers, origin.Server{Name: srv.Name, Listen: addrs[srv.Name],
			IdleTimeout: origin.Duration(srv.IdleTimeout), Close: srv.Close})
		s.Ready = append(s.Ready, addrs[srv.Name])
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
