package proxy

import (
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/record"
)

type parseCase struct {
	name string
	line string
	want record.LogLine
	no   bool // the line says nothing of a request of ours
}

// parseCases holds lines that the programs really logged (nginx 1.22.1, envoy
// 1.40.0, traefik 3.6.12): in runs of idlerace, and in front of upstreams that
// refuse, speak garbage, close, reset, stall or break off.
var parseCases = map[string][]parseCase{
	"nginx": {
		{
			name: "answer",
			line: `{"cell":"ok-POST-default","seq":"1","status":"200","upstream_status":"200","upstream_addr":"127.0.0.1:32919","connect_time":"0.000","bytes":"40","time":"1795171240.166","request_time":"0.003"}`,
			want: record.LogLine{Cell: "ok-POST-default", Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:32919", Status: 200}}},
		},
		{
			name: "race",
			line: `{"cell":"nginx_go_p1s_u1s_POST_default_fin_rtt0s","seq":"314","status":"502","upstream_status":"502","upstream_addr":"127.0.0.1:21037","connect_time":"0.000","bytes":"0","time":"1795170463.668","request_time":"0.000"}`,
			want: record.LogLine{Cell: "nginx_go_p1s_u1s_POST_default_fin_rtt0s", Seq: 314, Status: 502, Attempts: []record.Attempt{{Upstream: "127.0.0.1:21037", Status: 502}}},
		},
		{
			name: "race, error log",
			line: `2026/11/20 10:27:43 [error] 22588#22588: *489 upstream prematurely closed connection while reading response header from upstream, client: 127.0.0.1, server: , request: "POST /nginx_go_p1s_u1s_POST_default_fin_rtt0s/314 HTTP/1.1", upstream: "http://127.0.0.1:21037/nginx_go_p1s_u1s_POST_default_fin_rtt0s/314", host: "127.0.0.1:21045"`,
			want: record.LogLine{Cell: "nginx_go_p1s_u1s_POST_default_fin_rtt0s", Seq: 314, Cause: record.CauseClosedEarly,
				Text: "upstream prematurely closed connection while reading response header from upstream"},
		},
		{
			name: "sent again",
			line: `{"cell":"nginx_go_p2s_u1s_GET_default_fin_rtt0s","seq":"184","status":"200","upstream_status":"502, 200","upstream_addr":"127.0.0.1:24186, 127.0.0.1:24186","connect_time":"0.000, 0.001","bytes":"0, 141","time":"1795169660.009","request_time":"0.012"}`,
			want: record.LogLine{Cell: "nginx_go_p2s_u1s_GET_default_fin_rtt0s", Seq: 184, Status: 200, Attempts: []record.Attempt{
				{Upstream: "127.0.0.1:24186", Status: 502}, {Upstream: "127.0.0.1:24186", Status: 200}}},
		},
		{
			name: "refused",
			line: `{"cell":"refuse-GET-default","seq":"0","status":"502","upstream_status":"502","upstream_addr":"127.0.0.1:35205","connect_time":"-","bytes":"0","time":"1795171240.181","request_time":"0.000"}`,
			want: record.LogLine{Cell: "refuse-GET-default", Status: 502, Cause: record.CauseRefused, Attempts: []record.Attempt{{Upstream: "127.0.0.1:35205", Status: 502}}},
		},
		{
			name: "refused, error log",
			line: `2026/11/20 10:40:40 [error] 17932#17932: *79 connect() failed (111: Connection refused) while connecting to upstream, client: 127.0.0.1, server: , request: "GET /refuse-GET-default/0 HTTP/1.1", upstream: "http://127.0.0.1:35205/refuse-GET-default/0", host: "127.0.0.1:33807"`,
			want: record.LogLine{Cell: "refuse-GET-default", Cause: record.CauseRefused, Text: "connect() failed (111: Connection refused) while connecting to upstream"},
		},
		{
			name: "timeout",
			line: `{"cell":"hang-POST-default","seq":"0","status":"504","upstream_status":"504","upstream_addr":"127.0.0.1:44557","connect_time":"0.000","bytes":"0","time":"1795171408.758","request_time":"30.000"}`,
			want: record.LogLine{Cell: "hang-POST-default", Status: 504, Attempts: []record.Attempt{{Upstream: "127.0.0.1:44557", Status: 504}}},
		},
		{
			name: "timeout, error log",
			line: `2026/11/20 10:43:28 [error] 18912#18912: *249 upstream timed out (110: Connection timed out) while reading response header from upstream, client: 127.0.0.1, server: , request: "POST /hang-POST-default/0 HTTP/1.1", upstream: "http://127.0.0.1:44557/hang-POST-default/0", host: "127.0.0.1:40057"`,
			want: record.LogLine{Cell: "hang-POST-default", Cause: record.CauseTimeout, Text: "upstream timed out (110: Connection timed out) while reading response header from upstream"},
		},
		{
			name: "reset, error log",
			line: `2026/11/20 10:40:40 [error] 17932#17932: *148 recv() failed (104: Connection reset by peer) while reading response header from upstream, client: 127.0.0.1, server: , request: "POST /rst-POST-default/0 HTTP/1.1", upstream: "http://127.0.0.1:39115/rst-POST-default/0", host: "127.0.0.1:39973"`,
			want: record.LogLine{Cell: "rst-POST-default", Cause: record.CauseReset, Text: "recv() failed (104: Connection reset by peer) while reading response header from upstream"},
		},
		{
			name: "not HTTP: nginx takes it for HTTP/0.9",
			line: `{"cell":"garbage-GET-default","seq":"0","status":"009","upstream_status":"200","upstream_addr":"127.0.0.1:42799","connect_time":"0.000","bytes":"21","time":"1795171240.237","request_time":"0.054"}`,
			want: record.LogLine{Cell: "garbage-GET-default", Status: 9, Attempts: []record.Attempt{{Upstream: "127.0.0.1:42799", Status: 200}}},
		},
		{
			name: "not HTTP, error log",
			line: `2026/11/20 10:40:40 [error] 17932#17932: *97 upstream sent no valid HTTP/1.0 header while reading response header from upstream, client: 127.0.0.1, server: , request: "GET /garbage-GET-default/0 HTTP/1.1", upstream: "http://127.0.0.1:42799/garbage-GET-default/0", host: "127.0.0.1:36589"`,
			want: record.LogLine{Cell: "garbage-GET-default", Cause: record.CauseNotHTTP, Text: "upstream sent no valid HTTP/1.0 header while reading response header from upstream"},
		},
		{
			name: "response broken off, error log",
			line: `2026/11/20 10:40:41 [error] 17932#17932: *223 upstream prematurely closed connection while reading upstream, client: 127.0.0.1, server: , request: "GET /partial-GET-default/0 HTTP/1.1", upstream: "http://127.0.0.1:38943/partial-GET-default/0", host: "127.0.0.1:44693"`,
			want: record.LogLine{Cell: "partial-GET-default", Cause: record.CauseReset, Text: "upstream prematurely closed connection while reading upstream"},
		},
		{
			name: "client gone",
			line: `{"cell":"abort-hang-GET-default","seq":"1","status":"499","upstream_status":"-","upstream_addr":"127.0.0.1:44557","connect_time":"0.000","bytes":"0","time":"1795171408.859","request_time":"0.100"}`,
			want: record.LogLine{Cell: "abort-hang-GET-default", Seq: 1, Status: 499, Attempts: []record.Attempt{{Upstream: "127.0.0.1:44557"}}},
		},
		{
			name: "client gone, error log",
			line: `2026/11/20 10:43:28 [info] 18912#18912: *247 epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too while sending request to upstream, client: 127.0.0.1, server: , request: "GET /abort-hang-GET-default/1 HTTP/1.1", upstream: "http://127.0.0.1:44557/abort-hang-GET-default/1", host: "127.0.0.1:40057"`,
			want: record.LogLine{Cell: "abort-hang-GET-default", Seq: 1, Cause: record.CauseClient,
				Text: "epoll_wait() reported that client prematurely closed connection, so upstream connection is closed too while sending request to upstream"},
		},
		{
			name: "header with quotes",
			line: `{"cell":"\"},{\"cell\":\"x","seq":"1","status":"200","upstream_status":"200","upstream_addr":"127.0.0.1:32919","connect_time":"0.000","bytes":"40","time":"1795171241.418","request_time":"0.004"}`,
			want: record.LogLine{Cell: `"},{"cell":"x`, Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:32919", Status: 200}}},
		},
		{
			name: "header of broken UTF-8",
			line: "{\"cell\":\"\xff\xfe\",\"seq\":\"1\",\"status\":\"200\",\"upstream_status\":\"200\",\"upstream_addr\":\"127.0.0.1:32919\",\"connect_time\":\"0.000\",\"bytes\":\"40\",\"time\":\"1795171241.425\",\"request_time\":\"0.003\"}",
			want: record.LogLine{Cell: "\ufffd\ufffd", Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:32919", Status: 200}}},
		},
		{
			name: "not ours",
			line: `{"cell":"","seq":"","status":"200","upstream_status":"200","upstream_addr":"127.0.0.1:32919","connect_time":"0.000","bytes":"40","time":"1795171241.436","request_time":"0.003"}`,
			no:   true,
		},
		{
			name: "no request",
			line: `2026/11/20 10:40:39 [info] 17932#17932: *1 client closed connection while waiting for request, client: 127.0.0.1, server: 127.0.0.1:36743`,
			no:   true,
		},
	},
	"gohttp": {
		{
			name: "answer",
			line: `{"cell":"ok-GET-default","seq":0,"status":200,"attempts":[{"upstream":"127.0.0.1:45195","local":"127.0.0.1:33228","status":200}]}`,
			want: record.LogLine{Cell: "ok-GET-default", Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:45195", Local: "127.0.0.1:33228", Status: 200}}},
		},
		{
			name: "race",
			line: `{"cell":"gohttp_go_p1s_u1s_POST_default_fin_rtt0s","seq":405,"status":502,"attempts":[{"upstream":"127.0.0.1:19926","local":"127.0.0.1:56006","reused":true,"err":"http: server closed idle connection"}],"cause":"upstream-closed","text":"http: server closed idle connection"}`,
			want: record.LogLine{Cell: "gohttp_go_p1s_u1s_POST_default_fin_rtt0s", Seq: 405, Status: 502, Cause: record.CauseClosedEarly, Text: "http: server closed idle connection",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:19926", Local: "127.0.0.1:56006", Reused: true, Err: "http: server closed idle connection"}}},
		},
		{
			name: "sent again",
			line: `{"cell":"second-GET-default","seq":1,"status":200,"attempts":[{"upstream":"127.0.0.1:37979","local":"127.0.0.1:34840","reused":true},{"upstream":"127.0.0.1:37979","local":"127.0.0.1:34842","status":200}]}`,
			want: record.LogLine{Cell: "second-GET-default", Seq: 1, Status: 200, Attempts: []record.Attempt{
				{Upstream: "127.0.0.1:37979", Local: "127.0.0.1:34840", Reused: true}, {Upstream: "127.0.0.1:37979", Local: "127.0.0.1:34842", Status: 200}}},
		},
		{
			name: "refused",
			line: `{"cell":"refuse-POST-default","seq":0,"status":502,"cause":"connect-refused","text":"dial tcp 127.0.0.1:42413: connect: connection refused"}`,
			want: record.LogLine{Cell: "refuse-POST-default", Status: 502, Cause: record.CauseRefused, Text: "dial tcp 127.0.0.1:42413: connect: connection refused"},
		},
		{
			name: "timeout",
			line: `{"cell":"hang-POST-default","seq":0,"status":502,"attempts":[{"upstream":"127.0.0.1:39325","local":"127.0.0.1:45034","err":"net/http: timeout awaiting response headers"}],"cause":"upstream-timeout","text":"net/http: timeout awaiting response headers"}`,
			want: record.LogLine{Cell: "hang-POST-default", Status: 502, Cause: record.CauseTimeout, Text: "net/http: timeout awaiting response headers",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:39325", Local: "127.0.0.1:45034", Err: "net/http: timeout awaiting response headers"}}},
		},
		{
			name: "header with quotes",
			line: `{"cell":"\"},{\"cell\":\"x","seq":1,"status":200,"attempts":[{"upstream":"127.0.0.1:45195","local":"127.0.0.1:33228","status":200,"reused":true}]}`,
			want: record.LogLine{Cell: `"},{"cell":"x`, Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:45195", Local: "127.0.0.1:33228", Status: 200, Reused: true}}},
		},
		{
			name: "not ours",
			line: `{"cell":"","seq":0,"status":200,"attempts":[{"upstream":"127.0.0.1:45195","local":"127.0.0.1:33228","status":200,"reused":true}]}`,
			no:   true,
		},
	},
	"envoy": {
		{
			name: "answer",
			line: `{"attempts":1,"cell":"ok-POST-default","details":"via_upstream","duration_ms":3,"flags":"-","local":"127.0.0.1:59082","seq":"1","status":200,"time":"1795172919.314734","upstream":"127.0.0.1:45333"}`,
			want: record.LogLine{Cell: "ok-POST-default", Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:45333", Local: "127.0.0.1:59082", Status: 200}}},
		},
		{
			name: "race",
			line: `{"attempts":1,"cell":"envoy_go_p500ms_u500ms_POST_default_fin_rtt0s","details":"upstream_reset_before_response_started{connection_termination}","duration_ms":2,"flags":"UC","local":"127.0.0.1:55696","seq":"319","status":503,"time":"1795172998.037863","upstream":"127.0.0.1:28838"}`,
			want: record.LogLine{Cell: "envoy_go_p500ms_u500ms_POST_default_fin_rtt0s", Seq: 319, Status: 503, Cause: record.CauseClosedEarly,
				Text: "UC upstream_reset_before_response_started{connection_termination}",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:28838", Local: "127.0.0.1:55696",
					Err: "UC upstream_reset_before_response_started{connection_termination}"}}},
		},
		{
			name: "sent again",
			line: `{"attempts":2,"cell":"envoy_go_p2s_u500ms_POST_on_fin_rtt0s","details":"via_upstream","duration_ms":14,"flags":"-","local":"127.0.0.1:39084","seq":"166","status":200,"time":"1795173007.026738","upstream":"127.0.0.1:25220"}`,
			want: record.LogLine{Cell: "envoy_go_p2s_u500ms_POST_on_fin_rtt0s", Seq: 166, Status: 200, Attempts: []record.Attempt{
				{Upstream: "127.0.0.1:25220", Err: "no response"}, {Upstream: "127.0.0.1:25220", Local: "127.0.0.1:39084", Status: 200}}},
		},
		{
			name: "retries used up",
			line: `{"attempts":4,"cell":"fin-POST-on","details":"upstream_reset_before_response_started{connection_termination}","duration_ms":100,"flags":"URX,UC","local":"127.0.0.1:55476","seq":"0","status":503,"time":"1795172920.429666","upstream":"127.0.0.1:45411"}`,
			want: record.LogLine{Cell: "fin-POST-on", Status: 503, Cause: record.CauseClosedEarly,
				Text: "URX,UC upstream_reset_before_response_started{connection_termination}",
				Attempts: []record.Attempt{
					{Upstream: "127.0.0.1:45411", Err: "no response"}, {Upstream: "127.0.0.1:45411", Err: "no response"}, {Upstream: "127.0.0.1:45411", Err: "no response"},
					{Upstream: "127.0.0.1:45411", Local: "127.0.0.1:55476", Err: "URX,UC upstream_reset_before_response_started{connection_termination}"}}},
		},
		{
			name: "refused",
			line: `{"attempts":1,"cell":"refuse-POST-default","details":"upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}","duration_ms":0,"flags":"UF","local":null,"seq":"0","status":503,"time":"1795172919.502880","upstream":"127.0.0.1:46001"}`,
			want: record.LogLine{Cell: "refuse-POST-default", Status: 503, Cause: record.CauseRefused,
				Text: "UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:46001",
					Err: "UF upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"}}},
		},
		{
			name: "timeout",
			line: `{"attempts":1,"cell":"hang-POST-default","details":"response_timeout","duration_ms":30002,"flags":"UT","local":"127.0.0.1:60148","seq":"0","status":504,"time":"1795172963.682031","upstream":"127.0.0.1:33791"}`,
			want: record.LogLine{Cell: "hang-POST-default", Status: 504, Cause: record.CauseTimeout, Text: "UT response_timeout",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:33791", Local: "127.0.0.1:60148", Err: "UT response_timeout"}}},
		},
		{
			name: "not HTTP",
			line: `{"attempts":1,"cell":"garbage-GET-default","details":"upstream_reset_before_response_started{protocol_error}","duration_ms":3,"flags":"UPE","local":"127.0.0.1:39278","seq":"0","status":502,"time":"1795172919.747061","upstream":"127.0.0.1:42887"}`,
			want: record.LogLine{Cell: "garbage-GET-default", Status: 502, Cause: record.CauseNotHTTP,
				Text:     "UPE upstream_reset_before_response_started{protocol_error}",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:42887", Local: "127.0.0.1:39278", Err: "UPE upstream_reset_before_response_started{protocol_error}"}}},
		},
		{
			name: "response broken off",
			line: `{"attempts":1,"cell":"partial-GET-default","details":"upstream_reset_after_response_started{protocol_error}","duration_ms":24,"flags":"UPE","local":"127.0.0.1:35064","seq":"0","status":200,"time":"1795172921.375452","upstream":"127.0.0.1:46337"}`,
			want: record.LogLine{Cell: "partial-GET-default", Status: 200, Cause: record.CauseReset,
				Text:     "UPE upstream_reset_after_response_started{protocol_error}",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:46337", Local: "127.0.0.1:35064", Err: "UPE upstream_reset_after_response_started{protocol_error}"}}},
		},
		{
			name: "the upstream's own 503",
			line: `{"attempts":1,"cell":"upstream503-POST-default","details":"via_upstream","duration_ms":3,"flags":"-","local":"127.0.0.1:59042","seq":"0","status":503,"time":"1795172921.113094","upstream":"127.0.0.1:34031"}`,
			want: record.LogLine{Cell: "upstream503-POST-default", Status: 503, Attempts: []record.Attempt{{Upstream: "127.0.0.1:34031", Local: "127.0.0.1:59042", Status: 503}}},
		},
		{
			name: "client gone",
			line: `{"attempts":1,"cell":"abort-hang-GET-default","details":"downstream_remote_disconnect","duration_ms":100,"flags":"DC","local":"127.0.0.1:51222","seq":"1","status":0,"time":"1795172993.684896","upstream":"127.0.0.1:33791"}`,
			want: record.LogLine{Cell: "abort-hang-GET-default", Seq: 1, Cause: record.CauseClient, Text: "DC downstream_remote_disconnect",
				Attempts: []record.Attempt{{Upstream: "127.0.0.1:33791", Local: "127.0.0.1:51222", Err: "DC downstream_remote_disconnect"}}},
		},
		{
			name: "header with quotes",
			line: `{"attempts":1,"cell":"\"},{\"cell\":\"x","details":"via_upstream","duration_ms":3,"flags":"-","local":"127.0.0.1:45874","seq":"1","status":200,"time":"1795172993.928659","upstream":"127.0.0.1:45333"}`,
			want: record.LogLine{Cell: `"},{"cell":"x`, Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:45333", Local: "127.0.0.1:45874", Status: 200}}},
		},
		{
			name: "header of broken UTF-8",
			line: `{"attempts":1,"cell":"\u00ff\u00fe","details":"via_upstream","duration_ms":3,"flags":"-","local":"127.0.0.1:45874","seq":"1","status":200,"time":"1795172993.937266","upstream":"127.0.0.1:45333"}`,
			want: record.LogLine{Cell: "\u00ff\u00fe", Seq: 1, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:45333", Local: "127.0.0.1:45874", Status: 200}}},
		},
		{
			name: "not ours",
			line: `{"attempts":1,"cell":null,"details":"via_upstream","duration_ms":3,"flags":"-","local":"127.0.0.1:45874","seq":null,"status":200,"time":"1795172993.949928","upstream":"127.0.0.1:45333"}`,
			no:   true,
		},
		{
			name: "no request",
			line: `[2026-11-20 10:39:09.273][15605][warning][main] [source/server/server.cc:1028] caught ENVOY_SIGTERM`,
			no:   true,
		},
	},
	"traefik": {
		{
			name: "answer",
			line: `{"DownstreamStatus":200,"OriginDuration":3704796,"OriginStatus":200,"RequestMethod":"GET","ServiceAddr":"127.0.0.1:42485","StartUTC":"2026-11-20T10:32:58.220803561Z","level":"info","msg":"","request_X-Vegeta-Attack":"ok-GET-default","request_X-Vegeta-Seq":"1","time":"2026-11-20T10:32:58Z"}`,
			want: record.LogLine{Cell: "ok-GET-default", Seq: 1, Status: 200},
		},
		{
			name: "race",
			line: `{"DownstreamStatus":502,"OriginDuration":1626944,"OriginStatus":502,"RequestMethod":"POST","ServiceAddr":"127.0.0.1:30480","StartUTC":"2026-11-20T10:34:31.545237655Z","level":"info","msg":"","request_X-Vegeta-Attack":"traefik_go_p1s_u500ms_POST_default_fin_rtt0s","request_X-Vegeta-Seq":"320","time":"2026-11-20T10:34:31Z"}`,
			want: record.LogLine{Cell: "traefik_go_p1s_u500ms_POST_default_fin_rtt0s", Seq: 320, Status: 502},
		},
		{
			// Three tries by the retry middleware, which this version does not count.
			name: "refused, sent again",
			line: `{"DownstreamStatus":502,"OriginDuration":40990,"OriginStatus":502,"RequestMethod":"POST","RetryAttempts":0,"ServiceAddr":"127.0.0.1:36395","StartUTC":"2026-11-20T10:32:58.263657947Z","level":"info","msg":"","request_X-Vegeta-Attack":"refuse-POST-on","request_X-Vegeta-Seq":"0","time":"2026-11-20T10:32:58Z"}`,
			want: record.LogLine{Cell: "refuse-POST-on", Status: 502},
		},
		{
			name: "not HTTP",
			line: `{"DownstreamStatus":500,"OriginDuration":3617538,"OriginStatus":500,"RequestMethod":"GET","ServiceAddr":"127.0.0.1:46777","StartUTC":"2026-11-20T10:32:58.265252103Z","level":"info","msg":"","request_X-Vegeta-Attack":"garbage-GET-default","request_X-Vegeta-Seq":"0","time":"2026-11-20T10:32:58Z"}`,
			want: record.LogLine{Cell: "garbage-GET-default", Status: 500},
		},
		{
			name: "timeout",
			line: `{"DownstreamStatus":504,"OriginDuration":30000983331,"OriginStatus":504,"RequestMethod":"POST","ServiceAddr":"127.0.0.1:33203","StartUTC":"2026-11-20T11:04:46.57511716Z","level":"info","msg":"","request_X-Vegeta-Attack":"hang-POST-default","request_X-Vegeta-Seq":"0","time":"2026-11-20T11:05:16Z"}`,
			want: record.LogLine{Cell: "hang-POST-default", Status: 504, Cause: record.CauseTimeout},
		},
		{
			name: "response broken off",
			line: `{"DownstreamStatus":200,"OriginDuration":0,"OriginStatus":0,"RequestMethod":"POST","ServiceAddr":"127.0.0.1:37789","StartUTC":"2026-11-20T10:32:58.685023882Z","level":"info","msg":"","request_X-Vegeta-Attack":"partial-POST-default","request_X-Vegeta-Seq":"0","time":"2026-11-20T10:32:58Z"}`,
			want: record.LogLine{Cell: "partial-POST-default", Status: 200},
		},
		{
			name: "client gone",
			line: `{"DownstreamStatus":499,"OriginDuration":100416653,"OriginStatus":499,"RequestMethod":"POST","ServiceAddr":"127.0.0.1:33203","StartUTC":"2026-11-20T11:05:16.677192378Z","level":"info","msg":"","request_X-Vegeta-Attack":"abort-hang-POST-default","request_X-Vegeta-Seq":"1","time":"2026-11-20T11:05:16Z"}`,
			want: record.LogLine{Cell: "abort-hang-POST-default", Seq: 1, Status: 499, Cause: record.CauseClient},
		},
		{
			name: "header with quotes",
			line: `{"DownstreamStatus":200,"OriginDuration":3528786,"OriginStatus":200,"RequestMethod":"GET","ServiceAddr":"127.0.0.1:42485","StartUTC":"2026-11-20T10:32:58.834738788Z","level":"info","msg":"","request_X-Vegeta-Attack":"\"},{\"cell\":\"x","request_X-Vegeta-Seq":"1","time":"2026-11-20T10:32:58Z"}`,
			want: record.LogLine{Cell: `"},{"cell":"x`, Seq: 1, Status: 200},
		},
		{
			name: "not ours",
			line: `{"DownstreamStatus":200,"OriginDuration":3461298,"OriginStatus":200,"RequestMethod":"GET","ServiceAddr":"127.0.0.1:42485","StartUTC":"2026-11-20T10:32:58.855632704Z","level":"info","msg":"","time":"2026-11-20T10:32:58Z"}`,
			no:   true,
		},
		{
			name: "no request",
			line: `{"level":"debug","error":"dial tcp 127.0.0.1:1: connect: connection refused","time":"2026-11-20T10:33:11Z","caller":"/root/go/pkg/mod/github.com/traefik/traefik/v3@v3.6.12/pkg/proxy/httputil/proxy.go:121","message":"502 Bad Gateway"}`,
			no:   true,
		},
	},
}

func TestParse(t *testing.T) {
	for _, a := range All() {
		t.Run(a.Name(), func(t *testing.T) {
			if len(parseCases[a.Name()]) == 0 {
				t.Fatal("no real log line is tested")
			}
			for _, tt := range parseCases[a.Name()] {
				t.Run(tt.name, func(t *testing.T) {
					got, ok := a.Parse(tt.line)
					if ok == tt.no {
						t.Fatalf("Parse says %t", ok)
					}
					if diff := cmp.Diff(tt.want, got); diff != "" {
						t.Errorf("(-want +got)\n%s", diff)
					}
				})
			}
		})
	}
}

// Lines that no proxy logged as they are, or that are not all there.
var garbage = []string{
	"", "{", "{}", "null", "[]", `""`, "0", "\x00", "\xff\xfe{", "{\"cell\":", `{"cell":1}`,
	`{"cell":"c"}`, `{"cell":"c","seq":"-1"}`, `{"cell":"c","seq":"99999999999999999999999"}`, `{"cell":"c","seq":"1.5","status":"200"}`,
	`{"request_X-Vegeta-Attack":"c","request_X-Vegeta-Seq":"x"}`,
	`2026/11/20 10:40:40 [error] 1#1: *1 request: "GET /c/99999999999999999999999 HTTP/1.1"`,
	`2026/11/20 10:40:40 [error] 1#1: *1 request: "GET // HTTP/1.1"`,
}

func TestParseGarbage(t *testing.T) {
	for _, a := range All() {
		for _, line := range garbage {
			if a.Name() == "gohttp" && line == `{"cell":"c"}` {
				continue // its seq is a number, 0 when it is not there
			}
			if l, ok := a.Parse(line); ok {
				t.Errorf("%s reads %q as %+v", a.Name(), line, l)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, cases := range parseCases {
		for _, tt := range cases {
			f.Add(tt.line)
		}
	}
	for _, line := range garbage {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		for _, a := range All() {
			l, ok := a.Parse(line)
			if !ok {
				continue
			}
			if l.Cell == "" {
				t.Errorf("%s: no cell in %+v", a.Name(), l)
			}
			if len(l.Text) > 300 || !utf8.ValidString(l.Text) {
				t.Errorf("%s: a text of %d bytes: %q", a.Name(), len(l.Text), l.Text)
			}
		}
	})
}
