package origin

import (
	"bufio"
	"io"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// TestRecycle: what is idle is closed at once, what is in work after its answer,
// and neither is announced.
func TestRecycle(t *testing.T) {
	shutdown := record.Event{Kind: record.EventClose, Cell: "cell", Seq: 7, Nth: 1, By: record.ByUpstream, Why: record.WhyShutdown}
	for name, tt := range map[string]struct {
		before, after string // what the client sends before and after
		want          Recycled
		last          record.Event
	}{
		"idle":        {text("GET", "cell", 7, ""), "", Recycled{Closed: 1}, shutdown},
		"in work":     {text("POST", "cell", 7, "xyz")[:20], text("POST", "cell", 7, "xyz")[20:], Recycled{Closing: 1}, shutdown},
		"three bytes": {"POS", text("POST", "cell", 7, "xyz")[3:], Recycled{Closing: 1}, shutdown},
		"unused":      {"", "", Recycled{Closed: 1}, record.Event{Kind: record.EventClose, By: record.ByUpstream, Why: record.WhyShutdown}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := bubbled(t, Server{IdleTimeout: long, Close: spec.CloseFIN})
				c, theirs := b.dial()
				r := bufio.NewReader(c)
				answered := func() {
					resp, err := http.ReadResponse(r, nil)
					if err != nil {
						t.Fatal(err)
					}
					if io.Copy(io.Discard, resp.Body); resp.StatusCode != http.StatusOK || resp.Close {
						t.Errorf("%s, close %v", resp.Status, resp.Close)
					}
				}
				io.WriteString(c, tt.before)
				if tt.want.Closed == 1 && tt.before != "" {
					answered()
				}
				synctest.Wait()
				if got := b.recycle(); got != tt.want {
					t.Errorf("%+v, want %+v", got, tt.want)
				}
				if tt.after != "" {
					io.WriteString(c, tt.after)
					answered()
				}
				if _, err := r.ReadByte(); err != io.EOF {
					t.Errorf("the connection does not end: %v", err)
				}
				synctest.Wait()
				if reset, closed := theirs.state(); reset || closed.IsZero() {
					t.Errorf("reset %v, closed at %v: want a plain close", reset, closed)
				}
				equal(t, b.last(), tt.last)
				if got := b.recycle(); got != (Recycled{}) {
					t.Errorf("again: %+v", got)
				}
				c, _ = b.dial() // the listener stays
				b.do(c, text("GET", "cell", 8, ""))
				b.shutdown()
			})
		})
	}
}

// TestRecycleLeavesIdleCloses: a connection that is read on after its FIN ended
// by its idle timer, and stays a witness.
func TestRecycleLeavesIdleCloses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := bubbled(t, Server{IdleTimeout: Duration(time.Second), Close: spec.CloseFIN})
		c, _ := b.dial()
		b.do(c, text("GET", "cell", 7, ""))
		time.Sleep(1500 * time.Millisecond)
		if got := b.recycle(); got != (Recycled{}) {
			t.Errorf("%+v", got)
		}
		io.WriteString(c, text("GET", "cell", 8, ""))
		synctest.Wait()
		if e := b.last(); e.Kind != record.EventLate || e.Seq != 8 {
			t.Errorf("%+v", e)
		}
		b.shutdown()
	})
}

func TestRecycleByAdmin(t *testing.T) {
	u := start(t, Server{Name: "a", IdleTimeout: long}, Server{Name: "b", IdleTimeout: long})
	clients := []*client{u.dial("a"), u.dial("b")}
	for i, c := range clients {
		c.do("GET", "cell", i)
		u.await(uint64(i+1), record.EventIdle)
	}
	if code, _ := u.fetch("/recycle"); code != http.StatusMethodNotAllowed {
		t.Errorf("GET: %d", code)
	}
	resp, err := http.Post("http://"+u.addrs["admin"]+"/recycle", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != `{"closed":2,"closing":0}`+"\n" {
		t.Errorf("%s %s", resp.Status, b)
	}
	for i, c := range clients {
		if got := c.end(); got != "fin" {
			t.Errorf("ended with %s", got)
		}
		if e := u.await(uint64(i+1), record.EventClose); !e.Restarted() {
			t.Errorf("%+v", e)
		}
	}
}
