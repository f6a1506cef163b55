package report

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/wire"
)

// second is the instant at which the upstream's idle timer fires in these
// stories.
var second = time.Date(2026, 3, 4, 5, 6, 8, 0, time.UTC).UnixNano()

func at(d time.Duration) int64 { return second + int64(d) }

func µs(n int) time.Duration { return time.Duration(n) * time.Microsecond }

// idleClosed is the past of connection 17: idle for 1.0003s, then closed by the
// upstream.
func idleClosed() []record.Event {
	return []record.Event{
		{At: at(-1000300 * time.Microsecond), N: 900, Conn: 17, Kind: record.EventIdle, Peer: "127.0.0.1:40112"},
		{At: at(0), N: 1000, Conn: 17, Kind: record.EventClose, Peer: "127.0.0.1:40112", Idle: 1000300 * time.Microsecond, By: record.ByUpstream, Why: record.WhyIdleTimeout},
	}
}

func lateOn17() []record.Event {
	return []record.Event{{At: at(µs(312)), N: 1001, Conn: 17, Kind: record.EventLate, Peer: "127.0.0.1:40112", Idle: 1000612 * time.Microsecond, Cell: "c", Seq: 4711}}
}

func shot(status int, o record.Outcome, latency time.Duration) record.Shot {
	return record.Shot{Cell: "c", Seq: 4711, Lane: 3, Burst: 12, Phase: record.PhaseAimed, Planned: time.Second, Age: 1000215 * time.Microsecond,
		Sent: at(µs(85)), Latency: latency, Status: status, Outcome: o}
}

type story struct {
	verdict judge.Verdict
	obs     record.Observation
	before  []record.Event
	closing string // must be in the last lines
}

func packetList(packets ...wire.Packet) json.RawMessage {
	for i := range packets { // the headers that a list of packets must have
		raw := make([]byte, 40)
		raw[0], raw[3], raw[9], raw[32] = 0x45, 40, 6, 5<<4
		packets[i].Raw = raw
	}
	b, err := json.Marshal(packets)
	if err != nil {
		panic(err)
	}
	return b
}

func stories() map[string]story {
	raced := probed("nginx", "1.26.3", spec.Idle(2*time.Second), time.Second, "POST")
	masked := probed("gohttp", "go1.26.8", spec.Idle(2*time.Second), time.Second, "GET")
	safe := probed("nginx", "1.26.3", spec.Idle(500*time.Millisecond), time.Second, "POST")
	plainClose := probed("haproxy", "3.2.1", spec.Idle(2*time.Second), time.Second, "POST")
	plainClose.Close = spec.ClosePlain

	served := func(conn uint64, nth int, d time.Duration) record.Event {
		return record.Event{At: at(d), Conn: conn, Kind: record.EventRequest, Peer: "127.0.0.1:40200", Cell: "c", Seq: 4711, Nth: nth, Executed: true}
	}
	return map[string]story{
		"post-raced": {
			verdict: raced,
			obs: record.Observation{
				Shot: shot(502, record.OutcomeResponse, µs(455)), Late: lateOn17(), Before: idleClosed(),
				Logs: []record.LogLine{
					{Cell: "c", Seq: 4711, Cause: record.CauseClosedEarly, Text: "upstream prematurely closed connection while reading response header from upstream"},
					{Cell: "c", Seq: 4711, Status: 502, Attempts: []record.Attempt{{Upstream: "127.0.0.1:9001", Status: 502}}},
				},
			},
			before:  idleClosed(), // as a caller that passes the whole journal would
			closing: "Executed: no. The upstream never ran it, so sending it again would have been safe, POST or not.",
		},
		"get-masked": {
			verdict: masked,
			obs: record.Observation{
				Shot: shot(200, record.OutcomeResponse, µs(1130)), Late: lateOn17(), Before: idleClosed(),
				Requests: []record.Event{served(21, 1, µs(893))},
				Logs: []record.LogLine{{Cell: "c", Seq: 4711, Status: 200, Attempts: []record.Attempt{
					{Upstream: "127.0.0.1:9001", Local: "127.0.0.1:40112", Reused: true},
					{Upstream: "127.0.0.1:9001", Local: "127.0.0.1:40200", Status: 200},
				}}},
			},
			closing: "Executed: yes, once. The upstream never ran the copy",
		},
		"proxy-first": {
			verdict: safe,
			obs: record.Observation{
				Shot:     shot(200, record.OutcomeResponse, µs(810)),
				Requests: []record.Event{served(33, 1, µs(402))},
				Logs:     []record.LogLine{{Cell: "c", Seq: 4711, Status: 200, Attempts: []record.Attempt{{Upstream: "127.0.0.1:9001", Status: 200}}}},
			},
			before: []record.Event{
				{At: at(-2500 * time.Millisecond), Conn: 12, Kind: record.EventIdle},
				{At: at(-1001000 * time.Microsecond), Conn: 11, Kind: record.EventIdle},
				{At: at(-1000100 * time.Microsecond), Conn: 12, Kind: record.EventIdle},
				{At: at(-500600 * time.Microsecond), Conn: 11, Kind: record.EventClose, By: record.ByPeer, Why: record.WhyPeerClosed, Idle: 500400 * time.Microsecond},
				{At: at(-499688 * time.Microsecond), Conn: 12, Kind: record.EventClose, By: record.ByPeer, Why: record.WhyPeerClosed, Idle: 500412 * time.Microsecond},
				{At: at(5 * time.Second), Conn: 33, Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyIdleTimeout, Idle: time.Second},
			},
			closing: "Executed: yes, once, on a connection the upstream had not closed.",
		},
		"plain-close": {
			verdict: plainClose,
			obs: record.Observation{
				Shot: shot(0, record.OutcomeClosed, µs(390)), Before: idleClosed(),
				Logs: []record.LogLine{{Cell: "c", Seq: 4711, Attempts: []record.Attempt{{Local: "127.0.0.1:40112", Err: "read tcp 127.0.0.1:40112->127.0.0.1:9001: read: connection reset by peer \x1b[2J"}}}},
			},
			closing: "Executed: no, as far as the journal says.",
		},
		"packets": {
			verdict: raced,
			obs: record.Observation{
				Shot: shot(502, record.OutcomeResponse, µs(455)), Late: lateOn17(), Before: idleClosed(),
				Packets: []record.Packets{{Cell: "c", Seq: 4711, Conn: 17, Order: string(wire.Unnoticed), List: packetList(
					wire.Packet{At: at(-3 * time.Second), FromPeer: true, Len: 300, Flags: wire.ACK | wire.PSH}, // of an idle period before
					wire.Packet{At: at(-1000350 * time.Microsecond), Len: 142, Flags: wire.ACK | wire.PSH},
					wire.Packet{At: at(µs(4)), Flags: wire.FIN | wire.ACK},
					wire.Packet{At: at(µs(20)), FromPeer: true, Flags: wire.ACK},
					wire.Packet{At: at(µs(300)), FromPeer: true, Len: 235, Flags: wire.ACK | wire.PSH},
					wire.Packet{At: at(µs(320)), Flags: wire.RST},
				)}},
				Logs: []record.LogLine{{Cell: "c", Seq: 4711, Status: 502, Attempts: []record.Attempt{{Upstream: "127.0.0.1:9001", Status: 502}}}},
			},
			closing: "On the wire: FIN delivered, not noticed.",
		},
		"damaged-packets": {
			verdict: raced,
			obs: record.Observation{Shot: shot(502, record.OutcomeResponse, µs(455)), Late: lateOn17(), Before: idleClosed(),
				Packets: []record.Packets{{Cell: "c", Seq: 4711, Conn: 17, Order: string(wire.Crossing), List: json.RawMessage(`{"at":`)}}},
			closing: "On the wire: crossing.",
		},
		"twice": {
			verdict: raced,
			obs: record.Observation{
				Shot: shot(200, record.OutcomeResponse, µs(1130)), Requests: []record.Event{served(20, 4, µs(300)), served(21, 1, µs(893))},
			},
			closing: "Executed: twice. The proxy",
		},
	}
}

func TestExplainGolden(t *testing.T) {
	for name, s := range stories() {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := Explain(&b, s.verdict, NewTimeline(s.obs, s.before), Options{}); err != nil {
				t.Fatal(err)
			}
			checkWidth(t, b.String(), 80)
			if got := strings.Join(strings.Fields(b.String()), " "); !strings.Contains(got, s.closing) {
				t.Errorf("%q is not in\n%s", s.closing, b.String())
			}
			checkGolden(t, "explain-"+name+".txt", b.String())
		})
	}
}

func TestExplainFits(t *testing.T) {
	for name, s := range stories() {
		for _, width := range []int{40, 60, 132} {
			var b bytes.Buffer
			defile(&s.verdict, nasty)
			s.obs.Logs = append(s.obs.Logs, record.LogLine{Text: strings.Repeat("x", 300), Cause: record.Cause(nasty)})
			if err := Explain(&b, s.verdict, NewTimeline(s.obs, s.before), Options{Width: width}); err != nil {
				t.Fatal(err)
			}
			checkWidth(t, b.String(), width)
			if strings.ContainsAny(b.String(), "\x1b\a\x7f") {
				t.Errorf("%s: a control character is printed", name)
			}
		}
	}
	if err := Explain(broken{}, judge.Verdict{}, Timeline{}, Options{}); !errors.Is(err, errClosed) {
		t.Error(err)
	}
}

func TestTimeline(t *testing.T) {
	s := stories()["get-masked"]
	tl := NewTimeline(s.obs, nil)
	if tl.Before == nil || tl.Before.Conn != 17 || tl.Closed == nil || tl.Closed.At != second || tl.Late != 1 || tl.Executed != 1 {
		t.Errorf("%+v", tl)
	}
	var order []string
	for _, step := range tl.Steps {
		order = append(order, step.Who)
	}
	want := "upstream upstream client proxy upstream proxy proxy upstream proxy client"
	if got := strings.Join(order, " "); got != want {
		t.Errorf("order %s, want %s", got, want)
	}

	s = stories()["proxy-first"]
	tl = NewTimeline(s.obs, s.before)
	if tl.Before == nil || tl.Before.Conn != 12 || tl.Before.At != at(-1000100*time.Microsecond) || tl.Closed != nil {
		t.Errorf("%+v", tl)
	}
	// A caller with nothing but a client's statement still gets a story.
	if tl := NewTimeline(record.Observation{Shot: record.Shot{Sent: 1, Outcome: record.OutcomeTimeout}}, nil); len(tl.Steps) != 2 {
		t.Errorf("%+v", tl)
	}
}

func TestRelative(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 312400: "+312µs", -312400: "-312µs", 1234567: "+1.23ms", -1000412345: "-1.0004s", 83 * time.Second: "+1m23s", 900: "+900ns",
		-3599876 * time.Millisecond: "-59m59.9s", 99*time.Hour + 59*time.Minute + 1: "+99h59m",
	} {
		if got := relative(second+int64(d), second); got != want {
			t.Errorf("relative(%d) = %s, want %s", d, got, want)
		}
	}
}
