package screen

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/creack/pty"
	"github.com/google/go-cmp/cmp"
	"github.com/hinshun/vt10x"
)

// crlf is what a terminal's line discipline does to output.
type crlf struct{ w io.Writer }

func (c crlf) Write(p []byte) (int, error) {
	if _, err := c.w.Write(bytes.ReplaceAll(bytes.ReplaceAll(p, []byte("\r\n"), []byte("\n")), []byte("\n"), []byte("\r\n"))); err != nil {
		return 0, err
	}
	return len(p), nil
}

// shown is what is on a terminal, without blank lines at the end.
func shown(vt vt10x.Terminal) (out []string) {
	for l := range strings.SplitSeq(vt.String(), "\n") {
		out = append(out, strings.TrimRight(l, " "))
	}
	for len(out) > 0 && out[len(out)-1] == "" {
		if out = out[:len(out)-1]; len(out) == 0 {
			return nil
		}
	}
	return out
}

// atRest wants the terminal as it was found, with the cursor below all text.
func atRest(t *testing.T, vt vt10x.Terminal) {
	t.Helper()
	if !vt.CursorVisible() {
		t.Error("the cursor is hidden")
	}
	if vt.Mode()&vt10x.ModeWrap == 0 {
		t.Error("lines do not wrap")
	}
	if c, n := vt.Cursor(), len(shown(vt)); c.X != 0 || c.Y != n {
		t.Errorf("the cursor is at column %d of row %d, below %d rows", c.X, c.Y, n)
	}
}

func TestScreen(t *testing.T) {
	vt := vt10x.New(vt10x.WithSize(20, 6))
	var out bytes.Buffer
	s := New(io.MultiWriter(crlf{vt}, &out))
	want := func(lines ...string) {
		t.Helper()
		if diff := cmp.Diff(lines, shown(vt)); diff != "" {
			t.Errorf("the screen (-want +got):\n%s", diff)
		}
		atRest(t, vt)
	}
	io.WriteString(vt, "$ idlerace\r\n")
	s.Print("found nginx")
	want("$ idlerace", "found nginx")
	s.Paint([]string{"a 0", "b 0"}, 20, 6)
	want("$ idlerace", "found nginx", "a 0", "b 0")

	out.Reset()
	s.Paint([]string{"a 0", "b 0"}, 20, 6)
	if out.Len() > 0 {
		t.Errorf("nothing changed, and it writes %q", &out)
	}
	s.Paint([]string{"a 0", "b 1"}, 20, 6)
	if strings.Contains(out.String(), "a 0") {
		t.Errorf("a line that did not change is written: %q", &out)
	}
	want("$ idlerace", "found nginx", "a 0", "b 1")

	s.Paint([]string{"short"}, 20, 6)
	want("$ idlerace", "found nginx", "short")
	s.Print("nginx: signal: killed")
	want("$ idlerace", "found nginx", "nginx: signal: kille", "d", "short")
	s.Paint([]string{"1", "2", "3", "4"}, 20, 6) // more than is free: the rest scrolls
	want("d", "1", "2", "3", "4")
	s.Paint([]string{"1", "2", "3", "4", "5", "6", "7"}, 20, 6) // more than fits
	want("1", "2", "3", "4", "5")
	s.Paint([]string{strings.Repeat("x", 30)}, 20, 6) // a line too long does not wrap
	want(strings.Repeat("x", 20))
	s.Print("a\x1b[2Jb\x1b[31m\rc\td\a\xff")
	want("ab c d", strings.Repeat("x", 20))
	s.Erase()
	want("ab c d")
	io.WriteString(vt, "\x1b[2J\x1b[H")
	s.Erase()
	want()
	s.Print("done")
	want("done")
}

func TestForget(t *testing.T) {
	vt := vt10x.New(vt10x.WithSize(20, 10))
	s := New(crlf{vt})
	s.Paint([]string{"a", "b"}, 20, 10)
	io.WriteString(vt, "[1]+ Stopped\r\n$ fg\r\n")
	s.Forget()
	s.Paint([]string{"a", "b"}, 20, 10)
	if diff := cmp.Diff([]string{"a", "b", "[1]+ Stopped", "$ fg", "a", "b"}, shown(vt)); diff != "" {
		t.Error(diff)
	}
}

// reflow makes of a terminal one of another size, with all lines broken anew,
// as several terminals do. What is more than its rows is lost at the top.
func reflow(vt vt10x.Terminal, width, height int) vt10x.Terminal {
	out := vt10x.New(vt10x.WithSize(width, height))
	for _, l := range shown(vt) {
		io.WriteString(out, l+"\r\n")
	}
	return out
}

// Whatever happens to the size of a terminal, there is one picture on it, the
// last, below everything else.
func TestResized(t *testing.T) {
	for _, reflows := range []bool{false, true} {
		seed := rand.Uint64()
		rng := rand.New(rand.NewPCG(seed, 1))
		vt := vt10x.New(vt10x.WithSize(80, 24))
		var s *Screen
		w := writerFunc(func(p []byte) (int, error) { return crlf{vt}.Write(p) })
		s = New(w)
		width, height := 80, 24
		for i := range 500 {
			if rng.IntN(3) == 0 {
				width, height = 2+rng.IntN(120), 2+rng.IntN(50)
				if reflows {
					vt = reflow(vt, width, height)
				} else {
					vt.Resize(width, height)
				}
			}
			if rng.IntN(5) == 0 {
				s.Print(fmt.Sprintf("said %d%s", i, strings.Repeat(".", rng.IntN(100))))
			}
			var lines []string
			for n := range rng.IntN(height) {
				l := fmt.Sprintf("f%d line %d%s", i, n, strings.Repeat("-", rng.IntN(100)))
				lines = append(lines, strings.TrimRight(l[:min(width, len(l))], " "))
			}
			s.Paint(lines, width, height)
			var got []string
			for _, l := range shown(vt) {
				if strings.HasPrefix(l, "f") {
					got = append(got, l)
				}
			}
			if diff := cmp.Diff(lines, got); diff != "" {
				t.Fatalf("seed %d, reflows %t, step %d, %dx%d: the picture (-want +got):\n%s\n%s", seed, reflows, i, width, height, diff, strings.Join(shown(vt), "\n"))
			}
			if all := shown(vt); len(lines) > 0 && all[len(all)-1] != lines[len(lines)-1] {
				t.Fatalf("seed %d, reflows %t, step %d: there is something below the picture:\n%s", seed, reflows, i, strings.Join(all, "\n"))
			}
			atRest(t, vt)
			if t.Failed() {
				t.Fatalf("seed %d, reflows %t, step %d, %dx%d:\n%s", seed, reflows, i, width, height, strings.Join(shown(vt), "\n"))
			}
		}
	}
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// What was said stays, when all had to be cleared.
func TestSaidAgain(t *testing.T) {
	vt := vt10x.New(vt10x.WithSize(20, 8))
	s := New(crlf{vt})
	s.Print("one")
	s.Print("two")
	s.Print("three " + strings.Repeat("3", 20))
	s.Paint([]string{"a picture of 18 cols", "b"}, 20, 8)
	vt.Resize(12, 6)
	s.Paint([]string{"a", "b"}, 12, 6)
	if diff := cmp.Diff([]string{"three 333333", "33333333333333"[:12], "33", "a", "b"}, shown(vt)); diff != "" {
		t.Error(diff)
	}
}

func TestWriteFails(t *testing.T) {
	broken := errors.New("no terminal any more")
	s := New(writerFunc(func([]byte) (int, error) { return 0, broken }))
	for what, err := range map[string]error{"Paint": s.Paint([]string{"a"}, 80, 24), "Print": s.Print("b"), "Erase": s.Erase()} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// A process that dies while a picture stands leaves it whole, a cursor below it,
// and what it had to say.
func TestDeath(t *testing.T) {
	if os.Getenv("SCREEN_TEST_DIES") != "" {
		s := New(os.Stdout)
		s.Paint([]string{"frame 1", "old"}, 80, 24)
		s.Paint([]string{"frame 2", "whole"}, 80, 24)
		done := make(chan struct{})
		go func() { panic("in some goroutine") }()
		<-done
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestDeath$")
	cmd.Env = append(os.Environ(), "SCREEN_TEST_DIES=1")
	p, err := pty.StartWithSize(cmd, &pty.Winsize{Cols: 80, Rows: 60})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	vt := vt10x.New(vt10x.WithSize(80, 60))
	io.Copy(vt, p) // until the process has ended: EIO
	if err := cmd.Wait(); err == nil {
		t.Fatal("it lives")
	}
	got := shown(vt)
	if len(got) < 3 || got[0] != "frame 2" || got[1] != "whole" || !strings.HasPrefix(got[2], "panic: in some goroutine") {
		t.Errorf("the screen:\n%s", strings.Join(got, "\n"))
	}
	atRest(t, vt)
}

func BenchmarkPaint(b *testing.B) {
	var frames [2][]string
	for i := range frames {
		for row := range 40 {
			frames[i] = append(frames[i], strings.Repeat(fmt.Sprintf("\x1b[31m%d %d\x1b[0m ", row, i*(row%2)), 15))
		}
	}
	written := 0
	s := New(writerFunc(func(p []byte) (int, error) { written += len(p); return len(p), nil }))
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		s.Paint(frames[i%2], 120, 42)
	}
	b.ReportMetric(float64(written)/float64(b.N), "written/op")
}
