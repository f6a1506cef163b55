package run

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Names of the runtimes a run can be asked for.
const (
	RuntimeAuto     = "auto"     // per proxy: whatever this machine offers
	RuntimeLocal    = "local"    // executables from PATH, and the embedded proxies
	RuntimeEmbedded = "embedded" // nothing but this program
)

// Runtimes lists them.
func Runtimes() []string { return []string{RuntimeAuto, RuntimeLocal, RuntimeEmbedded} }

// Found says where a proxy comes from on this machine.
type Found struct {
	Adapter proxy.Adapter
	Run     record.ProxyRun
}

// Find looks for a proxy. An error is the reason why it cannot run here.
func Find(ctx context.Context, a proxy.Adapter, runtimeName, self string) (Found, error) {
	p := a.Program()
	f := Found{Adapter: a, Run: record.ProxyRun{Name: a.Name()}}
	if p.Embedded {
		f.Run.Runtime, f.Run.Version, f.Run.Path = RuntimeEmbedded, runtime.Version(), self
		return f, nil
	}
	if runtimeName == RuntimeEmbedded {
		return f, errors.New("runtime embedded uses nothing but this program")
	}
	path, err := lookPath(p.Binary)
	if err != nil {
		return f, fmt.Errorf("no %s on PATH", p.Binary)
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, p.Args...).CombinedOutput()
	if err != nil {
		return f, fmt.Errorf("%s %s: %w: %s", path, strings.Join(p.Args, " "), err, bytes.TrimSpace(out))
	}
	m := p.Version.FindSubmatch(out)
	if m == nil {
		return f, fmt.Errorf("%s %s: no version in %q", path, strings.Join(p.Args, " "), bytes.TrimSpace(out))
	}
	f.Run.Runtime, f.Run.Version, f.Run.Path = RuntimeLocal, string(m[1]), path
	return f, nil
}

// lookPath looks where servers are installed as well: /usr/sbin is on PATH for
// root alone on many systems.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin", "/opt/homebrew/bin", "/usr/local/bin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p, nil
		}
	}
	return "", err
}

// RequireVar names the environment variable that turns a skip into a failure:
// a comma-separated list of what must be there.
const RequireVar = "IDLERACE_REQUIRE"

// Required reads RequireVar.
func Required() []string {
	return strings.FieldsFunc(os.Getenv(RequireVar), func(r rune) bool { return r == ',' || r == ' ' })
}

// kernel is the running kernel's name and release.
func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return runtime.GOOS
	}
	return unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
}

// openFiles checks that the files and sockets of a run may be open at once. A
// proxy that serves all cells needs the most: a client's connection and an
// upstream's for each lane.
func openFiles(lanes int) error {
	var have unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &have) != nil {
		return nil // nothing known, nothing to say
	}
	if need := uint64(2*lanes + 1024); need > have.Cur {
		return fmt.Errorf("%d client connections need %d open files per process, the limit is %d; raise it (ulimit -n %d), or lower probe.lanes", lanes, need, have.Cur, need)
	}
	return nil
}

// find looks for all proxies of a scenario.
func find(ctx context.Context, s *spec.Scenario, o Options) (found map[string]Found, missing []record.Unavailable, err error) {
	found = map[string]Found{}
	required := map[string]bool{}
	for _, name := range o.Require {
		required[name] = true
	}
	for _, px := range s.Proxies {
		a, err := proxy.ByName(px.Name)
		if err != nil {
			return nil, nil, err
		}
		f, err := Find(ctx, a, o.Runtime, o.Self)
		if err == nil {
			found[px.Name] = f
			continue
		}
		if required[px.Name] {
			return nil, nil, fmt.Errorf("%s is required (%s) and cannot run: %w; to get it: %s", px.Name, RequireVar, err, a.Program().Get)
		}
		missing = append(missing, record.Unavailable{Proxy: px.Name, Reason: err.Error(), Get: a.Program().Get})
	}
	return found, missing, nil
}
