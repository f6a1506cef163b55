package results

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Sum is the checksum of a scenario's text in a manifest.
func Sum(source []byte) string {
	sum := sha256.Sum256(source)
	return hex.EncodeToString(sum[:])
}

// Shards are the runs of all shards of one scenario, in the shards' order.
type Shards []part

// part is the run of one shard.
type part struct {
	*Folder
	manifest record.Manifest
	scenario *spec.Scenario
	files    []string // all of them
}

func (p part) shard() plan.Shard { return p.manifest.Shard }

// Merge makes one run of the shards and points base/latest to it: a folder that
// is judged, from each shard's own record, like that of one run of the whole. It
// holds
//
//	scenario.yaml, manifest.json   of the whole
//	cells/<id>/                    as a run of the whole has them; of a control, <id>_shard<i>
//	shards/<i>/                    everything else of shard i, as it was
//
// The shards' own folders stay as they are. The new one appears whole or not at
// all.
//
// Note: one record for all would not do. Connections are numbered per run, a
// disturbance or a failed control concerns its own shard's cells, and clocks of
// several machines make no order.
func (parts Shards) Merge(base string) (*Folder, error) {
	m := merged(parts)
	return build(base, m.Scenario, Name(m.Started, m.Seed, plan.Shard{}), func(f *Folder) error {
		for _, p := range parts {
			if err := p.copy(f); err != nil {
				return err
			}
		}
		if err := f.WriteFile(ScenarioFile, parts[0].scenario.Source); err != nil {
			return err
		}
		return f.WriteJSON(ManifestFile, m)
	})
}

// OpenShards opens a run's folder, or those of all shards somewhere below a
// folder; other runs there are passed by.
func OpenShards(dir string) ([]*Folder, error) {
	if st, err := os.Stat(filepath.Join(dir, ManifestFile)); err == nil && st.Mode().IsRegular() {
		f, err := Open(dir)
		return []*Folder{f}, err
	}
	var out []*Folder
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != dir:
			return fs.SkipDir // a folder that was never finished
		case d.IsDir() || d.Name() != ManifestFile:
			return nil
		}
		f, err := Open(filepath.Dir(path))
		if err != nil {
			return err
		}
		m, err := f.Manifest()
		if err == nil && m.Shard.N > 0 {
			out = append(out, f)
		} else {
			f.Close()
		}
		if err != nil {
			return err
		}
		return fs.SkipDir // what is in a run's folder is its own
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err = Open(dir)
		return nil, err
	case err != nil:
		return nil, err
	case len(out) == 0:
		return nil, fmt.Errorf("%s: is no run's folder, and has no shard's below it; `idlerace run FILE --shard I/N` makes them", dir)
	}
	return out, nil
}

// ReadShards reads the runs of shards, in whatever order they come. It refuses
// what is not one whole run, in one line that names the folders.
func ReadShards(folders []*Folder) (Shards, error) {
	var parts Shards
	for _, f := range folders {
		p, err := readPart(f)
		if err != nil {
			return nil, err
		}
		if len(parts) > 0 {
			if err := alike(parts[0], p); err != nil {
				return nil, err
			}
		}
		parts = append(parts, p)
	}
	if len(parts) == 0 {
		return nil, errors.New("no shard is named")
	}
	slices.SortStableFunc(parts, func(a, b part) int { return a.shard().I - b.shard().I })
	var missing []string
	for i := range parts[0].shard().N {
		sh := plan.Shard{I: i + 1, N: parts[0].shard().N}
		of := slices.DeleteFunc(slices.Clone(parts), func(p part) bool { return p.shard() != sh })
		switch {
		case len(of) == 0:
			missing = append(missing, sh.String())
		case len(of) > 1:
			return nil, fmt.Errorf("%s and %s are both shard %s; name one of them", of[0].Path, of[1].Path, sh)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("no run of shard %s is named; all %d are needed", strings.Join(missing, ", "), parts[0].shard().N)
	}
	return parts, agree(parts)
}

func readPart(f *Folder) (p part, err error) {
	p.Folder = f
	if p.manifest, err = f.Manifest(); err != nil {
		return p, err
	}
	m := p.manifest
	switch {
	case m.Shards > 0:
		return p, fmt.Errorf("%s: is merged already, from %d shards; name the shards' own folders", f.Path, m.Shards)
	case m.Shard.N == 0:
		return p, fmt.Errorf("%s: is no shard but a whole run; `idlerace run FILE --shard I/N` makes shards", f.Path)
	}
	if p.scenario, err = f.Scenario(); err != nil {
		return p, err
	}
	if Sum(p.scenario.Source) != m.SHA256 {
		return p, fmt.Errorf("%s: is not what ran; its SHA-256 must be scenario_sha256 of %s", filepath.Join(f.Path, ScenarioFile), ManifestFile)
	}
	cells := m.Shard.Cells(p.scenario)
	absent := map[string]bool{}
	for _, u := range m.Unavailable {
		absent[u.Proxy] = true
	}
	has := map[string]bool{}
	for _, it := range m.Items {
		if it.Role == plan.RoleCell && !cells[it.ID] {
			return p, fmt.Errorf("%s: has cell %s, which is none of shard %s", f.Path, it.ID, m.Shard)
		}
		has[it.ID] = true
	}
	for _, c := range p.scenario.Cells() {
		if id := c.ID(); cells[id] && !has[id] && !absent[c.Proxy] {
			return p, fmt.Errorf("%s: lacks cell %s of shard %s", f.Path, id, m.Shard)
		}
	}
	return p, fs.WalkDir(f.root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return f.fault(name, err)
		case d.IsDir():
			return nil
		case !d.Type().IsRegular():
			return fmt.Errorf("%s: is no plain file; a run's folder has no others", filepath.Join(f.Path, name))
		}
		p.files = append(p.files, name)
		return nil
	})
}

// alike refuses two shards that are not of one run.
func alike(a, b part) error {
	differ := func(what, is, other string) error {
		return fmt.Errorf("%s and %s differ in %s: %s and %s; shards of one run have the same", a.Path, b.Path, what, is, other)
	}
	ma, mb := a.manifest, b.manifest
	switch {
	case ma.SHA256 != mb.SHA256:
		n := differing(a.scenario.Source, b.scenario.Source)
		return fmt.Errorf("%s and %s differ from line %d on; shards of one run have the same scenario",
			filepath.Join(a.Path, ScenarioFile), filepath.Join(b.Path, ScenarioFile), n)
	case ma.Shard.N != mb.Shard.N:
		return differ("the number of shards", strconv.Itoa(ma.Shard.N), strconv.Itoa(mb.Shard.N))
	case ma.Seed != mb.Seed:
		return differ("the seed", strconv.FormatUint(ma.Seed, 10), strconv.FormatUint(mb.Seed, 10))
	case ma.Idlerace != mb.Idlerace:
		return differ("the version of idlerace", ma.Idlerace, mb.Idlerace)
	}
	return nil
}

// differing is the 1-based line in which two texts begin to differ.
func differing(a, b []byte) int {
	n := 1
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			break
		}
		if a[i] == '\n' {
			n++
		}
	}
	return n
}

// agree refuses shards that ran different programs under one proxy's name.
func agree(parts Shards) error {
	ran := map[string]record.ProxyRun{}
	where := map[string]part{}
	for _, p := range parts {
		for _, px := range p.manifest.Proxies {
			is := fmt.Sprintf("%s (%s)", px.Version, px.Runtime)
			other, known := ran[px.Name]
			if was := fmt.Sprintf("%s (%s)", other.Version, other.Runtime); known && was != is {
				return fmt.Errorf("%s is %s in %s and %s in %s; shards of one run have the same", px.Name, was, where[px.Name].Path, is, p.Path)
			}
			ran[px.Name], where[px.Name] = px, p
		}
	}
	return nil
}

// merged is the manifest of the whole. What differs between the shards' machines
// is said in its warnings.
func merged(parts Shards) record.Manifest {
	m := parts[0].manifest
	m.Shard, m.Shards = plan.Shard{}, len(parts)
	m.Items, m.Proxies, m.Unavailable, m.Warnings, m.Faults = nil, nil, nil, nil, nil
	runs := map[string]record.ProxyRun{}
	cells := map[string]plan.Item{}
	var controls []plan.Item
	for _, p := range parts {
		q := p.manifest
		if q.Started.Before(m.Started) {
			m.Started = q.Started
		}
		m.StartUp, m.Probing = max(m.StartUp, q.StartUp), max(m.Probing, q.Probing)
		m.Engine = cmp.Or(m.Engine, q.Engine)
		for _, px := range q.Proxies {
			if _, known := runs[px.Name]; !known {
				runs[px.Name] = px
			}
		}
		for _, it := range q.Items {
			it.Shard = q.Shard.I
			if it.Role == plan.RoleCell {
				cells[it.ID] = it
				continue
			}
			it.ID = q.Shard.Control(it.ID)
			controls = append(controls, it)
		}
	}
	for _, c := range parts[0].scenario.Cells() {
		if it, ok := cells[c.ID()]; ok {
			m.Items = append(m.Items, it)
		}
	}
	m.Items = append(m.Items, controls...)
	for _, px := range parts[0].scenario.Proxies {
		if r, ok := runs[px.Name]; ok {
			m.Proxies = append(m.Proxies, r)
		}
		if u := unavailable(parts, px.Name); u != nil {
			m.Unavailable = append(m.Unavailable, *u)
		}
	}
	m.Ended = ended(parts)
	m.Kernel, _ = common(parts, &m.Warnings, "kernels", func(m record.Manifest) string { return m.Kernel })
	if _, same := common(parts, &m.Warnings, "numbers of cores", func(m record.Manifest) string { return strconv.Itoa(m.Cores) }); !same {
		m.Cores = 0
	}
	if _, same := common(parts, &m.Warnings, "numbers of lanes", func(m record.Manifest) string { return strconv.Itoa(m.Lanes) }); !same {
		m.Lanes = 0
	}
	m.NoPackets = told(parts, func(m record.Manifest) string { return m.NoPackets })
	for name := range runs {
		common(parts, &m.Warnings, "images of "+name, func(m record.Manifest) string {
			i := slices.IndexFunc(m.Proxies, func(p record.ProxyRun) bool { return p.Name == name })
			if i < 0 {
				return ""
			}
			return m.Proxies[i].ImageID
		})
	}
	slices.Sort(m.Warnings)
	return m
}

// common is what shards say of themselves, without what says nothing, and
// whether they agree. If they do not, it warns.
func common(parts Shards, warnings *[]string, what string, of func(record.Manifest) string) (all string, same bool) {
	var values []string
	for _, p := range parts {
		if v := of(p.manifest); v != "" && !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	all = strings.Join(values, ", ")
	if len(values) > 1 {
		*warnings = append(*warnings, fmt.Sprintf("the shards had different %s: %s", what, all))
	}
	return all, len(values) < 2
}

// told is what every shard says, or what each of some says.
func told(parts Shards, of func(record.Manifest) string) string {
	by := map[string][]string{}
	var order []string
	for _, p := range parts {
		v := of(p.manifest)
		if v == "" {
			continue
		}
		if by[v] == nil {
			order = append(order, v)
		}
		by[v] = append(by[v], p.shard().String())
	}
	if len(order) == 1 && len(by[order[0]]) == len(parts) {
		return order[0]
	}
	for i, v := range order {
		order[i] = "shard " + strings.Join(by[v], ", ") + ": " + v
	}
	return strings.Join(order, "; ")
}

// unavailable is a proxy that could not run in some shard that has its cells.
func unavailable(parts Shards, proxy string) *record.Unavailable {
	var u *record.Unavailable
	find := func(m record.Manifest) *record.Unavailable {
		if i := slices.IndexFunc(m.Unavailable, func(u record.Unavailable) bool { return u.Proxy == proxy }); i >= 0 {
			return &m.Unavailable[i]
		}
		return nil
	}
	for _, p := range parts {
		u = cmp.Or(u, find(p.manifest))
	}
	if u == nil {
		return nil
	}
	return &record.Unavailable{Proxy: proxy, Get: u.Get, Reason: told(parts, func(m record.Manifest) string {
		if u := find(m); u != nil {
			return u.Reason
		}
		return ""
	})}
}

// ended is why the merged run is not complete, or that it is.
func ended(parts Shards) string {
	out := record.EndDone
	for _, p := range parts {
		if p.manifest.Ended == record.EndBudget {
			out = record.EndBudget
		}
	}
	return cmp.Or(told(parts, func(m record.Manifest) string {
		switch m.Ended {
		case record.EndDone, record.EndBudget:
			return ""
		}
		return cmp.Or(m.Ended, "killed before its end")
	}), out)
}

// copy puts a shard's files where a merged run has them.
func (p part) copy(to *Folder) error {
	own := map[string]string{} // folders in cells/
	for _, it := range p.manifest.Items {
		own[it.ID] = it.ID
		if it.Role != plan.RoleCell {
			own[it.ID] = p.shard().Control(it.ID)
		}
	}
	for _, name := range p.files {
		target := path.Join(ShardsDir, strconv.Itoa(p.shard().I), name)
		if below, ok := strings.CutPrefix(name, CellsDir+"/"); ok {
			if id, rest, _ := strings.Cut(below, "/"); own[id] != "" {
				target = path.Join(CellsDir, own[id], rest)
			}
		}
		if err := p.copyFile(to, name, target); err != nil {
			return err
		}
	}
	return nil
}

func (p part) copyFile(to *Folder, name, target string) error {
	in, err := p.root.Open(name)
	if err != nil {
		return p.fault(name, err)
	}
	defer in.Close()
	out, err := to.CreateFile(target)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// judgeShards judges a merged run, each shard by its own record.
func (f *Folder) judgeShards(m record.Manifest, s *spec.Scenario) (*judge.Document, error) {
	var parts []*judge.Document
	for i := range m.Shards {
		sub := filepath.Join(ShardsDir, strconv.Itoa(i+1))
		root, err := f.root.OpenRoot(sub)
		if err != nil {
			return nil, f.fault(sub, err)
		}
		d, _, err := (&Folder{Path: filepath.Join(f.Path, sub), root: root}).Judge()
		root.Close()
		if err != nil {
			return nil, err
		}
		parts = append(parts, d)
	}
	return judge.Merge(m, s, parts), nil
}

// CellObservations opens the record in which a cell or control is, and gives the
// id that it has there.
func (f *Folder) CellObservations(id string) (r io.ReadCloser, recorded string, err error) {
	m, err := f.Manifest()
	if err != nil {
		return nil, "", err
	}
	name := ObservationsFile
	if i := slices.IndexFunc(m.Items, func(it plan.Item) bool { return it.ID == id }); i >= 0 && m.Items[i].Shard > 0 {
		it := m.Items[i]
		name = filepath.Join(ShardsDir, strconv.Itoa(it.Shard), ObservationsFile)
		if it.Role != plan.RoleCell {
			id = strings.TrimSuffix(id, plan.Shard{I: it.Shard, N: m.Shards}.Control(""))
		}
	}
	r, err = f.observations(name)
	return r, id, err
}
