package record

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"sync"

	"github.com/mailru/easyjson/jlexer"
)

// MaxLine is the longest line a reader takes, in bytes.
const MaxLine = 64 << 10

// Writer writes lines as they come. It may be used by several goroutines. The
// first write error sticks: later lines are dropped and Flush tells it.
type Writer struct {
	mu  sync.Mutex
	w   *bufio.Writer
	enc *json.Encoder
	err error
}

// NewWriter writes to w; call Flush to make sure that lines have reached it.
func NewWriter(w io.Writer) *Writer {
	bw := bufio.NewWriterSize(w, 64<<10)
	return &Writer{w: bw, enc: json.NewEncoder(bw)}
}

// Write appends one line.
func (w *Writer) Write(l Line) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = w.enc.Encode(l)
	}
}

// Flush hands everything on and returns the first error of the Writer's life.
func (w *Writer) Flush() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err == nil {
		w.err = w.w.Flush()
	}
	return w.err
}

// BadLine is a line that could not be read. The stream goes on after it.
type BadLine struct {
	Line int // 1-based
	Err  error
}

func (b *BadLine) Error() string { return fmt.Sprintf("line %d: %v", b.Line, b.Err) }
func (b *BadLine) Unwrap() error { return b.Err }

// ErrTruncated is the error of a last line without its newline: the run was
// killed while it wrote.
var ErrTruncated = errors.New("truncated")

// Read yields the lines of r. A line that is no record comes as a *BadLine and
// the stream goes on; an error of r itself ends it.
func Read(r io.Reader) iter.Seq2[Line, error] {
	return func(yield func(Line, error) bool) {
		br := bufio.NewReaderSize(r, MaxLine)
		for n := 1; ; n++ {
			raw, err := br.ReadSlice('\n')
			switch {
			case errors.Is(err, bufio.ErrBufferFull):
				for errors.Is(err, bufio.ErrBufferFull) {
					_, err = br.ReadSlice('\n')
				}
				if !yield(Line{}, &BadLine{n, fmt.Errorf("longer than %d bytes", MaxLine)}) {
					return
				}
				if err == nil {
					continue
				}
			case errors.Is(err, io.EOF) && len(raw) > 0:
				if !yield(Line{}, &BadLine{n, ErrTruncated}) {
					return
				}
			}
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				yield(Line{}, err)
				return
			}
			l, err := decode(raw)
			if err != nil {
				err = &BadLine{n, err}
			}
			if !yield(l, err) {
				return
			}
		}
	}
}

func decode(raw []byte) (Line, error) {
	l, ok := decodePlain(raw)
	if !ok {
		l = Line{}
		if err := json.Unmarshal(raw, &l); err != nil {
			return Line{}, err
		}
	}
	// T names the one field that is set; a line that lies about it is none.
	set, n := "", 0
	for _, f := range [...]struct {
		kind string
		is   bool
	}{
		{KindShot, l.Shot != nil}, {KindEvent, l.Event != nil}, {KindLog, l.Log != nil},
		{KindDirect, l.Direct != nil}, {KindPackets, l.Packets != nil}, {KindSettled, l.Settled != nil}, {KindEnd, l.End != nil},
		{KindDisturbance, l.Disturbance != nil},
	} {
		if f.is {
			set = f.kind
			n++
		}
	}
	if n != 1 || set != l.T {
		return Line{}, fmt.Errorf("%q is not what the line holds", l.T)
	}
	return l, nil
}

//go:generate go run github.com/mailru/easyjson/easyjson@v0.9.1 -no_std_marshalers -disallow_unknown_fields -output_filename line_easyjson.go record.go

// decodePlain decodes a line as encoding/json would, at a fraction of the cost.
// It is not ok for a line that the two may read differently, bad ones included.
func decodePlain(raw []byte) (l Line, ok bool) {
	if !plain(raw) {
		return l, false
	}
	in := jlexer.Lexer{Data: raw}
	l.UnmarshalEasyJSON(&in)
	if in.Error() != nil {
		return l, false
	}
	// A second list is decoded over the first by one, and replaces it in the other.
	return l, l.Log == nil || bytes.Count(raw, []byte(`"attempts"`)) < 2
}

// plain reports whether raw is free of what easyjson takes more lightly than
// encoding/json: escapes, bytes that are no ASCII or are control characters,
// and numbers with a leading zero.
func plain(raw []byte) bool {
	for i, c := range raw {
		if !delicate[c] {
			continue
		}
		switch {
		case c == '0':
			if i > 0 && i+1 < len(raw) && '0' <= raw[i+1] && raw[i+1] <= '9' && (raw[i-1] == ':' || raw[i-1] == '-' || raw[i-1] == ' ') {
				return false
			}
		case c != '\n' || i != len(raw)-1:
			return false
		}
	}
	return true
}

// delicate has the bytes that plain must look at.
var delicate = func() (set [256]bool) {
	for c := range set {
		set[c] = c < ' ' || c == '\\' || c == '0' || c >= 0x80
	}
	return set
}()
