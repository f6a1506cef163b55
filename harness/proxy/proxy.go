// Package proxy knows the proxies under test, one file each: how to write
// their configuration for a grid of cells and how to read their own log lines.
// It only renders and parses; it must not import stack/local, load, judge or
// report.
package proxy

import (
	"fmt"
	"regexp"
	"sort"

	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

// Adapter is one proxy.
type Adapter interface {
	// Name is what a scenario calls it.
	Name() string
	// About is one line for listings: what it is and how its settings map.
	About() string
	// Program says how the proxy comes to this machine.
	Program() Program
	// Unsupported says why the proxy cannot express a cell, or "".
	Unsupported(spec.Cell) string
	// Render writes the configuration of ONE process that serves all routes.
	Render(Input) (stack.Service, error)
	// Excerpt is the part of the configuration that a route adds, for the
	// cell's folder.
	Excerpt(Route, Input) string
	// Parse reads one line that the process logged; false when it says nothing
	// of a request of ours.
	Parse(line string) (record.LogLine, bool)
}

// Program is where a proxy comes from.
type Program struct {
	Embedded bool           // this program itself plays the proxy; nothing to install
	Binary   string         // name on PATH
	Args     []string       // arguments that print the version
	Version  *regexp.Regexp // its first group is the version in that output
	Get      string         // one command that installs it
	Image    string         // container image that has Binary, pinned; empty: this program's own
}

// Route is one cell's way through a proxy.
type Route struct {
	ID       string // of the cell or control
	Cell     spec.Cell
	Listen   string // host:port the proxy accepts on
	Upstream string // host:port of the origin's server
}

// Input is what a configuration is rendered from.
type Input struct {
	Routes []Route
	Lanes  int // client connections per route: pools must hold that many idle connections
}

// PoolSize is the number of idle connections a route's pool must be able to
// hold: twice the lanes, so that no limit but the idle timeout ends one.
func (in Input) PoolSize() int { return 2 * in.Lanes }

var registry = map[string]Adapter{}

func register(a Adapter) {
	if _, dup := registry[a.Name()]; dup {
		panic("proxy: registered twice: " + a.Name())
	}
	registry[a.Name()] = a
}

// All gives every adapter by name.
func All() []Adapter {
	out := make([]Adapter, 0, len(registry))
	for _, a := range registry {
		out = append(out, a)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name() < out[j].Name() })
	return out
}

// Names lists the adapters.
func Names() []string {
	var out []string
	for _, a := range All() {
		out = append(out, a.Name())
	}
	return out
}

// ByName finds an adapter.
func ByName(name string) (Adapter, error) {
	if a, ok := registry[name]; ok {
		return a, nil
	}
	return nil, fmt.Errorf("no proxy is called %q; there are %v", name, Names())
}
