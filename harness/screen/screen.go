// Package screen keeps some lines repainted at the bottom of a terminal, below
// whatever else is printed. It imports nothing of this module.
//
// Between two paints the terminal is as it was found: the cursor is visible and
// at the beginning of the line below, lines wrap, no screen was switched. So a
// process that dies of whatever, a panic in any goroutine included, leaves a
// complete picture and nothing to repair.
//
// Note: the libraries for this hide the cursor until they are told to stop, and
// most take the signals as well, of which a run has two of its own.
package screen

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/charmbracelet/x/ansi"
)

const (
	begin    = "\x1b[?25l\x1b[?7l" // no cursor that flits about, no line that wraps
	end      = "\x1b[?7h\x1b[?25h"
	toEnd    = "\x1b[J"
	toRight  = "\x1b[K"
	home     = "\x1b[H"
	mostSaid = 100
)

// Screen is the bottom of one terminal. Its methods need a lock around them.
// Each writes at once or not at all, so that nothing is ever half done.
type Screen struct {
	w     io.Writer
	lines []string // what stands there
	said  []string // what was printed above, the last of it
	width int      // of the terminal at the last paint
	high  int      // likewise
	torn  bool     // some lines were lost to a change of size, and may come back with the next
}

// New draws on w.
func New(w io.Writer) *Screen { return &Screen{w: w} }

// Paint replaces the lines, which neither wrap nor end in "\n", on a terminal
// of this size; what does not fit is left out. Unchanged ones cost nothing.
//
// A terminal that changes its size may break lines anew, push some out at the
// top and fetch them back, or do nothing of that; no program can know. Where
// that could concern these lines, all that is visible is cleared.
func (s *Screen) Paint(lines []string, width, height int) error {
	lines = lines[:min(len(lines), max(height-1, 0))]
	var b bytes.Buffer
	b.WriteString(begin)
	resized := s.width != 0 && (width != s.width || height != s.high)
	s.width, s.high = width, height
	cleared := resized && s.unsure()
	if cleared {
		// Terminals that keep what is cleared shall not keep pictures: these go
		// first, as far as they can be found.
		rows := 0
		for _, l := range s.lines {
			rows += s.rows(l)
		}
		b.WriteByte('\r')
		if rows > 0 {
			fmt.Fprintf(&b, "\x1b[%dA", rows)
		}
		b.WriteString(toEnd + home + toEnd)
		s.torn, s.lines = true, nil
		for _, text := range s.saidLast(height - 1 - len(lines)) {
			b.WriteString(end + text + "\r\n" + begin)
		}
	}
	if !s.put(&b, lines) && !cleared {
		return nil
	}
	b.WriteString(end)
	_, err := s.w.Write(b.Bytes())
	return err
}

// unsure reports whether the terminal's new size may have moved what stands
// there.
func (s *Screen) unsure() bool {
	if s.torn || len(s.lines) >= s.high {
		return true
	}
	for _, l := range s.lines {
		if ansi.StringWidth(l) > s.width {
			return true
		}
	}
	return false
}

// saidLast is what was said last and takes at most this many rows.
func (s *Screen) saidLast(rows int) []string {
	from := len(s.said)
	for from > 0 {
		if rows -= s.rows(s.said[from-1]); rows < 0 {
			break
		}
		from--
	}
	return s.said[from:]
}

// rows is how many of the terminal a line takes that wraps.
func (s *Screen) rows(l string) int { return 1 + max(ansi.StringWidth(l)-1, 0)/max(s.width, 1) }

// put writes what turns the lines that stand there into others, and reports
// whether that is anything.
func (s *Screen) put(b *bytes.Buffer, lines []string) bool {
	before, changed := s.lines, len(lines) != len(s.lines)
	s.up(b)
	for i, l := range lines {
		if i < len(before) && before[i] == l {
			b.WriteString("\n")
			continue
		}
		changed = true
		b.WriteString(toRight + l + "\r\n") // erased first: after the last column it would take that
	}
	b.WriteString(toEnd)
	s.lines = lines
	return changed
}

func (s *Screen) up(b *bytes.Buffer) {
	b.WriteByte('\r')
	if n := len(s.lines); n > 0 {
		fmt.Fprintf(b, "\x1b[%dA", n)
	}
}

// Print prints text above the lines, where it stays. What in it would move the
// cursor or set a colour is left out.
func (s *Screen) Print(text string) error {
	text = strings.Map(func(r rune) rune {
		if r != '\n' && unicode.IsControl(r) {
			return ' '
		}
		return r
	}, ansi.Strip(text))
	var b bytes.Buffer
	b.WriteString(s.mend())
	lines := s.lines
	if lines != nil {
		s.up(&b)
		b.WriteString(toEnd)
	}
	for l := range strings.SplitSeq(text, "\n") {
		s.said = append(s.said, l)
	}
	s.said = s.said[max(len(s.said)-mostSaid, 0):]
	b.WriteString(strings.ReplaceAll(text, "\n", "\r\n") + "\r\n")
	if s.lines = nil; lines != nil {
		b.WriteString(begin)
		s.put(&b, lines)
		b.WriteString(end)
	}
	_, err := s.w.Write(b.Bytes())
	return err
}

// Forget leaves the lines where they are; the next ones begin below: after
// somebody else has written to the terminal.
func (s *Screen) Forget() { s.lines = nil }

// mend ends a paint that did not reach the terminal as a whole: an interrupt from
// the keyboard drops what is on the way.
func (s *Screen) mend() string {
	if s.lines == nil {
		return ""
	}
	return end
}

// Erase takes the lines away.
func (s *Screen) Erase() error {
	if s.lines == nil {
		return nil
	}
	var b bytes.Buffer
	b.WriteString(s.mend())
	s.up(&b)
	b.WriteString(toEnd)
	s.lines = nil
	_, err := s.w.Write(b.Bytes())
	return err
}
