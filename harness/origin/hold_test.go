package origin

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"idlerace/harness/record"
)

// held waits for a request's turn at h, as ServeHTTP does, and tells when it
// came.
func held(ctx context.Context, h *holds, cell, hold string) (after time.Duration, ok bool) {
	begun := time.Now()
	r := httptest.NewRequestWithContext(ctx, http.MethodPost, "/", nil)
	r.Header.Set(record.HeaderCell, cell)
	r.Header.Set(record.HeaderHold, hold)
	ok = h.wait(r)
	return time.Since(begun), ok
}

func TestHeldAnswersGoOutTogether(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		var wg sync.WaitGroup
		begun := time.Now()
		for i := range 5 {
			wg.Go(func() {
				time.Sleep(time.Duration(i) * time.Millisecond) // they arrive 1 ms apart
				if _, ok := held(t.Context(), &h, "cell", "20ms"); !ok || time.Since(begun) != 20*time.Millisecond {
					t.Errorf("request %d: answered after %s (%v), want 20ms after the first", i, time.Since(begun), ok)
				}
			})
		}
		wg.Go(func() { // another cell's burst is another burst
			time.Sleep(10 * time.Millisecond)
			if after, _ := held(t.Context(), &h, "other", "20ms"); after != 20*time.Millisecond {
				t.Errorf("another cell: held for %s", after)
			}
		})
		wg.Wait()
		if after, _ := held(t.Context(), &h, "cell", "20ms"); after != 20*time.Millisecond {
			t.Errorf("the next burst: held for %s", after)
		}
		if len(h.open) != 0 {
			t.Errorf("%d bursts kept", len(h.open))
		}
	})
}

func TestHoldIsBoundedAndOptional(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h holds
		for _, hold := range []string{"", "soon", "-1s", "0s", "61s", "1e9h"} {
			if after, ok := held(t.Context(), &h, "cell", hold); after != 0 || !ok {
				t.Errorf("%q: held for %s (%v)", hold, after, ok)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if after, ok := held(ctx, &h, "cell", "30s"); ok || after != time.Second {
			t.Errorf("a peer that left is held for %s (%v)", after, ok)
		}
		time.Sleep(time.Minute) // the burst's timer still ends
	})
}

// TestHeldConnectionsGoIdleTogether: no request of a burst is answered before
// all have arrived, each on a connection of its own.
func TestHeldConnectionsGoIdleTogether(t *testing.T) {
	u := start(t, Server{Name: "s"})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+u.addrs["s"], nil)
			if err != nil {
				t.Error(err)
				return
			}
			req.Close = true
			req.Header.Set(record.HeaderCell, "cell")
			req.Header.Set(record.HeaderHold, "500ms")
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Error(err)
				return
			}
			resp.Body.Close()
		})
	}
	wg.Wait()
	requests := 0
	for _, e := range u.events() {
		switch e.Kind {
		case record.EventRequest:
			requests++
		case record.EventClose:
			if requests != 10 {
				t.Fatalf("a connection was done after %d of 10 requests", requests)
			}
		}
	}
}
