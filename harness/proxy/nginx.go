package proxy

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"text/template"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

func init() { register(nginx{}) }

// nginx maps the cell so (ngx_http_upstream_keepalive_module, ngx_http_proxy_module):
// proxy idle is `keepalive_timeout` of the upstream block; off sends
// `Connection: close` upstream and has no pool; retry off is
// `proxy_next_upstream off`, on adds `non_idempotent`.
//
// Every pool setting is written out, because the defaults moved: 1.29.7 turned
// upstream keep-alive on ("keepalive 32 local") and made HTTP/1.1 the default.
type nginx struct{}

func (nginx) Name() string { return "nginx" }

func (nginx) About() string {
	return "nginx open source; idle: upstream keepalive_timeout; retry: proxy_next_upstream off | (as it comes) | error timeout non_idempotent"
}

func (nginx) Program() Program {
	return Program{
		Binary:  "nginx",
		Args:    []string{"-v"},
		Version: regexp.MustCompile(`nginx/(\S+)`),
		Image:   "nginx:1.30.6",
		Get:     "apt-get install -y nginx-light   # or: brew install nginx",
	}
}

func (nginx) Unsupported(spec.Cell) string { return "" }

func (n nginx) Render(in Input) (stack.Service, error) {
	var conf strings.Builder
	// worker_connections counts both sides of every lane.
	err := nginxMain.Execute(&conf, map[string]any{
		"Connections": 4*in.Lanes*len(in.Routes) + 512,
		"Files":       8*in.Lanes*len(in.Routes) + 1024,
	})
	if err != nil {
		return stack.Service{}, fmt.Errorf("nginx: render: %w", err)
	}
	s := stack.Service{
		Name:   n.Name(),
		Binary: "nginx",
		Args:   []string{"-p", "{dir}", "-c", "nginx.conf", "-e", "stderr"},
	}
	for i, r := range in.Routes {
		fmt.Fprintf(&conf, "\n    # %s\n%s", r.ID, n.route(i, r, in))
		s.Ready = append(s.Ready, r.Listen)
	}
	conf.WriteString("}\n")
	s.Files = map[string]string{"nginx.conf": conf.String(), "tmp/.keep": ""}
	return s, nil
}

func (n nginx) Excerpt(r Route, in Input) string {
	for i := range in.Routes {
		if in.Routes[i].ID == r.ID {
			return n.route(i, r, in)
		}
	}
	return ""
}

func (nginx) route(i int, r Route, in Input) string {
	var b strings.Builder
	fmt.Fprintf(&b, "    upstream u%d {\n        server %s max_fails=0;\n", i, r.Upstream)
	connection := `""`
	if r.Cell.ProxyIdle == spec.Off {
		connection = "close"
	} else {
		fmt.Fprintf(&b, "        keepalive %d;\n        keepalive_timeout %dms;\n        keepalive_requests 1000000;\n",
			in.PoolSize(), time.Duration(r.Cell.ProxyIdle).Milliseconds())
	}
	fmt.Fprintf(&b, "    }\n    server {\n        listen %s;\n        location / {\n            proxy_pass http://u%d;\n", r.Listen, i)
	fmt.Fprintf(&b, "            proxy_http_version 1.1;\n            proxy_set_header Connection %s;\n", connection)
	switch r.Cell.Retry {
	case spec.RetryOff:
		b.WriteString("            proxy_next_upstream off;\n")
	case spec.RetryOn:
		b.WriteString("            proxy_next_upstream error timeout non_idempotent;\n")
	}
	b.WriteString("        }\n    }\n")
	return b.String()
}

// One process: no master, one event loop, hence one pool per upstream block;
// and nothing that could outlive a killed parent.
var nginxMain = template.Must(template.New("nginx").Parse(`# Written by idlerace. One process serves all cells, a port each.
daemon off;
master_process off;
worker_processes 1;
worker_rlimit_nofile {{.Files}};
pid nginx.pid;
error_log stderr info;
events {
    worker_connections {{.Connections}};
}
http {
    log_format idlerace escape=json '{"cell":"$http_x_vegeta_attack","seq":"$http_x_vegeta_seq",'
        '"status":"$status","upstream_status":"$upstream_status","upstream_addr":"$upstream_addr",'
        '"connect_time":"$upstream_connect_time","bytes":"$upstream_bytes_received","time":"$msec","request_time":"$request_time"}';
    access_log /dev/stdout idlerace;
    client_body_temp_path tmp/body;
    proxy_temp_path tmp/proxy;
    fastcgi_temp_path tmp/fastcgi;
    uwsgi_temp_path tmp/uwsgi;
    scgi_temp_path tmp/scgi;
    # The client side must outlive every gap.
    keepalive_timeout 24h;
    keepalive_requests 1000000;
    proxy_connect_timeout 5s;
    proxy_read_timeout 30s;
    proxy_send_timeout 30s;
`))

// Parse reads the access log above and nginx's error log, whose lines name the
// request by its path.
func (nginx) Parse(line string) (record.LogLine, bool) {
	if strings.HasPrefix(line, "{") {
		return nginxAccess(line)
	}
	return nginxError(line)
}

func nginxAccess(line string) (record.LogLine, bool) {
	var a struct {
		Cell, Seq, Status string
		UpstreamStatus    string `json:"upstream_status"`
		UpstreamAddr      string `json:"upstream_addr"`
		ConnectTime       string `json:"connect_time"`
	}
	if err := json.Unmarshal([]byte(line), &a); err != nil || a.Cell == "" {
		return record.LogLine{}, false
	}
	seq, err := strconv.ParseUint(a.Seq, 10, 64)
	if err != nil {
		return record.LogLine{}, false
	}
	out := record.LogLine{Cell: a.Cell, Seq: seq}
	out.Status, _ = strconv.Atoi(a.Status)
	// One element per attempt: "502, 200"; "-" where there was no response.
	addrs, times := splitNginxList(a.UpstreamAddr), splitNginxList(a.ConnectTime)
	for i, status := range splitNginxList(a.UpstreamStatus) {
		at := record.Attempt{}
		at.Status, _ = strconv.Atoi(status)
		if i < len(addrs) {
			at.Upstream = addrs[i]
		}
		if i < len(times) && times[i] == "-" && at.Status >= 500 {
			out.Cause = record.CauseRefused // never connected
		}
		out.Attempts = append(out.Attempts, at)
	}
	return out, true
}

func splitNginxList(s string) []string {
	if s == "" {
		return nil
	}
	// A comma separates servers, a colon server groups after an internal redirect.
	return strings.FieldsFunc(strings.ReplaceAll(s, " : ", ", "), func(r rune) bool { return r == ',' || r == ' ' })
}

// nginxErrorRequest finds our request id in an error line's `request: "POST
// /cell/seq HTTP/1.1"`.
var nginxErrorRequest = regexp.MustCompile(`request: "[A-Z]+ /([^/" ]+)/(\d+) HTTP`)

func nginxError(line string) (record.LogLine, bool) {
	m := nginxErrorRequest.FindStringSubmatch(line)
	if m == nil {
		return record.LogLine{}, false
	}
	seq, err := strconv.ParseUint(m[2], 10, 64)
	if err != nil {
		return record.LogLine{}, false
	}
	text := line
	if _, after, ok := strings.Cut(line, ": *"); ok { // date, level, pid#tid, then ": *connection "
		if _, after, ok := strings.Cut(after, " "); ok {
			text = after
		}
	}
	if i := strings.Index(text, ", client: "); i >= 0 {
		text = text[:i]
	}
	return record.LogLine{Cell: m[1], Seq: seq, Cause: nginxCause(text), Text: record.Short(text)}, true
}

// nginxCause reads ngx_http_upstream.c's own texts.
func nginxCause(text string) record.Cause {
	switch {
	case strings.Contains(text, "client prematurely closed connection"):
		return record.CauseClient
	case strings.Contains(text, "while reading upstream"): // in the middle of a response
		return record.CauseReset
	case strings.Contains(text, "prematurely closed connection"), strings.Contains(text, "(32: "):
		return record.CauseClosedEarly
	case strings.Contains(text, "connect() failed"), strings.Contains(text, "no live upstreams"):
		return record.CauseRefused
	case strings.Contains(text, "timed out"):
		return record.CauseTimeout
	case strings.Contains(text, "(104: "):
		return record.CauseReset
	case strings.Contains(text, "no valid HTTP/1"), strings.Contains(text, "invalid header"), strings.Contains(text, "invalid response"):
		return record.CauseNotHTTP
	}
	return ""
}
