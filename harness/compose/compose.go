// Package compose writes one cell down as a compose file: the origin and the
// proxy with the configuration that a run gives them, to be started and poked
// at by hand. It only renders; it must not import stack/local, stack/docker,
// load, judge, report or run.
package compose

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"text/template"

	"idlerace/harness/plan"
	"idlerace/harness/proxy"
	"idlerace/harness/stack"
	"idlerace/harness/upstream"
)

// Ports, the same inside the containers and on the host's loopback, and the
// addresses of a network of its own: a proxy's configuration may hold no names.
const (
	adminPort  = "20000"
	serverPort = "20001"
	proxyPort  = "20002"
	network    = "10.213.77.0/24"
	originIP   = "10.213.77.2"
)

// Cell is what a compose file is made of.
type Cell struct {
	Item    plan.Item
	Server  plan.Server // behind the item
	Adapter proxy.Adapter
	Kind    upstream.Kind
	Image   string // of the proxy; empty: the adapter's
	Lanes   int
}

// Files gives the content of a folder in which `docker compose up` starts the
// cell, by relative path. The folder must also hold the program itself, a
// static Linux executable, as "idlerace".
func Files(c Cell) (map[string]string, error) {
	origin, err := c.Kind.Render(upstream.Input{Servers: []plan.Server{c.Server}, Addrs: map[string]string{c.Server.Name: "0.0.0.0:" + serverPort}, Admin: "0.0.0.0:" + adminPort})
	if err != nil {
		return nil, err
	}
	in := proxy.Input{Lanes: c.Lanes, Routes: []proxy.Route{
		{ID: c.Item.ID, Cell: c.Item.Cell, Listen: "0.0.0.0:" + proxyPort, Upstream: originIP + ":" + serverPort},
	}}
	px, err := c.Adapter.Render(in)
	if err != nil {
		return nil, err
	}
	if px.Binary != "" {
		px.Image = cmp.Or(c.Image, c.Adapter.Program().Image)
	}
	out := map[string]string{"Dockerfile": dockerfile}
	services := []service{
		composeService(origin, "origin", out, map[string]string{adminPort: "the origin's journal", serverPort: "the origin itself"}),
		composeService(px, "proxy", out, map[string]string{proxyPort: "through the proxy"}),
	}
	services[0].IP, services[1].After = originIP, "origin"
	var b strings.Builder
	err = file.Execute(&b, map[string]any{"ID": c.Item.ID, "Services": services, "Network": network,
		"Admin": adminPort, "Proxy": proxyPort, "Idle": c.Server.IdleTimeout, "Method": c.Item.Cell.Method, "Body": c.Item.Cell.Method == "POST"})
	if err != nil {
		return nil, fmt.Errorf("compose: %w", err)
	}
	out["compose.yaml"] = b.String()
	return out, nil
}

const dockerfile = `FROM scratch
COPY idlerace /idlerace
ENTRYPOINT ["/idlerace"]
`

type service struct {
	Name, Image, Entrypoint, IP, After string
	Ports                              []port
	Capabilities                       []string
}

type port struct{ Number, About string }

// home is where a service's files are in its container.
const home = "/idlerace.d"

// composeService describes s under a name and adds its files.
func composeService(s stack.Service, name string, files map[string]string, ports map[string]string) service {
	for rel, content := range s.Files {
		files[path.Join(name, rel)] = content
	}
	command := []string{cmp.Or(s.Binary, "/idlerace")}
	for _, a := range s.Args {
		command = append(command, strings.ReplaceAll(a, "{dir}", home))
	}
	entry, _ := json.Marshal(command) // a list of strings
	out := service{Name: name, Image: s.Image, Entrypoint: string(entry), Capabilities: s.Capabilities}
	for _, p := range slices.Sorted(maps.Keys(ports)) {
		out.Ports = append(out.Ports, port{p, ports[p]})
	}
	return out
}

// A JSON list or string is one in YAML too.
var file = template.Must(template.New("compose").Parse(`# {{.ID}}
# Written by idlerace. In this folder:
#
#   docker compose up --build -d
#   docker compose down
#
# A request through the proxy; do it twice, {{.Idle}} apart, which is the
# upstream's idle timeout:
#
#   curl -i -X {{.Method}} {{if .Body}}-d x=1 {{end}}http://127.0.0.1:{{.Proxy}}/
#
# What the upstream saw, connection by connection, and what the proxy says:
#
#   curl http://127.0.0.1:{{.Admin}}/journal
#   docker compose logs proxy
services:
{{- range .Services}}
  {{.Name}}:
{{- if .Image}}
    image: {{.Image}}
{{- else}}
    build: .
{{- end}}
    entrypoint: {{.Entrypoint}}
    working_dir: ` + home + `
    volumes: ["./{{.Name}}:` + home + `"]
    ports:
{{- range .Ports}}
      - "127.0.0.1:{{.Number}}:{{.Number}}" # {{.About}}
{{- end}}
{{- if .Capabilities}}
    cap_add: [{{range $i, $c := .Capabilities}}{{if $i}}, {{end}}{{$c}}{{end}}]
{{- end}}
{{- if .After}}
    depends_on: [{{.After}}]
{{- end}}
    networks:
      cell: {{if .IP}}{ipv4_address: {{.IP}}}{{else}}{}{{end}}
{{- end}}
networks:
  cell:
    ipam: {config: [{subnet: {{.Network}}}]}
`))
