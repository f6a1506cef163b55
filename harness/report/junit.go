package report

import (
	"cmp"
	"encoding/xml"
	"fmt"
	"io"
	"strings"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

func init() { register(junit{}) }

// junit is what continuous integration shows as test results: a suite per
// proxy, a case per cell and control.
type junit struct{}

func (junit) Name() string { return "junit" }

func (junit) About() string {
	return "JUnit XML: a suite per proxy, a case per cell and control, the policy as failures"
}

type junitSuites struct {
	XMLName  xml.Name      `xml:"testsuites"`
	Name     string        `xml:"name,attr"`
	Tests    int           `xml:"tests,attr"`
	Failures int           `xml:"failures,attr"`
	Errors   int           `xml:"errors,attr"`
	Suites   []*junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	XMLName    xml.Name        `xml:"testsuite"`
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Errors     int             `xml:"errors,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Properties []junitProperty `xml:"properties>property"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

// junitCase passed when it has none of the first three.
type junitCase struct {
	Class   string       `xml:"classname,attr"`
	Name    string       `xml:"name,attr"`
	Failure *junitResult `xml:"failure"`
	Error   *junitResult `xml:"error"`
	Skipped *junitResult `xml:"skipped"`
	Out     string       `xml:"system-out,omitempty"`
}

type junitResult struct {
	Type    string `xml:"type,attr,omitempty"`
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

func (junit) Write(w io.Writer, d *judge.Document, _ Options) error {
	rules := map[string][]string{}
	for _, v := range d.Violations {
		rules[v.Cell] = append(rules[v.Cell], plain(v.Rule))
	}
	all := junitSuites{Name: plain("idlerace " + d.Run.Scenario)}
	known := map[string]bool{}
	index := map[[3]string]*junitSuite{}
	for _, list := range [][]judge.Verdict{d.Cells, d.Controls} {
		for i := range list {
			v := &list[i]
			known[v.ID] = true
			k := [3]string{v.Proxy, v.Version, v.Runtime}
			s := index[k]
			if s == nil {
				s = &junitSuite{Name: plain(proxyName(v)), Properties: []junitProperty{
					{"proxy", plain(v.Proxy)}, {"version", plain(v.Version)}, {"runtime", plain(v.Runtime)},
				}}
				index[k] = s
				all.Suites = append(all.Suites, s)
			}
			if v.Role == judge.RoleMustRace || v.Role == judge.RoleMustNotRace {
				s.add(junitControl(v))
			} else {
				s.add(junitCell(v, rules[v.ID]))
			}
		}
	}
	for _, u := range d.Unavailable {
		s := &junitSuite{Name: plain(u.Proxy), Properties: []junitProperty{{"proxy", plain(u.Proxy)}}}
		s.add(junitCase{Class: plain(u.Proxy), Name: "did not run here",
			Skipped: &junitResult{Message: plain(u.Reason), Text: visible(u.Get)}})
		all.Suites = append(all.Suites, s)
	}
	policy := &junitSuite{Name: "policy", Properties: []junitProperty{{"scenario", plain(d.Run.Scenario)}}}
	for _, v := range d.Violations {
		if !known[v.Cell] { // a policy on more than a cell, or a document that was cut
			policy.add(junitCase{Class: "policy", Name: cmp.Or(plain(v.Cell), plain(v.Rule), "policy"),
				Failure: &junitResult{Type: plain(string(v.State)), Message: plain(v.Rule)}})
		}
	}
	if policy.Tests > 0 {
		all.Suites = append(all.Suites, policy)
	}
	for _, s := range all.Suites {
		all.Tests += s.Tests
		all.Failures += s.Failures
		all.Errors += s.Errors
	}
	out, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("junit: %w", err)
	}
	_, err = io.WriteString(w, xml.Header+string(out)+"\n")
	return err
}

func (s *junitSuite) add(c junitCase) {
	s.Cases = append(s.Cases, c)
	s.Tests++
	switch {
	case c.Failure != nil:
		s.Failures++
	case c.Error != nil:
		s.Errors++
	case c.Skipped != nil:
		s.Skipped++
	}
}

// junitCell is a failure where the policy forbids a proven state, and an error
// where nothing was proven. A race that no policy forbids passes.
func junitCell(v *judge.Verdict, rules []string) junitCase {
	c := junitOf(v)
	why := strings.Join(append(rules, cmp.Or(plain(v.Why), "no reason recorded")), "; ")
	r := &junitResult{Type: plain(string(v.State)), Message: why, Text: visible(v.Reproduce)}
	switch {
	case v.State == spec.Inconclusive || v.State == spec.Broken:
		c.Error = r
	case len(rules) > 0:
		c.Failure = r
	case v.State == spec.Unsupported:
		c.Skipped = &junitResult{Message: why}
	}
	return c
}

func junitControl(v *judge.Verdict) junitCase {
	c := junitOf(v)
	why := plain(v.Role) + " control: " + cmp.Or(plain(v.Why), "no reason recorded")
	switch {
	case v.State == spec.Unsupported:
		c.Skipped = &junitResult{Message: why}
	case !holds(v):
		c.Failure = &junitResult{Type: plain(string(v.State)), Message: why, Text: visible(v.Reproduce)}
	}
	return c
}

func junitOf(v *judge.Verdict) junitCase {
	return junitCase{Class: plain(v.Proxy + "." + v.Method), Name: plain(v.ID), Out: plain(mark(v))}
}
