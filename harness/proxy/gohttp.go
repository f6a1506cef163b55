package proxy

import (
	"encoding/json"
	"fmt"

	"idlerace/harness/gohttp"
	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

func init() { register(goHTTP{}) }

// goHTTP is the embedded proxy of package gohttp.
type goHTTP struct{}

func (goHTTP) Name() string { return "gohttp" }

func (goHTTP) About() string {
	return "Go's httputil.ReverseProxy, embedded; idle: Transport.IdleConnTimeout; retry: net/http's replay off | (as it comes) | extended to every method"
}

func (goHTTP) Program() Program { return Program{Embedded: true} }

func (goHTTP) Unsupported(spec.Cell) string { return "" }

func (g goHTTP) Render(in Input) (stack.Service, error) {
	s := stack.Service{Name: g.Name(), Args: []string{"serve", "gohttp", "--config", "{dir}/gohttp.json"}}
	cfg := gohttp.Config{PoolSize: in.PoolSize()}
	for _, r := range in.Routes {
		cfg.Routes = append(cfg.Routes, g.route(r))
		s.Ready = append(s.Ready, r.Listen)
	}
	b, err := json.MarshalIndent(cfg, "", "  ")
	if err != nil {
		return s, fmt.Errorf("gohttp: render: %w", err)
	}
	s.Files = map[string]string{"gohttp.json": string(b) + "\n"}
	return s, nil
}

func (goHTTP) route(r Route) gohttp.Route {
	return gohttp.Route{Listen: r.Listen, Upstream: r.Upstream, Idle: r.Cell.ProxyIdle.String(), Retry: r.Cell.Retry}
}

func (g goHTTP) Excerpt(r Route, _ Input) string {
	b, err := json.MarshalIndent(g.route(r), "", "  ")
	if err != nil {
		return ""
	}
	return string(b) + "\n"
}

// Parse reads gohttp's log, which is JSON of record.LogLine.
func (goHTTP) Parse(line string) (record.LogLine, bool) {
	var l record.LogLine
	if err := json.Unmarshal([]byte(line), &l); err != nil || l.Cell == "" {
		return record.LogLine{}, false
	}
	l.Text = record.Short(l.Text)
	return l, true
}
