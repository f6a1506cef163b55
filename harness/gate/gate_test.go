package gate

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// cell is a verdict on nginx at these timeouts.
func cell(p, u time.Duration, s spec.State) judge.Verdict {
	c := spec.Cell{Proxy: "nginx", Upstream: "go", ProxyIdle: spec.Idle(p), UpstreamIdle: u, Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN}
	return judge.Verdict{ID: c.ID(), Role: judge.RoleCell, Proxy: c.Proxy, Version: "1.26.3", Runtime: "local", Upstream: c.Upstream,
		ProxyIdle: c.ProxyIdle.String(), UpstreamIdle: spec.FormatDuration(u), Method: c.Method, Retry: c.Retry, Close: c.Close, RTT: "0s",
		State: s, Why: "because " + string(s)}
}

// document has one cell per state, all with a proxy idle of 2s, and controls
// that hold. The cells' upstream idles are 1s, 2s, 3s, ...
func document(states ...spec.State) *judge.Document {
	d := &judge.Document{Schema: judge.Schema}
	for i, s := range states {
		d.Cells = append(d.Cells, cell(2*time.Second, time.Duration(i+1)*time.Second, s))
	}
	race, calm := cell(time.Minute, time.Second/2, spec.Races), cell(0, time.Second/2, spec.Safe)
	race.ID, race.Role = "control-must-race_"+race.ID, judge.RoleMustRace
	calm.ID, calm.Role = "control-must-not-race_"+calm.ID, judge.RoleMustNotRace
	d.Controls = []judge.Verdict{race, calm}
	return d
}

const firstCell = "nginx_go_p2s_u1s_POST_default_fin_rtt0s"

// The case a gate exists for.
func TestBaselineThatCallsARacingCellSafe(t *testing.T) {
	now := document(spec.Races, spec.Races, spec.Safe)
	baseline := document(spec.Safe, spec.Races, spec.Safe)
	changes := Compare(baseline, now)
	if code := Exit(changes, nil, now); code != Violated {
		t.Errorf("exit %d, want %d", code, Violated)
	}
	var out bytes.Buffer
	if err := Write(&out, changes, nil, now); err != nil {
		t.Fatal(err)
	}
	want := `worse       nginx_go_p2s_u1s_POST_default_fin_rtt0s: safe -> races
            because races
gate: FAILED: 1 worse; 3 cells in this run
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}

	changes = Compare(now, now)
	if code := Exit(changes, nil, now); len(changes) != 0 || code != Passed {
		t.Errorf("against its own verdicts: %v, exit %d", changes, code)
	}
}

func TestKinds(t *testing.T) {
	for _, tt := range []struct {
		was, is spec.State
		kind    Kind
		exit    int
	}{
		{spec.Safe, spec.Masked, Worse, Violated},
		{spec.Safe, spec.Races, Worse, Violated},
		{spec.Masked, spec.Races, Worse, Violated},
		{spec.Races, spec.Masked, Better, Passed},
		{spec.Races, spec.Safe, Better, Passed},
		{spec.Masked, spec.Safe, Better, Passed},
		{spec.Safe, spec.Inconclusive, LostProof, NotProven},
		{spec.Masked, spec.Unsupported, LostProof, NotProven},
		{spec.Races, spec.Broken, LostProof, NotProven},
		{spec.Inconclusive, spec.Safe, Better, Passed},
		{spec.Inconclusive, spec.Masked, Changed, Passed},
		{spec.Inconclusive, spec.Races, Changed, Passed},
		{spec.Broken, spec.Inconclusive, Changed, Passed},
		{spec.Unsupported, spec.Races, Changed, Passed},
	} {
		now := document(tt.is)
		changes := Compare(document(tt.was), now)
		if len(changes) != 1 {
			t.Fatalf("%s -> %s: %v", tt.was, tt.is, changes)
		}
		want := Change{firstCell, tt.was, tt.is, tt.kind, "because " + string(tt.is)}
		if diff := cmp.Diff(want, changes[0]); diff != "" {
			t.Errorf("%s -> %s: %s", tt.was, tt.is, diff)
		}
		if code := Exit(changes, nil, now); code != tt.exit {
			t.Errorf("%s -> %s: exit %d, want %d", tt.was, tt.is, code, tt.exit)
		}
	}
	for _, s := range spec.States() {
		d := document(s)
		if changes := Compare(d, d); len(changes) != 0 {
			t.Errorf("%s against itself: %v", s, changes)
		}
	}
}

func TestCompareCellsThatComeAndGo(t *testing.T) {
	baseline, now := document(spec.Safe, spec.Inconclusive), document(spec.Safe, spec.Inconclusive, spec.Races)

	changes := Compare(baseline, now)
	if len(changes) != 1 || changes[0].Kind != Appeared || changes[0].Was != "" || changes[0].Is != spec.Races {
		t.Errorf("appeared: %+v", changes)
	}
	if code := Exit(changes, nil, now); code != Passed {
		t.Errorf("appeared: exit %d", code)
	}

	changes = Compare(now, baseline)
	if len(changes) != 1 || changes[0].Kind != Vanished || changes[0].Is != "" || Exit(changes, nil, baseline) != Violated {
		t.Errorf("vanished: %+v", changes)
	}

	// Not having run is no proof of anything, but it is not a step back either.
	gone := document()
	gone.Unavailable = []judge.Unavailable{{Proxy: "nginx", Reason: "not on PATH", Get: "apt-get install nginx"}}
	changes = Compare(baseline, gone)
	want := []Change{
		{baseline.Cells[0].ID, spec.Safe, "", LostProof, "nginx did not run: not on PATH (get it: apt-get install nginx)"},
		{baseline.Cells[1].ID, spec.Inconclusive, "", Changed, "nginx did not run: not on PATH (get it: apt-get install nginx)"},
	}
	if diff := cmp.Diff(want, changes); diff != "" {
		t.Error(diff)
	}
	if code := Exit(changes, nil, gone); code != NotProven {
		t.Errorf("unavailable: exit %d", code)
	}
	if Compare(nil, now) != nil {
		t.Error("changes without a baseline")
	}
}

func TestCompareOrderAndVersions(t *testing.T) {
	baseline := document(spec.Races, spec.Safe, spec.Inconclusive, spec.Safe)
	now := document(spec.Safe, spec.Inconclusive, spec.Masked, spec.Masked, spec.Safe)
	for i := range now.Cells {
		now.Cells[i].Version = "1.28.0"
	}
	var got []string
	for _, c := range Compare(baseline, now) {
		got = append(got, string(c.Kind))
		if c.Kind != Appeared && !strings.HasPrefix(c.Text, "nginx was 1.26.3, is 1.28.0; because ") {
			t.Errorf("%s: %s", c.Kind, c.Text)
		}
	}
	if diff := cmp.Diff("worse lost-proof appeared better changed", strings.Join(got, " ")); diff != "" {
		t.Error(diff)
	}
}

func TestPolicy(t *testing.T) {
	policy := func(where string, forbid ...spec.State) *spec.Policy {
		p, err := spec.NewPolicy(forbid, where)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	d := document(spec.Races, spec.Races, spec.Inconclusive, spec.Broken, spec.Races, spec.Safe)
	id := func(i int) string { return d.Cells[i].ID }
	for _, tt := range []struct {
		name   string
		policy *spec.Policy
		want   []judge.Violation
		exit   int
	}{
		{"none", nil, nil, Passed},
		{"everywhere", policy("", spec.Races), []judge.Violation{
			{Cell: id(0), State: spec.Races, Rule: "forbid races"},
			{Cell: id(1), State: spec.Races, Rule: "forbid races"},
			{Cell: id(2), State: spec.Inconclusive, Rule: "unproven: forbid races"},
			{Cell: id(3), State: spec.Broken, Rule: "unproven: forbid races"},
			{Cell: id(4), State: spec.Races, Rule: "forbid races"},
		}, Violated},
		{"where", policy(`upstream_idle > "4s"`, spec.Races, spec.Masked), []judge.Violation{
			{Cell: id(4), State: spec.Races, Rule: `forbid races, masked where upstream_idle > "4s"`},
		}, Violated},
		{"only unproven", policy(`upstream_idle in [duration("3s"), duration("6s")]`, spec.Races), []judge.Violation{
			{Cell: id(2), State: spec.Inconclusive, Rule: `unproven: forbid races where upstream_idle in [duration("3s"), duration("6s")]`},
		}, NotProven},
		{"inconclusive forbidden by name", policy(`upstream_idle == "3s"`, spec.Inconclusive), []judge.Violation{
			{Cell: id(2), State: spec.Inconclusive, Rule: `forbid inconclusive where upstream_idle == "3s"`},
		}, Violated},
		{"kept", policy(`upstream_idle == "6s"`, spec.Races), nil, Passed},
		{"no cell covered", policy(`proxy == "envoy"`, spec.Races), nil, Passed},
	} {
		got, err := Policy(tt.policy, d)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		if diff := cmp.Diff(tt.want, got); diff != "" {
			t.Errorf("%s: %s", tt.name, diff)
		}
		if code := Exit(nil, got, d); code != tt.exit {
			t.Errorf("%s: exit %d, want %d", tt.name, code, tt.exit)
		}
	}

	if _, err := Policy(&spec.Policy{Forbid: []spec.State{spec.Races}, Where: "proxy_idel > off"}, d); err == nil {
		t.Error("an unknown variable is not reported")
	}
	d.Cells[0].ProxyIdle = "soon"
	if _, err := Policy(policy("", spec.Races), d); err == nil || !strings.Contains(err.Error(), id(0)) {
		t.Errorf("a cell edited by hand: %v", err)
	}
}

func TestExit(t *testing.T) {
	control := func(i int, s spec.State) *judge.Document {
		d := document(spec.Safe)
		d.Controls[i].State = s
		return d
	}
	worse, lost := Change{Kind: Worse}, Change{Kind: LostProof}
	forbidden, open := judge.Violation{Rule: "forbid races"}, judge.Violation{Rule: Unproven + "forbid races"}
	for _, tt := range []struct {
		name       string
		changes    []Change
		violations []judge.Violation
		d          *judge.Document
		want       int
	}{
		{"all well", nil, nil, document(spec.Safe), Passed},
		{"no one asked about an inconclusive cell", nil, nil, document(spec.Safe, spec.Inconclusive, spec.Broken), Passed},
		{"races without a policy", nil, nil, document(spec.Races), Passed},
		{"nothing was judged", nil, nil, &judge.Document{}, NotProven},
		{"worse goes before lost proof", []Change{lost, worse}, nil, document(spec.Safe), Violated},
		{"forbidden goes before not proven", []Change{lost}, []judge.Violation{open, forbidden}, control(0, spec.Safe), Violated},
		{"not proven", nil, []judge.Violation{open}, document(spec.Safe), NotProven},
		{"news is no failure", []Change{{Kind: Appeared}, {Kind: Better}, {Kind: Changed}}, nil, document(spec.Safe), Passed},
		{"positive control is masked", nil, nil, control(0, spec.Masked), NotProven},
		{"positive control is inconclusive", nil, nil, control(0, spec.Inconclusive), NotProven},
		{"positive control cannot be expressed", nil, nil, control(0, spec.Unsupported), Passed},
		{"negative control races", nil, nil, control(1, spec.Races), NotProven},
		{"negative control is inconclusive", nil, nil, control(1, spec.Inconclusive), NotProven},
	} {
		if got := Exit(tt.changes, tt.violations, tt.d); got != tt.want {
			t.Errorf("%s: exit %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestWrite(t *testing.T) {
	baseline := document(spec.Safe, spec.Safe, spec.Races, spec.Masked)
	now := document(spec.Races, spec.Inconclusive, spec.Safe)
	now.Cells[0].Why = "hostile \x1b[2J\nsecond line \u202e"
	now.Controls[0].State, now.Controls[0].Why = spec.Inconclusive, "37 aimed shots, 300 needed"
	p, err := spec.NewPolicy([]spec.State{spec.Races}, `proxy == "nginx"`)
	if err != nil {
		t.Fatal(err)
	}
	violations, err := Policy(p, now)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := Write(&out, Compare(baseline, now), violations, now); err != nil {
		t.Fatal(err)
	}
	want := `worse       nginx_go_p2s_u1s_POST_default_fin_rtt0s: safe -> races
            hostile \x1b[2J second line \u202e
vanished    nginx_go_p2s_u4s_POST_default_fin_rtt0s: masked -> (none)
            the run has no such cell; has the scenario changed?
lost-proof  nginx_go_p2s_u2s_POST_default_fin_rtt0s: safe -> inconclusive
            because inconclusive
better      nginx_go_p2s_u3s_POST_default_fin_rtt0s: races -> safe
            because safe
forbidden   nginx_go_p2s_u1s_POST_default_fin_rtt0s: races (forbid races where proxy == "nginx")
            hostile \x1b[2J second line \u202e
not proven  nginx_go_p2s_u2s_POST_default_fin_rtt0s: inconclusive (forbid races where proxy == "nginx")
            because inconclusive
control     nginx: must-race failed: inconclusive
            37 aimed shots, 300 needed
gate: FAILED: 1 worse, 1 vanished, 1 lost-proof, 1 better, 1 forbidden cell, 1 cell under the policy not proven, 1 failed control; 3 cells in this run
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}

	out.Reset()
	if err := Write(&out, nil, nil, document(spec.Safe)); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("gate: passed: nothing to object; 1 cell in this run\n", out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestReadDocument(t *testing.T) {
	want := document(spec.Races, spec.Safe)
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "verdicts.json")
	// A later version may add fields.
	b = bytes.Replace(b, []byte(`"run":{`), []byte(`"later":1,"run":{"later":[],`), 1)
	if err := os.WriteFile(path, b, 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := ReadDocument(path)
	if err != nil {
		t.Fatal(err)
	}
	if changes := Compare(want, got); len(got.Cells) != 2 || len(got.Controls) != 2 || len(changes) != 0 {
		t.Errorf("%+v, %v", got, changes)
	}
}

func TestReadDocumentRefuses(t *testing.T) {
	dir := t.TempDir()
	edited := func(edit func(*judge.Document)) string {
		d := document(spec.Races, spec.Safe)
		edit(d)
		b, err := json.MarshalIndent(d, "", " ")
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	for _, tt := range []struct{ name, text, want string }{
		{"empty.json", " \n", ": is empty; `idlerace run` writes a verdicts.json"},
		{"yaml.json", "version: 1\n", ":1: not JSON: invalid character 'v' looking for beginning of value"},
		{"comma.json", "{\"schema\": \"idlerace/verdicts/v1\",\n\"cells\": [,]}", ":2: not JSON: invalid character ',' looking for beginning of value"},
		{"cut.json", "{\"schema\":\n \"idlerace/verdicts/v1\",\n", ":3: the file is cut off"},
		{"type.json", "{\"schema\": 3}", ":1: schema is a JSON number, string is needed"},
		{"two.json", edited(func(*judge.Document) {}) + "\n{}", "text follows the document; one JSON object is needed"},
		{"schema.json", `{"schema": "idlerace/verdicts/v2"}`, `: schema is "idlerace/verdicts/v2", "idlerace/verdicts/v1" is needed: the verdicts.json of a run folder`},
		{"other.json", `{"cells": []}`, `: schema is "", "idlerace/verdicts/v1" is needed`},
		{"noid.json", edited(func(d *judge.Document) { d.Cells[1].ID = "" }), ": cells[1] has no id; each needs one of its own"},
		{"twice.json", edited(func(d *judge.Document) { d.Cells[1].ID = d.Cells[0].ID }), `: cells[1]: id "` + firstCell + `" stands twice; each cell is judged once`},
		{"state.json", edited(func(d *judge.Document) { d.Cells[0].State = "unsafe" }), `: cells[0] "` + firstCell + `": state is "unsafe", one of [safe masked races inconclusive unsupported broken] is needed`},
		{"role.json", edited(func(d *judge.Document) { d.Controls[0].Role = "cell" }), `: role is "cell", one of [must-race must-not-race] is needed`},
		{"idle.json", edited(func(d *judge.Document) { d.Cells[0].ProxyIdle = "2 s" }), `: cells[0]: cell ` + firstCell + `: proxy_idle: time: unknown unit " s" in duration "2 s"; a duration such as 500ms is needed`},
		{"duration.json", strings.Replace(edited(func(*judge.Document) {}), `"start_up": "0s"`, `"start_up": "soon"`, 1), `: time: invalid duration "soon"`},
	} {
		path := filepath.Join(dir, tt.name)
		if err := os.WriteFile(path, []byte(tt.text), 0o644); err != nil {
			t.Fatal(err)
		}
		d, err := ReadDocument(path)
		if err == nil || d != nil {
			t.Errorf("%s is read", tt.name)
			continue
		}
		if s := err.Error(); !strings.HasPrefix(s, path+":") || strings.Contains(s, "\n") || !strings.Contains(s, tt.want) {
			t.Errorf("%s: %s\nwant %s", tt.name, s, tt.want)
		}
	}

	if _, err := ReadDocument(dir); err == nil || !strings.Contains(err.Error(), "is a folder; name the file, "+filepath.Join(dir, "verdicts.json")) {
		t.Error(err)
	}
	if _, err := ReadDocument(filepath.Join(dir, "absent")); err == nil || !strings.Contains(err.Error(), "no such file; name the verdicts.json of a run") {
		t.Error(err)
	}
	large := filepath.Join(dir, "large.json")
	if err := os.WriteFile(large, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(large, MaxSize+1); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadDocument(large); err == nil || !strings.Contains(err.Error(), "is larger than 64 MiB") {
		t.Error(err)
	}
}
