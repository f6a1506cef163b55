package report

import (
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"

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
		if want := len(d.Cells) + len(d.Controls) + len(d.Unavailable); got.Tests != want {
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
