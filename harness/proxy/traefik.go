package proxy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

func init() { register(traefik{}) }

// traefik maps the cell so (v3: pkg/server/service/transport.go,
// pkg/middlewares/retry): proxy idle is `forwardingTimeouts.idleConnTimeout` of
// a serversTransport of the route's own; off is `maxIdleConnsPerHost: -1`,
// with which Go's Transport reuses nothing.
//
// Retry default is what Go's Transport does by itself: GET, HEAD, OPTIONS and
// TRACE are sent again, a request with a body never is, and nothing turns that
// off (see Unsupported). Retry on adds the retry middleware as every v3 release
// reads it: it tries again where nothing was written to the upstream, which in
// this race is the exception.
//
// Note: v3.7 gave the middleware `retryNonIdempotentMethod`, a key that v3.6
// does not know. An adapter is not told the version it renders for.
type traefik struct{}

func (traefik) Name() string { return "traefik" }

func (traefik) About() string {
	return "Traefik v3; idle: serversTransport idleConnTimeout; retry: off for methods with a body | (as it comes: Go's own replay) | retry middleware, attempts " +
		strconv.Itoa(traefikAttempts)
}

func (traefik) Program() Program {
	const module, version = "github.com/traefik/traefik/v3", "3.6.12"
	return Program{
		Binary:  "traefik",
		Args:    []string{"version"},
		Version: regexp.MustCompile(`Version:\s+(\S+)`),
		Image:   "traefik:v" + version,
		// `go install module@version` refuses a module with replace directives.
		// From within the downloaded module it is the main module, and they apply.
		Get: fmt.Sprintf(`go mod download %[1]s@v%[2]s && GOBIN=/usr/local/bin go install -C "$(go list -m -f '{{.Dir}}' %[1]s@v%[2]s)" -ldflags '-X %[1]s/pkg/version.Version=%[2]s' ./cmd/traefik   # some minutes; or: brew install traefik`,
			module, version),
	}
}

// Unsupported: a request with a body is never sent again by Go's Transport, so
// for those retry off is what Traefik does anyway. The others' replay has no
// switch: ReverseProxy removes an empty body that could prevent it.
func (traefik) Unsupported(c spec.Cell) string {
	if c.Retry == spec.RetryOff && !slices.Contains(traefikBodies, c.Method) {
		return "Traefik has no setting that keeps Go's Transport from sending a " + c.Method + " again"
	}
	return ""
}

// traefikBodies are the methods that the harness sends with a body.
var traefikBodies = []string{"POST", "PUT", "PATCH"}

// traefikAttempts is the number of tries of retry on, the first included.
const traefikAttempts = 3

func (t traefik) Render(in Input) (stack.Service, error) {
	s := stack.Service{
		Name:   t.Name(),
		Binary: "traefik",
		Args:   []string{"--configFile={dir}/traefik.yaml"},
		// It accepts some 100 ms before it has routers, and answers 404 meanwhile.
		ReadyPath: "/ping",
	}
	var static, dynamic strings.Builder
	data := traefikData(in, in.Routes)
	if err := traefikStatic.Execute(&static, data); err != nil {
		return stack.Service{}, fmt.Errorf("traefik: render: %w", err)
	}
	if err := traefikDynamic.Execute(&dynamic, data); err != nil {
		return stack.Service{}, fmt.Errorf("traefik: render: %w", err)
	}
	for _, r := range in.Routes {
		s.Ready = append(s.Ready, r.Listen)
	}
	s.Files = map[string]string{"traefik.yaml": static.String(), "dynamic.yaml": dynamic.String()}
	return s, nil
}

func (traefik) Excerpt(r Route, in Input) string {
	var b strings.Builder
	data := traefikData(in, []Route{r})
	if traefikEntryPoints.Execute(&b, data) != nil || traefikDynamic.Execute(&b, data) != nil {
		return ""
	}
	return b.String()
}

type traefikRoute struct {
	ID               string
	N                int // position in the Input
	Listen, Upstream string
	Idle             time.Duration
	Pool             int // maxIdleConnsPerHost
	Retry            bool
}

type traefikFile struct {
	Routes   []traefikRoute
	Retry    bool // some route has the retry middleware
	Attempts int
}

// traefikData describes routes, which are some of in's.
func traefikData(in Input, routes []Route) traefikFile {
	out := traefikFile{Attempts: traefikAttempts}
	for _, r := range routes {
		d := traefikRoute{ID: r.ID, Listen: r.Listen, Upstream: r.Upstream, Idle: time.Duration(r.Cell.ProxyIdle), Pool: in.PoolSize(),
			Retry: r.Cell.Retry == spec.RetryOn,
			N:     slices.IndexFunc(in.Routes, func(x Route) bool { return x.ID == r.ID })}
		if r.Cell.ProxyIdle == spec.Off {
			d.Pool = -1
		}
		out.Retry = out.Retry || d.Retry
		out.Routes = append(out.Routes, d)
	}
	return out
}

// The client side must outlive every gap.
var traefikEntryPoints = template.Must(template.New("entryPoints").Parse(`entryPoints:
{{- range .Routes}}
  # {{.ID}}
  e{{.N}}:
    address: "{{.Listen}}"
    transport: {respondingTimeouts: {readTimeout: 0s, idleTimeout: 24h}}
{{- end}}
`))

// Two things that Traefik's log could say and does not: the error text of a
// failed request stands in a line of level DEBUG that names neither path nor
// route, so that nothing ties it to the request; and RetryAttempts is 0
// whatever the retry middleware does (v3.6.12 builds it without a listener).
var traefikStatic = template.Must(template.Must(traefikEntryPoints.Clone()).New("static").Parse(`# Written by idlerace. One process serves all cells, a port each.
global: {checkNewVersion: false, sendAnonymousUsage: false}
log: {level: ERROR, noColor: true}
accessLog:
  format: json
  fields:
    defaultMode: drop
    names:
      RequestMethod: keep
      DownstreamStatus: keep
      OriginStatus: keep
      OriginDuration: keep
      ServiceAddr: keep
      StartUTC: keep
    headers:
      defaultMode: drop
      names: {X-Vegeta-Attack: keep, X-Vegeta-Seq: keep}
providers:
  file: {filename: dynamic.yaml, watch: false}
ping: {manualRouting: true}
{{template "entryPoints" .}}`))

var traefikDynamic = template.Must(template.New("dynamic").Parse(`http:
  routers:
{{- range .Routes}}
    # {{.ID}}
    r{{.N}}: {entryPoints: [e{{.N}}], rule: "PathPrefix(` + "`/`" + `)", service: s{{.N}}{{if .Retry}}, middlewares: [again]{{end}}}
    ready{{.N}}: {entryPoints: [e{{.N}}], rule: "Path(` + "`/ping`" + `)", service: ping@internal}
{{- end}}
  services:
{{- range .Routes}}
    s{{.N}}: {loadBalancer: {serversTransport: t{{.N}}, servers: [{url: "http://{{.Upstream}}"}]}}
{{- end}}
{{- if .Retry}}
  middlewares:
    again: {retry: {attempts: {{.Attempts}}}}
{{- end}}
  serversTransports:
{{- range .Routes}}
    t{{.N}}: {maxIdleConnsPerHost: {{.Pool}}, forwardingTimeouts: {dialTimeout: 5s, responseHeaderTimeout: 30s{{if .Idle}}, idleConnTimeout: {{.Idle}}{{end}}}}
{{- end}}
`))

// Parse reads the access log above. It does not say how often a request was
// sent: neither Go's Transport nor the retry middleware tells. Nor does it say
// why a 502 or 500 came about; a refused connection looks like a lost race.
func (traefik) Parse(line string) (record.LogLine, bool) {
	var a struct {
		Cell             string `json:"request_X-Vegeta-Attack"`
		Seq              string `json:"request_X-Vegeta-Seq"`
		DownstreamStatus int
	}
	if json.Unmarshal([]byte(line), &a) != nil || a.Cell == "" {
		return record.LogLine{}, false
	}
	seq, err := strconv.ParseUint(a.Seq, 10, 64)
	if err != nil {
		return record.LogLine{}, false
	}
	out := record.LogLine{Cell: a.Cell, Seq: seq, Status: a.DownstreamStatus}
	switch a.DownstreamStatus {
	case 499: // Traefik's own: the client went away
		out.Cause = record.CauseClient
	case 504:
		out.Cause = record.CauseTimeout
	}
	return out, true
}
