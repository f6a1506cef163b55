package report

import (
	"encoding/xml"
	"errors"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/jacoelho/xsd"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

func TestJUnitCounts(t *testing.T) {
	f, _ := ByName("junit")
	for name, document := range documents {
		d := document()
		var got junitSuites
		if err := xml.Unmarshal([]byte(render(t, f, d, Options{})), &got); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		want := len(d.Cells) + len(d.Controls) + len(d.Unavailable)
		for _, v := range d.Violations {
			if !slices.ContainsFunc(append(d.Cells, d.Controls...), func(c judge.Verdict) bool { return c.ID == v.Cell }) {
				want++
			}
		}
		if got.Tests != want {
			t.Errorf("%s: %d tests, want %d", name, got.Tests, want)
		}
		var tests, failures, errs int
		for _, s := range got.Suites {
			skipped := 0
			for _, c := range s.Cases {
				tests++
				switch {
				case c.Failure != nil:
					failures++
				case c.Error != nil:
					errs++
				case c.Skipped != nil:
					skipped++
				}
			}
			if s.Tests != len(s.Cases) || s.Skipped != skipped {
				t.Errorf("%s: suite %s says %d tests, %d skipped; has %d, %d", name, s.Name, s.Tests, s.Skipped, len(s.Cases), skipped)
			}
		}
		if tests != got.Tests || failures != got.Failures || errs != got.Errors {
			t.Errorf("%s: has %d, %d, %d; says %d, %d, %d", name, tests, failures, errs, got.Tests, got.Failures, got.Errors)
		}
	}
}

// testdata/junit-10.xsd is what Jenkins' xunit plugin reads reports by, under the
// MIT licence in its head; it is the copy that pytest 8.3.4 ships.
func TestJUnitSchema(t *testing.T) {
	schema, err := xsd.LoadFile("testdata/junit-10.xsd")
	if err != nil {
		t.Fatal(err)
	}
	f, _ := ByName("junit")
	check := func(name string, d *judge.Document) string {
		s := render(t, f, d, Options{})
		if err := schema.Validate(strings.NewReader(s)); err != nil {
			t.Errorf("%s: %v\n%s", name, err, s)
		}
		return s
	}
	var typical string
	for name, document := range documents {
		if s := check(name, document()); name == "typical" {
			typical = s
		}
	}
	r := rand.New(rand.NewPCG(3, 4))
	for range 20 {
		check("random", random(r, 12))
	}
	// The check itself must be able to fail.
	for _, change := range [][2]string{
		{"<testcase classname", "<testcase class"}, {"<testcase ", "<test-case "}, {` tests="20"`, ""}, {"<system-out>", "<system-out><b></b>"},
	} {
		bad := strings.Replace(typical, change[0], change[1], 1)
		if bad == typical || schema.Validate(strings.NewReader(bad)) == nil {
			t.Errorf("%s instead of %s is valid", change[1], change[0])
		}
	}
}

// What the policy says of no cell of the document is lost in no case of one.
func TestJUnitViolationWithoutCell(t *testing.T) {
	f, _ := ByName("junit")
	d := typical()
	before := len(d.Cells) + len(d.Controls) + len(d.Unavailable)
	d.Violations = []judge.Violation{{Rule: "forbid races"}, {Cell: "gone", State: spec.Races, Rule: "forbid races"}, {}}
	var got junitSuites
	if err := xml.Unmarshal([]byte(render(t, f, d, Options{})), &got); err != nil {
		t.Fatal(err)
	}
	last := got.Suites[len(got.Suites)-1]
	if got.Tests != before+3 || got.Failures != 3 || last.Name != "policy" || last.Failures != 3 {
		t.Fatalf("%d tests, %d failures, last suite %+v", got.Tests, got.Failures, last)
	}
	for i, want := range []string{"forbid races", "gone", "policy"} {
		if c := last.Cases[i]; c.Name != want || c.Failure == nil {
			t.Errorf("case %d: %+v, want %s", i, c, want)
		}
	}
}

func TestJUnitResults(t *testing.T) {
	rule := []string{"never races"}
	for _, c := range []struct {
		role  string
		state spec.State
		rules []string
		want  string
	}{
		{judge.RoleCell, spec.Races, rule, "failure"},
		{judge.RoleCell, spec.Races, nil, ""},
		{judge.RoleCell, spec.Safe, nil, ""},
		{judge.RoleCell, spec.Inconclusive, rule, "error"},
		{judge.RoleCell, spec.Broken, nil, "error"},
		{judge.RoleCell, spec.Unsupported, nil, "skipped"},
		{judge.RoleMustRace, spec.Races, nil, ""},
		{judge.RoleMustRace, spec.Safe, nil, "failure"},
		{judge.RoleMustNotRace, spec.Broken, nil, "failure"},
		{judge.RoleMustNotRace, spec.Unsupported, nil, "skipped"},
	} {
		v := &judge.Verdict{Role: c.role, State: c.state, Why: "because"}
		got := junitControl(v)
		if c.role == judge.RoleCell {
			got = junitCell(v, c.rules)
		}
		is, message := "", "because"
		for kind, r := range map[string]*junitResult{"failure": got.Failure, "error": got.Error, "skipped": got.Skipped} {
			if r != nil {
				is, message = is+kind, r.Message
			}
		}
		if is != c.want || !strings.HasSuffix(message, "because") || !strings.HasPrefix(message, strings.Join(c.rules, "")) && is != "" {
			t.Errorf("%s %s %v: %q %q, want %q", c.role, c.state, c.rules, is, message, c.want)
		}
	}
}

// TestSVGIsXML: a browser shows nothing of an SVG that is not well formed.
func TestSVGIsXML(t *testing.T) {
	for _, format := range []string{"badge", "picture"} {
		f, _ := ByName(format)
		for name, document := range documents {
			s := render(t, f, document(), Options{})
			in := xml.NewDecoder(strings.NewReader(s))
			for {
				tok, err := in.Token()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					t.Fatalf("%s: %s: %v\n%s", format, name, err, s)
				}
				if e, ok := tok.(xml.StartElement); ok && (e.Name.Local == "script" || e.Name.Local == "a" || e.Name.Local == "image") {
					t.Errorf("%s: %s: <%s>", format, name, e.Name.Local)
				}
			}
		}
	}
}

// TestPictureHasEveryCell, by sign and word.
func TestPictureHasEveryCell(t *testing.T) {
	f, _ := ByName("picture")
	for _, name := range []string{"typical", "wide", "shaped"} {
		d := documents[name]()
		s := render(t, f, d, Options{})
		for i := range d.Cells {
			v := &d.Cells[i]
			l := lookOf(v.State)
			_, rest, ok := strings.Cut(s, "<g transform")
			for ok && !strings.Contains(rest, ">"+v.ID+": ") {
				_, rest, ok = strings.Cut(rest, "<g transform")
			}
			g, _, _ := strings.Cut(rest[strings.Index(rest, ">"+v.ID+": ")+1:], "</g>")
			if !strings.Contains(g, l.Sign+" "+l.Word) || !strings.Contains(g, hits(v)) {
				t.Errorf("%s: %s (%s): %s", name, v.ID, v.State, g)
			}
		}
	}
}
