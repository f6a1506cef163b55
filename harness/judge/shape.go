package judge

import (
	"cmp"
	"maps"
	"math"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat"

	"idlerace/harness/judge/window"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Fit is the danger window as all shots of a cell show it, in ages at the
// proxy relative to the upstream's close of the very connection. An edge that the shots do not bound is null, and Why names it.
type Fit struct {
	Lower *Estimate `json:"lower"`
	Upper *Estimate `json:"upper"`
	Width *Estimate `json:"width"`
	// ClientLower is the lower edge by the client's own ages, which know nothing
	// of the round trip. They lack the way from client to proxy as well: what a
	// burst takes to get through it.
	ClientLower *Estimate `json:"client_lower"`
	Plateau     float64   `json:"plateau"` // rate of stale reuse inside
	Method      string    `json:"method"`  // window.Method; empty: no fit
	Shots       int       `json:"shots"`
	Stale       int       `json:"stale"`
	Law         string    `json:"law"`   // the edges against the law, in one sentence
	Holds       *bool     `json:"holds"` // whether they agree; null where they say too little
	Why         string    `json:"why"`   // why there is no fit or no edge; may be empty
	Curve       []Bin     `json:"curve"`
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
// An age is the upstream's less the round trip, which is the proxy's, and stands
// against the very close of the connection that the request met. A request that
// came over a fresh connection met none: the proxy had noticed every close of
// the connections that idled, and the latest of these says how late that was at
// most. Connections are closed at moments of their own, so that an age against
// their usual close would tell how the upstream's timers scatter.
type shape struct {
	counts  *window.Histogram
	clients *window.Histogram   // the same by the client's ages, of what came over idle connections
	folds   []*window.Histogram // each without the bursts of one in ten
	ended   int                 // bursts counted
	offset  time.Duration       // upstream's age minus client's: the median of the latest burst that tells

	// Of the burst under way.
	burst  int
	points []point
	aimed  bool
	idle   map[uint64]bool // connections that the burst before left idle
	served map[uint64]bool // connections that served one of its requests
	closes map[uint64]shut // by connection, of those that are or were idle
}

type point struct {
	at     int64         // Unix time in ns at which it reached the upstream; 0: it was not seen there
	client time.Duration // age at the client
	server time.Duration // of the upstream's connection; 0: a fresh one, or not seen
	conns  []uint64      // all that it met, that one first
	stale  bool
	closed *shut // of that connection; nil: not known, or it was not
}

// shut is the close of an idle connection by the upstream.
type shut struct {
	at   int64         // Unix time in ns
	idle time.Duration // since when it had been idle
}

func (s *shape) close(e record.Event) {
	if s.closes == nil {
		s.closes = map[uint64]shut{}
	}
	s.closes[e.Conn] = shut{e.At, e.Idle}
}

// observe takes one request; closes are the upstream's so far.
func (s *shape) observe(o record.Observation, sub Subject, stale bool, closes *sample) {
	c := sub.Item.Cell
	if s.counts == nil {
		res := window.Resolution * max(1, c.RTT/(50*time.Millisecond))
		s.counts, s.clients = window.NewHistogram(res), window.NewHistogram(res)
		s.served, s.offset = map[uint64]bool{}, c.RTT
		for range folds {
			s.folds = append(s.folds, window.NewHistogram(res))
		}
	}
	if o.Shot.Burst != s.burst {
		s.end(sub, closes)
		s.burst = o.Shot.Burst
	}
	s.aimed = o.Shot.Phase == record.PhaseAimed && o.Shot.Target == record.TargetUpstream
	p := point{client: o.Shot.Age, stale: stale}
	switch {
	case len(o.Late) > 0:
		p.at, p.server = o.Late[0].At, o.Late[0].Idle
	case len(o.Requests) > 0:
		p.at, p.server = o.Requests[0].At, o.Requests[0].Idle
	}
	for _, e := range slices.Concat(o.Late, o.Requests) {
		p.conns = append(p.conns, e.Conn)
	}
	for _, e := range o.Before {
		if e.IdleClosed() {
			p.closed = &shut{e.At, e.Idle}
		}
	}
	s.points = append(s.points, p)
	for _, e := range o.Requests {
		s.served[e.Conn] = true
	}
}

// end counts the burst under way.
func (s *shape) end(sub Subject, closes *sample) {
	rtt := sub.Item.Cell.RTT
	idle, points := s.idle, s.points
	defer func() {
		s.idle, s.served, s.points = s.served, map[uint64]bool{}, s.points[:0]
		maps.DeleteFunc(s.closes, func(conn uint64, _ shut) bool { return !s.idle[conn] })
	}()
	if !s.aimed {
		return
	}
	// What the client does not know of a connection's age, for requests that the
	// upstream never saw.
	var offsets []time.Duration
	for _, p := range points {
		if p.server > p.client/2 {
			offsets = append(offsets, p.server-p.client)
		}
	}
	if 2*len(offsets) > len(points) { // a few may be the ones that are unlike the others
		s.offset = median(offsets)
	}
	slices.SortStableFunc(points, func(a, b point) int { return cmp.Compare(a.at, b.at) })
	typical := closes.quantile(0.5)
	for _, p := range points {
		var rel time.Duration
		closed := typical
		if p.closed != nil {
			closed = p.closed.idle
		}
		switch {
		case p.stale && p.server > 0:
			rel = p.server - closed
		case p.stale:
			rel = p.client + s.offset - closed
		case len(p.conns) > 0 && idle[p.conns[0]]: // not closed yet, so its close was still to come
			rel = min(p.server-typical, -1)
		case p.server > 0:
			continue // given back within the burst: it was not idle
		default:
			last := s.latest(idle)
			if last == 0 || p.at == 0 {
				continue // the pool was empty, or all closes were the proxy's
			}
			rel = time.Duration(p.at - last)
			if sub.Link.Netem {
				rel -= rtt // which the proxy spent on the connection; the relay's take no time
			}
		}
		if p.client > 0 && p.server > 0 {
			s.clients.Add(window.Point{Rel: p.client - closed, Stale: p.stale})
		}
		for _, conn := range p.conns {
			delete(idle, conn)
		}
		pt := window.Point{Rel: rel - rtt, Stale: p.stale}
		s.counts.Add(pt)
		for i, f := range s.folds {
			if i != s.ended%folds {
				f.Add(pt)
			}
		}
	}
	s.ended++
}

// latest is when the last of these connections was closed; 0: none was.
func (s *shape) latest(conns map[uint64]bool) (at int64) {
	for conn := range conns {
		at = max(at, s.closes[conn].at)
	}
	return at
}

// median of what is not empty; it sorts.
func median[T cmp.Ordered](s []T) T {
	slices.Sort(s)
	return s[len(s)/2]
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

// fit gives the window relative to the upstream's closes; nil without a shot.
func (s *shape) fit(sub Subject, closes *sample) *Fit {
	if s.counts == nil {
		return nil
	}
	s.end(sub, closes)
	f := s.counts.Fit()
	s.jackknife(&f)
	estimate := func(e *window.Estimate) *Estimate {
		if e == nil {
			return nil
		}
		return &Estimate{Duration(e.At), Duration(e.Low), Duration(e.High)}
	}
	out := &Fit{Lower: estimate(f.Lower), Upper: estimate(f.Upper), Width: estimate(f.Width),
		ClientLower: estimate(s.clients.Fit().Lower), Plateau: f.Plateau, Method: string(f.Method), Shots: f.Shots, Stale: f.Stale, Why: f.Why, Curve: []Bin{}}
	rtt := sub.Item.Cell.RTT
	law := window.Law{RTT: rtt, Uncertainty: edgeError + sub.RTT - rtt}.Compare(f)
	out.Law, out.Holds = law.Text, law.Holds
	for _, b := range s.counts.Curve(binShots) {
		out.Curve = append(out.Curve, Bin{Duration(b.From), Duration(b.To), b.Shots, b.Stale, Interval{b.Rate.Low, b.Rate.High}})
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
		stale := max(v.Late, v.Attributed) // more than the aimed ones where the first shots met the race, before any was aimed
		settings[g] = append(settings[g], window.Setting{Margin: c.UpstreamIdle - time.Duration(c.ProxyIdle), RTT: c.RTT,
			Count: window.Count{Shots: max(v.AimedShots, stale), Stale: stale}})
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
