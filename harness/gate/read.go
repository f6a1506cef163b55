package gate

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// MaxSize is the most that ReadDocument reads: 1,024 cells take about 2 MiB.
const MaxSize = 64 << 20

// ReadDocument reads a verdicts.json strictly: its schema, and cells that are
// each named once, in a known state, at a point of the grid that a scenario can
// name. Fields it does not know are ignored, because later versions may add
// some. An error is one line that names the file and what would be right.
func ReadDocument(path string) (*judge.Document, error) {
	b, err := read(path)
	if err != nil {
		return nil, err
	}
	var d judge.Document
	if err := decode(b, &d); err != nil {
		return nil, fmt.Errorf("%s%w", path, err)
	}
	if d.Schema != judge.Schema {
		return nil, fmt.Errorf("%s: schema is %q, %q is needed: the verdicts.json of a run folder", path, d.Schema, judge.Schema)
	}
	if err := check(&d); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &d, nil
}

func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%s: no such file; name the verdicts.json of a run", path)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.IsDir() {
		return nil, fmt.Errorf("%s: is a folder; name the file, %s", path, filepath.Join(path, "verdicts.json"))
	}
	var b []byte
	if info.Size() <= MaxSize { // a pipe has no size
		if b, err = io.ReadAll(io.LimitReader(f, MaxSize+1)); err != nil {
			return nil, err
		}
	}
	if info.Size() > MaxSize || len(b) > MaxSize {
		return nil, fmt.Errorf("%s: is larger than %d MiB; a verdicts.json is a few MiB at most", path, MaxSize>>20)
	}
	if len(bytes.TrimSpace(b)) == 0 {
		return nil, fmt.Errorf("%s: is empty; `idlerace run` writes a verdicts.json", path)
	}
	return b, nil
}

// decode reads one JSON value. Its error begins with ":line: " or ": ".
func decode(b []byte, d *judge.Document) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	err := dec.Decode(d)
	if err == nil {
		if _, next := dec.Token(); next != io.EOF {
			return fmt.Errorf(":%d: text follows the document; one JSON object is needed", line(b, dec.InputOffset()))
		}
		return nil
	}
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf(":%d: not JSON: %w", line(b, syntax.Offset), err)
	}
	if wrong, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		return fmt.Errorf(":%d: %s is a JSON %s, %s is needed", line(b, wrong.Offset), wrong.Field, wrong.Value, wrong.Type)
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf(":%d: the file is cut off", line(b, int64(len(b))))
	}
	return fmt.Errorf(": %w", err)
}

// line is the 1-based line of an offset.
func line(b []byte, offset int64) int {
	return 1 + bytes.Count(b[:min(max(offset, 0), int64(len(b)))], []byte("\n"))
}

func check(d *judge.Document) error {
	seen := map[string]bool{}
	for _, list := range []struct {
		name  string
		items []judge.Verdict
		roles []string
	}{
		{"cells", d.Cells, []string{judge.RoleCell}},
		{"controls", d.Controls, []string{judge.RoleMustRace, judge.RoleMustNotRace}},
	} {
		for i, v := range list.items {
			switch {
			case v.ID == "":
				return fmt.Errorf("%s[%d] has no id; each needs one of its own", list.name, i)
			case seen[v.ID]:
				return fmt.Errorf("%s[%d]: id %q stands twice; each cell is judged once", list.name, i, v.ID)
			case !slices.Contains(spec.States(), v.State):
				return fmt.Errorf("%s[%d] %q: state is %q, one of %v is needed", list.name, i, v.ID, v.State, spec.States())
			case !slices.Contains(list.roles, v.Role):
				return fmt.Errorf("%s[%d] %q: role is %q, one of %v is needed", list.name, i, v.ID, v.Role, list.roles)
			}
			seen[v.ID] = true
			if _, err := v.Cell(); err != nil {
				return fmt.Errorf("%s[%d]: %w; a duration such as 500ms is needed", list.name, i, err)
			}
		}
	}
	return nil
}
