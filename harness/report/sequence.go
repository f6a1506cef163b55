package report

import (
	"fmt"
	"strings"
	"time"

	"idlerace/harness/record"
)

// Where a sequence diagram has what, in its own units.
const (
	seqWidth = 800
	seqTop   = 34 // below the parties' names
	seqLine  = 16 // of text
	seqRow   = 10 // between rows
)

// lifelines are the parties' places, left to right.
var lifelines = []struct {
	who string
	x   int
}{{WhoClient, 106}, {WhoProxy, 326}, {WhoUpstream, 546}}

// sequence is a timeline as a diagram: lifelines, messages between them, notes
// beside them, and the pauses between.
type sequence struct {
	Width, Height, Bottom int
	Label                 string
	Parties               []seqParty
	Rows                  []seqStep
	Pauses                []seqPause
}

type seqParty struct {
	Name string
	X    int
}

type seqStep struct {
	Time   string
	Lines  []seqText
	Y      int // of the time, and of a note's dot
	Arrow  bool
	X1, X2 int // of the arrow; X1 of the dot
	ArrowY int
	Class  string // "lost": what went wrong; may be empty
}

// Path is the arrow as an SVG path.
func (s seqStep) Path() string {
	back := 7
	if s.X2 > s.X1 {
		back = -7
	}
	return fmt.Sprintf("M%d %dH%dl%d-4v8l%d-4", s.X1, s.ArrowY, s.X2, back, -back)
}

type seqText struct {
	X, Y int
	Text string
}

type seqPause struct {
	Y    int
	Text string
}

// wrapSeq is how many characters of a diagram's text fit between two lifelines.
const wrapSeq = 29

// newSequence draws the steps of a request; zero is the instant that times are
// relative to.
func newSequence(steps []Step, zero int64) *sequence {
	s := &sequence{Width: seqWidth, Label: "Sequence diagram of one request: client, proxy and upstream, time running down"}
	place := map[string]int{}
	for _, l := range lifelines {
		place[l.who] = l.x
		s.Parties = append(s.Parties, seqParty{l.who, l.x})
	}
	conns := map[uint64]bool{}
	for _, st := range steps {
		conns[st.Conn] = true
	}
	delete(conns, 0)
	several := len(conns) > 1
	y, last := seqTop+seqRow, int64(0)
	for _, st := range steps {
		if st.At > 0 {
			if d := time.Duration(st.At - last); last > 0 && d >= time.Millisecond {
				s.Pauses = append(s.Pauses, seqPause{y + seqLine, precise(d)})
				y += 2*seqLine + seqRow
			}
			last = st.At
		}
		text := strings.TrimPrefix(plain(st.Text), "> ") // an arrow shows that it is a packet
		if st.Conn != 0 && several {
			text = fmt.Sprintf("conn %d: %s", st.Conn&(1<<record.ConnBits-1), text)
		}
		from, known := place[st.Who]
		if !known {
			from = place[WhoClient]
		}
		row := seqStep{Time: relative(st.At, zero), Y: y + seqLine - 4, X1: from}
		left := from + 10
		if to, message := place[st.to]; message {
			row.Arrow, row.X2 = true, to
		} else if sender, message := place[st.from]; message {
			row.Arrow, row.X1, row.X2 = true, sender, from
		}
		if row.Arrow {
			left = min(row.X1, row.X2) + 10
		}
		for _, l := range wrap(text, wrapSeq) {
			row.Lines = append(row.Lines, seqText{left, y + seqLine - 4, l})
			y += seqLine
		}
		if row.Arrow {
			row.ArrowY = y + 3
			y += 8
		}
		if st.lost {
			row.Class = "lost"
		}
		s.Rows = append(s.Rows, row)
		y += seqRow
	}
	s.Bottom = y
	s.Height = y + seqRow
	return s
}

// zero is the instant that a timeline's times are relative to, and its name.
func (tl Timeline) zero() (at int64, event string) {
	if tl.Closed != nil {
		return tl.Closed.At, "the upstream's close"
	}
	return tl.Shot.Sent, "the client's request"
}

// seqTable is the same as rows of text: time, who, what.
func seqTable(steps []Step, zero int64) [][]string {
	var out [][]string
	for _, st := range steps {
		out = append(out, []string{relative(st.At, zero), st.Who, plain(st.Text)})
	}
	return out
}
