package gate

import (
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strings"
)

// Place is where a runner shows findings: at the scenario's file.
type Place struct {
	File string           // as the repository has it, with "/"; empty: not known
	Line func(string) int // of a key of its top level, from 1; 0: not known
}

func (p Place) line(f Finding) int {
	if p.Line == nil {
		return 1
	}
	return max(p.Line(f.Key), 1)
}

// githubMost is how many annotations of one level GitHub shows of a step.
const githubMost = 10

// Quote passes text to w such that GitHub's runner takes none of it for a
// command, whatever it holds: it may quote proxies and upstreams.
func Quote(w io.Writer, text func(io.Writer) error) error {
	token := rand.Text() // nobody can know it and end the quotation
	if _, err := fmt.Fprintf(w, "::stop-commands::%s\n", token); err != nil {
		return err
	}
	err := text(w)
	if _, e := fmt.Fprintf(w, "\n::%s::\n", token); err == nil {
		err = e
	}
	return err
}

// GitHub prints findings as workflow commands, which GitHub's runner turns into
// annotations of the scenario's file; the most of a level that it shows, the
// last one saying how many more there are.
//
// https://docs.github.com/actions/reference/workflow-commands-for-github-actions
func GitHub(w io.Writer, findings []Finding, at Place) error {
	var b strings.Builder
	for _, level := range []Level{Failure, Missing, News} {
		command := map[Level]string{Failure: "error", Missing: "warning", News: "notice"}[level]
		var of []Finding
		for _, f := range findings {
			if f.Level == level {
				of = append(of, f)
			}
		}
		shown := of
		if len(of) > githubMost {
			shown = of[:githubMost-1]
		}
		for _, f := range shown {
			b.WriteString("::" + command + " ")
			if at.File != "" {
				fmt.Fprintf(&b, "file=%s,line=%d,", githubProperty(at.File), at.line(f))
			}
			fmt.Fprintf(&b, "title=%s::%s\n", githubProperty("idlerace: "+f.Kind), githubData(f.text()))
		}
		if more := len(of) - len(shown); more > 0 {
			fmt.Fprintf(&b, "::%s title=idlerace::and %d more; the log has all\n", command, more)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// text is a finding in one line.
func (f Finding) text() string {
	if f.Why == "" {
		return f.What
	}
	return f.What + ". " + f.Why
}

var (
	githubEscapes         = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	githubPropertyEscapes = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

func githubData(s string) string     { return githubEscapes.Replace(s) }
func githubProperty(s string) string { return githubPropertyEscapes.Replace(s) }

// codeQuality is an entry of GitLab's report.
type codeQuality struct {
	Description string `json:"description"`
	Check       string `json:"check_name"`
	Fingerprint string `json:"fingerprint"` // the same finding has it in every pipeline
	Severity    string `json:"severity"`
	Location    struct {
		Path  string `json:"path"`
		Lines struct {
			Begin int `json:"begin"`
		} `json:"lines"`
	} `json:"location"`
}

// CodeQuality prints findings as GitLab's Code Quality report, which a merge
// request shows: a JSON list, empty without findings.
//
// https://docs.gitlab.com/ci/testing/code_quality/#code-quality-report-format
func CodeQuality(w io.Writer, findings []Finding, at Place) error {
	list := []codeQuality{}
	for _, f := range findings {
		sum := sha256.Sum256([]byte(f.Kind + "\n" + f.What))
		e := codeQuality{Description: f.text(), Check: "idlerace: " + f.Kind, Fingerprint: hex.EncodeToString(sum[:]),
			Severity: map[Level]string{Failure: "critical", Missing: "major", News: "info"}[f.Level]}
		e.Location.Path, e.Location.Lines.Begin = cmp.Or(at.File, "scenario.yaml"), at.line(f)
		list = append(list, e)
	}
	b, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
