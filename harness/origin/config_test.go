package origin

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/spec"
)

func TestReadConfig(t *testing.T) {
	got, err := ReadConfig(strings.NewReader(`{
		"admin": "127.0.0.1:9000",
		"journal_size": 5,
		"servers": [
			{"name": "u600ms", "listen": ":9001", "idle_timeout": "600ms", "close": "fin"},
			{"name": "all", "listen": ":0", "idle_timeout": "1m", "close": "half-close", "linger": "3s", "keep_alive_hint": 4,
			 "delay": "5ms", "size": 6, "max_requests": 7, "announce": true, "trap": {"after": 2, "executed": true}}
		]
	}
	`))
	if err != nil {
		t.Fatal(err)
	}
	want := Config{Admin: "127.0.0.1:9000", JournalSize: 5, Servers: []Server{
		{Name: "u600ms", Listen: ":9001", IdleTimeout: Duration(600 * time.Millisecond), Close: spec.CloseFIN},
		{Name: "all", Listen: ":0", IdleTimeout: Duration(time.Minute), Close: spec.CloseHalfClose, Linger: Duration(3 * time.Second),
			KeepAliveHint: 4, Delay: Duration(5 * time.Millisecond), Size: 6, MaxRequests: 7, Announce: true,
			Trap: &Trap{After: 2, Executed: true}},
	}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadConfigErrors(t *testing.T) {
	server := func(fields string) string {
		return `{"admin": ":0", "servers": [{"name": "a", "listen": ":0"}, {"name": "b", "listen": ":0", ` + fields + `}]}`
	}
	contained := func(fields string) string { return strings.Replace(server(fields), `{`, `{"contained": true, `, 1) }
	for _, tt := range []struct{ in, want string }{
		{``, `the file ends before the object does`},
		{`{"admin": ":0"`, `the file ends before the object does`},
		{"{\n\"admin\": :0}", `line 2: invalid character ':' looking for beginning of value`},
		{"{}\n\n{}", `line 3: something follows the object`},
		{`[]`, `want an object, not array`},
		{`{"admim": ":0"}`, `unknown field "admim"`},
		{`{"admin": 5}`, `admin: want string, not number`},
		{`{"servers": {}}`, `servers: want a list, not object`},
		{`{"servers": [5]}`, `servers[0]: want an object, not number`},
		{server(`"idle": "1s"`), `servers[1]: unknown field "idle"`},
		{server(`"idle_timeout": 5`), `servers[1].idle_timeout: 5 is not a duration such as "1.5s"`},
		{server(`"linger": "5"`), `servers[1].linger: "5" is not a duration such as "1.5s"`},
		{server(`"delay": null`), `servers[1].delay: null is not a duration such as "1.5s"`},
		{server(`"size": "5"`), `servers[1].size: want int, not string`},
		{server(`"close": 5`), `servers[1].close: want string, not number`},
		{server(`"trap": {"after": true}`), `servers[1].trap.after: want int, not bool`},
		{server(`"trap": {"before": 1}`), `servers[1]: unknown field "before"`},
		{server(`"close": "soft"`), `server b: close: "soft" is none of [fin plain rst half-close]`},
		{server(`"idle_timeout": "-1s"`), `server b: idle_timeout: -1s is negative`},
		{server(`"linger": "-1s"`), `server b: linger: -1s is negative`},
		{server(`"delay": "-1ms"`), `server b: delay: -1ms is negative`},
		{server(`"size": -1`), `server b: size: -1 is negative`},
		{server(`"size": 100000000`), `server b: size: 100000000 is above 67108864`},
		{server(`"keep_alive_hint": -1`), `server b: keep_alive_hint: -1 is negative`},
		{server(`"max_requests": -1`), `server b: max_requests: -1 is negative`},
		{server(`"announce": true`), `server b: announce without max_requests`},
		{server(`"trap": {"after": -1}`), `server b: trap: after: -1 is negative`},
		{server(`"trap": {"after": 3}, "max_requests": 3`), `server b: trap: after 3 requests is never reached with max_requests 3`},
		{server(`"trap": {"executed": true, "unread": true}`), `server b: trap: what is unread is not executed`},
		{server(`"link": {}`), `server b: link: nothing to emulate`},
		{server(`"link": {"up": 5}`), `servers[1].link.up: 5 is not a duration such as "1.5s"`},
		{server(`"link": {"up": "5ms", "idle": "1s"}`), `server b: link: idle without on_idle: want drop, reset or reset-late`},
		{server(`"link": {"up": "5ms"}, "trap": {"unread": true}`), `server b: trap: unread works without a link only`},
		{server(`"link": {"netem": true, "down": "5ms"}`), "server b: link: netem: it would shape the network of this machine: only for an origin that is \"contained\", in a network of its own\nserver b: link: netem: \"0\" is no port to shape"},
		{contained(`"listen": ":9001", "link": {"netem": true}`), `server b: link: nothing to emulate`},
		{contained(`"listen": ":http", "link": {"netem": true, "down": "5ms"}`), `server b: link: netem: "http" is no port to shape`},
		{contained(`"listen": ":9001", "link": {"netem": true, "down": "5ms", "jitter_up": "1ms"}`), `server b: link: netem: it delays what leaves the server: say the whole round trip as down and jitter_down`},
		{contained(`"listen": ":9001", "link": {"netem": true, "down": "5ms", "half_closed": "1s"}`), `server b: link: netem: it has no middlebox: idle and half_closed are the relay's`},
		{server(`"trap": {"unread": 1}`), `servers[1].trap.unread: want bool, not number`},
		{server(`"name": "a"`), `server a: the name is used twice`},
		{server(`"name": "admin"`), `server admin: the name is taken by the admin endpoint`},
		{server(`"name": ""`), `servers[1]: no name`},
		{server(`"listen": ""`), `server b: no listen address`},
		{server(`"listen": "9000"`), `server b: listen address "9000" is not host:port`},
		{`{"servers": [{"name": "a", "listen": ":0"}]}`, `admin: no listen address`},
		{`{"admin": ":0", "servers": []}`, `servers: none`},
		{`{"admin": ":0", "journal_size": -1, "servers": [{"name": "a", "listen": ":0"}]}`,
			`journal_size: -1 is not between 0 and 16777216`},
		{`{"servers": []}`, "admin: no listen address\nservers: none"},
	} {
		_, err := ReadConfig(strings.NewReader(tt.in))
		if err == nil {
			t.Errorf("%s: no error, want %q", tt.in, tt.want)
		} else if got := strings.TrimPrefix(err.Error(), "origin config: "); got != tt.want {
			t.Errorf("%s:\n got %q\nwant %q", tt.in, got, tt.want)
		}
	}
}
