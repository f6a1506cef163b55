package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
)

// lines holds one line of each kind with every field set.
func lines() []Line {
	n := 0
	one := func(kind string, field any) Line {
		fill(reflect.ValueOf(field).Elem(), &n)
		l := Line{T: kind}
		switch f := field.(type) {
		case *Shot:
			l.Shot = f
		case *Event:
			l.Event = f
		case *LogLine:
			l.Log = f
		case *Direct:
			l.Direct = f
		case *Packets:
			l.Packets = f
		case *Settled:
			l.Settled = f
		case *Disturbance:
			l.Disturbance = f
		case *End:
			l.End = f
		}
		return l
	}
	return []Line{
		one(KindShot, &Shot{}), one(KindEvent, &Event{}), one(KindLog, &LogLine{}),
		one(KindDirect, &Direct{}), one(KindPackets, &Packets{}), one(KindSettled, &Settled{}), one(KindDisturbance, &Disturbance{}), one(KindEnd, &End{}),
	}
}

// fill gives every field of v a value of its own.
func fill(v reflect.Value, n *int) {
	*n++
	if v.Type() == reflect.TypeFor[json.RawMessage]() {
		v.SetBytes([]byte(fmt.Sprintf(`[{"at":%d,"raw":"RQAA/+8="},{"at":2}]`, *n)))
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(field, n)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.String:
		v.SetString(fmt.Sprintf("text <%d> & \"ü\"\n", *n))
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint64:
		v.SetUint(1<<63 + uint64(*n))
	case reflect.Bool:
		v.SetBool(true)
	default:
		panic("no value for a " + v.Kind().String())
	}
}

func encode(t testing.TB, ls ...Line) []byte {
	t.Helper()
	var b bytes.Buffer
	w := NewWriter(&b)
	for _, l := range ls {
		w.Write(l)
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestRoundTrip(t *testing.T) {
	want := lines()
	if n := reflect.TypeFor[Line]().NumField() - 1; len(want) != n {
		t.Fatalf("%d kinds are tried, a line has %d", len(want), n)
	}
	text := encode(t, want...)
	if n := bytes.Count(text, []byte("\n")); n != len(want) {
		t.Errorf("%d lines for %d records", n, len(want))
	}
	for name, r := range map[string]io.Reader{
		"at once":          bytes.NewReader(text),
		"byte by byte":     iotest.OneByteReader(bytes.NewReader(text)),
		"data with EOF":    iotest.DataErrReader(bytes.NewReader(text)),
		"in two halves":    iotest.HalfReader(bytes.NewReader(text)),
		"Windows newlines": bytes.NewReader(bytes.ReplaceAll(text, []byte("\n"), []byte("\r\n"))),
	} {
		var got []Line
		for l, err := range Read(r) {
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			got = append(got, l)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

const (
	endLine   = `{"t":"end","end":{"at":7,"reason":"done"}}`
	shortLine = `{"t":"settled","settled":{"cell":"c","burst":1,"seq":2}}`
)

func TestRead(t *testing.T) {
	long := `{"t":"end","end":{"at":7,"reason":"` + strings.Repeat("x", MaxLine) + `"}}`
	fits := func(n int) string {
		frame := `{"t":"end","end":{"at":7,"reason":""}}` + "\n"
		return strings.Replace(frame, `""`, `"`+strings.Repeat("x", n-len(frame))+`"`, 1)
	}
	for _, tt := range []struct {
		name, in string
		want     []string // per yield: the kind, or the error
	}{
		{"empty", "", nil},
		{"one", endLine + "\n", []string{"end"}},
		{"truncated", shortLine + "\n" + endLine[:20], []string{"settled", "line 2: truncated"}},
		{"whole but for its newline", shortLine + "\n" + endLine, []string{"settled", "line 2: truncated"}},
		{"not JSON", "nonsense\n" + endLine + "\n", []string{"line 1: syntax", "end"}},
		{"half a line", endLine[:20] + "\n" + endLine + "\n", []string{"line 1: syntax", "end"}},
		{"two in one", endLine + endLine + "\n" + endLine + "\n", []string{"line 1: syntax", "end"}},
		{"followed by text", endLine + " x\n", []string{"line 1: syntax"}},
		{"empty line", "\n" + endLine + "\n", []string{"line 1: syntax", "end"}},
		{"blank line", " \r\n" + endLine + "\n", []string{"line 1: syntax", "end"}},
		{"no object", "7\nnull\n", []string{"line 1: type", `line 2: "" is not what the line holds`}},
		{"no kind", "{}\n", []string{`line 1: "" is not what the line holds`}},
		{"unknown kind", `{"t":"wire","wire":{}}` + "\n", []string{`line 1: "wire" is not what the line holds`}},
		{"other kind", strings.Replace(endLine, `"t":"end"`, `"t":"shot"`, 1) + "\n", []string{`line 1: "shot" is not what the line holds`}},
		{"two fields", `{"t":"end","end":{"at":1,"reason":"done"},"shot":{}}` + "\n" + endLine + "\n", []string{`line 1: "end" is not what the line holds`, "end"}},
		{"kind without its field", `{"t":"end"}` + "\n", []string{`line 1: "end" is not what the line holds`}},
		{"wrong type", `{"t":"end","end":{"at":"now","reason":"done"}}` + "\n", []string{"line 1: type"}},
		{"longest", fits(MaxLine) + endLine + "\n", []string{"end", "end"}},
		{"one byte too long", fits(MaxLine+1) + endLine + "\n", []string{"line 1: longer than 65536 bytes", "end"}},
		{"far too long", long + long + "\n" + endLine + "\n", []string{"line 1: longer than 65536 bytes", "end"}},
		{"too long and truncated", endLine + "\n" + long, []string{"end", "line 2: longer than 65536 bytes"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for l, err := range Read(strings.NewReader(tt.in)) {
				switch {
				case err == nil:
					got = append(got, l.T)
				case l != Line{}:
					t.Errorf("%v comes with a line: %+v", err, l)
				default:
					got = append(got, describe(err))
				}
				if errors.Is(err, io.EOF) {
					t.Errorf("%v passes for the end of the file", err)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// describe leaves the wording of encoding/json's errors to encoding/json.
func describe(err error) string {
	bad, isBad := err.(*BadLine)
	if _, ok := errors.AsType[*json.SyntaxError](err); ok && isBad {
		return fmt.Sprintf("line %d: syntax", bad.Line)
	}
	if _, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && isBad {
		return fmt.Sprintf("line %d: type", bad.Line)
	}
	return err.Error()
}

func TestReadTruncated(t *testing.T) {
	for _, err := range Read(strings.NewReader("{")) {
		bad, ok := errors.AsType[*BadLine](err)
		if !ok || bad.Line != 1 || !errors.Is(err, ErrTruncated) {
			t.Errorf("%#v, want ErrTruncated on line 1", err)
		}
	}
}

var errDisk = errors.New("disk on fire")

func TestReadError(t *testing.T) {
	for name, in := range map[string]string{
		"between lines":      endLine + "\n",
		"within a line":      endLine + "\n" + endLine[:9],
		"within a long line": endLine + "\n" + strings.Repeat("x", 2*MaxLine),
	} {
		var last error
		n := 0
		for _, err := range Read(io.MultiReader(strings.NewReader(in), iotest.ErrReader(errDisk))) {
			n++
			last = err
		}
		// An over-long line is reported as one before its end has been seen.
		want := 2 + strings.Count(name, "long")
		if last != errDisk || n != want {
			t.Errorf("%s: %d yields, the last with %v", name, n, last)
		}
	}
}

// A consumer that has had enough must not be called again: the range statement
// panics if it is.
func TestReadStops(t *testing.T) {
	text := endLine + "\nbad\n" + strings.Repeat("x", 2*MaxLine) + "\n" + endLine
	for stop := 1; stop <= 4; stop++ {
		n := 0
		for range Read(strings.NewReader(text)) {
			if n++; n == stop {
				break
			}
		}
		if n != stop {
			t.Errorf("%d yields before the break at %d", n, stop)
		}
	}
}

// failing takes n bytes and then no more.
type failing struct{ n, calls int }

func (f *failing) Write(p []byte) (int, error) {
	f.calls++
	if f.n -= len(p); f.n < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func TestWriterStickyError(t *testing.T) {
	disk := &failing{n: 100}
	w := NewWriter(disk)
	w.Write(lines()[0])
	if err := w.Flush(); err != errDisk {
		t.Errorf("Flush: %v", err)
	}
	disk.n, disk.calls = 1<<20, 0 // there would be room again
	for range 1000 {
		w.Write(lines()[1])
	}
	if err := w.Flush(); err != errDisk || disk.calls != 0 {
		t.Errorf("after the error: Flush: %v, %d writes", err, disk.calls)
	}
}

// The error comes from Write itself where the buffer runs over.
func TestWriterErrorInWrite(t *testing.T) {
	disk := &failing{n: 100}
	w := NewWriter(disk)
	for range 1000 {
		w.Write(lines()[0])
	}
	if disk.calls != 1 {
		t.Errorf("%d writes, the first of them failed", disk.calls)
	}
	if err := w.Flush(); err != errDisk {
		t.Errorf("Flush: %v", err)
	}
}

// asBefore fails unless decodePlain leaves raw to encoding/json or reads from it
// what encoding/json does. It reports whether it read it.
func asBefore(t *testing.T, raw []byte) bool {
	t.Helper()
	got, ok := decodePlain(raw)
	if !ok {
		return false
	}
	var want Line
	if err := json.Unmarshal(raw, &want); err != nil {
		t.Fatalf("%q is read, encoding/json says: %v", raw, err)
	}
	// Not cmp, which looks at random: the fuzzer would take that for progress.
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%q\nis read as %s\nencoding/json: %s", raw, encode(t, got), encode(t, want))
	}
	return true
}

// plainLines is lines with texts that need no escape.
func plainLines(t *testing.T) (all []Line) {
	t.Helper()
	for _, l := range lines() {
		text := regexp.MustCompile(`text (\\u003c)(\d+)[^\n]*?\\n"`).ReplaceAll(encode(t, l), []byte(`text-$2 (127.0.0.1:80)"`))
		var plain Line
		if err := json.Unmarshal(text, &plain); err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		all = append(all, plain)
	}
	return all
}

// What the program writes is read the quick way, and as encoding/json reads it.
func TestDecodeQuickly(t *testing.T) {
	all := plainLines(t)
	racing("gohttp_go_p2s_u1s_GET_default_fin_rtt0s", 5, 40, func(l Line) { all = append(all, l) })
	for _, l := range all {
		if raw := encode(t, l); !asBefore(t, raw) {
			t.Errorf("%s goes to encoding/json", raw)
		}
	}
}

// oddities are lines that JSON libraries read differently, or refuse.
var oddities = []string{
	`{"t":"end","end":{"at":01}}`,
	`{"t":"end","end":{"at":-01}}`,
	`{"t":"end","end":{"at": 00}}`,
	`{"t":"end","end":{"at":-0}}`,
	`{"t":"end","end":{"at":1e3}}`,
	`{"t":"end","end":{"at":1.0}}`,
	`{"t":"end","end":{"at":+1}}`,
	`{"t":"end","end":{"at":-}}`,
	`{"t":"end","end":{"at":9223372036854775808}}`,
	`{"t":"end","end":{"at":"1"}}`,
	`{"t":"end","end":{"at":null,"reason":null}}`,
	`{"t":"end","end":{"at":1,}}`,
	`{"t":"end","end":{,"at":1}}`,
	`{"t":"end","end":{"at":1 "reason":"done"}}`,
	`{"t":"end","end":{"at" 1}}`,
	`{"t":"end","end":{"at":1}} x`,
	`{"t":"end","end":{"at":1}`,
	`{"t":"end","end":{"AT":1}}`,
	`{"t":"end","end":{"at":1,"at":2}}`,
	`{"t":"end","end":{"at":1},"end":{"reason":"done"}}`,
	`{"t":"end","end":{"at":1},"end":null}`,
	`{"t":"end","end":{"at":1},"more":[{}]}`,
	`{"t":"end","end":{"at":1,"more":1}}`,
	`{"t":"end","end":{"reason":"\u0064one"}}`,
	`{"t":"end","end":{"reason":"\ud800"}}`,
	`{"t":"end","end":{"reason":"\x"}}`,
	`{"t":"end","end":{"reason":"` + "\xff\x01\t\x7f" + `"}}`,
	`{"t":"end","end":{"reason":"` + "\x7f" + `"}}`,
	`{"t":"end","end":{"reason":"` + "\x01" + `"}}`,
	`{"t":"end","end":{"reason":"` + "\xff" + `"}}`,
	`{"t":"end","end":{"reason":"` + "\xed\xa0\x80" + `"}}`,
	`{"t":"end","end":{"reason":"ü"}}`,
	`{"t":"end","end":[]}`,
	`{"t":"end","end":""}`,
	`{"t":"event","event":{"n":-1}}`,
	`{"t":"event","event":{"executed":1}}`,
	`{"t":"event","event":{"executed":truex}}`,
	`{"t":"event","event":{"executed":TRUE}}`,
	`{"t":"log","log":{"attempts":[]}}`,
	`{"t":"log","log":{"attempts":[null,{},]}}`,
	`{"t":"log","log":{"attempts":[null,{"status":1}]}}`,
	`{"t":"log","log":{"attempts":{}}}`,
	`{"t":"log","log":{"attempts":[01]}}`,
	`{"t":"log","log":{"attempts":[{"err":"x"},{"status":2}],"attempts":[{"status":1}]}}`,
	`{"t":"log","log":{"attempts":[{"err":"x"}]},"log":{"attempts":[{"status":1}]}}`,
	` { "t" : "end" , "end" : { } } `,
	"", " ", "null", "{}", "[]", "0", `""`, "nul", "{", "}", `{"t"}`, `{"t":}`, `{t:"end"}`,
}

func TestDecodeAsBefore(t *testing.T) {
	for _, text := range oddities {
		for _, end := range []string{"", "\n", "\r\n"} {
			asBefore(t, []byte(text+end))
		}
	}
	// Every line with a byte left out, or another put in its place.
	for _, l := range plainLines(t) {
		raw := encode(t, l)
		for i := range raw {
			asBefore(t, slices.Delete(slices.Clone(raw), i, i+1))
			for _, c := range []byte("0-.,:{}[]\"e tn") {
				changed := slices.Clone(raw)
				changed[i] = c
				asBefore(t, changed)
			}
		}
	}
}

func FuzzRead(f *testing.F) {
	for i, l := range lines() {
		f.Add(encode(f, l), i%2 == 0)
	}
	f.Add([]byte(shortLine+"\r\n"+endLine), false)
	f.Add([]byte("\n{}\nnull\n[]\n\"\n"+endLine+endLine+"\n"+endLine), true)
	f.Add([]byte(`{"t":"log","log":{"cell":"c","seq":1,"attempts":[],"text":"`+"\xff"+`"}}`+"\n"), false)
	f.Add([]byte(`{"T":"end","End":{"AT":-1}}`+"\n"+`{"t":"end","t":"shot","shot":{}}`+"\n"), false)
	for i, text := range oddities {
		f.Add([]byte(text), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, text []byte, fail bool) {
		for raw := range bytes.Lines(text) {
			asBefore(t, raw)
		}
		var r io.Reader = bytes.NewReader(text)
		if fail {
			r = io.MultiReader(r, iotest.ErrReader(errDisk))
		}
		line, ended := 0, false
		for l, err := range Read(r) {
			if ended {
				t.Fatal("the stream goes on after the reader's error")
			}
			bad, isBad := err.(*BadLine)
			switch {
			case err == nil:
				line++
				reread(t, l)
			case isBad:
				if bad.Line != line+1 {
					t.Fatalf("line %d after line %d", bad.Line, line)
				}
				line++
			case fail && err == errDisk:
				ended = true
			default:
				t.Fatalf("%T: %v", err, err)
			}
			if err != nil && l != (Line{}) {
				t.Fatalf("%v comes with %+v", err, l)
			}
		}
		if ended != fail {
			t.Fatal("the reader's error is lost")
		}
		if n := bytes.Count(text, []byte("\n")); line < n || line > n+1 {
			t.Fatalf("%d lines reported, the text has %d", line, n)
		}
	})
}

// reread checks that a line which was read is written as what was read.
func reread(t *testing.T, l Line) {
	text := encode(t, l)
	if len(text) > MaxLine {
		return // escaping made it longer than it was
	}
	n := 0
	for again, err := range Read(bytes.NewReader(text)) {
		n++
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		if l.Log != nil && len(l.Log.Attempts) == 0 {
			l.Log.Attempts = nil // no attempts and an empty list of them are written alike
		}
		// Not cmp, which looks at random: the fuzzer would take that for progress.
		if !reflect.DeepEqual(l, again) {
			t.Fatalf("%+v is written as %s and read as %+v", l, text, again)
		}
	}
	if n != 1 {
		t.Fatalf("%q is read as %d lines", text, n)
	}
}
