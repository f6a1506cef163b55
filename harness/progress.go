package main

import (
	"fmt"
	"io"
	"sync"
	"time"

	"idlerace/harness/run"
)

// progress tells the story of a run on stderr: one line that is rewritten on a
// terminal, a line per decided cell elsewhere.
type progress struct {
	mu    sync.Mutex
	w     io.Writer
	quiet bool
	width int
	tty   bool
	shown bool // a line without its end stands on the terminal
}

func newProgress(w io.Writer, quiet bool) *progress {
	p := &progress{w: w, quiet: quiet}
	p.width, p.tty = terminal(w)
	return p
}

// say prints a line of its own.
func (p *progress) say(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
	fmt.Fprintf(p.w, format+"\n", args...)
}

// show is run.Options.Progress.
func (p *progress) show(r run.Progress) {
	if p.quiet {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	line := fmt.Sprintf("%d/%d cells decided, %d failures found in %d cells, %s elapsed, about %s left",
		r.Decided, r.Total, r.Failures, r.Proven, r.Elapsed.Round(time.Second), r.Left.Round(time.Second))
	if !p.tty {
		for _, id := range r.Newly {
			fmt.Fprintf(p.w, "[%d/%d, %s] %s\n", r.Decided, r.Total, r.Elapsed.Round(time.Second), id)
		}
		return
	}
	if len(line) >= p.width {
		line = line[:p.width-1]
	}
	p.wipe()
	fmt.Fprint(p.w, line)
	p.shown = true
}

// finish leaves a clean screen.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.wipe()
}

func (p *progress) wipe() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}
