package main

import (
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"idlerace/harness/report"
	"idlerace/harness/run"
	"idlerace/harness/screen"
)

// The least terminal that a matrix is drawn on; on a smaller one, as elsewhere,
// each decided cell has a line.
const (
	leastWidth  = 80
	leastHeight = 24
)

// settleTime is how long a terminal may go on changing its size before it is
// drawn on again.
const settleTime = 50 * time.Millisecond

// stopped is a time between two calls of show in which the process may have been
// stopped, with a SIGCONT under way.
const stopped = time.Second

// progress tells the story of a run on stderr: a matrix that fills, on a
// terminal, or a line per decided cell.
type progress struct {
	w     io.Writer
	quiet bool

	mu     sync.Mutex
	file   *os.File // the terminal to draw on; nil: there is none
	color  bool
	screen *screen.Screen
	live   *report.Live // last told; nil: nothing to draw
	shown  time.Time    // when show was called last
	end    func()       // of redraw
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet, end: func() {}}
	f, ok := w.(*os.File)
	if !ok || quiet || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return p
	}
	width, height, err := term.GetSize(int(f.Fd()))
	if err != nil || width < leastWidth || height < leastHeight {
		return p
	}
	p.file, p.screen, p.color = f, screen.New(f), os.Getenv("NO_COLOR") == ""
	changes := make(chan os.Signal, 1)
	signal.Notify(changes, syscall.SIGWINCH, syscall.SIGCONT)
	p.end = sync.OnceFunc(func() { signal.Stop(changes); close(changes) })
	go p.redraw(changes)
	return p
}

// redraw follows the terminal until changes is closed.
func (p *progress) redraw(changes <-chan os.Signal) {
	for s := range changes {
		if s == syscall.SIGWINCH {
			time.Sleep(settleTime)
		}
		p.mu.Lock()
		if s == syscall.SIGCONT {
			p.screen.Forget() // a shell has written meanwhile
		}
		p.draw()
		p.mu.Unlock()
	}
}

// say prints a line of its own.
func (p *progress) say(format string, args ...any) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.screen == nil {
		fmt.Fprintf(p.w, format+"\n", args...)
		return
	}
	p.screen.Print(fmt.Sprintf(format, args...))
}

// show is run.Options.Progress.
func (p *progress) show(r run.Progress) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.screen != nil && time.Since(p.shown) > stopped {
		p.mu.Unlock()
		time.Sleep(settleTime) // redraw goes first
		p.mu.Lock()
	}
	p.shown = time.Now()
	if p.screen == nil {
		for _, id := range r.Newly {
			fmt.Fprintf(p.w, "[%d/%d, %s] %s\n", r.Decided, r.Total, r.Elapsed.Round(time.Second), id)
		}
		return
	}
	p.live = &report.Live{Cells: slices.Clone(r.Cells), Decided: r.Decided, Total: r.Total, Failures: r.Failures, Proven: r.Proven,
		Elapsed: r.Elapsed, Left: r.Left, Budget: r.Budget}
	p.draw()
}

// draw needs the lock. A process in the background leaves the terminal alone.
func (p *progress) draw() {
	fd := int(p.file.Fd())
	width, height, err := term.GetSize(fd)
	if p.live == nil || err != nil {
		return
	}
	if group, err := unix.IoctlGetInt(fd, unix.TIOCGPGRP); err == nil && group != unix.Getpgrp() {
		return
	}
	p.screen.Paint(p.live.Frame(width, height-1, p.color), width, height)
}

// finish leaves a clean screen.
func (p *progress) finish() {
	p.end()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.live = nil; p.screen != nil {
		p.screen.Erase()
	}
}
