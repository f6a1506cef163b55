// Package react tests how a proxy reacts when the upstream ends a reused
// connection instead of answering the second request on it. No idle timer takes
// part: the origin springs a trap, so that no timeout and no
// luck in aiming decides. It must not import report or gate.
//
// What the proxy receives on the reused connection, by ending, once its second
// request is on the way:
//
//	fin-unread    at the request's first bytes FIN, and RST some 20 µs behind it:
//	              the request stays in the origin's socket, unread
//	fin-read      FIN, the whole request acknowledged; RST only in answer to what
//	              the proxy sends after that
//	fin-executed  the same, the request executed
//	rst           RST, the whole request acknowledged
//	half-close    FIN, the whole request acknowledged; what the proxy sends after
//	              that is acknowledged, too
package react

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Schema names the format of a Document.
const Schema = "idlerace/reaction/v1"

// Ending is what the origin does instead of answering.
type Ending string

const (
	FINUnread   Ending = "fin-unread"   // the request unread
	FINRead     Ending = "fin-read"     // the request read in full, not executed
	FINExecuted Ending = "fin-executed" // the request read and executed
	RST         Ending = "rst"          // the request read in full, not executed
	HalfClose   Ending = "half-close"   // likewise; the connection is read on
)

// Endings lists the values of Ending.
func Endings() []Ending { return []Ending{FINUnread, FINRead, FINExecuted, RST, HalfClose} }

// Case is a kind of request.
type Case struct {
	Name   string
	Method string
	Body   int  // bytes; 0: no body
	Keyed  bool // with an Idempotency-Key header
}

// Cases lists the requests that every proxy is tested with.
func Cases() []Case {
	return []Case{
		{Name: "GET", Method: "GET"},
		{Name: "HEAD", Method: "HEAD"},
		{Name: "PUT", Method: "PUT", Body: 1},
		{Name: "DELETE", Method: "DELETE"},
		{Name: "POST", Method: "POST", Body: 1},
		{Name: "POST keyed", Method: "POST", Body: 1, Keyed: true},
		{Name: "POST 64 KiB", Method: "POST", Body: 64 << 10},
		{Name: "POST 1 MiB", Method: "POST", Body: 1 << 20},
	}
}

// Outcome is what the client got for the second request.
type Outcome string

const (
	OutcomeResponse Outcome = "response" // of any status
	OutcomeClosed   Outcome = "closed"   // the connection ended, by FIN or RST, without a response
	OutcomeTimeout  Outcome = "timeout"  // nothing within trialTimeout
	OutcomeOther    Outcome = "other"    // see Err
)

// Trial is one case meeting one ending at one proxy, several times.
type Trial struct {
	Proxy  string     `json:"proxy"`
	Retry  spec.Retry `json:"retry"`
	Case   string     `json:"case"` // Case.Name
	Method string     `json:"method"`
	Body   int        `json:"body"` // bytes of the request's body
	Keyed  bool       `json:"idempotency_key"`
	Ending Ending     `json:"ending"`

	// Results are the different ones, in the order of their texts. More than one
	// means that chance decides at the proxy.
	Results []Result `json:"results"`

	Unsupported string `json:"unsupported,omitempty"` // why the proxy cannot express the trial
	Err         string `json:"err,omitempty"`         // why there is no result
}

// Result is what became of a trial's second request.
type Result struct {
	Outcome Outcome `json:"outcome"`
	Status  int     `json:"status,omitzero"` // as the client saw it
	// Reused says that the request came first as the second one of an upstream
	// connection; else the trap could not be sprung.
	Reused   bool   `json:"reused"`
	Attempts int    `json:"attempts"`         // arrivals at the origin, on whatever connection
	Executed int    `json:"executed"`         // of those, executed
	Safety   Safety `json:"safety,omitempty"` // empty: the trap was not sprung
}

// Safety is what a trial means for the request.
type Safety string

const (
	Lost       Safety = "lost"           // not executed, and the client was told, if only by a closed connection
	Hidden     Safety = "hidden"         // executed once, after a retry, and answered
	Unanswered Safety = "unanswered"     // executed once, and the client was told that it failed
	Twice      Safety = "executed twice" // or more often
)

// settle concludes from what was seen.
func (r *Result) settle() {
	ok := r.Outcome == OutcomeResponse && r.Status/100 == 2
	switch {
	case !r.Reused:
		r.Safety = ""
	case r.Executed > 1:
		r.Safety = Twice
	case r.Executed == 1 && !ok:
		r.Safety = Unanswered
	case r.Executed == 1:
		r.Safety = Hidden
	default:
		r.Safety = Lost
	}
}

// add keeps a result that differs from those there are.
func (t *Trial) add(r Result) {
	if slices.Contains(t.Results, r) {
		return
	}
	t.Results = append(t.Results, r)
	slices.SortFunc(t.Results, func(a, b Result) int {
		return cmp.Or(cmp.Compare(len(a.String()), len(b.String())), cmp.Compare(a.String(), b.String()), cmp.Compare(a.Attempts, b.Attempts))
	})
}

// seen is the client's side: "502" or "closed".
func (r Result) seen() string {
	if r.Outcome == OutcomeResponse {
		return strconv.Itoa(r.Status)
	}
	return string(r.Outcome)
}

// String is such as "200 retried, executed twice".
func (r Result) String() string { return strings.Join(r.lines(), ", ") }

// lines is String in parts.
func (r Result) lines() []string {
	if !r.Reused {
		return []string{r.seen(), "not reused"}
	}
	out := []string{r.seen()}
	if r.Attempts > 1 {
		out[0] += " retried"
	}
	switch r.Safety {
	case Twice:
		out = append(out, "executed twice")
	case Unanswered:
		out = append(out, "executed")
	}
	return out
}

// String is such as "502" or "502 or 200 retried".
func (t Trial) String() string {
	if s := t.missing(); s != "" {
		return s
	}
	var out []string
	for _, r := range t.Results {
		out = append(out, r.String())
	}
	return strings.Join(out, " or ")
}

// lines is the trial's cell of a card.
func (t Trial) lines() (out []string) {
	if s := t.missing(); s != "" {
		return []string{s}
	}
	for i, r := range t.Results {
		if i > 0 {
			out[len(out)-1] += " or"
		}
		out = append(out, r.lines()...)
	}
	return out
}

// missing stands for results that there are none of; else it is empty.
func (t Trial) missing() string {
	switch {
	case t.Unsupported != "":
		return "-"
	case len(t.Results) == 0:
		return "failed"
	}
	return ""
}

// Document is the result of a test.
type Document struct {
	Schema      string               `json:"schema"`
	Idlerace    string               `json:"idlerace"` // version of this program
	Proxies     []record.ProxyRun    `json:"proxies"`
	Unavailable []record.Unavailable `json:"unavailable"`
	Trials      []Trial              `json:"trials"`      // by proxy, retry, case and ending, as the scenario, Cases and Endings have them
	Conclusions []Conclusion         `json:"conclusions"` // one per proxy and retry setting
	Differences []string             `json:"differences"` // from an earlier document; null: there was none to compare with
}

// Conclusion says in one sentence what a card means.
type Conclusion struct {
	Proxy string     `json:"proxy"`
	Retry spec.Retry `json:"retry"`
	Text  string     `json:"text"`
}

// card is one proxy under one retry setting.
type card struct {
	proxy  record.ProxyRun
	retry  spec.Retry
	trials []Trial
}

// cards splits a document, in its order.
func (d *Document) cards() []card {
	var out []card
	for _, t := range d.Trials {
		i := slices.IndexFunc(out, func(c card) bool { return c.proxy.Name == t.Proxy && c.retry == t.Retry })
		if i < 0 {
			i = len(out)
			c := card{proxy: record.ProxyRun{Name: t.Proxy}, retry: t.Retry}
			for _, p := range d.Proxies {
				if p.Name == t.Proxy {
					c.proxy = p
				}
			}
			out = append(out, c)
		}
		out[i].trials = append(out[i].trials, t)
	}
	return out
}

// conclude fills in Conclusions.
func (d *Document) conclude() {
	d.Conclusions = []Conclusion{}
	for _, c := range d.cards() {
		d.Conclusions = append(d.Conclusions, Conclusion{c.proxy.Name, c.retry, c.sentence()})
	}
}

// title names a card: "nginx 1.22.1, retry on".
func (c card) title() string {
	s := c.proxy.Name
	if c.proxy.Version != "" {
		s += " " + c.proxy.Version
	}
	if c.retry != spec.RetryDefault {
		s += ", retry " + string(c.retry)
	}
	return s
}

// failed gives the trials that were not carried out.
func (d *Document) failed() (out []Trial) {
	for _, t := range d.Trials {
		if t.Unsupported == "" && len(t.Results) == 0 {
			out = append(out, t)
		}
	}
	return out
}

// Err tells the first trial that was not carried out, and how many there are.
func (d *Document) Err() error {
	bad := d.failed()
	if len(bad) == 0 {
		return nil
	}
	return fmt.Errorf("%d of %d trials failed; the first: %s: %s", len(bad), len(d.Trials), bad[0].name(), bad[0].Err)
}

// name says which trial it is.
func (t Trial) name() string {
	s := t.Proxy
	if t.Retry != spec.RetryDefault {
		s += ", retry " + string(t.Retry)
	}
	return s + ", " + t.Case + ", " + string(t.Ending)
}
