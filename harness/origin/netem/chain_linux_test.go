package netem_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"idlerace/harness/gohttp"
	"idlerace/harness/origin"
	"idlerace/harness/record"
	"idlerace/harness/spec"
	"idlerace/harness/wire"
)

const (
	roundTrip = 300 * time.Millisecond
	idle      = 800 * time.Millisecond
	near      = 70 * time.Millisecond // what a shot's age may be off by, to count
)

// chain is an origin behind a cable, and the embedded proxy before it.
type chain struct {
	t     *testing.T
	admin string
	seq   uint64
}

// route is one of the origin's servers, and the proxy's listener for it.
type route struct {
	name     string
	upstream uint16 // port
	proxy    string // address
	link     *origin.Link
}

func newChain(t *testing.T, routes []route) *chain {
	t.Helper()
	c := newCable(t)
	ch := &chain{t: t, admin: serverIP + ":9100"}
	cfg := origin.Config{Admin: ch.admin, Capture: true, Contained: true}
	proxy := gohttp.Config{PoolSize: 4}
	for _, r := range routes {
		addr := net.JoinHostPort(serverIP, strconv.Itoa(int(r.upstream)))
		cfg.Servers = append(cfg.Servers, origin.Server{Name: r.name, Listen: addr, IdleTimeout: origin.Duration(idle), Close: spec.CloseFIN, Link: r.link})
		proxy.Routes = append(proxy.Routes, gohttp.Route{Listen: r.proxy, Upstream: addr, Idle: "1m", Retry: spec.RetryOff})
	}
	ctx, stop := context.WithCancel(context.Background())
	ends := make(chan error, 2)
	t.Cleanup(func() {
		stop()
		for range cap(ends) {
			if err := <-ends; err != nil {
				t.Error(err)
			}
		}
	})
	ready := make(chan bool)
	go func() {
		ends <- c.enter(func() error { return origin.Run(ctx, cfg, func(map[string]string) { close(ready) }) })
	}()
	go func() { ends <- gohttp.Run(ctx, proxy, io.Discard) }()
	select {
	case <-ready:
	case err := <-ends:
		ends <- err
		t.Fatal("the origin or the proxy ended")
	}
	for _, r := range routes {
		dial(t, r.proxy).Close()
	}
	return ch
}

// post sends one request with an id.
func (c *chain) post(addr string) int {
	c.t.Helper()
	c.seq++
	req, err := http.NewRequest(http.MethodPost, "http://"+addr+"/", strings.NewReader("x"))
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set(record.HeaderCell, "chain")
	req.Header.Set(record.HeaderSeq, strconv.FormatUint(c.seq, 10))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		c.t.Fatal(err)
	}
	return resp.StatusCode
}

// shot is the answer to a request over a connection of that age, which is the
// client's. What a busy machine sends or passes on late is sent again: a request
// arrives at once, when the origin has the connection for a round trip longer, or
// a round trip later over a new one.
func (c *chain) shot(addr string, age, trip time.Duration) int {
	c.t.Helper()
	for range 20 {
		time.Sleep(idle + 3*near) // the connection of the shot before is gone, to the proxy as well
		c.post(addr)
		begun := time.Now()
		time.Sleep(age)
		sent := time.Now()
		late := sent.Sub(begun) - age
		status := c.post(addr)
		e, ok := c.arrival()
		arrived := time.Duration(e.At - sent.UnixNano())
		if e.Idle == 0 {
			arrived -= trip
		} else {
			late = max(late, (e.Idle - trip - age).Abs())
		}
		if ok && max(late, arrived) < near {
			return status
		}
		c.t.Logf("arrived %v, %s late: again", ok, max(late, arrived))
	}
	c.t.Fatalf("this machine is too busy for an age of %s", age)
	return 0
}

// arrival is the latest request as the origin has noted it, which may be after
// the proxy's answer; ok is false for one that never came.
func (c *chain) arrival() (e record.Event, ok bool) {
	c.t.Helper()
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		for _, e := range c.journal() {
			if e.Seq == c.seq && (e.Kind == record.EventRequest || e.Kind == record.EventLate) {
				return e, true
			}
		}
	}
	return record.Event{}, false
}

// late is a server's latest request that came too late, and the close of its
// connection.
func (c *chain) late(server string) (closed, late record.Event) {
	c.t.Helper()
	events := c.journal()
	for _, e := range events {
		if e.Kind == record.EventLate && e.Server == server {
			late = e
		}
	}
	for _, e := range events {
		if e.Conn == late.Conn && e.IdleClosed() {
			closed = e
		}
	}
	return closed, late
}

// journal is all that the origin has noted.
func (c *chain) journal() (events []record.Event) {
	c.t.Helper()
	resp, err := http.Get("http://" + c.admin + "/journal")
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var e record.Event
		if err := dec.Decode(&e); err == io.EOF {
			return events
		} else if err != nil {
			c.t.Fatal(err)
		}
		events = append(events, e)
	}
}

// packets are those of a connection.
func (c *chain) packets(port uint16, peer string) []wire.Packet {
	c.t.Helper()
	question, err := json.Marshal([]origin.PacketQuestion{{Conn: wire.Conn{Port: port, Peer: netip.MustParseAddrPort(peer)}, To: time.Now().UnixNano()}})
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := http.Post("http://"+c.admin+"/packets", "application/json", bytes.NewReader(question))
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	var answers [][]wire.Packet
	if err := json.NewDecoder(resp.Body).Decode(&answers); err != nil || len(answers) != 1 {
		c.t.Fatalf("%v, %d answers", err, len(answers))
	}
	return answers[0]
}

// TestChain: behind netem the embedded proxy's POSTs fail from a round trip
// before the upstream's close on, where they pass without it; and what passes
// the capture before the FIN crosses it.
func TestChain(t *testing.T) {
	needNetem(t)
	far := route{"far", 7001, "127.0.0.1:8001", &origin.Link{Netem: true, Down: origin.Duration(roundTrip)}}
	here := route{"here", 7002, "127.0.0.1:8002", nil}
	c := newChain(t, []route{far, here})
	for _, tt := range []struct {
		route
		age  time.Duration // of the connection, at the proxy
		want int
	}{
		{far, idle - roundTrip - 2*near, http.StatusOK},
		{far, idle - roundTrip + 2*near, http.StatusBadGateway},
		{far, idle + 2*near, http.StatusOK}, // the proxy has the FIN
		{here, idle - roundTrip + 2*near, http.StatusOK},
	} {
		trip := time.Duration(0)
		if tt.link != nil {
			trip = roundTrip
		}
		got := c.shot(tt.proxy, tt.age, trip)
		t.Logf("%s, %s before the close: %d", tt.name, idle-tt.age, got)
		if got != tt.want {
			t.Errorf("%s, %s before the close: %d, want %d", tt.name, idle-tt.age, got, tt.want)
		}
	}

	closed, late := c.late(far.name)
	if late.Conn == 0 || closed.Conn == 0 || late.At < closed.At || late.At > closed.At+int64(roundTrip) {
		t.Fatalf("closed %+v, late %+v", closed, late)
	}
	got := c.packets(far.upstream, late.Peer)
	var seen []string
	for _, p := range got {
		seen = append(seen, fmt.Sprintf("%s %v %s %d", time.Duration(p.At-closed.At), p.FromPeer, p.Flags, p.Len))
	}
	of := wire.Late{Cell: late.Cell, Seq: late.Seq, At: late.At}
	if order := wire.OrderOf(got, of); order != wire.RequestFirst {
		t.Errorf("as the packets alone have it: %q in\n%s", order, strings.Join(seen, "\n"))
	}
	of.Closed = closed.At
	if order := wire.OrderOf(got, of); order != wire.Crossing {
		t.Errorf("%q, want %q in\n%s", order, wire.Crossing, strings.Join(seen, "\n"))
	}
	t.Logf("since the close, from the proxy:\n%s", strings.Join(seen, "\n"))
}
