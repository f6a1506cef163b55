package react

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"

	"idlerace/harness/spec"
)

// Read reads a Document as WriteJSON wrote it.
func Read(r io.Reader) (*Document, error) {
	var d Document
	if err := json.NewDecoder(r).Decode(&d); err != nil {
		return nil, err
	}
	if d.Schema != Schema {
		return nil, fmt.Errorf("schema %q, want %q", d.Schema, Schema)
	}
	if len(d.Trials) == 0 {
		return nil, errors.New("there are no trials")
	}
	return &d, nil
}

// Only is d without all other proxies than that one; empty: d.
func (d *Document) Only(proxy string) *Document {
	out := *d
	out.Trials = slices.DeleteFunc(slices.Clone(d.Trials), func(t Trial) bool { return proxy != "" && t.Proxy != proxy })
	return &out
}

// key names a trial across documents.
type key struct {
	proxy  string
	retry  spec.Retry
	kase   string
	ending Ending
}

func (t Trial) key() key { return key{t.Proxy, t.Retry, t.Case, t.Ending} }

// Expect fills in Differences: what is not as in an earlier document, in the
// order of d, then what that had and d has not. Where chance decides, one
// result in common is enough. A proxy's version is none, but named with its
// differences.
func (d *Document) Expect(old *Document) {
	d.Differences = []string{}
	was := map[key]Trial{}
	for _, t := range old.Trials {
		was[t.key()] = t
	}
	for _, t := range d.Trials {
		o, known := was[t.key()]
		delete(was, t.key())
		switch {
		case !known:
			d.differ(old, t, fmt.Sprintf("%s, was not measured", t))
		case t.missing() != o.missing(), t.missing() == "" && !slices.ContainsFunc(t.Results, func(r Result) bool { return slices.Contains(o.Results, r) }):
			d.differ(old, t, fmt.Sprintf("%s, was %s", t.long(), o.long()))
		}
	}
	for _, t := range old.Trials {
		if _, left := was[t.key()]; left {
			d.differ(old, t, fmt.Sprintf("not measured, was %s", t))
		}
	}
}

func (d *Document) differ(old *Document, t Trial, what string) {
	versions := ""
	if now, then := d.version(t.Proxy), old.version(t.Proxy); now != then && now != "" && then != "" {
		versions = fmt.Sprintf(" (%s, was %s)", now, then)
	}
	d.Differences = append(d.Differences, t.name()+": "+what+versions)
}

func (d *Document) version(proxy string) string {
	for _, p := range d.Proxies {
		if p.Name == proxy {
			return p.Version
		}
	}
	return ""
}

// long is String with the number of attempts, where that is no usual one.
func (t Trial) long() string {
	if len(t.Results) == 1 && t.Results[0].Attempts > 2 {
		return fmt.Sprintf("%s (%d attempts)", t, t.Results[0].Attempts)
	}
	return t.String()
}
