package react

import (
	"bytes"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/origin"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Reactions as proxies have them.
var (
	lost   = Result{Outcome: OutcomeResponse, Status: 502, Reused: true, Attempts: 1}
	closed = Result{Outcome: OutcomeClosed, Reused: true, Attempts: 1}
	replay = Result{Outcome: OutcomeResponse, Status: 200, Reused: true, Attempts: 2, Executed: 1}
	fresh  = Result{Outcome: OutcomeResponse, Status: 200, Attempts: 1, Executed: 1}
	vain   = Result{Outcome: OutcomeResponse, Status: 503, Reused: true, Attempts: 4}
)

// document is a test of one proxy: react gives the results of a trial.
func document(react func(c Case, e Ending) []Result) *Document {
	d := &Document{Schema: Schema, Proxies: []record.ProxyRun{{Name: "p", Version: "1.0", Runtime: "local"}}}
	for _, c := range Cases() {
		for _, e := range Endings() {
			t := Trial{Proxy: "p", Retry: spec.RetryDefault, Case: c.Name, Method: c.Method, Body: c.Body, Keyed: c.Keyed, Ending: e}
			for _, r := range react(c, e) {
				if e == FINExecuted && r.Reused {
					r.Executed++
				}
				r.settle()
				t.add(r)
			}
			d.Trials = append(d.Trials, t)
		}
	}
	d.conclude()
	return d
}

func TestSettle(t *testing.T) {
	for _, tt := range []struct {
		r    Result
		want Safety
		text string
	}{
		{lost, Lost, "502"},
		{closed, Lost, "closed"},
		{vain, Lost, "503 retried"},
		{replay, Hidden, "200 retried"},
		{fresh, "", "200, not reused"},
		{Result{Outcome: OutcomeResponse, Status: 200, Reused: true, Attempts: 2, Executed: 2}, Twice, "200 retried, executed twice"},
		{Result{Outcome: OutcomeClosed, Reused: true, Attempts: 3, Executed: 2}, Twice, "closed retried, executed twice"},
		{Result{Outcome: OutcomeResponse, Status: 502, Reused: true, Attempts: 1, Executed: 1}, Unanswered, "502, executed"},
		{Result{Outcome: OutcomeTimeout, Reused: true, Attempts: 1, Executed: 1}, Unanswered, "timeout, executed"},
		{Result{Outcome: OutcomeResponse, Status: 404, Reused: true, Attempts: 1}, Lost, "404"},
	} {
		tt.r.settle()
		if tt.r.Safety != tt.want || tt.r.String() != tt.text {
			t.Errorf("%+v: %q, want %q; text %q, want %q", tt.r, tt.r.Safety, tt.want, tt.r, tt.text)
		}
	}
}

func TestSentence(t *testing.T) {
	always := func(r ...Result) func(Case, Ending) []Result { return func(Case, Ending) []Result { return r } }
	for _, tt := range []struct {
		name  string
		react func(Case, Ending) []Result
		want  string
	}{
		{"nothing is replayed", always(lost), "p 1.0: loses every request with 502; what was executed before the end ran once and got 502."},
		{"silence", always(closed), "p 1.0: loses every request with a closed connection; what was executed before the end ran once and got a closed connection."},
		{"everything is replayed", always(replay), "p 1.0: replays every request on a fresh connection; what was executed before the end ran twice."},
		{"in vain", always(vain), "p 1.0: retries and loses every request with 503; what was executed before the end ran once and got 503."},
		{"no reuse", always(fresh), "p 1.0: never sends every request on a reused connection."},
		{"no result", always(), "p 1.0: not tested."},
		{"by method", func(c Case, _ Ending) []Result {
			if c.Method == "GET" || c.Method == "HEAD" {
				return []Result{replay}
			}
			return []Result{lost}
		}, "p 1.0: replays GET and HEAD on a fresh connection; loses all others with 502; of what was executed before the end, GET and HEAD ran twice, all others ran once and got 502."},
		{"by ending", func(_ Case, e Ending) []Result {
			if e == RST {
				return []Result{replay}
			}
			return []Result{lost}
		}, "p 1.0: every request: loses with 502 after fin-unread, fin-read and half-close, replays on a fresh connection after rst; what was executed before the end ran once and got 502."},
		{"by chance", func(c Case, e Ending) []Result {
			if c.Body > 64<<10 && e == FINUnread {
				return []Result{replay, lost}
			}
			return []Result{replay}
		}, "p 1.0: replays GET, HEAD, PUT, DELETE, POST, POST keyed and POST 64 KiB on a fresh connection; POST 1 MiB: now loses with 502, now replays on a fresh connection after fin-unread, replays on a fresh connection after fin-read, rst and half-close; what was executed before the end ran twice."},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := document(tt.react)
			if diff := cmp.Diff([]Conclusion{{"p", spec.RetryDefault, tt.want}}, d.Conclusions); diff != "" {
				t.Error(diff)
			}
		})
	}
	d := document(always(lost))
	for i := range d.Trials {
		d.Trials[i].Retry = spec.RetryOff
		if d.Trials[i].Method != "POST" {
			d.Trials[i].Unsupported, d.Trials[i].Results = "no such setting", nil
		}
	}
	d.conclude()
	want := "p 1.0, retry off: has no such setting for GET, HEAD, PUT and DELETE; loses all others with 502; what was executed before the end ran once and got 502."
	if got := d.Conclusions[0].Text; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestExpect(t *testing.T) {
	old := document(func(Case, Ending) []Result { return []Result{lost} })
	for _, tt := range []struct {
		name string
		edit func(d *Document)
		want []string
	}{
		{"nothing", func(*Document) {}, []string{}},
		{"a newer version", func(d *Document) { d.Proxies[0].Version = "2.0" }, []string{}},
		{"a reaction", func(d *Document) {
			d.Proxies[0].Version = "2.0"
			r := replay
			r.settle()
			d.Trials[1].Results = []Result{r}
		}, []string{"p, GET, fin-read: 200 retried, was 502 (2.0, was 1.0)"}},
		{"chance, with one result in common", func(d *Document) { d.Trials[1].add(replay) }, []string{}},
		{"the number of attempts", func(d *Document) { d.Trials[0].Results = []Result{vain} }, []string{"p, GET, fin-unread: 503 retried (4 attempts), was 502"}},
		{"a trial that failed", func(d *Document) { d.Trials[0].Results = nil }, []string{"p, GET, fin-unread: failed, was 502"}},
		{"a trial less", func(d *Document) { d.Trials = d.Trials[1:] }, []string{"p, GET, fin-unread: not measured, was 502"}},
		{"a trial more", func(d *Document) {
			extra := d.Trials[0]
			extra.Retry = spec.RetryOn
			d.Trials = append(d.Trials, extra)
		}, []string{"p, retry on, GET, fin-unread: 502, was not measured"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := document(func(Case, Ending) []Result { return []Result{lost} })
			tt.edit(d)
			d.Expect(old)
			if diff := cmp.Diff(tt.want, d.Differences); diff != "" {
				t.Error(diff)
			}
		})
	}
	if d := old.Only("q"); len(d.Trials) != 0 || len(old.Trials) == 0 {
		t.Errorf("%d trials of another proxy", len(d.Trials))
	}
}

func TestRead(t *testing.T) {
	d := document(func(Case, Ending) []Result { return []Result{replay, lost} })
	var b bytes.Buffer
	if err := d.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	got, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, got); diff != "" {
		t.Error(diff)
	}
	for in, want := range map[string]string{
		"":                                   "EOF",
		"{}":                                 `schema "", want "idlerace/reaction/v1"`,
		`{"schema":"idlerace/verdicts/v1"}`:  `schema "idlerace/verdicts/v1", want "idlerace/reaction/v1"`,
		`{"schema":"idlerace/reaction/v1"}`:  "there are no trials",
		`{"schema":"idlerace/reaction/v1",}`: "invalid character '}' looking for beginning of object key string",
	} {
		if _, err := Read(strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

func TestCardFits(t *testing.T) {
	for _, results := range [][]Result{{lost}, {replay}, {closed}, {lost, replay}, {fresh}} {
		d := document(func(Case, Ending) []Result { return results })
		d.Differences = []string{}
		var b strings.Builder
		if err := d.WriteText(&b); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if len(line) > Width+1 {
				t.Errorf("%d columns: %s", len(line)-1, line)
			}
		}
		for _, r := range d.Trials {
			for _, l := range r.lines() {
				if !strings.Contains(b.String(), l) {
					t.Errorf("%q is missing in\n%s", l, &b)
				}
			}
		}
	}
}

// TestTables: the same as the card, cell by cell.
func TestTables(t *testing.T) {
	d := document(func(c Case, e Ending) []Result {
		if c.Method == "GET" && e == RST {
			return []Result{lost, replay}
		}
		return []Result{lost}
	})
	tables := d.Tables()
	if len(tables) != 1 {
		t.Fatalf("%d tables", len(tables))
	}
	got := tables[0]
	if diff := cmp.Diff([]string{"fin-unread", "fin-read", "fin-executed", "rst", "half-close"}, got.Columns); diff != "" {
		t.Error(diff)
	}
	if got.Sentence != d.Conclusions[0].Text || !strings.HasPrefix(got.Title, "p 1.0 (") {
		t.Errorf("%q: %q", got.Title, got.Sentence)
	}
	if len(got.Rows) != len(Cases()) {
		t.Fatalf("%d rows", len(got.Rows))
	}
	if diff := cmp.Diff([]string{"GET", "502", "502", "502, executed", "502 or 200 retried", "502"}, got.Rows[0]); diff != "" {
		t.Error(diff)
	}
}

func TestErr(t *testing.T) {
	d := document(func(Case, Ending) []Result { return []Result{lost} })
	if err := d.Err(); err != nil {
		t.Error(err)
	}
	d.Trials[2].Results, d.Trials[2].Err = nil, "no answer"
	if err := d.Err(); err == nil || err.Error() != "1 of 40 trials failed; the first: p, GET, fin-executed: no answer" {
		t.Error(err)
	}
	d.Trials[2].Unsupported = "no such setting"
	if err := d.Err(); err != nil {
		t.Error(err)
	}
}

// Every ending makes a server that the origin takes, and no two the same.
func TestServers(t *testing.T) {
	cfg := origin.Config{Admin: "127.0.0.1:1"}
	var seen []string
	for _, e := range Endings() {
		s := e.server("127.0.0.1:2")
		cfg.Servers = append(cfg.Servers, s)
		what := fmt.Sprint(s.Close, *s.Trap)
		if slices.Contains(seen, what) {
			t.Errorf("%s: %s is another ending's", e, what)
		}
		seen = append(seen, what)
	}
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
}

// TestClient: what a proxy may do, as the client tells it.
func TestClient(t *testing.T) {
	page := "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nno\n"
	for _, tt := range []struct {
		name   string
		body   int
		proxy  func(c *net.TCPConn)
		want   Outcome
		status int
		err    string
	}{
		{"answers", 0, func(c *net.TCPConn) { c.Write([]byte(page)) }, OutcomeResponse, 502, ""},
		{"hangs up", 0, func(*net.TCPConn) {}, OutcomeClosed, 0, ""},
		{"resets", 0, func(c *net.TCPConn) { c.SetLinger(0) }, OutcomeClosed, 0, ""},
		{"breaks off within a header", 0, func(c *net.TCPConn) { c.Write([]byte("HTTP/1.1 502 Bad Ga")) }, OutcomeClosed, 0, ""},
		{"breaks off within an error page", 0, func(c *net.TCPConn) { c.Write([]byte(page[:len(page)-1])) }, OutcomeResponse, 502, ""},
		{"breaks off within an answer", 0, func(c *net.TCPConn) { c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok")) },
			OutcomeOther, 200, "status 200, then: unexpected EOF"},
		{"speaks something else", 0, func(c *net.TCPConn) { c.Write([]byte("SSH-2.0-OpenSSH\r\n\r\n")) }, OutcomeOther, 0, `malformed HTTP response "SSH-2.0-OpenSSH"`},
		{"answers before it has the body", 8 << 20, func(c *net.TCPConn) { c.Write([]byte(page)) }, OutcomeResponse, 502, ""},
		{"hangs up before it has the body", 8 << 20, func(*net.TCPConn) {}, OutcomeClosed, 0, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			done := make(chan struct{})
			go func() {
				defer close(done)
				nc, err := l.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				defer nc.Close()
				nc.Read(make([]byte, 1<<10)) // the header
				tt.proxy(nc.(*net.TCPConn))
			}()
			c, err := dial(t.Context(), l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			o, status, err := c.do(t.Context(), Case{Method: "POST", Body: tt.body, Keyed: true}, "cell", 1)
			text := ""
			if err != nil {
				text = err.Error()
			}
			if o != tt.want || status != tt.status || text != tt.err {
				t.Errorf("%s %d %q, want %s %d %q", o, status, text, tt.want, tt.status, tt.err)
			}
			<-done
		})
	}
}
