package spec

import (
	"bytes"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Limits of a file. Bytes bound what is loaded; lines and tokens bound the
// YAML parser, which takes time quadratic in both and recurses as deep as the
// file nests. The largest grid allowed needs a few thousand of either.
const (
	maxBytes  = 1 << 20
	maxLines  = 10_000
	maxTokens = 20_000
)

// parse gives the one document of a file.
func parse(file string, data []byte) (value, error) {
	if err := checkText(file, data); err != nil {
		return value{}, err
	}
	tokens := lexer.Tokenize(string(bytes.TrimPrefix(data, []byte("\ufeff"))))
	if len(tokens) > maxTokens {
		return value{}, &Error{
			File: file, Line: tokens[maxTokens].Position.Line,
			Msg:  fmt.Sprintf("the file has more than %d YAML tokens", maxTokens),
			Hint: fmt.Sprintf("a scenario of %d cells needs far fewer", MaxCells),
		}
	}
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return value{}, syntaxError(file, err)
	}
	return document(file, f)
}

func document(file string, f *ast.File) (value, error) {
	root := value{file: file}
	for i, doc := range f.Docs {
		at := value{file: file, line: documentLine(doc)}
		if _, ok := doc.Body.(*ast.DirectiveNode); ok {
			return value{}, at.fault("remove the line", "YAML directives are not read")
		}
		if i > 0 {
			return value{}, at.fault("a file per scenario", "a second YAML document begins")
		}
		if doc.Body != nil {
			root.node, root.line = doc.Body, lineOf(doc.Body)
		}
	}
	if root.node == nil {
		return value{}, root.fault("a scenario begins with version: 1; examples are in scenarios/", "the file is empty")
	}
	return root, nil
}

func documentLine(doc *ast.DocumentNode) int {
	switch {
	case doc.Start != nil:
		return doc.Start.Position.Line
	case doc.Body != nil:
		return lineOf(doc.Body)
	}
	return 0
}

// checkText refuses what is too large to parse or cannot be YAML text.
func checkText(file string, data []byte) error {
	if len(data) > maxBytes {
		return &Error{File: file, Msg: "the file is larger than 1 MiB", Hint: "a scenario is a few kilobytes"}
	}
	line := 1
	for i := 0; i < len(data); {
		at := value{file: file, line: line}
		r, size := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			return at.fault("save the file as UTF-8", "byte %#02x is not UTF-8", data[i])
		case r == '\n', r == '\r' && !bytes.HasPrefix(data[i:], []byte("\r\n")):
			line++
		case unicode.IsControl(r) && r != '\t' && r != '\r':
			return at.fault("a scenario is plain text", "the file holds the control character %U", r)
		}
		if line > maxLines+1 {
			return at.fault("a scenario is a few dozen lines", "the file has more than %d lines", maxLines)
		}
		i += size
	}
	return nil
}

// syntaxError puts a fault that the YAML parser found into our words.
func syntaxError(file string, err error) *Error {
	type located interface {
		error
		GetMessage() string
		GetToken() *token.Token
	}
	msg, line := err.Error(), 0
	if e, ok := err.(located); ok {
		msg = e.GetMessage()
		if tk := e.GetToken(); tk != nil && tk.Position != nil {
			line = tk.Position.Line
		}
	}
	hint := `check the indentation, and put text that holds ": ", " #", brackets or quotes in quotes`
	if strings.Contains(msg, "tab character") || strings.Contains(msg, "'\t'") {
		msg, hint = "a tab in the indentation", "indent with spaces"
	}
	return &Error{File: file, Line: line, Msg: "not YAML: " + oneLine(msg), Hint: hint}
}
