package spec

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/expr-lang/expr"
	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/file"
	"github.com/expr-lang/expr/vm"
)

// NewPolicy is a policy whose expression is compiled once; the error says
// where in the expression the fault is.
func NewPolicy(forbid []State, where string) (*Policy, error) {
	match, fault := compileWhere(where)
	if fault != nil {
		return nil, fault
	}
	return &Policy{Forbid: forbid, Where: where, match: match}, nil
}

// Match reports whether Where holds for c; an empty Where holds for every cell.
//
// Where is an expression of https://expr-lang.org that yields true or false,
// such as
//
//	method == "POST" and upstream_idle > proxy_idle
//	proxy in ["nginx", "envoy"] and upstream_idle - proxy_idle < "500ms"
//	proxy_idle != off
//
// Its variables are proxy, upstream, method, retry, close (text) and
// proxy_idle, upstream_idle, rtt (durations), with off, the zero duration, for
// a proxy_idle that is off. A duration is written duration("1s"), or "1s" next
// to another duration. Of the language's functions there is only duration:
// the answer depends on nothing but the cell.
//
// A Policy that neither Read nor NewPolicy made is compiled at each call. Match
// may be called concurrently.
func (p *Policy) Match(c Cell) (bool, error) {
	match, fault := p.match, (*whereError)(nil)
	if match == nil {
		match, fault = compileWhere(p.Where)
	}
	if fault != nil {
		return false, fault
	}
	matched, fault := match(c)
	if fault != nil {
		return false, fault
	}
	return matched, nil
}

// matcher is a compiled expression.
type matcher func(Cell) (bool, *whereError)

func everyCell(Cell) (bool, *whereError) { return true, nil }

// variables are what an expression sees of c.
func variables(c Cell) map[string]any {
	return map[string]any{
		"proxy":         c.Proxy,
		"upstream":      c.Upstream,
		"method":        c.Method,
		"retry":         string(c.Retry),
		"close":         string(c.Close),
		"proxy_idle":    time.Duration(c.ProxyIdle),
		"upstream_idle": c.UpstreamIdle,
		"rtt":           c.RTT,
		"off":           time.Duration(Off),
	}
}

// whereError is a fault in an expression.
type whereError struct {
	line, column int // 1-based, of the expression; 0: it has no place
	msg, hint    string
}

func (e *whereError) Error() string {
	s := "policy.where: " + e.position() + e.msg
	if e.hint != "" {
		s += " (" + e.hint + ")"
	}
	return s
}

// position is a prefix of the message; most expressions have one line.
func (e *whereError) position() string {
	switch {
	case e.column == 0:
		return ""
	case e.line <= 1:
		return fmt.Sprintf("column %d: ", e.column)
	}
	return fmt.Sprintf("line %d, column %d: ", e.line, e.column)
}

func compileWhere(where string) (matcher, *whereError) {
	if where == "" {
		return everyCell, nil
	}
	var literals durationLiterals
	program, err := expr.Compile(where,
		expr.Env(variables(Cell{})), expr.AsBool(), expr.WarnOnAny(),
		expr.DisableAllBuiltins(), expr.EnableBuiltin("duration"),
		expr.Patch(&literals))
	if literals.fault != nil {
		return nil, newWhereError(literals.fault.Bind(file.NewSource(where)))
	}
	if err != nil {
		return nil, newWhereError(err)
	}
	return func(c Cell) (bool, *whereError) { return runWhere(program, c) }, nil
}

func runWhere(program *vm.Program, c Cell) (bool, *whereError) {
	out, err := expr.Run(program, variables(c))
	if err != nil {
		fault := newWhereError(err)
		fault.msg = "cell " + c.ID() + ": " + fault.msg
		fault.hint = "it must be true or false for every cell"
		return false, fault
	}
	return out.(bool), nil // expr.AsBool casts
}

// newWhereError puts a fault that expr found into our words.
func newWhereError(err error) *whereError {
	out := &whereError{msg: err.Error(), hint: `such as method == "POST" and upstream_idle > proxy_idle`}
	if at, ok := errors.AsType[*file.Error](err); ok {
		out.line, out.column, out.msg = at.Line, at.Column+1, at.Message
	}
	out.msg = strings.NewReplacer(
		"unexpected token EOF", "the expression ends too early",
		"expected bool, but got unknown", "want true or false",
		"expected bool, but got", "want true or false, got",
		"time.Duration", "duration",
	).Replace(oneLine(out.msg))
	if name, ok := strings.CutPrefix(out.msg, "unknown name "); ok {
		out.hint = suggest(name, slices.Sorted(maps.Keys(variables(Cell{}))))
	}
	if strings.HasSuffix(out.msg, notADuration) {
		out.hint = durationHint
	}
	return out
}

const notADuration = " is not a duration"

// durationLiterals reads text next to a duration as a duration. It also refuses
// the functions that expr parses although they are disabled.
type durationLiterals struct{ fault *file.Error }

func (l *durationLiterals) Visit(n *ast.Node) {
	switch n := (*n).(type) {
	case *ast.BuiltinNode:
		l.visitBuiltin(n)
	case *ast.BinaryNode:
		l.visitBinary(n)
	}
}

func (l *durationLiterals) visitBuiltin(b *ast.BuiltinNode) {
	if b.Name != "duration" {
		l.refuse(b, "unknown name "+b.Name)
		return
	}
	if len(b.Arguments) == 1 {
		if text, ok := b.Arguments[0].(*ast.StringNode); ok {
			if _, err := time.ParseDuration(text.Value); err != nil {
				l.refuse(text, quote(text.Value)+notADuration)
			}
		}
	}
}

func (l *durationLiterals) visitBinary(b *ast.BinaryNode) {
	switch b.Operator {
	case "==", "!=", "<", "<=", ">", ">=":
		l.align(b)
	case "+", "-":
		// Types were found before any text became a duration: tell the
		// operators further out.
		if l.align(b) {
			b.SetType(durationType)
		}
	case "in":
		if list, ok := b.Right.(*ast.ArrayNode); ok && isDuration(b.Left) {
			for i := range list.Nodes {
				l.convert(&list.Nodes[i])
			}
		}
	}
}

// align makes both operands durations if one of them is; it reports whether
// they now are.
func (l *durationLiterals) align(b *ast.BinaryNode) bool {
	if isDuration(b.Left) {
		l.convert(&b.Right)
	} else if isDuration(b.Right) {
		l.convert(&b.Left)
	}
	return isDuration(b.Left) && isDuration(b.Right)
}

func (l *durationLiterals) convert(n *ast.Node) {
	switch text := (*n).(type) {
	case *ast.IntegerNode, *ast.FloatNode:
		l.refuse(text, fmt.Sprintf(`the number %v next to a duration, which is written "1s"`, text))
	case *ast.StringNode:
		d, err := time.ParseDuration(text.Value)
		if text.Value == Off.String() {
			d, err = time.Duration(Off), nil
		}
		if err != nil {
			l.refuse(text, quote(text.Value)+notADuration)
			return
		}
		literal := &ast.ConstantNode{Value: d}
		ast.Patch(n, literal)
		literal.SetType(durationType)
	}
}

func (l *durationLiterals) refuse(n ast.Node, msg string) {
	if l.fault == nil {
		l.fault = &file.Error{Location: n.Location(), Message: msg}
	}
}

var durationType = reflect.TypeFor[time.Duration]()

func isDuration(n ast.Node) bool { return n.Type() == durationType }
