package spec

import (
	"sync"
	"testing"
	"time"
)

var whereCell = Cell{"nginx", "go", Idle(time.Second), 1500 * time.Millisecond, "POST", RetryOff, CloseHalfClose, 20 * time.Millisecond}

func TestPolicyMatch(t *testing.T) {
	off := whereCell
	off.ProxyIdle = Off
	for _, tt := range []struct {
		where string
		cell  Cell
		want  bool
	}{
		{``, whereCell, true},
		{`true`, whereCell, true},
		{`false`, whereCell, false},
		{`proxy == "nginx" and upstream == "go" and method == "POST"`, whereCell, true},
		{`retry == "off" && close == "half-close"`, whereCell, true},
		{`retry == "default" || method == "GET"`, whereCell, false},
		{`not (method in ["GET", "HEAD"])`, whereCell, true},
		{`proxy startsWith "ng" and proxy matches "x$"`, whereCell, true},
		{`upstream_idle > proxy_idle`, whereCell, true},
		{`upstream_idle - proxy_idle <= duration("500ms")`, whereCell, true},
		{`upstream_idle - proxy_idle < "500ms"`, whereCell, false},
		{`upstream_idle - "1s" - "480ms" == rtt`, whereCell, true},
		{`"1.5s" == upstream_idle`, whereCell, true},
		{`upstream_idle == "1500ms"`, whereCell, true},
		{`upstream_idle != "1m30s"`, whereCell, true},
		{`upstream_idle < 2 * proxy_idle`, whereCell, true},
		{`upstream_idle >= proxy_idle + rtt + "480ms"`, whereCell, true},
		{`upstream_idle > proxy_idle + rtt + "480ms"`, whereCell, false},
		{`proxy_idle in ["1s", "off"]`, whereCell, true},
		{`proxy_idle in ["1s", "off"]`, off, true},
		{`proxy_idle in ["2s"]`, whereCell, false},
		{`rtt in [duration("20ms"), "1s"]`, whereCell, true},
		{`proxy_idle == off`, whereCell, false},
		{`proxy_idle == off`, off, true},
		{`proxy_idle == "off"`, off, true},
		{`proxy_idle != off`, off, false},
		{`proxy_idle < rtt`, off, true},
		{`method == "POST" ? nil : true`, whereCell, false},
		{`method == "POST" ? rtt > "1ms" : false`, whereCell, true},
	} {
		t.Run(tt.where, func(t *testing.T) {
			p, err := NewPolicy([]State{Races}, tt.where)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range []*Policy{p, {Where: tt.where}} {
				if got, err := p.Match(tt.cell); err != nil || got != tt.want {
					t.Errorf("Match = %v, %v, want %v", got, err, tt.want)
				}
			}
		})
	}
}

func TestNewPolicyErrors(t *testing.T) {
	const example = ` (such as method == "POST" and upstream_idle > proxy_idle)`
	for where, want := range map[string]string{
		`method ==`:                   "policy.where: column 9: the expression ends too early" + example,
		`method == "GET`:              "policy.where: column 15: literal not terminated" + example,
		`rtt`:                         "policy.where: want true or false, got duration" + example,
		`nil`:                         "policy.where: want true or false" + example,
		`mehtod == "GET"`:             "policy.where: column 1: unknown name mehtod (did you mean method? known: close, method, off, proxy, proxy_idle, retry, rtt, upstream, upstream_idle)",
		`rtt > 5`:                     `policy.where: column 7: the number 5 next to a duration, which is written "1s"` + example,
		`rtt > 0.5`:                   `policy.where: column 7: the number 0.5 next to a duration, which is written "1s"` + example,
		`rtt / 2 > off`:               "policy.where: column 5: invalid operation: / (mismatched types duration and int)" + example,
		`rtt > "1d"`:                  `policy.where: column 7: "1d" is not a duration (a Go duration such as 500ms, 1s, 1m30s)`,
		`rtt in ["1s", "x"]`:          `policy.where: column 15: "x" is not a duration (a Go duration such as 500ms, 1s, 1m30s)`,
		`rtt > duration("1")`:         `policy.where: column 16: "1" is not a duration (a Go duration such as 500ms, 1s, 1m30s)`,
		`method > rtt`:                "policy.where: column 8: invalid operation: > (mismatched types string and duration)" + example,
		`method > "GET" and rtt > xy`: "policy.where: column 26: unknown name xy (known: close, method, off, proxy, proxy_idle, retry, rtt, upstream, upstream_idle)",
		`any([1], true)`:              "policy.where: column 1: unknown name any (known: close, method, off, proxy, proxy_idle, retry, rtt, upstream, upstream_idle)",
		"true and\n  x":               "policy.where: line 2, column 3: unknown name x (known: close, method, off, proxy, proxy_idle, retry, rtt, upstream, upstream_idle)",
	} {
		if _, err := NewPolicy([]State{Races}, where); err == nil || err.Error() != want {
			t.Errorf("NewPolicy(%s)\n got %v\nwant %s", where, err, want)
		}
		if _, err := (&Policy{Where: where}).Match(whereCell); err == nil || err.Error() != want {
			t.Errorf("Match of %s\n got %v\nwant %s", where, err, want)
		}
	}
}

func TestPolicyMatchFailsOnACell(t *testing.T) {
	const cell = "cell nginx_go_p1s_u1.5s_POST_off_half-close_rtt20ms: "
	for where, want := range map[string]string{
		`rtt > duration(method)`:     "policy.where: column 7: " + cell + `time: invalid duration "POST"`,
		`1..10000000 == 1..10000000`: "policy.where: column 2: " + cell + "memory budget exceeded",
	} {
		p, err := NewPolicy([]State{Races}, where)
		if err != nil {
			t.Fatal(err)
		}
		want += " (it must be true or false for every cell)"
		if _, err := p.Match(whereCell); err == nil || err.Error() != want {
			t.Errorf("Match of %s\n got %v\nwant %s", where, err, want)
		}
	}
}

func TestPolicyMatchConcurrently(t *testing.T) {
	p, err := NewPolicy([]State{Races}, `upstream_idle > "1s"`)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if ok, err := p.Match(whereCell); !ok || err != nil {
					t.Errorf("Match = %v, %v", ok, err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkPolicyMatch(b *testing.B) {
	p, err := NewPolicy([]State{Races}, `method == "POST" and upstream_idle > proxy_idle`)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.Match(whereCell); err != nil {
			b.Fatal(err)
		}
	}
}
