package spec

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Upstreams lists the values of Upstream.Kind.
func Upstreams() []string { return []string{"go"} }

// ReadFile reads the scenario file at path; see Read.
func ReadFile(path string, known []string) (*Scenario, error) {
	data, err := readUpTo(path, maxBytes+1)
	if err != nil {
		return nil, unreadable(path, err)
	}
	return Read(path, data, known)
}

// Read reads the scenario that data holds; file is its name in errors. With a
// non-empty known, every proxy must be named in it. The error is always a
// *Error: the first fault of the file by line, except that what a mapping lacks
// and what the grid as a whole exceeds is told after the faults within it.
func Read(file string, data []byte, known []string) (*Scenario, error) {
	root, err := parse(file, data)
	if err != nil {
		return nil, err
	}
	d := draft{
		known: known,
		Scenario: Scenario{
			Upstream: Upstream{Kind: "go"},
			Axes: Axes{
				Method: []string{"GET", "POST"},
				Retry:  []Retry{RetryDefault},
				RTT:    []time.Duration{0},
			},
			Probe:  Probe{Shots: 300, Budget: time.Minute, Seed: 1, Until: UntilDecided, Aim: AimProof},
			Source: slices.Clone(data),
			File:   file,
		},
	}
	if err := d.read(root); err != nil {
		return nil, err
	}
	return &d.Scenario, nil
}

// draft is a scenario being read, with the places that later checks point at.
type draft struct {
	Scenario
	known []string

	closeAt   value // upstream.close or axes.close, whichever came first
	axesAt    value
	rttAt     value   // axes.rtt; zero: absent
	linkAt    value   // zero: absent
	driverAt  value   // link.driver; zero: absent
	relayOnly []value // the keys of link that one driver alone has, in the order of the file
	chaosAt   value   // zero: absent
	lanesAt   value   // zero: the default applies
	whereAt   value   // zero: absent
}

func (d *draft) read(root value) error {
	err := root.mapping(
		field{name: "version", need: "version: 1", read: d.readVersion},
		field{name: "name", need: "name: nginx-edge", read: d.readName},
		field{name: "about", read: d.readAbout},
		field{name: "proxies", need: "proxies: [nginx]", read: d.readProxies},
		field{name: "upstream", read: d.readUpstream},
		field{name: "axes", need: "axes: {proxy_idle: [1s, 2s], upstream_idle: [1s, 2s]}", read: d.readAxes},
		field{name: "link", read: d.readLink},
		field{name: "chaos", read: d.readChaos},
		field{name: "probe", read: d.readProbe},
		field{name: "policy", read: d.readPolicy},
	)
	if err != nil {
		return err
	}
	if len(d.Axes.Close) == 0 {
		d.Axes.Close = []Close{CloseFIN}
	}
	if err := d.checkLink(); err != nil {
		return err
	}
	if err := d.checkSize(); err != nil {
		return err
	}
	if err := d.checkChaos(); err != nil {
		return err
	}
	return d.checkPolicy()
}

func (d *draft) readVersion(v value) error {
	if n, err := v.integer(Version, Version); err != nil || n != Version {
		return v.wrongType(fmt.Sprintf("version %d", Version), fmt.Sprintf("write version: %d, this idlerace reads no other", Version))
	}
	d.Version = Version
	return nil
}

func (d *draft) readName(v value) (err error) {
	d.Name, err = v.name()
	return err
}

func (d *draft) readAbout(v value) (err error) {
	d.About, err = v.sentence()
	return err
}

func (d *draft) readProxies(v value) (err error) {
	d.Proxies, err = distinct(v, d.proxy, func(p Proxy) string { return p.Name })
	return err
}

func (d *draft) proxy(v value) (Proxy, error) {
	var p Proxy
	if v.isScalar() {
		err := d.readProxyName(&p, v)
		return p, err
	}
	if !v.isMapping() {
		return p, v.wrongType("a proxy", "nginx, or {name: nginx, image: ...}")
	}
	err := v.mapping(
		field{name: "name", need: "name: nginx", read: func(v value) error { return d.readProxyName(&p, v) }},
		field{name: "image", read: func(v value) error { return readImage(&p, v) }},
	)
	return p, err
}

func (d *draft) readProxyName(p *Proxy, v value) (err error) {
	if len(d.known) == 0 {
		p.Name, err = v.name()
		return err
	}
	p.Name, err = choice(v, "proxy", d.known)
	return err
}

var imageRE = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/:@-]*$`)

func readImage(p *Proxy, v value) (err error) {
	p.Image, err = v.sentence()
	if err == nil && !imageRE.MatchString(p.Image) {
		return v.fault("such as traefik:v3.6 or registry:5000/team/nginx@sha256:...", "%s is not a container image", quote(p.Image))
	}
	return err
}

func (d *draft) readUpstream(v value) error {
	return v.mapping(
		field{name: "kind", read: func(v value) (err error) {
			d.Upstream.Kind, err = choice(v, "upstream kind", Upstreams())
			return err
		}},
		field{name: "close", read: func(v value) error {
			if err := d.closeOnce(v); err != nil {
				return err
			}
			c, err := choice(v, "close style", Closes())
			d.Axes.Close = []Close{c}
			return err
		}},
	)
}

func (d *draft) readAxes(v value) error {
	d.axesAt = v
	a := &d.Axes
	return v.mapping(
		field{name: "proxy_idle", need: "proxy_idle: [500ms, 1s, off]", read: func(v value) (err error) {
			a.ProxyIdle, err = distinct(v, value.idle, Idle.String)
			return err
		}},
		field{name: "upstream_idle", need: "upstream_idle: [500ms, 1s]", read: func(v value) (err error) {
			a.UpstreamIdle, err = distinct(v, value.positive, FormatDuration)
			return err
		}},
		field{name: "method", read: func(v value) (err error) {
			a.Method, err = choices(v, "method", Methods())
			return err
		}},
		field{name: "retry", read: func(v value) (err error) {
			a.Retry, err = choices(v, "retry setting", Retries())
			return err
		}},
		field{name: "close", read: func(v value) (err error) {
			if err := d.closeOnce(v); err != nil {
				return err
			}
			a.Close, err = choices(v, "close style", Closes())
			return err
		}},
		field{name: "rtt", read: func(v value) (err error) {
			d.rttAt = v
			a.RTT, err = distinct(v, value.duration, FormatDuration)
			return err
		}},
	)
}

// closeOnce refuses the second of upstream.close and axes.close: which of the
// two would hold is anybody's guess.
func (d *draft) closeOnce(v value) error {
	if d.closeAt.path != "" {
		return v.fault("axes.close: [fin, rst] for several, upstream.close: fin for one",
			"%s on line %d says it already", d.closeAt.path, d.closeAt.line)
	}
	d.closeAt = v
	return nil
}

func (d *draft) readProbe(v value) error {
	p := &d.Probe
	return v.mapping(
		field{name: "lanes", read: func(v value) error {
			d.lanesAt = v
			n, err := v.integer(1, MaxLanes)
			p.Lanes = int(n)
			return err
		}},
		field{name: "shots", read: func(v value) error {
			n, err := v.integer(1, MaxShots)
			p.Shots = int(n)
			return err
		}},
		field{name: "budget", read: func(v value) (err error) {
			p.Budget, err = v.positive()
			return err
		}},
		field{name: "seed", read: func(v value) (err error) {
			p.Seed, err = v.integer(0, 1<<64-1)
			return err
		}},
		field{name: "aim", read: func(v value) (err error) {
			p.Aim, err = choice(v, "aim", Aims())
			return err
		}},
		field{name: "until", read: func(v value) (err error) {
			p.Until, err = choice(v, "end of probing", Untils())
			return err
		}},
	)
}

func (d *draft) readPolicy(v value) error {
	var p Policy
	err := v.mapping(
		field{name: "forbid", need: "forbid: [races]", read: func(v value) (err error) {
			p.Forbid, err = choices(v, "state", States())
			return err
		}},
		field{name: "where", read: func(v value) error {
			d.whereAt = v
			return readWhere(&p, v)
		}},
	)
	if err == nil && p.match == nil {
		p.match = everyCell
	}
	d.Policy = &p
	return err
}

func readWhere(p *Policy, v value) error {
	text, err := v.text()
	if err != nil {
		return err
	}
	if strings.TrimSpace(text) == "" {
		return v.fault("leave the key out to mean every cell", "the expression is empty")
	}
	match, fault := compileWhere(text)
	if fault != nil {
		return v.whereFault(fault)
	}
	p.Where, p.match = text, match
	return nil
}

func (v value) whereFault(e *whereError) *Error {
	return v.fault(e.hint, "%s%s", e.position(), e.msg)
}

// checkSize holds the grid against the limits of one scenario. No axis is
// longer than MaxCells, so the product fits an int64.
func (d *draft) checkSize() error {
	a := &d.Axes
	cells := int64(1)
	var factors []string
	for _, f := range []struct {
		n    int
		axis string
	}{
		{len(d.Proxies), "proxies"}, {len(a.ProxyIdle), "proxy_idle"}, {len(a.UpstreamIdle), "upstream_idle"},
		{len(a.Method), "method"}, {len(a.Retry), "retry"}, {len(a.Close), "close"}, {len(a.RTT), "rtt"},
	} {
		cells *= int64(f.n)
		if f.n > 1 {
			factors = append(factors, fmt.Sprintf("%d %s", f.n, f.axis))
		}
	}
	if cells > MaxCells {
		return d.axesAt.fault(fmt.Sprintf("at most %d: shorten an axis or split the scenario", MaxCells),
			"the grid has %d cells: %s", cells, strings.Join(factors, " x "))
	}
	if lanes := cells * int64(d.Probe.Lanes); lanes > MaxTotalLanes {
		return d.lanesAt.fault(fmt.Sprintf("at most %d: set probe.lanes to %d or less, or shorten an axis", MaxTotalLanes, MaxTotalLanes/cells),
			"%d cells x %d lanes make %d client connections", cells, d.Probe.Lanes, lanes)
	}
	return nil
}

// checkPolicy evaluates the policy on every cell: an expression that fails, or
// one that no cell can meet, would be a gate that never closes.
func (d *draft) checkPolicy() error {
	if d.whereAt.path == "" {
		return nil
	}
	matched := false
	for _, c := range d.Cells() {
		ok, fault := d.Policy.match(c)
		if fault != nil {
			return d.whereAt.whereFault(fault)
		}
		matched = matched || ok
	}
	if !matched {
		return d.whereAt.fault("compare with values that the axes hold, or leave the policy out",
			"no cell of the grid matches, so nothing could violate the policy")
	}
	return nil
}

func readUpTo(path string, limit int64) (_ []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(io.LimitReader(f, limit))
}

func unreadable(path string, err error) *Error {
	hint := "a scenario is a readable YAML file"
	switch info, statErr := os.Stat(path); {
	case errors.Is(err, fs.ErrNotExist):
		hint = "examples are in scenarios/"
	case errors.Is(err, fs.ErrPermission):
		hint = "make the file readable"
	case statErr == nil && info.IsDir():
		hint = "name a file in that folder"
	}
	msg := err.Error()
	if pathErr, ok := errors.AsType[*fs.PathError](err); ok {
		msg = "cannot " + pathErr.Op + ": " + pathErr.Err.Error()
	}
	return &Error{File: path, Msg: msg, Hint: hint}
}
