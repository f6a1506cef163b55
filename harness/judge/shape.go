package judge

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"gonum.org/v1/gonum/stat"

	"idlerace/harness/judge/window"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Fit is the danger window as all shots of a cell show it, in ages at the
// proxy relative to the earliest measured upstream closes. An edge that the shots do not
// bound is null, and Why names it.
type Fit struct {
	Lower   *Estimate `json:"lower"`
	Upper   *Estimate `json:"upper"`
	Width   *Estimate `json:"width"`
	Plateau float64   `json:"plateau"` // rate of stale reuse inside
	Method  string    `json:"method"`  // window.Method; empty: no fit
	Shots   int       `json:"shots"`
	Stale   int       `json:"stale"`
	Law     string    `json:"law"`   // the edges against the law, in one sentence
	Holds   *bool     `json:"holds"` // whether they agree; null where they say too little
	Why     string    `json:"why"`   // why there is no fit or no edge; may be empty
	Curve   []Bin     `json:"curve"`
}

// Estimate is a value with its 95 % interval.
type Estimate struct {
	At   Duration `json:"at"`
	Low  Duration `json:"low"`
	High Duration `json:"high"`
}

// Bin is one piece of the curve of stale reuse against age.
type Bin struct {
	From  Duration `json:"from"`
	To    Duration `json:"to"`
	Shots int      `json:"shots"`
	Stale int      `json:"stale"`
	Rate  Interval `json:"rate"`
}

const (
	// binShots is how many shots a bin of the curve has at least.
	binShots = 25
	// edgeError is what a measured edge may be off by, besides its interval: a
	// timer's lateness on either side.
	edgeError = 500 * time.Microsecond
)

// shape collects the shots of a cell by age. The zero value is ready.
//
// The upstream knows the age of a connection when a request arrives on it; the
// proxy's notion of it is a round trip less. A request that came over a fresh
// connection has none: for it the client's age counts, corrected by what the
// others of its burst differ by. It says that the proxy would not use an idle
// connection, and so counts only while the pool must have had one.
type shape struct {
	counts  *window.Histogram
	folds   []*window.Histogram // each without the bursts of one in ten
	ended   int                 // bursts counted
	leftOut int                 // requests whose connection's close was out of the ordinary
	offset  time.Duration       // upstream's age minus client's: the median of the latest burst that tells

	// Of the burst under way.
	burst  int
	points []point
	aimed  bool
	idle   int             // connections that the burst before left idle
	served map[uint64]bool // connections that served one of its requests
}

type point struct {
	client time.Duration // age at the client
	server time.Duration // of the upstream's connection; 0: a fresh one
	stale  bool
	closed time.Duration // idle time at which its connection was closed; 0: not known, or it was not
}

// lateTimer is how far from the others a single close may be: beyond it the
// machine held the upstream's timer up, and ages tell nothing.
const lateTimer = 5 * time.Millisecond

// observe takes one request; closes are the upstream's so far.
func (s *shape) observe(o record.Observation, c spec.Cell, stale bool, closes *sample) {
	if s.counts == nil {
		s.counts = window.NewHistogram(window.Resolution * max(1, c.RTT/(50*time.Millisecond)))
		s.served, s.offset = map[uint64]bool{}, c.RTT
		for range folds {
			s.folds = append(s.folds, window.NewHistogram(window.Resolution*max(1, c.RTT/(50*time.Millisecond))))
		}
	}
	if o.Shot.Burst != s.burst {
		s.end(c, closes)
		s.burst = o.Shot.Burst
	}
	s.aimed = o.Shot.Phase == record.PhaseAimed && o.Shot.Target == record.TargetUpstream
	p := point{client: o.Shot.Age, stale: stale}
	switch {
	case len(o.Late) > 0:
		p.server = o.Late[0].Idle
	case len(o.Requests) > 0 && o.Requests[0].Nth > 1:
		p.server = o.Requests[0].Idle
	}
	for _, e := range o.Before {
		if e.IdleClosed() {
			p.closed = e.Idle
		}
	}
	s.points = append(s.points, p)
	for _, e := range o.Requests {
		s.served[e.Conn] = true
	}
}

// end counts the burst under way.
func (s *shape) end(c spec.Cell, closes *sample) {
	idle := s.idle
	s.idle = len(s.served)
	clear(s.served)
	points := s.points
	s.points = s.points[:0]
	if !s.aimed {
		return
	}
	var offsets []time.Duration
	for _, p := range points {
		if p.server > p.client/2 {
			offsets = append(offsets, p.server-p.client)
		}
	}
	if 2*len(offsets) > len(points) { // a few may be the ones that are unlike the others
		slices.Sort(offsets)
		s.offset = offsets[len(offsets)/2]
	}
	slices.SortFunc(points, func(a, b point) int { return cmp.Compare(a.client, b.client) })
	typical := closes.quantile(0.5)
	for _, p := range points {
		at := p.server
		if p.closed > 0 && (p.closed-typical).Abs() > lateTimer {
			s.leftOut++
			continue
		}
		switch {
		case at == 0 && !p.stale && idle <= 0:
			continue // the pool was empty
		case at == 0:
			at = p.client + s.offset
		case at < p.client/2:
			continue // given back within the burst: it was not idle
		default:
			idle--
		}
		pt := window.Point{Rel: at - c.RTT - c.UpstreamIdle, Stale: p.stale}
		s.counts.Add(pt)
		for i, f := range s.folds {
			if i != s.ended%folds {
				f.Add(pt)
			}
		}
	}
	s.ended++
}

// folds is the number of parts that the bursts are dealt to, and student the
// 97.5 % quantile of Student's t with one degree of freedom less.
const (
	folds   = 10
	student = 2.262
)

// jackknife widens a fit's intervals to what its bursts differ by. The shots of
// one burst share their moment, the state of both timers and the machine's
// mood, so that an interval over shots alone is too narrow: here each edge is
// fitted ten times more without a tenth of the bursts.
func (s *shape) jackknife(f *window.Fit) {
	edges := []func(*window.Fit) *window.Estimate{
		func(f *window.Fit) *window.Estimate { return f.Lower },
		func(f *window.Fit) *window.Estimate { return f.Upper },
		func(f *window.Fit) *window.Estimate { return f.Width },
	}
	at := make([][]float64, len(edges))
	for _, h := range s.folds {
		part := h.Fit()
		for i, edge := range edges {
			if e := edge(&part); e != nil {
				at[i] = append(at[i], float64(e.At))
			}
		}
	}
	for i, edge := range edges {
		e, n := edge(f), float64(len(at[i]))
		if e == nil || n < 2 {
			continue
		}
		_, variance := stat.MeanVariance(at[i], nil)
		// Delete-a-group: (n-1)/n of the sum of squares.
		half := time.Duration(student * math.Sqrt((n-1)/n*(n-1)*variance))
		e.Low, e.High = min(e.Low, e.At-half), max(e.High, e.At+half)
	}
}

// fit gives the window relative to the earliest (5 %) of the upstream's closes;
// nil without a shot.
func (s *shape) fit(c spec.Cell, jitter time.Duration, closes *sample) *Fit {
	if s.counts == nil {
		return nil
	}
	s.end(c, closes)
	// From the earliest closes on the danger is there; the others of a timer that
	// nobody wakes are late by chance, differently in each run.
	closed := closes.quantile(0.05)
	spread := closes.quantile(0.5) - closed
	f := s.counts.Fit()
	s.jackknife(&f)
	if s.leftOut > 0 {
		f.Why = strings.TrimPrefix(fmt.Sprintf("%s; %s left out, the upstream's own timer was late", f.Why, plural(s.leftOut, "request")), "; ")
	}
	shift := closed - c.UpstreamIdle
	estimate := func(e *window.Estimate, by time.Duration) *Estimate {
		if e == nil {
			return nil
		}
		e.At, e.Low, e.High = e.At-by, e.Low-by, e.High-by
		return &Estimate{Duration(e.At), Duration(e.Low), Duration(e.High)}
	}
	out := &Fit{Lower: estimate(f.Lower, shift), Upper: estimate(f.Upper, shift), Width: estimate(f.Width, 0),
		Plateau: f.Plateau, Method: string(f.Method), Shots: f.Shots, Stale: f.Stale, Why: f.Why, Curve: []Bin{}}
	law := window.Law{RTT: c.RTT, Uncertainty: edgeError + jitter + spread}.Compare(f)
	out.Law, out.Holds = law.Text, law.Holds
	for _, b := range s.counts.Curve(binShots) {
		out.Curve = append(out.Curve, Bin{Duration(b.From - shift), Duration(b.To - shift), b.Shots, b.Stale, Interval{b.Rate.Low, b.Rate.High}})
	}
	return out
}

// Margin is what kept clear of the race for one proxy and kind of request, at
// one round trip, over all pairs of timeouts that were tried.
type Margin struct {
	Proxy   string     `json:"proxy"`
	Version string     `json:"version"`
	Runtime string     `json:"runtime"`
	Method  string     `json:"method"`
	Retry   spec.Retry `json:"retry"`
	Close   spec.Close `json:"close"`
	RTT     string     `json:"rtt"`
	// Least is the smallest difference, upstream idle minus proxy idle, at which
	// and above which no aimed request met a closed connection; null: none.
	Least      *Duration `json:"least"`
	Shots      int       `json:"shots"`      // aimed, at Least and above
	Bound      float64   `json:"bound"`      // 95 % upper bound of their rate of stale reuse
	Failed     *Duration `json:"failed"`     // the largest difference that met one; null: none
	Violations []string  `json:"violations"` // differences that failed though a smaller one held
	Text       string    `json:"text"`       // in one sentence
}

// nearMargin is up to where pairs are a study of the margin: a grid of seconds
// says nothing about milliseconds.
const nearMargin = 200 * time.Millisecond

// margins judges the cells' differences. Groups with less than three small ones
// make no study and are left out; so are cells that were held up or broke.
func margins(cells []Verdict) []Margin {
	type group struct {
		proxy, version, runtime, method string
		retry                           spec.Retry
		close                           spec.Close
	}
	settings := map[group][]window.Setting{}
	var order []group
	for _, v := range cells {
		c, err := v.Cell()
		if err != nil || c.ProxyIdle == spec.Off || v.State != spec.Races && v.State != spec.Masked && v.State != spec.Safe &&
			(v.State != spec.Inconclusive || v.Late+v.Failures > 0) {
			continue
		}
		g := group{v.Proxy, v.Version, v.Runtime, v.Method, v.Retry, v.Close}
		if settings[g] == nil {
			order = append(order, g)
		}
		settings[g] = append(settings[g], window.Setting{Margin: c.UpstreamIdle - time.Duration(c.ProxyIdle), RTT: c.RTT,
			Count: window.Count{Shots: v.AimedShots, Stale: min(max(v.Late, v.Attributed), v.AimedShots)}})
	}
	out := []Margin{}
	for _, g := range order {
		small := map[time.Duration]bool{}
		for _, s := range settings[g] {
			if s.Margin.Abs() <= nearMargin {
				small[s.Margin] = true
			}
		}
		if len(small) < 3 {
			continue
		}
		for _, m := range window.Margins(settings[g]) {
			out = append(out, Margin{g.proxy, g.version, g.runtime, g.method, g.retry, g.close, spec.FormatDuration(m.RTT),
				(*Duration)(m.Min), m.Held, m.Bound, (*Duration)(m.Failed), append([]string{}, m.Violations...), m.Text})
		}
	}
	return out
}
