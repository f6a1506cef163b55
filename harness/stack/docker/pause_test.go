package docker

import (
	"io"
	"net"
	"testing"
	"time"
)

func TestPause(t *testing.T) {
	r := newRuntime(t, engine(t))
	s := server(t, r, "server", 1)
	p := start(t, r, s)
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	// Where an engine's proxy publishes the port it accepts, and says nothing.
	if c, err := net.DialTimeout("tcp", p.Address(s.Ready[0]), patience); err == nil {
		c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		if b, _ := io.ReadAll(c); len(b) > 0 {
			t.Errorf("a paused server says %q", b)
		}
		c.Close()
	}
	select {
	case <-p.Done():
		t.Error("a paused container counts as ended")
	default:
	}
	for range 2 { // twice is harmless
		if err := p.Resume(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	greeted(t, p.Address(s.Ready[0]))
	if err := p.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	stop(t, p, patience)
	if got := read(t, p.Stdout()); got != "listening\nterminated\n" {
		t.Errorf("stdout %q: a paused one was not asked politely", got)
	}
	if err := p.Resume(t.Context()); err != nil {
		t.Errorf("an ended one: %v", err)
	}
	if err := p.Pause(t.Context()); err != nil {
		t.Errorf("an ended one: %v", err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Error(err)
	}
}
