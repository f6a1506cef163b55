// Package results knows the layout of a run's folder. It must not import
// stack, load or proxy.
package results

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Names inside a run's folder.
const (
	ScenarioFile     = "scenario.yaml"
	ManifestFile     = "manifest.json"
	ObservationsFile = "observations.jsonl"
	VerdictsFile     = "verdicts.json"
	ReportFile       = "report.md"
	PageFile         = "report.html"
	ReactionFile     = "reaction.json" // of idlerace react; a run writes none
	MetricsFile      = "metrics.prom"
	CellsDir         = "cells"
	ConfigFile       = "proxy.conf"      // in a cell's folder
	EvidenceFile     = "evidence.pcapng" // in a cell's folder
	StackDir         = "stack"
	ShardsDir        = "shards" // of a merged run: <i>/ is what shard i left, but for its cells' folders

	// Latest is the link, beside the scenarios' folders, to the newest run.
	Latest = "latest"
)

// Folder is a run's folder. Everything is written below it and nowhere else.
type Folder struct {
	Path string
	root *os.Root
}

// Name is what the folder of a run is called: <UTC time>-<seed>, and of a shard
// <UTC time>-<seed>-shard2of3.
func Name(started time.Time, seed uint64, shard plan.Shard) string {
	name := started.UTC().Format("20060102T150405Z") + "-" + strconv.FormatUint(seed, 10)
	if shard.N > 0 {
		name += fmt.Sprintf("-shard%dof%d", shard.I, shard.N)
	}
	return name
}

// Create makes base/<scenario>/<name> with the given files (name to content) and
// points base/latest to it. A second run of the same name gets a suffix. The
// folder appears with its files or not at all, whenever this process may be
// killed.
func Create(base, scenario, name string, files map[string][]byte) (*Folder, error) {
	return build(base, scenario, name, func(f *Folder) error {
		for name, content := range files {
			if err := f.WriteFile(name, content); err != nil {
				return err
			}
		}
		return nil
	})
}

// build makes such a folder of what fill puts into it.
func build(base, scenario, name string, fill func(*Folder) error) (*Folder, error) {
	parent := filepath.Join(base, scenario)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	f, err := create(tmp, fill)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("results: %w", err), os.RemoveAll(tmp))
	}
	unique := name
	for i := 2; ; i++ {
		f.Path = filepath.Join(parent, unique)
		// rename(2) replaces no folder that holds something.
		err := os.Rename(tmp, f.Path)
		if err == nil {
			break
		}
		if _, statErr := os.Lstat(f.Path); statErr != nil {
			f.Close()
			return nil, errors.Join(fmt.Errorf("results: %w", err), os.RemoveAll(tmp))
		}
		unique = name + "." + strconv.Itoa(i)
	}
	return f, link(base, filepath.Join(scenario, unique))
}

func create(dir string, fill func(*Folder) error) (*Folder, error) {
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := open(dir)
	if err != nil {
		return nil, err
	}
	if err := fill(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// link points base/latest at target, in one step.
func link(base, target string) error {
	tmp := filepath.Join(base, "."+Latest+"-"+strconv.Itoa(os.Getpid()))
	os.Remove(tmp)
	if err := os.Symlink(target, tmp); err != nil {
		return fmt.Errorf("results: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(base, Latest)); err != nil {
		os.Remove(tmp)
		return fmt.Errorf("results: %w", err)
	}
	return nil
}

// Open opens the folder of a run.
func Open(path string) (*Folder, error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%s: there is no such run (a run's folder is results/<scenario>/<time>-<seed>; results/latest is the newest)", path)
	case err != nil:
		return nil, err
	case !st.IsDir():
		return nil, fmt.Errorf("%s: is a file (a run's folder is needed, which holds a %s)", path, ManifestFile)
	}
	f, err := open(path)
	if err != nil {
		return nil, err
	}
	if _, err := f.root.Stat(ManifestFile); err != nil {
		f.Close()
		return nil, fmt.Errorf("%s: holds no %s, so it is no run's folder", path, ManifestFile)
	}
	return f, nil
}

func open(path string) (*Folder, error) {
	root, err := os.OpenRoot(path)
	if err != nil {
		return nil, fmt.Errorf("results: %w", err)
	}
	return &Folder{Path: path, root: root}, nil
}

// Close frees the folder's handle.
func (f *Folder) Close() error { return f.root.Close() }

// CreateFile makes a file for writing, with the folders above it.
func (f *Folder) CreateFile(name string) (*os.File, error) {
	if err := f.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return nil, err
	}
	return f.root.Create(name)
}

// WriteFile replaces a file in one step: a reader sees the old or the new.
func (f *Folder) WriteFile(name string, data []byte) error {
	if err := f.root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return err
	}
	tmp := name + ".part"
	err := f.root.WriteFile(tmp, data, 0o644)
	if err == nil {
		err = f.root.Rename(tmp, name)
	}
	if err != nil {
		f.root.Remove(tmp)
	}
	return err
}

// WriteJSON writes v indented, with "<", ">" and "&" as they are: people read
// it.
func (f *Folder) WriteJSON(name string, v any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return f.WriteFile(name, b.Bytes())
}

// FS reads the folder's files; nothing outside it.
func (f *Folder) FS() fs.FS { return f.root.FS() }

// Manifest reads manifest.json.
func (f *Folder) Manifest() (record.Manifest, error) {
	var m record.Manifest
	b, err := f.root.ReadFile(ManifestFile)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return m, f.fault(ManifestFile, err)
	}
	if m.Schema != record.ManifestSchema {
		return m, fmt.Errorf("%s: schema is %q, this program reads %q", filepath.Join(f.Path, ManifestFile), m.Schema, record.ManifestSchema)
	}
	return m, nil
}

// Scenario reads the run's copy of its scenario.
func (f *Folder) Scenario() (*spec.Scenario, error) {
	b, err := f.root.ReadFile(ScenarioFile)
	if err != nil {
		return nil, f.fault(ScenarioFile, err)
	}
	return spec.Read(filepath.Join(f.Path, ScenarioFile), b, nil)
}

// Observations opens the run's record; a merged run has one per shard.
func (f *Folder) Observations() (io.ReadCloser, error) { return f.observations(ObservationsFile) }

func (f *Folder) observations(name string) (io.ReadCloser, error) {
	file, err := f.root.Open(name)
	if err != nil {
		return nil, f.fault(name, err)
	}
	return file, nil
}

// fault says of which file err is: an os.Root knows names below it only.
func (f *Folder) fault(name string, err error) error {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	return fmt.Errorf("%s: %w", filepath.Join(f.Path, name), err)
}

// Judge judges the stored run again, from its record.
func (f *Folder) Judge() (*judge.Document, *spec.Scenario, error) {
	m, err := f.Manifest()
	if err != nil {
		return nil, nil, err
	}
	s, err := f.Scenario()
	if err != nil {
		return nil, nil, err
	}
	if m.Shards > 0 {
		d, err := f.judgeShards(m, s)
		return d, s, err
	}
	obs, err := f.Observations()
	if err != nil {
		return nil, nil, err
	}
	defer obs.Close()
	d, err := judge.Judge(m, s, record.Read(obs))
	if err != nil {
		return nil, nil, f.fault(ObservationsFile, err)
	}
	return d, s, nil
}
