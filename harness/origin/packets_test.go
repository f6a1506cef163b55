package origin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/wire"
)

// ask posts a question about packets.
func (u *upstream) ask(body string) (int, string) {
	u.t.Helper()
	resp, err := http.Post("http://"+u.addrs[adminName]+"/packets", "application/json", strings.NewReader(body))
	if err != nil {
		u.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	if _, err := b.ReadFrom(resp.Body); err != nil {
		u.t.Fatal(err)
	}
	return resp.StatusCode, strings.TrimSpace(b.String())
}

func (u *upstream) captureStatus() CaptureStatus {
	u.t.Helper()
	var st CaptureStatus
	if err := json.Unmarshal([]byte(u.get("/capture")), &st); err != nil {
		u.t.Fatal(err)
	}
	return st
}

// TestPackets: a late request's packets show it behind the FIN, under every
// style that sends one, through a link as well.
func TestPackets(t *testing.T) {
	for _, style := range []spec.Close{spec.CloseFIN, spec.ClosePlain, spec.CloseHalfClose} {
		for _, l := range []*Link{nil, {Up: Duration(5 * time.Millisecond), Down: Duration(5 * time.Millisecond)}} {
			t.Run(fmt.Sprintf("%s link=%v", style, l != nil), func(t *testing.T) {
				u := startConfig(t, Config{Capture: true, Servers: []Server{{IdleTimeout: Duration(50 * time.Millisecond), Close: style, Linger: long, Link: l}}})
				// Capturing takes a right that not every user has.
				if st := u.captureStatus(); !st.On {
					t.Skipf("packets cannot be captured here: %s", st.Why)
				}
				from := time.Now().UnixNano()
				c := u.dial("s")
				conn := c.do("POST", "cell", 7)
				if got := c.end(); got != "fin" {
					t.Fatalf("ended with %s", got)
				}
				c.write(text("POST", "cell", 8, ""))
				if style != spec.CloseHalfClose && !c.reset() {
					t.Fatal("the late request was not reset")
				}
				closed := u.await(conn, record.EventClose)
				if style == spec.CloseHalfClose {
					u.await(conn, record.EventLate)
				}
				q, err := json.Marshal([]PacketQuestion{
					{Conn: wire.Conn{Port: netip.MustParseAddrPort(u.addrs["s"]).Port(), Peer: netip.MustParseAddrPort(closed.Peer)}, From: from, To: time.Now().UnixNano()},
					{Conn: wire.Conn{Port: 1, Peer: netip.MustParseAddrPort(closed.Peer)}, From: from, To: time.Now().UnixNano()},
				})
				if err != nil {
					t.Fatal(err)
				}
				code, body := u.ask(string(q))
				var answers [][]wire.Packet
				if err := json.Unmarshal([]byte(body), &answers); code != http.StatusOK || err != nil || len(answers) != 2 || len(answers[1]) != 0 {
					t.Fatalf("%d %v: %s", code, err, body)
				}
				ids := map[uint64]bool{}
				for _, p := range answers[0] {
					if _, seq, ok := p.RequestID(); ok {
						ids[seq] = true
					}
				}
				fin := slices.ContainsFunc(answers[0], func(p wire.Packet) bool { return !p.FromPeer && p.Flags&wire.FIN != 0 })
				if !ids[7] || !ids[8] || !fin {
					t.Errorf("requests %v, FIN %v in %d packets", ids, fin, len(answers[0]))
				}
				if got := wire.OrderOf(answers[0], wire.Late{Cell: "cell", Seq: 8}); got != wire.Unnoticed {
					t.Errorf("order %q, want %q", got, wire.Unnoticed)
				}
			})
		}
	}
}

func TestPacketsRefused(t *testing.T) {
	u := startConfig(t, Config{Servers: []Server{{}}})
	if st := u.captureStatus(); st.On || st.Why != "not asked for" {
		t.Errorf("%+v", st)
	}
	for body, want := range map[string]int{
		`[]`: http.StatusOK,
		`[{"port": 1, "peer": "127.0.0.1:2", "from": 1, "to": 2}]`: http.StatusOK, // nothing is known of it
		``:                      http.StatusBadRequest,
		`{}`:                    http.StatusBadRequest,
		`[{"ports": 1}]`:        http.StatusBadRequest,
		`[{"peer": "nowhere"}]`: http.StatusBadRequest,
		"[" + strings.Repeat("{},", maxQuestions) + "{}]": http.StatusBadRequest,
		strings.Repeat(" ", maxQuestionBytes+1):           http.StatusBadRequest,
	} {
		if code, answer := u.ask(body); code != want {
			t.Errorf("%.60s: %d, want %d: %s", body, code, want, answer)
		}
	}
}

// TestLink: behind a link every close style reaches the peer, and a late
// request is witnessed.
func TestLink(t *testing.T) {
	for _, style := range spec.Closes() {
		t.Run(string(style), func(t *testing.T) {
			t.Parallel()
			u := start(t, Server{IdleTimeout: Duration(60 * time.Millisecond), Close: style, Linger: long,
				Link: &Link{Up: Duration(10 * time.Millisecond), Down: Duration(10 * time.Millisecond), JitterUp: Duration(time.Millisecond)}})
			c := u.dial("s")
			conn := c.do("POST", "cell", 7)
			want := "fin"
			if style == spec.CloseRST {
				want = "rst"
			}
			if got := c.end(); got != want {
				t.Fatalf("ended with %s, want %s", got, want)
			}
			equal(t, u.await(conn, record.EventClose), idleClose(1))
			if style == spec.CloseRST {
				return
			}
			c.write(text("PUT", "cell", 8, "body"))
			if style != spec.CloseHalfClose && !c.reset() {
				t.Error("the late request was not reset")
			}
			if style.Witnessed() {
				equal(t, u.await(conn, record.EventLate), record.Event{Kind: record.EventLate, Cell: "cell", Seq: 8, Method: "PUT"})
			}
		})
	}
}
