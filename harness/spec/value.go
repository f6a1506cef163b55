package spec

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/token"
)

// value is a YAML node and what an error calls it.
type value struct {
	file string
	path string // dotted keys from the top, "axes.rtt"; empty: the whole file
	line int    // where a scalar begins; of anything else its key
	node ast.Node
}

// field is one key that a mapping may have.
type field struct {
	name string
	need string // example of a key that must be there; empty: it may be absent
	read func(value) error
}

// mapping reads each key of v in the order of the file by its field.
func (v value) mapping(fields ...field) error {
	m, ok := v.node.(*ast.MappingNode)
	if !ok {
		return v.wrongType("keys and values", "keys: "+strings.Join(fieldNames(fields), ", "))
	}
	seen := map[string]int{}
	for _, kv := range m.Values {
		child, f, err := v.child(kv, fields)
		if err != nil {
			return err
		}
		if first, ok := seen[f.name]; ok {
			return child.fault(fmt.Sprintf("keep one; the first is on line %d", first), "the key is given twice")
		}
		seen[f.name] = kv.Key.GetToken().Position.Line
		if _, null := kv.Value.(*ast.NullNode); null {
			return child.fault("give it a value or remove the key", "the value is missing")
		}
		if err := f.read(child); err != nil {
			return err
		}
	}
	for _, f := range fields {
		if _, ok := seen[f.name]; !ok && f.need != "" {
			return v.fault("add "+f.need, "the key %s is missing", quote(f.name))
		}
	}
	return nil
}

// child is the value of kv and the field that reads it.
func (v value) child(kv *ast.MappingValueNode, fields []field) (value, field, error) {
	key := value{v.file, v.path, kv.Key.GetToken().Position.Line, kv.Key}
	if !key.isScalar() {
		return value{}, field{}, key.wrongType("a plain key", "key: value")
	}
	name := key.literal()
	i := slices.IndexFunc(fields, func(f field) bool { return f.name == name })
	if i < 0 {
		return value{}, field{}, key.fault(suggest(name, fieldNames(fields)), "unknown key %s", quote(name))
	}
	child := value{v.file, strings.TrimPrefix(v.path+"."+name, "."), key.line, kv.Value}
	if child.isScalar() {
		child.line = lineOf(kv.Value)
	}
	return child, fields[i], nil
}

func fieldNames(fields []field) []string {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	return names
}

// distinct reads a list that is neither empty nor holds two values of the same
// name.
func distinct[T any](v value, read func(value) (T, error), name func(T) string) ([]T, error) {
	s, ok := v.node.(*ast.SequenceNode)
	if !ok {
		hint := "a list in brackets or with dashes"
		if v.isScalar() {
			hint = "put it in brackets"
		}
		return nil, v.wrongType("a list", hint)
	}
	if len(s.Values) == 0 {
		return nil, v.fault("at least one value", "the list is empty")
	}
	if len(s.Values) > MaxCells {
		return nil, v.fault(fmt.Sprintf("at most %d", MaxCells), "the list has %d values", len(s.Values))
	}
	var out []T
	seen := map[string]int{}
	for _, n := range s.Values {
		item := value{v.file, v.path, lineOf(n), n}
		x, err := read(item)
		if err != nil {
			return nil, err
		}
		if first, ok := seen[name(x)]; ok {
			return nil, item.fault(fmt.Sprintf("keep one; the first is on line %d", first), "%s is given twice", name(x))
		}
		seen[name(x)] = item.line
		out = append(out, x)
	}
	return out, nil
}

// choices is distinct over values of a closed set; what is the set's noun.
func choices[T ~string](v value, what string, known []T) ([]T, error) {
	read := func(v value) (T, error) { return choice(v, what, known) }
	return distinct(v, read, func(x T) string { return string(x) })
}

func choice[T ~string](v value, what string, known []T) (T, error) {
	names := make([]string, len(known))
	for i, k := range known {
		names[i] = string(k)
	}
	if !v.isScalar() {
		return "", v.wrongType("one "+what, "known: "+strings.Join(names, ", "))
	}
	if i := slices.Index(names, v.literal()); i >= 0 {
		return known[i], nil
	}
	return "", v.fault(suggest(v.literal(), names), "unknown %s %s", what, quote(v.literal()))
}

// idle reads a duration above zero, or "off".
func (v value) idle() (Idle, error) {
	if v.isScalar() && v.literal() == Off.String() {
		return Off, nil
	}
	d, err := v.durationOr(durationHint + ", or off")
	if err == nil && d == 0 {
		return 0, v.fault("off means no keep-alive to the upstream", "%s is not above zero", quote(v.literal()))
	}
	return Idle(d), err
}

// positive reads a duration above zero.
func (v value) positive() (time.Duration, error) {
	d, err := v.duration()
	if err == nil && d == 0 {
		return 0, v.fault("1ms to "+FormatDuration(MaxDuration), "%s is not above zero", quote(v.literal()))
	}
	return d, err
}

const durationHint = "a Go duration such as 500ms, 1s, 1m30s"

// durationRE is the syntax of time.ParseDuration, to tell an overflow.
var durationRE = regexp.MustCompile(`^[0-9]+(\.[0-9]*)?(ns|us|ms|s|m|h)`)

// duration reads a whole number of milliseconds from zero to MaxDuration.
func (v value) duration() (time.Duration, error) { return v.durationOr(durationHint) }

func (v value) durationOr(hint string) (time.Duration, error) {
	if !v.isScalar() {
		return 0, v.wrongType("a duration", hint)
	}
	d, err := time.ParseDuration(v.literal())
	tooLong := d > MaxDuration || err != nil && durationRE.MatchString(v.literal())
	switch text := quote(v.literal()); {
	case v.literal() == Off.String():
		return 0, v.fault("off is a value of axes.proxy_idle alone", "%s is not a duration", text)
	case tooLong:
		return 0, v.fault("at most "+FormatDuration(MaxDuration), "%s is too long", text)
	case err != nil:
		return 0, v.fault(hint, "%s is not a duration", text)
	case d < 0:
		return 0, v.fault(hint, "%s is negative", text)
	case d%time.Millisecond != 0:
		return 0, v.fault("1ms is the finest step", "%s is not a whole number of milliseconds", text)
	}
	return d, nil
}

var integerRE = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)

// integer reads a decimal number from low to high.
func (v value) integer(low, high uint64) (uint64, error) {
	between := fmt.Sprintf("%d to %d", low, high)
	if v.isScalar() && v.isQuoted() {
		return 0, v.wrongType("a whole number", between+", without quotes")
	}
	if !v.isScalar() || !integerRE.MatchString(v.literal()) {
		return 0, v.wrongType("a decimal whole number", between)
	}
	n, err := strconv.ParseUint(v.literal(), 10, 64)
	if err != nil || n < low || n > high {
		return 0, v.fault(between, "%s is out of range", shorten(v.literal(), 60))
	}
	return n, nil
}

var nameRE = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

// name reads a text that is safe as a part of a path and of a cell's id.
func (v value) name() (string, error) {
	text, err := v.text()
	if err == nil && !nameRE.MatchString(text) {
		return "", v.fault("lower-case letters, digits and -, at most 64, the first not -", "%s is not a name", quote(text))
	}
	return text, err
}

// maxText bounds a text value in bytes. It also bounds how deep an expression
// nests: the expression parser recurses.
const maxText = 1000

// sentence reads a text of one line.
func (v value) sentence() (string, error) {
	text, err := v.text()
	if err == nil && strings.ContainsAny(text, "\n\t") {
		return "", v.fault("write it in one line", "the text has a line break or a tab")
	}
	return text, err
}

// text reads a text of printable characters, line breaks and tabs; white space
// at its end, which a block scalar brings along, is cut off.
func (v value) text() (string, error) {
	switch v.node.(type) {
	case *ast.StringNode, *ast.LiteralNode:
	default:
		hint := "write one text"
		if v.isScalar() {
			hint = "put it in quotes"
		}
		return "", v.wrongType("text", hint)
	}
	text := strings.TrimRight(v.literal(), " \t\r\n")
	if len(text) > maxText {
		return "", v.fault(fmt.Sprintf("at most %d", maxText), "the text is %d bytes long", len(text))
	}
	for _, r := range text {
		if !unicode.IsGraphic(r) && r != '\n' && r != '\t' {
			return "", v.fault("printable text", "the text holds the control character %U", r)
		}
	}
	return text, nil
}

func (v value) isMapping() bool {
	_, ok := v.node.(*ast.MappingNode)
	return ok
}

func (v value) isScalar() bool {
	switch v.node.(type) {
	case *ast.StringNode, *ast.LiteralNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return true
	}
	return false
}

// literal is a scalar as it stands in the file, quotes and escapes resolved,
// whatever type YAML would give it.
func (v value) literal() string {
	switch n := v.node.(type) {
	case *ast.StringNode:
		return n.Value
	case *ast.LiteralNode:
		return n.Value.Value
	}
	return v.node.GetToken().Value
}

func (v value) isQuoted() bool {
	switch v.node.GetToken().Type {
	case token.SingleQuoteType, token.DoubleQuoteType, token.LiteralType, token.FoldedType:
		return true
	}
	return false
}

func (v value) wrongType(want, hint string) *Error {
	switch n := v.node.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.MergeKeyNode:
		return v.fault("write the value out", "anchors, aliases and merge keys are not read")
	case *ast.TagNode:
		return v.fault("remove the tag", "tags are not read: %s", quote(n.Start.Value))
	}
	return v.fault(hint, "want %s, got %s", want, v.describe())
}

// describe names the YAML type of v, with the value of a scalar.
func (v value) describe() string {
	switch v.node.(type) {
	case *ast.MappingNode:
		return "keys and values"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "the truth value " + v.literal()
	case *ast.IntegerNode, *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		return "the number " + shorten(v.literal(), 60)
	case *ast.StringNode, *ast.LiteralNode:
		return "the text " + quote(v.literal())
	}
	return "a complex key"
}

func (v value) fault(hint, format string, args ...any) *Error {
	msg := fmt.Sprintf(format, args...)
	if v.path != "" {
		msg = v.path + ": " + msg
	}
	return &Error{File: v.file, Line: v.line, Msg: msg, Hint: hint}
}

// quote is s as a Go string, shortened so that an error stays readable.
func quote(s string) string { return strconv.Quote(shorten(s, 60)) }

// oneLine is the message of a library, which may quote the file as it is, as
// printable text of one line.
func oneLine(s string) string {
	printable := strings.Map(func(r rune) rune {
		if unicode.IsGraphic(r) {
			return r
		}
		return ' '
	}, s)
	return shorten(strings.Join(strings.Fields(printable), " "), 200)
}

func shorten(s string, most int) string {
	if utf8.RuneCountInString(s) <= most {
		return s
	}
	return string([]rune(s)[:most]) + "..."
}

// lineOf is where n begins. The token of a block mapping is its first colon,
// which stands on the line of its key.
func lineOf(n ast.Node) int { return n.GetToken().Position.Line }
