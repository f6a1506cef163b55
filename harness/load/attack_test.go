package load

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"
	"go.uber.org/goleak"

	"idlerace/harness/record"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pipeNet is a network of in-memory pipes, for use inside a synctest bubble.
type pipeNet struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeNet() *pipeNet {
	return &pipeNet{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (p *pipeNet) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *pipeNet) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}
func (p *pipeNet) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipeNet) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 1} }

// bubble runs an attack of three lanes against handler in virtual time.
func bubble(t *testing.T, handler http.HandlerFunc, set func(*Attack), next func(ctx context.Context, last []record.Shot) (Burst, bool)) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		srv := &http.Server{Handler: handler}
		go srv.Serve(p)
		defer srv.Close()
		alarm := newAlarm(newGoTimer())
		defer alarm.Close()
		a := Attack{Cell: "cell", Addr: "127.0.0.1:1", Method: "GET", Lanes: 3, Alarm: alarm, Next: next, dial: p.dial}
		if set != nil {
			set(&a)
		}
		if err := a.Run(t.Context(), t.Context()); err != nil {
			t.Fatal(err)
		}
	})
}

func gapsOf(d ...time.Duration) []time.Duration { return d }

func TestAgesAreThePlannedOnes(t *testing.T) {
	var got [][]record.Shot
	bubble(t, func(w http.ResponseWriter, r *http.Request) { time.Sleep(5 * time.Millisecond) }, nil,
		func(_ context.Context, last []record.Shot) (Burst, bool) {
			if last != nil {
				got = append(got, append([]record.Shot(nil), last...))
			}
			switch len(got) {
			case 0:
				return Burst{Phase: record.PhaseWarm}, true
			case 1, 2:
				return Burst{Phase: record.PhaseAimed, Target: record.TargetUpstream, Edge: time.Second,
					Gaps: gapsOf(time.Second, time.Second+3*time.Millisecond, time.Second-3*time.Millisecond)}, true
			}
			return Burst{}, false
		})
	if len(got) != 3 {
		t.Fatalf("%d bursts, want 3", len(got))
	}
	seq := uint64(0)
	for b, shots := range got {
		for lane, s := range shots {
			if s.Seq/3 != uint64(b) || s.Lane != lane || s.Burst != b || s.Cell != "cell" || s.Status != 200 || s.Outcome != record.OutcomeResponse {
				t.Errorf("burst %d lane %d: %+v", b, lane, s)
			}
			seq++
			if b == 0 {
				if s.Age != 0 || s.Planned != 0 || !s.Fresh {
					t.Errorf("first shot of lane %d has an age: %+v", lane, s)
				}
				continue
			}
			// Virtual time passes for nothing but the waits themselves.
			if s.Age != s.Planned || s.Age == 0 || s.Fresh {
				t.Errorf("burst %d lane %d: age %s, planned %s, fresh %v", b, lane, s.Age, s.Planned, s.Fresh)
			}
			if s.Latency != 5*time.Millisecond {
				t.Errorf("burst %d lane %d: latency %s", b, lane, s.Latency)
			}
		}
	}
	// All lanes count from one moment, also after a burst whose lanes ended 3 ms
	// apart.
	for b := 1; b < 3; b++ {
		for lane, want := range gapsOf(time.Second, time.Second+3*time.Millisecond, time.Second-3*time.Millisecond) {
			if got[b][lane].Age != want {
				t.Errorf("burst %d lane %d: age %s, want %s", b, lane, got[b][lane].Age, want)
			}
		}
	}
}

func TestAgesCountFromTheAnswers(t *testing.T) {
	shot := func(sent, latency int64, status int) record.Shot {
		return record.Shot{Sent: sent, Latency: time.Duration(latency), Status: status, Outcome: record.OutcomeResponse}
	}
	for name, c := range map[string]struct {
		shots []record.Shot
		want  time.Time
	}{
		"none":                {nil, time.Time{}},
		"the median":          {[]record.Shot{shot(10, 5, 200), shot(10, 900, 200), shot(10, 7, 200)}, time.Unix(0, 17)},
		"failures end early":  {[]record.Shot{shot(10, 1, 502), shot(10, 1, 502), shot(10, 50, 200)}, time.Unix(0, 60)},
		"nothing but failure": {[]record.Shot{shot(10, 1, 502), shot(10, 3, 502), shot(10, 2, 502)}, time.Unix(0, 12)},
	} {
		if got := BurstEnd(c.shots); !got.Equal(c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestNothingIsSentTwice(t *testing.T) {
	var mu sync.Mutex
	seen := map[string]int{}
	var last []record.Shot
	bursts := 0
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen[r.Header.Get("X-Vegeta-Seq")]++
		mu.Unlock()
		if r.Header.Get("X-Vegeta-Attack") != "cell" || r.URL.Path != "/cell/"+r.Header.Get("X-Vegeta-Seq") {
			t.Errorf("request id: %v %s", r.Header, r.URL)
		}
		if r.Header.Get("X-Vegeta-Seq") >= "3" {
			panic(http.ErrAbortHandler) // the second request of a connection
		}
	}, nil, func(_ context.Context, shots []record.Shot) (Burst, bool) {
		if bursts++; bursts == 3 {
			last = shots
		}
		return Burst{Phase: record.PhaseAimed, Gaps: gapsOf(time.Second, time.Second, time.Second)}, bursts < 3
	})
	for _, s := range last {
		if s.Outcome != record.OutcomeClosed || s.Status != 0 || s.Err == "" || !s.Failed() {
			t.Errorf("a closed connection gave %+v", s)
		}
	}
	for seq, n := range seen {
		if n != 1 {
			t.Errorf("request %s was sent %d times", seq, n)
		}
	}
	if len(seen) != 6 {
		t.Errorf("%d requests seen, want 6", len(seen))
	}
}

func TestLostConnectionIsDialledAnew(t *testing.T) {
	var fresh []bool
	bursts := 0
	bubble(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-Vegeta-Seq") < "3" {
			w.Header().Set("Connection", "close")
		}
	}, nil, func(_ context.Context, shots []record.Shot) (Burst, bool) {
		for _, s := range shots {
			fresh = append(fresh, s.Fresh)
			if s.Outcome != record.OutcomeResponse {
				t.Errorf("%+v", s)
			}
		}
		bursts++
		return Burst{Gaps: gapsOf(time.Second, time.Second, time.Second)}, bursts < 4
	})
	if want := "[true true true true true true false false false]"; fmt.Sprint(fresh) != want {
		t.Errorf("fresh: %v, want %s", fresh, want)
	}
}

func TestOutcomes(t *testing.T) {
	for name, c := range map[string]struct {
		handler http.HandlerFunc
		refuse  bool
		want    record.Outcome
	}{
		"502":     {handler: func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(502) }, want: record.OutcomeResponse},
		"timeout": {handler: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }, want: record.OutcomeTimeout},
		"partial": {handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "half")
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, want: record.OutcomePartial},
		"refused": {refuse: true, want: record.OutcomeRefused},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			bubble(t, c.handler, func(a *Attack) {
				if c.refuse {
					a.dial = func(context.Context, string, string) (net.Conn, error) {
						return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}
					}
				}
			}, func(_ context.Context, shots []record.Shot) (Burst, bool) {
				calls++
				for _, s := range shots {
					if s.Outcome != c.want {
						t.Errorf("outcome %q (%s), want %q", s.Outcome, s.Err, c.want)
					}
					if !s.Failed() {
						t.Errorf("not counted as a failure: %+v", s)
					}
				}
				return Burst{}, calls < 2
			})
		})
	}
}

func TestOutcomeOfErrors(t *testing.T) {
	for want, err := range map[record.Outcome]error{
		record.OutcomeReset:   &net.OpError{Op: "read", Err: syscall.ECONNRESET},
		record.OutcomeClosed:  fmt.Errorf("x: %w", io.ErrUnexpectedEOF),
		record.OutcomeTimeout: context.DeadlineExceeded,
		record.OutcomeRefused: syscall.ECONNREFUSED,
		record.OutcomeClient:  errors.New("too many open files"),
	} {
		if got := outcome(err); got != want {
			t.Errorf("%v: %q, want %q", err, got, want)
		}
	}
	if got := outcome(errors.New("http: server closed idle connection")); got != record.OutcomeClosed {
		t.Errorf("errServerClosedIdle: %q", got)
	}
}

func TestStopBetweenBursts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipeNet()
		srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
		go srv.Serve(p)
		defer srv.Close()
		alarm := newAlarm(newGoTimer())
		defer alarm.Close()
		calm, cancel := context.WithCancel(t.Context())
		begun := time.Now()
		bursts := 0
		a := Attack{Cell: "c", Addr: "127.0.0.1:1", Method: "GET", Lanes: 2, Alarm: alarm, dial: p.dial,
			Next: func(context.Context, []record.Shot) (Burst, bool) {
				if bursts++; bursts == 2 {
					time.AfterFunc(time.Second, cancel)
				}
				return Burst{Gaps: gapsOf(time.Hour, time.Hour)}, true
			}}
		if err := a.Run(calm, t.Context()); err != nil {
			t.Fatal(err)
		}
		if bursts != 2 || time.Since(begun) != time.Second {
			t.Errorf("%d bursts, ended after %s; an interrupt must not wait for a gap of an hour", bursts, time.Since(begun))
		}
	})
}

func TestResultsCarryTheRequestsOwnTimes(t *testing.T) {
	var results []*vegeta.Result
	bursts := 0
	bubble(t, func(http.ResponseWriter, *http.Request) { time.Sleep(7 * time.Millisecond) },
		func(a *Attack) { a.Result = func(r *vegeta.Result) { results = append(results, r) } },
		func(context.Context, []record.Shot) (Burst, bool) {
			bursts++
			return Burst{Gaps: gapsOf(time.Minute, time.Minute, time.Minute)}, bursts < 3
		})
	if len(results) != 6 {
		t.Fatalf("%d results", len(results))
	}
	for _, r := range results {
		if r.Latency != 7*time.Millisecond || r.Code != 200 || r.Attack != "cell" {
			t.Errorf("seq %d: latency %s (the wait for the gap is not part of it), code %d", r.Seq, r.Latency, r.Code)
		}
	}
}

func TestFaults(t *testing.T) {
	a := Attack{Cell: "c"}
	if err := a.Run(t.Context(), t.Context()); err == nil || !strings.Contains(err.Error(), "0 lanes") {
		t.Errorf("no lanes: %v", err)
	}
	synctest.Test(t, func(t *testing.T) {
		alarm := newAlarm(newGoTimer())
		defer alarm.Close()
		a := Attack{Cell: "c", Addr: "127.0.0.1:1", Method: "GET", Lanes: 2, Alarm: alarm, dial: newPipeNet().dial,
			Next: func(context.Context, []record.Shot) (Burst, bool) { return Burst{Gaps: gapsOf(1)}, true }}
		if err := a.Run(t.Context(), t.Context()); err == nil || !strings.Contains(err.Error(), "1 gaps for 2 lanes") {
			t.Errorf("too few gaps: %v", err)
		}
	})
}
