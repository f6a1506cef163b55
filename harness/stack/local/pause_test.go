package local

import (
	"io"
	"net"
	"testing"
	"time"

	"idlerace/harness/stack"
)

// greets reports whether the server at addr says a word within d.
func greets(t *testing.T, addr string, d time.Duration) bool {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(d))
	b, _ := io.ReadAll(c)
	return string(b) == "hi"
}

func TestPause(t *testing.T) {
	a := addrs(t, 1)
	p := start(t, stack.Service{Name: "server", Args: []string{"server", a[0]}, Ready: a})
	for range 2 { // twice is harmless
		if err := p.Pause(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	// A thread under way on another core stops when it notices.
	end := time.Now().Add(patience)
	for greets(t, a[0], 100*time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a paused server goes on answering")
		}
	}
	for range 2 {
		if err := p.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if !greets(t, a[0], patience) {
		t.Error("a resumed server does not answer")
	}
	stop(t, p, patience)
	if err := p.Pause(t.Context()); err != nil {
		t.Errorf("an ended one: %v", err)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Errorf("an ended one: %v", err)
	}
}

func TestStopOfPaused(t *testing.T) {
	a := addrs(t, 1)
	p := start(t, stack.Service{Name: "server", Args: []string{"server", a[0]}, Ready: a})
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop(t, p, patience)
	if got := read(t, p.Stdout()); got != "listening\nterminated\n" {
		t.Errorf("stdout %q: it was not asked politely", got)
	}
}
