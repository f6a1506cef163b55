package main

import (
	"bytes"
	"os/exec"
	"slices"
	"testing"

	"idlerace/harness/proxy"
	"idlerace/harness/react"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// reaction runs the real program; it gives the document as it was read and as
// it was written.
func reaction(t *testing.T, file string) (*react.Document, []byte) {
	t.Helper()
	var text, story bytes.Buffer
	cmd := exec.Command(binary, "react", file, "--runtime", record.RuntimeLocal, "--format", "json")
	cmd.Env = append(cmd.Environ(), "TMPDIR="+t.TempDir())
	cmd.Stdout, cmd.Stderr = &text, &story
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s", err, story.String())
	}
	out := bytes.Clone(text.Bytes())
	d, err := react.Read(&text)
	if err != nil {
		t.Fatal(err)
	}
	return d, out
}

// replayed are the methods that a proxy sends again by itself, whatever the
// body; POST none does.
var replayed = map[string][]string{
	"gohttp":  {"GET", "HEAD"},
	"nginx":   {"GET", "HEAD", "PUT", "DELETE"},
	"envoy":   nil,
	"traefik": {"GET", "HEAD"},
}

// givenUp is the status of a request that a proxy does not send again.
var givenUp = map[string]int{"gohttp": 502, "nginx": 502, "envoy": 503, "traefik": 502}

// TestE2EReact tests every proxy of this machine five times over: every trial
// meets a reused connection and comes out as it is known to, each time.
func TestE2EReact(t *testing.T) {
	for _, a := range proxy.All() {
		t.Run(a.Name(), func(t *testing.T) {
			need(t, a.Name())
			file := scenarioFile(t, "reaction", a.Name(), "axes: {proxy_idle: [1m], upstream_idle: [1h]}")
			var first []byte
			for i := range 5 {
				d, text := reaction(t, file)
				if i == 0 {
					first = text
					wantReactions(t, a.Name(), d)
				} else if !bytes.Equal(first, text) {
					t.Fatalf("test %d differs:\n%s\nfrom\n%s", i+1, text, first)
				}
			}
		})
	}
}

func wantReactions(t *testing.T, name string, d *react.Document) {
	t.Helper()
	if want := len(react.Cases()) * len(react.Endings()); len(d.Trials) != want {
		t.Errorf("%d trials, want %d", len(d.Trials), want)
	}
	for _, tr := range d.Trials {
		want := react.Result{Outcome: react.OutcomeResponse, Status: givenUp[name], Reused: true, Attempts: 1, Safety: react.Lost}
		if slices.Contains(replayed[name], tr.Method) {
			want = react.Result{Outcome: react.OutcomeResponse, Status: 200, Reused: true, Attempts: 2, Executed: 1, Safety: react.Hidden}
		}
		if tr.Ending == react.FINExecuted {
			want.Executed++
			want.Safety = map[bool]react.Safety{true: react.Twice, false: react.Unanswered}[want.Attempts > 1]
		}
		if !slices.Equal(tr.Results, []react.Result{want}) {
			t.Errorf("%s, %s, %s: %+v, want %+v", name, tr.Case, tr.Ending, tr.Results, want)
		}
	}
}

// TestE2EReactRetry: with retry on, what can be replayed is, POST included, and
// with retry off nothing is. Where the request is reset unread and its body
// takes more than one write, chance decides whether the proxy meets the reset
// while it writes, or the FIN while it reads.
func TestE2EReactRetry(t *testing.T) {
	for _, a := range proxy.All() {
		t.Run(a.Name(), func(t *testing.T) {
			need(t, a.Name())
			d, _ := reaction(t, scenarioFile(t, "retry", a.Name(), "axes: {proxy_idle: [1m], upstream_idle: [1h], retry: [off, on]}"))
			for _, tr := range d.Trials {
				for _, r := range tr.Results {
					switch again := r.Attempts > 1; {
					case !r.Reused:
						t.Errorf("%s, %s, %s: not reused", a.Name(), tr.Case, tr.Ending)
					case tr.Retry == spec.RetryOff && again:
						t.Errorf("%s, retry off, %s, %s: %s", a.Name(), tr.Case, tr.Ending, tr)
					case tr.Retry == spec.RetryOn && !again && a.Name() != "traefik" && (tr.Body <= 1 || tr.Ending != react.FINUnread):
						t.Errorf("%s, retry on, %s, %s: %s", a.Name(), tr.Case, tr.Ending, tr)
					}
				}
				if len(tr.Results) == 0 && tr.Unsupported == "" {
					t.Errorf("%s, %s, %s: no result", a.Name(), tr.Case, tr.Ending)
				}
			}
		})
	}
}
