package origin

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"

	"idlerace/harness/wire"
)

// maxQuestions bounds what one request for packets may ask.
const (
	maxQuestions     = 4096
	maxQuestionBytes = 1 << 20
)

// PacketQuestion asks for the packets of one connection in a span of time.
type PacketQuestion struct {
	wire.Conn
	From int64 `json:"from"` // Unix ns
	To   int64 `json:"to"`   // Unix ns
}

// CaptureStatus says whether packets are captured.
type CaptureStatus struct {
	On    bool       `json:"on"`
	Why   string     `json:"why,omitempty"` // they are not
	Stats wire.Stats `json:"stats"`
}

// packets is the origin's capture of its own ports; cap is nil where there is
// none, for the reason why.
type packets struct {
	cap *wire.Capture
	why string
}

// capture begins to record what passes the addresses. That it cannot is no
// fault: the journal witnesses alone then.
func capture(wanted bool, addrs []string) (packets, error) {
	if !wanted {
		return packets{why: "not asked for"}, nil
	}
	var ports []uint16
	for _, a := range addrs {
		ap, err := netip.ParseAddrPort(a)
		if err != nil {
			return packets{}, fmt.Errorf("origin: %w", err)
		}
		ports = append(ports, ap.Port())
	}
	c, err := wire.Open(ports, wire.Options{})
	if err != nil {
		return packets{why: err.Error()}, nil
	}
	return packets{cap: c}, nil
}

func (p packets) close() {
	if p.cap != nil {
		p.cap.Close()
	}
}

func (p packets) status() CaptureStatus {
	if p.cap == nil {
		return CaptureStatus{Why: p.why}
	}
	stats, err := p.cap.Stats()
	s := CaptureStatus{On: err == nil, Stats: stats}
	if err != nil {
		s.Why = err.Error()
	}
	return s
}

// serve answers POST /packets.
func (p packets) serve(w http.ResponseWriter, r *http.Request) {
	var questions []PacketQuestion
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxQuestionBytes))
	d.DisallowUnknownFields()
	if err := d.Decode(&questions); err != nil {
		http.Error(w, "packets: "+err.Error(), http.StatusBadRequest)
		return
	}
	if len(questions) > maxQuestions {
		http.Error(w, fmt.Sprintf("packets: %d connections, at most %d", len(questions), maxQuestions), http.StatusBadRequest)
		return
	}
	answers := make([][]wire.Packet, len(questions))
	for i, q := range questions {
		answers[i] = []wire.Packet{}
		if p.cap != nil {
			answers[i] = append(answers[i], p.cap.Lookup(q.Conn, q.From, q.To)...)
		}
	}
	writeJSON(w, answers)
}
