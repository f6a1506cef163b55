package run

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

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
