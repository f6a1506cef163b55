package gate

import (
	"bytes"
	"encoding/json"
	"io"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// command is a workflow command as GitHub's runner reads it.
type command struct {
	name, data string
	properties map[string]string
}

// commands finds what GitHub's runner takes for a command: "::name k=v,k=v::data"
// behind blanks at the begin of a line, or the older "##[name k=v;k=v]data"
// anywhere. Between stop-commands and its token it takes none.
func commands(t *testing.T, out string) []command {
	t.Helper()
	newer, older := regexp.MustCompile(`^\s*::(\S+?)(?: (.*?))?::(.*)$`), regexp.MustCompile(`##\[([^\] ]+)(?: ([^\]]*))?\](.*)$`)
	unescape := strings.NewReplacer("%25", "%", "%0D", "\r", "%0A", "\n", "%3A", ":", "%2C", ",")
	var list []command
	token := ""
	for line := range strings.Lines(strings.ReplaceAll(out, "\r", "\n")) {
		line = strings.TrimRight(line, "\n")
		m, separator := newer.FindStringSubmatch(line), ","
		if m == nil {
			m, separator = older.FindStringSubmatch(line), ";"
		}
		switch {
		case m == nil:
		case token != "" && m[1] == token:
			token = ""
		case token != "":
		case m[1] == "stop-commands":
			token = m[3]
		default:
			c := command{m[1], unescape.Replace(m[3]), map[string]string{}}
			for _, p := range strings.Split(m[2], separator) {
				if k, v, ok := strings.Cut(p, "="); ok {
					c.properties[k] = unescape.Replace(v)
				}
			}
			list = append(list, c)
		}
	}
	if token != "" {
		t.Error("commands are stopped and never begin again")
	}
	return list
}

// hostileText tries to be a command in every way there is.
const hostileText = "::add-mask::x\n::error::hijacked\r::set-env name=A::b ##[add-path]/evil :: %0A::error::again\x1b[2J, 100 %"

func hostileFindings(t *testing.T) (findings []Finding, text func(io.Writer) error) {
	t.Helper()
	baseline, now := document(spec.Safe, spec.Safe), document(spec.Races, spec.Inconclusive)
	now.Cells[0].Why, now.Cells[1].Why = hostileText, hostileText
	now.Cells[1].ID = "::error::" + now.Cells[1].ID
	baseline.Cells[1].ID = now.Cells[1].ID
	now.Controls[0].State, now.Controls[0].Why, now.Controls[0].Proxy = spec.Safe, hostileText, "\n::error::proxy"
	violations := []judge.Violation{{Cell: now.Cells[0].ID, State: spec.Races, Rule: "forbid races where \n::error::" + hostileText}}
	changes := Compare(baseline, now)
	return Findings(changes, violations, now), func(w io.Writer) error { return Write(w, changes, violations, now) }
}

func TestGitHub(t *testing.T) {
	baseline, now := document(spec.Safe, spec.Safe, spec.Races, spec.Safe), document(spec.Races, spec.Inconclusive, spec.Safe, spec.Safe)
	now.Cells[0].Why = "100 % of it, says: a\nb"
	now.Controls[1].State = spec.Races
	violations := []judge.Violation{{Cell: firstCell, State: spec.Races, Rule: "forbid races"}}
	at := Place{"a,b: c/my%pair.yaml", func(key string) int { return map[string]int{"axes": 7, "policy": 9}[key] }}
	var out bytes.Buffer
	if err := GitHub(&out, Findings(Compare(baseline, now), violations, now), at); err != nil {
		t.Fatal(err)
	}
	want := `::error file=a%2Cb%3A c/my%25pair.yaml,line=7,title=idlerace%3A worse::nginx_go_p2s_u1s_POST_default_fin_rtt0s: safe -> races. 100 %25 of it, says: a b
::error file=a%2Cb%3A c/my%25pair.yaml,line=9,title=idlerace%3A forbidden::nginx_go_p2s_u1s_POST_default_fin_rtt0s: races (forbid races). 100 %25 of it, says: a b
::warning file=a%2Cb%3A c/my%25pair.yaml,line=7,title=idlerace%3A lost-proof::nginx_go_p2s_u2s_POST_default_fin_rtt0s: safe -> inconclusive. because inconclusive
::warning file=a%2Cb%3A c/my%25pair.yaml,line=1,title=idlerace%3A control::nginx: must-not-race failed: races. because safe
::notice file=a%2Cb%3A c/my%25pair.yaml,line=7,title=idlerace%3A better::nginx_go_p2s_u3s_POST_default_fin_rtt0s: races -> safe. because safe
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
	first := commands(t, out.String())[0]
	if diff := cmp.Diff(map[string]string{"file": at.File, "line": "7", "title": "idlerace: worse"}, first.properties); diff != "" {
		t.Error(diff)
	}
	out.Reset()
	if err := GitHub(&out, nil, at); err != nil || out.Len() != 0 {
		t.Errorf("nothing found: %q, %v", out.String(), err)
	}
	if err := GitHub(&out, []Finding{{Kind: "worse", What: "x"}}, Place{}); err != nil || out.String() != "::notice title=idlerace%3A worse::x\n" {
		t.Errorf("no place: %q, %v", out.String(), err)
	}
}

// GitHub shows ten annotations of a level and silently drops the rest.
func TestGitHubMost(t *testing.T) {
	for n, want := range map[int]int{9: 9, 10: 10, 11: 10, 40: 10} {
		var out bytes.Buffer
		if err := GitHub(&out, slices.Repeat([]Finding{{Kind: "worse", What: "x", Level: Failure}}, n), Place{}); err != nil {
			t.Fatal(err)
		}
		list := commands(t, out.String())
		if len(list) != want {
			t.Errorf("%d findings: %d annotations, want %d", n, len(list), want)
		}
		if n == 40 && list[9].data != "and 31 more; the log has all" {
			t.Errorf("%+v", list[9])
		}
	}
}

// Whatever a proxy's log or a scenario holds, the runner obeys none of it.
func TestGitHubHostile(t *testing.T) {
	findings, text := hostileFindings(t)
	var plainText, out bytes.Buffer
	if err := text(&plainText); err != nil {
		t.Fatal(err)
	}
	if len(commands(t, plainText.String())) == 0 {
		t.Error("the text is not hostile: the test tests nothing")
	}
	if err := Quote(&out, text); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), plainText.String()) {
		t.Error("the quotation changes the text")
	}
	if got := commands(t, out.String()); len(got) != 0 {
		t.Errorf("commands in quoted text: %+v", got)
	}
	if err := GitHub(&out, findings, Place{File: hostileText}); err != nil {
		t.Fatal(err)
	}
	list := commands(t, out.String())
	if len(list) != len(findings) {
		t.Errorf("%d commands for %d findings:\n%s", len(list), len(findings), out.String())
	}
	for _, c := range list {
		if !slices.Contains([]string{"error", "warning", "notice"}, c.name) || c.properties["file"] != hostileText || len(c.properties) != 3 {
			t.Errorf("%+v", c)
		}
	}
}

// A token that an attacker could foresee would end the quotation.
func TestQuoteTokens(t *testing.T) {
	seen := map[string]bool{}
	for range 100 {
		var out bytes.Buffer
		if err := Quote(&out, func(io.Writer) error { return nil }); err != nil {
			t.Fatal(err)
		}
		token, _, _ := strings.Cut(strings.TrimPrefix(out.String(), "::stop-commands::"), "\n")
		if len(token) < 26 || seen[token] {
			t.Errorf("token %q", token)
		}
		seen[token] = true
	}
	if err := Quote(failing{}, func(io.Writer) error { return nil }); err != io.ErrClosedPipe {
		t.Error(err)
	}
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestCodeQuality(t *testing.T) {
	baseline, now := document(spec.Safe, spec.Safe, spec.Races), document(spec.Races, spec.Inconclusive, spec.Safe)
	at := Place{"scenarios/my-pair.yaml", func(string) int { return 7 }}
	report := func(findings []Finding, at Place) []codeQuality {
		var out bytes.Buffer
		if err := CodeQuality(&out, findings, at); err != nil {
			t.Fatal(err)
		}
		var list []codeQuality
		dec := json.NewDecoder(&out)
		dec.DisallowUnknownFields()
		if err := dec.Decode(&list); err != nil {
			t.Fatal(err)
		}
		return list
	}
	findings := Findings(Compare(baseline, now), nil, now)
	list := report(findings, at)
	var got []string
	prints := map[string]bool{}
	for _, e := range list {
		got = append(got, e.Severity+" "+e.Check+" "+e.Description)
		if e.Location.Path != at.File || e.Location.Lines.Begin != 7 || len(e.Fingerprint) != 64 || prints[e.Fingerprint] {
			t.Errorf("%+v", e)
		}
		prints[e.Fingerprint] = true
	}
	want := []string{
		"critical idlerace: worse nginx_go_p2s_u1s_POST_default_fin_rtt0s: safe -> races. because races",
		"major idlerace: lost-proof nginx_go_p2s_u2s_POST_default_fin_rtt0s: safe -> inconclusive. because inconclusive",
		"info idlerace: better nginx_go_p2s_u3s_POST_default_fin_rtt0s: races -> safe. because safe",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	// Counts differ from run to run; the finding is the same.
	for i := range now.Cells {
		now.Cells[i].Why += " 7 of 90"
	}
	for i, e := range report(Findings(Compare(baseline, now), nil, now), Place{}) {
		if e.Fingerprint != list[i].Fingerprint || e.Description == list[i].Description || e.Location.Path != "scenario.yaml" || e.Location.Lines.Begin != 1 {
			t.Errorf("%+v", e)
		}
	}
	var out bytes.Buffer
	if err := CodeQuality(&out, nil, at); err != nil || out.String() != "[]\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

// What makes a gate fail is shown as what makes it fail.
func TestFindingsAgreeWithExit(t *testing.T) {
	states := spec.States()
	for _, was := range states {
		for _, is := range states {
			baseline, now := document(was), document(is)
			changes := Compare(baseline, now)
			worst := News
			for _, f := range Findings(changes, nil, now) {
				worst = max(worst, f.Level)
			}
			if want := map[Level]int{News: Passed, Missing: NotProven, Failure: Violated}[worst]; Exit(changes, nil, now) != want {
				t.Errorf("%s -> %s: exit %d, the findings say %d", was, is, Exit(changes, nil, now), want)
			}
		}
	}
}
