// Package upstream knows the servers that can stand behind the proxies, one
// file each. Like package proxy it only renders.
package upstream

import (
	"fmt"
	"sort"

	"idlerace/harness/plan"
	"idlerace/harness/stack"
)

// Kind is one upstream server.
type Kind interface {
	// Name is what a scenario's upstream.kind calls it.
	Name() string
	// About is one line for listings.
	About() string
	// Render gives the one process that serves all servers of a run.
	Render(in Input) (stack.Service, error)
}

// Input is what a Kind renders.
type Input struct {
	Servers []plan.Server
	Addrs   map[string]string // host:port of each server, by name
	Admin   string            // host:port where the journal is read
	Capture bool              // record packets, where the right is there
}

var registry = map[string]Kind{}

func register(k Kind) {
	if _, dup := registry[k.Name()]; dup {
		panic("upstream: registered twice: " + k.Name())
	}
	registry[k.Name()] = k
}

// All gives every kind by name.
func All() []Kind {
	out := make([]Kind, 0, len(registry))
	for _, k := range registry {
		out = append(out, k)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name() < out[j].Name() })
	return out
}

// ByName finds a kind.
func ByName(name string) (Kind, error) {
	if k, ok := registry[name]; ok {
		return k, nil
	}
	return nil, fmt.Errorf("no upstream is called %q", name)
}
