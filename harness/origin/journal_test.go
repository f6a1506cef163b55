package origin

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// stream is an open GET /journal.
type stream struct {
	t    testing.TB
	resp *http.Response
	br   *bufio.Reader
}

func follow(t testing.TB, u *upstream, query string) *stream {
	t.Helper()
	resp, err := http.Get("http://" + u.addrs["admin"] + "/journal?" + query)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return &stream{t, resp, bufio.NewReader(resp.Body)}
}

func (s *stream) next() record.Event {
	s.t.Helper()
	line, err := s.br.ReadBytes('\n')
	if err != nil {
		s.t.Fatal(err)
	}
	var e record.Event
	if err := json.Unmarshal(line, &e); err != nil {
		s.t.Fatal(err)
	}
	return e
}

// all reads to the end of the stream, which must be an orderly one.
func (s *stream) all() (events []record.Event) {
	s.t.Helper()
	dec := json.NewDecoder(s.br)
	for {
		var e record.Event
		if err := dec.Decode(&e); err != nil {
			if err.Error() != "EOF" {
				s.t.Errorf("the stream ended with %v", err)
			}
			return events
		}
		events = append(events, e)
	}
}

func TestJournalEndpoint(t *testing.T) {
	u := start(t, Server{IdleTimeout: long})
	if got := u.get("/journal/mark"); got != "{\"n\":0}\n" {
		t.Errorf("mark %q", got)
	}
	live := follow(t, u, "follow=1") // answers before there is anything
	c := u.dial("s")
	c.do("POST", "cell", 6)
	c.do("POST", "cell", 7)
	c.nc.Close()
	u.await(1, record.EventClose)

	events := u.events()
	numbered(t, events)
	wantKinds := []record.EventKind{"accept", "request", "idle", "request", "idle", "close"}
	var kinds []record.EventKind
	for i, e := range events {
		kinds = append(kinds, e.Kind)
		if e.At == 0 || e.Server != "s" || e.Conn != 1 {
			t.Errorf("%+v", e)
		}
		// Apart from requests, which arrive before they are read in full.
		if i > 0 && e.Kind != record.EventRequest && e.At < events[i-1].At {
			t.Errorf("event %d went back in time", e.N)
		}
	}
	if diff := cmp.Diff(wantKinds, kinds); diff != "" {
		t.Fatal(diff)
	}
	if events[0].Peer != c.nc.LocalAddr().String() {
		t.Errorf("accepted from %s, want %s", events[0].Peer, c.nc.LocalAddr())
	}
	if r := events[3]; r.Idle != time.Duration(r.At-events[2].At) {
		t.Errorf("request after %v idle, want %v", r.Idle, time.Duration(r.At-events[2].At))
	}

	if got := u.get("/journal/mark"); got != "{\"n\":6}\n" {
		t.Errorf("mark %q", got)
	}
	if diff := cmp.Diff(events[4:], parse(t, u.get("/journal?after=4&follow=0"))); diff != "" {
		t.Error(diff)
	}
	if got := u.get("/journal?after=6"); got != "" {
		t.Errorf("after the end: %q", got)
	}
	for _, want := range events {
		if diff := cmp.Diff(want, live.next()); diff != "" {
			t.Error(diff)
		}
	}
	late := follow(t, u, "follow=1&after=5")
	if diff := cmp.Diff(events[5], late.next()); diff != "" {
		t.Error(diff)
	}
	late.resp.Body.Close() // one that leaves must not hold up the shutdown
	u.cancel()
	if rest := live.all(); len(rest) != 0 {
		t.Errorf("%+v", rest)
	}
	u.wait()
}

func TestAdmin(t *testing.T) {
	u := start(t, Server{IdleTimeout: Duration(90 * time.Second), Close: spec.CloseRST, Trap: &Trap{After: 2}})
	for _, tt := range []struct {
		path string
		code int
		body string
	}{
		{"/journal?after=x", 400, "after=x: want the number of an event, 0 for all\n"},
		{"/journal?after=-1", 400, "after=-1: want the number of an event, 0 for all\n"},
		{"/journal?after=", 400, "after=: want the number of an event, 0 for all\n"},
		{"/journal?after=1&after=2", 400, "after: given 2 times\n"},
		{"/journal?after=1", 400, "after=1: the journal ends at 0\n"},
		{"/journal?follow=yes", 400, "follow=yes: want 0 or 1\n"},
		{"/journal?folow=1", 400, "folow: no such parameter, there are after and follow\n"},
		{"/journal?%zz", 400, "query: invalid URL escape \"%zz\"\n"},
		{"/nothing", 404, "404 page not found\n"},
		{"/config", 200, `{"admin":"127.0.0.1:0","servers":[{"name":"s","listen":"127.0.0.1:0","idle_timeout":"1m30s",` +
			`"close":"rst","linger":"2s","size":3,"trap":{"after":2,"executed":false}}],"journal_size":262144}` + "\n"},
	} {
		code, body := u.fetch(tt.path)
		if code != tt.code || body != tt.body {
			t.Errorf("GET %s: %d %q\nwant %d %q", tt.path, code, body, tt.code, tt.body)
		}
	}

	var health struct {
		Status  string
		Servers map[string]string
		Now     int64
	}
	before := time.Now().UnixNano()
	if err := json.Unmarshal([]byte(u.get("/health")), &health); err != nil {
		t.Fatal(err)
	}
	if health.Status != "ok" || health.Now < before-int64(time.Minute) || health.Now > before+int64(time.Minute) {
		t.Errorf("%+v", health)
	}
	if diff := cmp.Diff(map[string]string{"s": u.addrs["s"]}, health.Servers); diff != "" {
		t.Error(diff)
	}
	resp, err := http.Post("http://"+u.addrs["admin"]+"/journal", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusMethodNotAllowed {
		t.Errorf("POST: %s", resp.Status)
	}
	if events := u.events(); len(events) != 0 {
		t.Errorf("the admin endpoint is in its own journal: %+v", events)
	}
}

// wantRun fails unless events are lost (if lost > 0) and then from to to.
func wantRun(t *testing.T, events []record.Event, lost, from, to int) {
	t.Helper()
	if lost > 0 {
		if len(events) == 0 {
			t.Fatal("no events")
		}
		want := record.Event{At: events[0].At, N: uint64(from - 1), Kind: record.EventLost, Nth: lost}
		if diff := cmp.Diff(want, events[0]); diff != "" {
			t.Error(diff)
		}
		events = events[1:]
	}
	if len(events) != to-from+1 {
		t.Fatalf("%d events, want %d to %d", len(events), from, to)
	}
	for i, e := range events {
		if e.N != uint64(from+i) || e.Conn != e.N {
			t.Fatalf("event %d: %+v", from+i, e)
		}
	}
}

// fill appends events up to number n, each with its number as Conn.
func fill(j *journal, n int) {
	for i := int(j.mark()) + 1; i <= n; i++ {
		j.append(record.Event{Conn: uint64(i), Kind: record.EventAccept}, 0)
	}
}

func TestJournalRing(t *testing.T) {
	for _, size := range []int{1, 7, chunkSize - 1, chunkSize, chunkSize + 1, 3*chunkSize + 5} {
		j := newJournal(size)
		h := adminHandler(j, packets{}, Config{}, nil, nil)
		get := func(path string) []record.Event {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", path, nil))
			return parse(t, w.Body.String())
		}
		fill(j, size)
		wantRun(t, get("/journal"), 0, 1, size)
		fill(j, size+3)
		wantRun(t, get("/journal"), 3, 4, size+3)
		wantRun(t, get("/journal?after=3"), 0, 4, size+3)
		fill(j, 5*size+11)
		wantRun(t, get("/journal?after=1"), 4*size+10, 4*size+12, 5*size+11)
	}
}

// stalled is a ResponseWriter whose reader does not read until it is let.
type stalled struct {
	*httptest.ResponseRecorder
	writes chan struct{} // one value each time a write begins
	gate   chan struct{}
}

func (w *stalled) Write(b []byte) (int, error) {
	select {
	case w.writes <- struct{}{}:
	default:
	}
	<-w.gate
	return w.ResponseRecorder.Write(b)
}

func TestFollowerFallsBehind(t *testing.T) {
	const size = 10
	j := newJournal(size)
	w := &stalled{httptest.NewRecorder(), make(chan struct{}, 1), make(chan struct{})}
	var wg sync.WaitGroup
	wg.Go(func() { j.serve(w, httptest.NewRequest("GET", "/journal?follow=1", nil)) })
	fill(j, 5)
	<-w.writes // up to 5 events are on their way, nobody takes them
	fill(j, 100)
	close(w.gate)
	j.close()
	wg.Wait()

	events := parse(t, w.Body.String())
	next := uint64(1)
	lost := 0
	for _, e := range events {
		if e.Kind == record.EventLost {
			lost += e.Nth
			next += uint64(e.Nth) - 1
		}
		if e.N != next {
			t.Fatalf("want event %d: %+v", next, e)
		}
		next++
	}
	if next != 101 || lost < 100-size-5 {
		t.Errorf("ended before %d, %d lost", next, lost)
	}
}

func TestFollowDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := newJournal(10)
		ctx, cancel := context.WithCancel(t.Context())
		w := &flushes{ResponseRecorder: httptest.NewRecorder()}
		go j.serve(w, httptest.NewRequest("GET", "/journal?follow=1", nil).WithContext(ctx))
		synctest.Wait()
		if w.n != 1 {
			t.Fatalf("%d flushes before the first event, want the header's", w.n)
		}
		fill(j, 3)
		time.Sleep(followDelay)
		synctest.Wait()
		if w.n != 2 {
			t.Errorf("%d flushes", w.n)
		}
		wantRun(t, parse(t, w.Body.String()), 0, 1, 3)
		cancel()
	})
}

// flushes counts flushes.
type flushes struct {
	*httptest.ResponseRecorder
	n int
}

func (w *flushes) Flush() { w.n++ }

func BenchmarkJournalAppend(b *testing.B) {
	e := record.Event{Server: "s", Conn: 1, Kind: record.EventRequest, Cell: "cell", Seq: 7, Method: "POST", Nth: 1}
	b.Run("alone", func(b *testing.B) {
		j := newJournal(DefaultJournalSize)
		b.ReportAllocs()
		for b.Loop() {
			j.append(e, 1)
		}
	})
	b.Run("parallel", func(b *testing.B) {
		j := newJournal(DefaultJournalSize)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				j.append(e, 1)
			}
		})
	})
}
