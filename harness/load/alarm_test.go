package load

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestAlarmWakesInOrderAndOnTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAlarm(newGoTimer())
		defer a.Close()
		begun := time.Now()
		var mu sync.Mutex
		var order []int
		var wg sync.WaitGroup
		for _, ms := range []int{30, 10, 20, 0} {
			wg.Go(func() {
				at := begun.Add(time.Duration(ms) * time.Millisecond)
				if err := a.Wait(t.Context(), at); err != nil {
					t.Error(err)
				}
				if !time.Now().Equal(at) {
					t.Errorf("woken at %s, want %s", time.Since(begun), at.Sub(begun))
				}
				mu.Lock()
				order = append(order, ms)
				mu.Unlock()
			})
		}
		wg.Wait()
		for i, want := range []int{0, 10, 20, 30} {
			if order[i] != want {
				t.Fatalf("order %v", order)
			}
		}
	})
}

func TestAlarmCancelAndClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAlarm(newGoTimer())
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.Wait(ctx, time.Now().Add(time.Hour)); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("cancelled: %v", err)
		}
		if len(a.waiters) != 0 {
			t.Errorf("%d waiters left behind", len(a.waiters))
		}
		ended := make(chan error)
		go func() { ended <- a.Wait(t.Context(), time.Now().Add(time.Hour)) }()
		synctest.Wait()
		a.Close()
		if err := <-ended; err == nil {
			t.Error("a closed alarm let a waiter believe its time had come")
		}
	})
}

// TestSystemTimer shows that the system's timer wakes at all, never early, and
// can be set anew.
func TestSystemTimer(t *testing.T) {
	a, err := NewAlarm()
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() {
			at := time.Now().Add(time.Duration(50-i) * time.Millisecond)
			if err := a.Wait(t.Context(), at); err != nil {
				t.Error(err)
			}
			if early := time.Until(at); early > 0 {
				t.Errorf("woken %s early", early)
			}
		})
	}
	wg.Wait()
}
