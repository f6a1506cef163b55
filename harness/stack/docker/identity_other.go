//go:build !linux

package docker

import (
	"errors"
	"io/fs"
	"strconv"

	"github.com/shirou/gopsutil/v4/process"
)

// bootID needs to tell nothing: processStarted is a time of day here.
func bootID() string { return "-" }

// processStarted says when a process started, in milliseconds of Unix time.
// The error is fs.ErrNotExist when it has ended.
func processStarted(pid int) (string, error) {
	p, err := process.NewProcess(int32(pid))
	if errors.Is(err, process.ErrorProcessNotRunning) {
		return "", fs.ErrNotExist
	}
	if err != nil {
		return "", err
	}
	ms, err := p.CreateTime()
	return strconv.FormatInt(ms, 10), err
}
