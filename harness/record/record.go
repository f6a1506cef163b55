// Package record is what the witnesses of a run said, as JSON lines, and the
// join of their statements by request id. It knows no socket, process or
// verdict; it must not import stack, load, proxy, judge or report.
package record

import (
	"encoding/json"
	"strings"
	"time"
)

// Request headers that client, proxies and origin agree on. The first two are
// vegeta's own and together the request id.
const (
	HeaderCell = "X-Vegeta-Attack" // id of the cell or control
	HeaderSeq  = "X-Vegeta-Seq"    // number of the request within the cell

	// HeaderHold has the origin answer a burst together: the requests of one
	// cell that arrive within the given time (a Go duration, at most a minute)
	// of the first are answered at its end. So all of them are in flight
	// together, each on an upstream connection of its own, and all these
	// connections go idle in the same moment. Without it a proxy serves a burst
	// of quick responses over a handful of connections, and there is little to
	// go stale.
	HeaderHold = "X-Idlerace-Hold"
)

// Kinds of line in observations.jsonl, the value of "t".
const (
	KindShot        = "shot"        // Shot: the client's statement
	KindEvent       = "event"       // Event: the origin's statement
	KindLog         = "log"         // LogLine: the proxy's statement
	KindDirect      = "direct"      // Direct: a close measured without a proxy
	KindPackets     = "packets"     // Packets: what the wire says of one late request
	KindSettled     = "settled"     // Settled: a burst of a cell is complete
	KindDisturbance = "disturbance" // Disturbance: it begins, or has ended
	KindEnd         = "end"         // End: the last line of a run that was not killed
)

// Outcome is how a shot ended as the client saw it.
type Outcome string

const (
	OutcomeResponse Outcome = "response" // a complete HTTP response, of any status
	OutcomeClosed   Outcome = "closed"   // the connection ended in order (FIN) without a response
	OutcomeReset    Outcome = "reset"    // the connection was reset before a response
	OutcomePartial  Outcome = "partial"  // a response began and did not end
	OutcomeNotHTTP  Outcome = "not-http" // an answer that is no HTTP
	OutcomeRefused  Outcome = "refused"  // no connection to the proxy could be made
	OutcomeTimeout  Outcome = "timeout"  // no response in time
	OutcomeClient   Outcome = "client"   // a fault on our own side (file descriptors, cancelled)
)

// Phase says what a burst was for.
type Phase string

const (
	PhaseWarm    Phase = "warm"    // opens the connections
	PhaseReuse   Phase = "reuse"   // a short gap: shows that the pool works and calibrates ages
	PhaseMeasure Phase = "measure" // after a long gap: both sides' timers had time to fire
	PhaseAimed   Phase = "aimed"   // gaps aimed at an edge
)

// Shot is one request after a gap, as the client saw it. The pair Cell, Seq is
// the request id (headers X-Vegeta-Attack and X-Vegeta-Seq).
type Shot struct {
	Cell    string        `json:"cell"`              // id of the cell or control
	Seq     uint64        `json:"seq"`               // vegeta's sequence number within the cell
	Lane    int           `json:"lane"`              // client connection
	Burst   int           `json:"burst"`             // 0-based
	Phase   Phase         `json:"phase"`             //
	Target  string        `json:"target,omitempty"`  // aimed shots: "upstream" or "proxy", the edge aimed at
	Planned time.Duration `json:"planned_ns"`        // age asked for; 0: at once
	Age     time.Duration `json:"age_ns"`            // time since the burst before was answered (the median of its answers), when its upstream connections went idle; 0 for the first burst
	Edge    time.Duration `json:"edge_ns,omitempty"` // aimed shots: the age at which that edge was expected
	Sent    int64         `json:"sent"`              // Unix time in ns
	Latency time.Duration `json:"latency_ns"`        // request sent to last response byte or failure
	Status  int           `json:"status"`            // 0 without a response
	Outcome Outcome       `json:"outcome"`
	Fresh   bool          `json:"fresh,omitempty"` // first request of this client connection
	Err     string        `json:"err,omitempty"`   // at most 300 bytes
}

// Failed reports whether the client saw a failure: a 5xx, or no complete
// response.
func (s Shot) Failed() bool { return s.Outcome != OutcomeResponse || s.Status >= 500 }

// Edges an aimed shot is aimed at (Shot.Target).
const (
	TargetUpstream = "upstream" // the upstream's idle close: where the danger is
	TargetProxy    = "proxy"    // the proxy's own idle close
)

// Reasons of End and Manifest.Ended after which a run is complete. Any other
// text says why it is not.
const (
	EndDone        = "done"        // every item decided
	EndBudget      = "budget"      // the scenario's budget was spent
	EndInterrupted = "interrupted" // by a signal
)

// EventKind is what happened at the origin.
type EventKind string

const (
	EventAccept  EventKind = "accept"  // a connection was accepted
	EventRequest EventKind = "request" // a request was read by the server
	EventIdle    EventKind = "idle"    // its response is written; the connection is idle from now on
	EventLate    EventKind = "late"    // a request arrived on a connection after the idle timer had closed it
	EventClose   EventKind = "close"   // the connection ended
	EventLost    EventKind = "lost"    // Nth events were dropped: a reader of the journal was too slow
)

// Who ended a connection, and why (Event.By, Event.Why).
const (
	ByUpstream = "upstream"
	ByPeer     = "peer"

	WhyIdleTimeout  = "idle-timeout"  // upstream: the idle timer fired
	WhyPeerClosed   = "peer-closed"   // peer: FIN read
	WhyPeerReset    = "peer-reset"    // peer: RST read
	WhyRequestLimit = "request-limit" // upstream: requests per connection reached, not announced
	WhyAnnounced    = "announced"     // upstream: after a response with "Connection: close", asked for by either side
	WhyShutdown     = "shutdown"      // upstream: graceful shutdown of an idle connection
	WhyTrap         = "trap"          // upstream: closed instead of answering
	WhyError        = "error"         // upstream: anything else; see Err
)

// Event is one line of the origin's journal.
type Event struct {
	At       int64         `json:"at"`                 // Unix time in ns, of the origin's clock
	N        uint64        `json:"n"`                  // position in the journal, from 1, without holes
	Server   string        `json:"server"`             // name of the origin's server (one per upstream setting)
	Conn     uint64        `json:"conn"`               // connection number, unique in the origin process
	Kind     EventKind     `json:"kind"`               //
	Peer     string        `json:"peer,omitempty"`     // accept, request, late, close: remote address "ip:port" of the connection
	Cell     string        `json:"cell,omitempty"`     // request id, first half; on close: of the connection's last request
	Seq      uint64        `json:"seq,omitempty"`      // request id, second half
	Method   string        `json:"method,omitempty"`   // request, late
	Nth      int           `json:"nth,omitempty"`      // request: number on its connection, from 1; close: requests served; lost: events dropped
	Idle     time.Duration `json:"idle_ns,omitempty"`  // request, late, close: time since the connection went idle; 0 when it never was
	Executed bool          `json:"executed,omitempty"` // request: the handler ran
	By       string        `json:"by,omitempty"`       // close
	Why      string        `json:"why,omitempty"`      // close
	Err      string        `json:"err,omitempty"`      // close
}

// IdleClosed reports whether e is a close by the upstream's idle timer.
func (e Event) IdleClosed() bool {
	return e.Kind == EventClose && e.By == ByUpstream && e.Why == WhyIdleTimeout
}

// Restarted reports whether e is a close by an upstream that shut down.
func (e Event) Restarted() bool {
	return e.Kind == EventClose && e.By == ByUpstream && e.Why == WhyShutdown
}

// Cause is why a request failed.
type Cause string

const (
	CauseIdleClose   Cause = "idle-close"       // the keep-alive race: written on a connection its upstream's idle timer had closed
	CauseReset       Cause = "upstream-reset"   // the upstream ended the connection for another reason
	CauseRefused     Cause = "connect-refused"  // no connection to the upstream
	CauseTimeout     Cause = "upstream-timeout" // no answer from the upstream in time
	CauseNotHTTP     Cause = "not-http"         // the upstream did not speak HTTP
	CauseClient      Cause = "client"           // between client and proxy
	CauseUnknown     Cause = "unknown"
	CauseDisturbed   Cause = "disturbed"        // the run was disturbed on purpose while it was under way; see Observation.Disturbed
	CauseRestart     Cause = "upstream-restart" // written on a connection that its upstream had closed in a restart
	CauseClosedEarly Cause = "upstream-closed"  // log lines only: the upstream closed before a response; idle timer or not is the journal's to say
)

// Attempt is one try of the proxy to get an answer from the upstream.
type Attempt struct {
	Upstream string `json:"upstream,omitempty"` // address tried
	Local    string `json:"local,omitempty"`    // the proxy's own address of that connection, where the proxy logs it: the journal's Peer
	Status   int    `json:"status,omitempty"`   // 0 without a response
	Reused   bool   `json:"reused,omitempty"`   // over a pooled connection, where the proxy logs it
	Err      string `json:"err,omitempty"`
}

// LogLine is what the proxy's own log says of one request.
type LogLine struct {
	Cell     string    `json:"cell"`
	Seq      uint64    `json:"seq"`
	Status   int       `json:"status,omitempty"`   // answered to the client; 0 where the line does not say
	Attempts []Attempt `json:"attempts,omitempty"` // in order; empty where the line does not say
	Cause    Cause     `json:"cause,omitempty"`    // as far as the proxy knows
	Text     string    `json:"text,omitempty"`     // error text or the line itself, shortened to 300 bytes
}

// ConnBits is how many bits of Event.Conn are an origin's own count. Above them
// stands the number of the origin where a run has several; below 2^53 all stays
// exact in JSON.
const ConnBits = 48

// Direct is an idle close measured at a client socket connected straight to
// the origin: the upstream timeout as it really is.
type Direct struct {
	Server  string        `json:"server"`            // the origin's server
	Runtime string        `json:"runtime,omitempty"` // of that origin; empty: RuntimeLocal
	After   time.Duration `json:"after_ns"`          // last response byte to EOF; 0 when Err is set
	Err     string        `json:"err,omitempty"`
}

// Packets is what passed on an upstream connection that a request met after the
// idle timer had closed it. It comes before the Settled line of that request.
type Packets struct {
	Cell   string          `json:"cell"`              // request id of the late request
	Seq    uint64          `json:"seq"`               //
	Server string          `json:"server"`            // of the origin
	Conn   uint64          `json:"conn"`              // as in the journal
	Order  string          `json:"order"`             // a wire.Order: how the request and the close met
	List   json.RawMessage `json:"packets,omitempty"` // a list of wire.Packet, the last ones of the connection
}

// Settled says that every witness has had time to speak about all shots of a
// cell up to and including Seq.
type Settled struct {
	Cell  string `json:"cell"`
	Burst int    `json:"burst"`
	Seq   uint64 `json:"seq"`
}

// Disturbance is something that was done to a run on purpose. One line says
// that it begins, before anything is done; a second one that it has ended.
type Disturbance struct {
	What   string `json:"what"`         // a spec.What
	Target string `json:"target"`       // "gohttp, nginx", "origin" or "machine"
	From   int64  `json:"from"`         // Unix ns, of the harness's clock
	To     int64  `json:"to,omitempty"` // likewise; 0: it begins
}

// End closes the file of a run that was not killed.
type End struct {
	At     int64  `json:"at"`
	Reason string `json:"reason"` // "done", "budget", "interrupted" or an error text
}

// MaxText bounds the texts of a record, in bytes: what a proxy or an upstream
// sends may be quoted in an error, however long it is.
const MaxText = 300

// Short is s in valid UTF-8, cut to MaxText bytes: no longer after it was
// stored.
func Short(s string) string {
	s = strings.ToValidUTF8(s, "?")
	if len(s) > MaxText {
		s = strings.ToValidUTF8(s[:MaxText], "")
	}
	return s
}

// Line is one line of observations.jsonl: T names the one field that is set.
//
//easyjson:json
type Line struct {
	T           string       `json:"t"`
	Shot        *Shot        `json:"shot,omitempty"`
	Event       *Event       `json:"event,omitempty"`
	Log         *LogLine     `json:"log,omitempty"`
	Direct      *Direct      `json:"direct,omitempty"`
	Packets     *Packets     `json:"packets,omitempty"`
	Settled     *Settled     `json:"settled,omitempty"`
	Disturbance *Disturbance `json:"disturbance,omitempty"`
	End         *End         `json:"end,omitempty"`
}

// Stale reports whether the request met an upstream connection that the idle
// timer had closed, as the origin's journal or the wire says.
func (o Observation) Stale() bool { return len(o.Late)+len(o.Packets) > 0 }

// Observation is all that is known of one request.
type Observation struct {
	Shot     Shot
	Requests []Event   // the request as the origin served it; more than one: executed twice
	Late     []Event   // arrivals on connections that the idle timer had closed
	Logs     []LogLine // the proxy's lines
	Packets  []Packets // of connections that the idle timer had closed
	Before   []Event   // idle begins, idle-timer closes and restarts' closes of the connections that Requests, Late or Logs name
	// Disturbed has the kinds of disturbance that may have had a hand in it,
	// without duplicates.
	Disturbed []string
}
