package run

import (
	"context"
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"idlerace/harness/spec"
	"idlerace/harness/stack"
)

var chaos = []spec.Chaos{
	{What: spec.PauseProxy, For: 300 * time.Millisecond, Every: 2 * time.Second},
	{What: spec.PauseOrigin, For: 999 * time.Millisecond, Every: time.Second},
	{What: spec.RestartOrigin, Every: 100 * time.Millisecond},
	{What: spec.BurnCPU, For: time.Millisecond, Every: 5 * time.Second},
}

func TestSchedule(t *testing.T) {
	const budget = 20 * time.Minute
	for seed := range uint64(50) {
		all := Schedule(seed, chaos, budget)
		if !slices.Equal(all, Schedule(seed, chaos, budget)) {
			t.Fatalf("seed %d gives two schedules", seed)
		}
		if slices.Equal(all, Schedule(seed+1, chaos, budget)) {
			t.Errorf("seeds %d and %d give one schedule", seed, seed+1)
		}
		if !slices.IsSortedFunc(all, func(a, b Disturbance) int { return int(a.At - b.At) }) {
			t.Errorf("seed %d: not in order", seed)
		}
		for _, c := range chaos {
			var own []Disturbance
			for _, d := range all {
				if d.What == c.What {
					own = append(own, d)
				}
			}
			if !slices.Equal(own, Schedule(seed, []spec.Chaos{c}, budget)) {
				t.Errorf("seed %d: %s depends on its company", seed, c.What)
			}
			end := spec.ChaosFrom - 1
			for _, d := range own {
				if d.At <= end || d.For != c.For {
					t.Fatalf("seed %d: %+v comes before %s", seed, d, end)
				}
				end = d.At + d.For
			}
			if end >= budget {
				t.Errorf("seed %d: %s ends at %s", seed, c.What, end)
			}
			mean := (own[len(own)-1].At - own[0].At) / time.Duration(len(own)-1)
			if mean < c.Every*8/10 || mean > c.Every*12/10 {
				t.Errorf("seed %d: %s comes every %s, want %s", seed, c.What, mean, c.Every)
			}
		}
	}
	if got := Schedule(1, nil, budget); len(got) != 0 {
		t.Errorf("without chaos: %v", got)
	}
}

// pausable notes what is done to it.
type pausable struct {
	fakeInstance
	fail error
	said []string
}

func (p *pausable) Pause(context.Context) error {
	p.said = append(p.said, "pause")
	return p.fail
}

func (p *pausable) Resume(ctx context.Context) error {
	p.said = append(p.said, "resume")
	return ctx.Err()
}

// TestPause: whatever happens, nothing stays paused.
func TestPause(t *testing.T) {
	broken := errors.New("broken")
	both := []string{"pause", "resume"}
	for name, tt := range map[string]struct {
		fail         error // of the second instance
		interrupted  bool
		first, third []string
		lasts        time.Duration
	}{
		"done":        {nil, false, both, both, time.Second},
		"interrupted": {nil, true, both, both, 300 * time.Millisecond},
		"failed":      {broken, false, both, nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if tt.interrupted {
					time.AfterFunc(300*time.Millisecond, cancel)
				}
				a, b, c := &pausable{}, &pausable{fail: tt.fail}, &pausable{}
				begun := time.Now()
				if err := pause(ctx, []stack.Instance{a, b, c}, time.Second); !errors.Is(err, tt.fail) {
					t.Errorf("error %v", err)
				}
				if got := time.Since(begun); got != tt.lasts {
					t.Errorf("lasted %s, want %s", got, tt.lasts)
				}
				for i, want := range [][]string{tt.first, both, tt.third} {
					if diff := cmp.Diff(want, []*pausable{a, b, c}[i].said); diff != "" {
						t.Errorf("instance %d: %s", i, diff)
					}
				}
			})
		})
	}
}
