package report

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/wire"
)

// The three parties of a request, the value of Step.Who.
const (
	WhoClient   = "client"
	WhoProxy    = "proxy"
	WhoUpstream = "upstream"
)

// Timeline is what happened to one request, as its witnesses told it.
type Timeline struct {
	Shot     record.Shot
	Before   *record.Event // the 'idle' event that began the idle period the shot ended; nil when not known
	Closed   *record.Event // the close by the upstream's idle timer; nil when there was none
	Steps    []Step        // in order of time; a proxy's log line, which has none, stands before the client's result
	Late     int           // arrivals on connections that the idle timer had closed
	Executed int           // times the upstream ran the request
	Logs     []string      // texts of the proxy's log
	Orders   []wire.Order  // how the request and the close met on the wire, of each connection with packets
}

// Step is one thing that one party did.
type Step struct {
	At   int64  // Unix time in ns; 0: not known
	Who  string // WhoClient, WhoProxy or WhoUpstream
	Conn uint64 // the upstream's number of the connection; 0: none
	Text string

	from    string // whom it came from, as a message; "": nobody
	to      string // whom it goes to, likewise
	lost    bool   // it is what went wrong
	arrival bool   // of the request at the upstream
	carries bool   // a packet with bytes of the request
}

// NewTimeline puts an observation in order. before may hold further events of
// the origin's journal from around the shot, of any connection: they tell how
// an idle connection ended that this request therefore could not meet.
func NewTimeline(obs record.Observation, before []record.Event) Timeline {
	tl := Timeline{Shot: obs.Shot, Late: len(obs.Late)}
	s := obs.Shot
	answered := s.Sent + int64(s.Latency)

	for _, e := range history(obs, before) {
		if e.At > answered {
			continue // its idle timer went on: another story
		}
		switch {
		case e.Kind == record.EventIdle:
			if tl.Before == nil {
				tl.Before = &e
			}
			tl.add(e.At, e.Conn, "idle from here on")
		case e.IdleClosed():
			if tl.Closed == nil {
				tl.Closed = &e
			}
			tl.add(e.At, e.Conn, "idle timer fires after "+precise(e.Idle)+", closes")
			if !captured(obs, e.Conn) { // else its FIN is a step of its own
				tl.Steps[len(tl.Steps)-1].to = WhoProxy
			}
		case e.Kind == record.EventClose && e.By == record.ByPeer:
			tl.Steps = append(tl.Steps, Step{At: e.At, Who: WhoProxy, Conn: e.Conn, Text: "closes it, idle for " + precise(e.Idle), to: WhoUpstream})
		case e.Kind == record.EventClose:
			tl.add(e.At, e.Conn, "closes: "+cmp.Or(e.Why, e.Err, "reason not recorded"))
		}
	}
	for _, e := range obs.Late {
		text := "the request arrives too late; not executed"
		if tl.Closed != nil && tl.Closed.Conn == e.Conn {
			text = fmt.Sprintf("the request arrives %s too late; not executed", precise(time.Duration(e.At-tl.Closed.At)))
		}
		tl.arrive(obs, e, text)
		tl.Steps[len(tl.Steps)-1].lost = true
	}
	for _, e := range obs.Requests {
		text := "reads the request, does not execute it"
		if e.Executed {
			tl.Executed++
			text = "executes the request"
		}
		if e.Nth == 1 {
			text = "new connection; " + text
		}
		tl.arrive(obs, e, text)
	}
	for _, p := range obs.Packets {
		tl.packets(p)
	}
	sent := "sends the request on a new connection"
	if s.Age > 0 {
		sent = "sends the request at an age of " + precise(s.Age)
	}
	tl.Steps = append(tl.Steps, Step{At: s.Sent, Who: WhoClient, Text: sent, to: WhoProxy})
	slices.SortStableFunc(tl.Steps, func(a, b Step) int { return cmp.Compare(a.At, b.At) })

	// A half-closing upstream may read the late request after the client's failure.
	result := Step{At: answered, Who: WhoClient, from: WhoProxy, Text: outcome(s), lost: s.Failed()}
	at, _ := slices.BinarySearchFunc(tl.Steps, answered+1, func(s Step, at int64) int { return cmp.Compare(s.At, at) })
	tl.Steps = slices.Insert(tl.Steps, at, result)
	tl.addLogs(obs, at)
	return tl
}

// history is the past of the connections that the request used or, where they
// have none, of the one that last went idle before the lane's gap: the proxy's
// best candidate.
func history(obs record.Observation, before []record.Event) []record.Event {
	out := slices.Clone(obs.Before)
	mine := map[uint64]bool{}
	for _, list := range [][]record.Event{obs.Before, obs.Late, obs.Requests} {
		for _, e := range list {
			mine[e.Conn] = true
		}
	}
	past := func(e record.Event) bool {
		return (e.Kind == record.EventIdle || e.Kind == record.EventClose) && e.At <= obs.Shot.Sent+int64(obs.Shot.Latency)
	}
	for _, e := range before {
		if mine[e.Conn] && past(e) && !slices.ContainsFunc(out, func(o record.Event) bool { return o.At == e.At && o.Conn == e.Conn && o.Kind == e.Kind }) {
			out = append(out, e)
		}
	}
	if len(out) > 0 {
		return lastPeriod(out)
	}
	began := obs.Shot.Sent - int64(obs.Shot.Age)
	var candidate *record.Event
	for i, e := range before {
		if e.Kind == record.EventIdle && past(e) &&
			(candidate == nil || distance(e.At, began) < distance(candidate.At, began)) {
			candidate = &before[i]
		}
	}
	if candidate == nil {
		return nil
	}
	for _, e := range before {
		if e.Conn == candidate.Conn && past(e) && e.At >= candidate.At {
			out = append(out, e)
		}
	}
	return lastPeriod(out)
}

// lastPeriod keeps of each connection its last idle period.
func lastPeriod(events []record.Event) []record.Event {
	slices.SortStableFunc(events, func(a, b record.Event) int { return cmp.Compare(a.At, b.At) })
	begin := map[uint64]int64{}
	for _, e := range events {
		if e.Kind == record.EventIdle {
			begin[e.Conn] = e.At
		}
	}
	return slices.DeleteFunc(events, func(e record.Event) bool { return e.At < begin[e.Conn] })
}

// quiet is how long before the end of a connection's silence its packets are
// told: the last response is among them.
const quiet = 5 * time.Millisecond

// packets adds what passed on a connection that the request met too late, from
// the last response on.
func (tl *Timeline) packets(p record.Packets) {
	tl.Orders = append(tl.Orders, wire.Order(p.Order))
	var list []wire.Packet
	if json.Unmarshal(p.List, &list) != nil {
		return // the order stands without them
	}
	var from int64
	if tl.Before != nil {
		from = tl.Before.At - int64(quiet)
	}
	for _, k := range list {
		if k.At < from {
			continue
		}
		who, to := WhoUpstream, WhoProxy
		if k.FromPeer {
			who, to = to, who
		}
		tl.Steps = append(tl.Steps, Step{At: k.At, Who: who, Conn: p.Conn, Text: packet(k), to: to, carries: k.FromPeer && k.Len > 0})
	}
}

// captured reports whether packets of a connection are among an observation's.
func captured(obs record.Observation, conn uint64) bool {
	return slices.ContainsFunc(obs.Packets, func(p record.Packets) bool { return p.Conn == conn })
}

// packet is a packet in a few words: "> FIN,ACK", "> 312 bytes, request 17".
func packet(p wire.Packet) string {
	if p.Len == 0 {
		return "> " + p.Flags.String()
	}
	text := fmt.Sprintf("> %d bytes", p.Len)
	if p.Flags&(wire.FIN|wire.RST) != 0 {
		text += ", " + p.Flags.String()
	}
	if _, seq, ok := p.RequestID(); ok {
		text += fmt.Sprintf(", request %d", seq)
	}
	return text
}

func distance(a, b int64) int64 { return max(a-b, b-a) }

func (tl *Timeline) add(at int64, conn uint64, text string) {
	tl.Steps = append(tl.Steps, Step{At: at, Who: WhoUpstream, Conn: conn, Text: text})
}

// arrive adds an arrival of the request at the upstream: the message itself,
// where no packet of it is known.
func (tl *Timeline) arrive(obs record.Observation, e record.Event, text string) {
	s := Step{At: e.At, Who: WhoUpstream, Conn: e.Conn, Text: text, arrival: true}
	if !captured(obs, e.Conn) {
		s.from = WhoProxy
	}
	tl.Steps = append(tl.Steps, s)
}

// addLogs adds what the proxy's log says. It gives no times, but each attempt
// must precede the arrival that it caused; the rest stands before Steps[result],
// the client's result.
func (tl *Timeline) addLogs(obs record.Observation, result int) {
	conns := map[string]uint64{} // by the proxy's own address
	for _, list := range [][]record.Event{obs.Before, obs.Late, obs.Requests} {
		for _, e := range list {
			conns[e.Peer] = e.Conn
		}
	}
	var attempts [][2]Step // going out, coming to nothing
	var noted, answered []Step
	for _, l := range obs.Logs {
		tl.log(l.Text)
		for _, a := range l.Attempts {
			text := "sends it on"
			if len(attempts) > 0 {
				text = "sends it again"
			}
			if a.Reused {
				text += ", pooled connection"
			}
			var conn uint64
			if a.Local != "" {
				conn = conns[a.Local]
			}
			out := [2]Step{{Who: WhoProxy, Conn: conn, Text: text}}
			switch {
			case len(a.Err) > 40:
				tl.log(a.Err)
				out[1] = Step{Who: WhoProxy, Conn: conn, Text: "error, see log"}
			case a.Err != "":
				out[1] = Step{Who: WhoProxy, Conn: conn, Text: "error: " + a.Err}
			case a.Status == 0:
				out[1] = Step{Who: WhoProxy, Conn: conn, Text: "gets no answer"}
			case a.Status >= 500:
				out[1] = Step{Who: WhoProxy, Conn: conn, Text: fmt.Sprintf("counts it as %d", a.Status)}
			}
			attempts = append(attempts, out)
		}
		if l.Cause != "" && len(l.Attempts) == 0 {
			noted = append(noted, Step{Who: WhoProxy, Text: "logs " + string(l.Cause)})
		}
		if l.Status > 0 {
			answered = append(answered, Step{Who: WhoProxy, Text: fmt.Sprintf("answers %d", l.Status)})
		}
	}
	rest := append(noted, answered...)

	// Attempts and arrivals pair up in order, unless one of them went unseen.
	paired := 0
	for _, s := range tl.Steps[:result] {
		if s.arrival {
			paired++
		}
	}
	if paired != len(attempts) {
		var steps []Step
		for _, a := range attempts {
			steps = append(steps, a[0])
			if a[1].Text != "" {
				steps = append(steps, a[1])
			}
		}
		tl.Steps = slices.Insert(tl.Steps, result, append(steps, rest...)...)
		return
	}
	var steps []Step
	for _, s := range tl.Steps[:result] {
		if !s.arrival {
			steps = append(steps, s)
			continue
		}
		// The packet that brought it, if captured, left after the attempt began.
		at := len(steps)
		for i, p := range steps {
			if p.carries && p.Conn == s.Conn {
				at = i
				break
			}
		}
		steps = append(slices.Insert(steps, at, attempts[0][0]), s)
		if failed := attempts[0][1]; failed.Text != "" {
			steps = append(steps, failed)
		}
		attempts = attempts[1:]
	}
	tl.Steps = slices.Concat(steps, rest, tl.Steps[result:])
}

// log notes a text of the proxy's log, once.
func (tl *Timeline) log(text string) {
	if text != "" && !slices.Contains(tl.Logs, text) {
		tl.Logs = append(tl.Logs, text)
	}
}

func outcome(s record.Shot) string {
	switch s.Outcome {
	case record.OutcomeResponse:
		return fmt.Sprintf("gets %d after %s", s.Status, precise(s.Latency))
	case record.OutcomeClosed:
		return "connection closed without a response"
	case record.OutcomeReset:
		return "connection reset without a response"
	case record.OutcomePartial:
		return "response breaks off"
	case record.OutcomeRefused:
		return "cannot connect to the proxy"
	case record.OutcomeTimeout:
		return "no response within " + precise(s.Latency)
	}
	return "fails on its own side: " + cmp.Or(s.Err, string(s.Outcome))
}

// Explain tells one request of a cell step by step, with times relative to the
// upstream's idle close, or to the shot where the upstream did not close.
func Explain(w io.Writer, v judge.Verdict, tl Timeline, o Options) error {
	p := newPage(o)
	p.text(0, p.strong, plain(v.ID)+": "+plain(mark(&v)))
	p.text(2, p.normal, plain(v.Why))
	p.line("")
	s := tl.Shot
	zero, event := tl.zero()
	p.text(0, p.normal, fmt.Sprintf("%s request %d of lane %d, burst %d (%s). Time 0 is %s, %s.",
		plain(v.Method), s.Seq, s.Lane, s.Burst, plain(string(s.Phase)), event, clock(zero)))
	p.line("")
	p.steps(tl.Steps, zero)
	if len(tl.Logs) > 0 {
		p.line("")
		for _, text := range tl.Logs {
			p.hang(0, len("proxy log: "), "proxy log:", p.faint, plain(text))
		}
	}
	for _, o := range tl.Orders {
		p.line("")
		p.hang(0, len("On the wire: "), p.strong.Render("On the wire:"), p.normal, fmt.Sprintf("%s. %s", o, o.Explain()))
	}
	p.line("")
	p.hang(0, len("Executed: "), p.strong.Render("Executed:"), p.normal, executed(v, tl))
	_, err := w.Write(p.Bytes())
	return err
}

// steps prints a column per party, time running down.
func (p *page) steps(steps []Step, zero int64) {
	parties := []string{WhoClient, WhoProxy, WhoUpstream}
	const gap, clockWidth = 2, 9
	free := p.width - clockWidth - len(parties)*gap
	columns := []int{free * 3 / 10, free * 3 / 10, free * 4 / 10} // the upstream has most to say
	widths := []int{clockWidth + gap, columns[0] + gap, columns[1] + gap, columns[2]}
	header := append([]string{fmt.Sprintf("%*s", clockWidth, "time")}, parties...)
	var rows [][]string
	var last int64
	for _, s := range steps {
		if s.At > 0 {
			if last > 0 {
				rows = append(rows, pause(time.Duration(s.At-last), clockWidth, len(parties))...)
			}
			last = s.At
		}
		row := make([]string, 1+len(parties))
		row[0] = fmt.Sprintf("%*s", clockWidth, relative(s.At, zero))
		text := plain(s.Text)
		if s.Conn != 0 {
			text = fmt.Sprintf("conn %d: %s", s.Conn&(1<<record.ConnBits-1), text)
		}
		party := max(slices.Index(parties, s.Who), 0)
		row[1+party] = strings.Join(wrap(text, columns[party]), "\n")
		rows = append(rows, row)
	}
	p.grid(widths, header, rows)
}

// pause draws the time between two steps to a logarithmic scale: from 1 ms on, a
// dot for each power of ten, so that a second is four lines high.
func pause(d time.Duration, width, parties int) (rows [][]string) {
	for unit := time.Millisecond; d >= unit && len(rows) < 6; unit *= 10 {
		row := make([]string, 1+parties)
		row[0] = fmt.Sprintf("%*s", width, "·")
		rows = append(rows, row)
	}
	if len(rows) > 0 {
		rows[len(rows)/2][1] = precise(d)
	}
	return rows
}

// relative is an instant as seen from zero: "+312µs", "-1.0004s".
func relative(at, zero int64) string {
	if at == 0 {
		return "(log)"
	}
	d := time.Duration(at - zero)
	switch {
	case d == 0:
		return "0"
	case d > 0:
		return "+" + precise(d)
	}
	return precise(d)
}

// executed says whether the upstream ran the request, and what that makes of
// sending it again.
func executed(v judge.Verdict, tl Timeline) string {
	failed := tl.Shot.Failed()
	switch {
	case tl.Executed > 1:
		times := "twice"
		if tl.Executed > 2 {
			times = fmt.Sprintf("%d times", tl.Executed)
		}
		s := times + ". The proxy sent again what the upstream had already run."
		if !idempotent(v.Method) {
			s += fmt.Sprintf(" For a %s that is a duplicate: turn this retry off, or make the upstream recognise repeats.", plain(v.Method))
		}
		return s
	case tl.Executed == 1 && failed:
		s := "yes, although the client saw a failure."
		if idempotent(v.Method) {
			return s + fmt.Sprintf(" Sending the %s again is safe only because it is idempotent.", plain(v.Method))
		}
		return s + fmt.Sprintf(" Sending the %s again would run it twice.", plain(v.Method))
	case tl.Executed == 1 && tl.Late > 0:
		return "yes, once. The upstream never ran the copy that met the closed connection, so the proxy's retry was safe and hid the race from the client."
	case tl.Executed == 1:
		return "yes, once, on a connection the upstream had not closed. There was nothing to retry."
	case !failed:
		return "no. The client has an answer that the upstream's journal does not know of."
	case tl.Late > 0:
		s := "no. The upstream never ran it, so sending it again would have been safe"
		if idempotent(v.Method) {
			return s + "."
		}
		return s + fmt.Sprintf(", %s or not. The proxy could not tell: to it, a connection that ends without a response looks the same when the request did run.", plain(v.Method))
	case v.Close == spec.ClosePlain || v.Close == spec.CloseRST:
		return "no, as far as the journal says. This close style leaves no socket to read a late request from; the missing execution is the evidence that sending it again would have been safe."
	}
	return "no. The upstream's journal has no trace of the request, so sending it again would have been safe."
}

// idempotent is RFC 9110, section 9.2.2.
func idempotent(method string) bool {
	return method != "POST" && method != "PATCH"
}
