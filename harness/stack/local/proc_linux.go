package local

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// childAttr puts a child into a process group of its own and has the kernel
// kill it when the thread that forked it ends (prctl(2), PR_SET_PDEATHSIG).
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}

// groupGone reports whether no process of the group that pid led runs any
// more. Zombies do not count: in a container whose first process reaps nobody
// they stay for ever.
func groupGone(pid int) bool {
	if syscall.Kill(-pid, 0) != nil {
		return true
	}
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil || len(stats) == 0 {
		return false
	}
	for _, stat := range stats {
		b, err := os.ReadFile(stat)
		if err != nil {
			continue // gone since
		}
		// proc_pid_stat(5): pid (name) state ppid pgrp; a name may hold anything.
		f := strings.Fields(string(b)[strings.LastIndexByte(string(b), ')')+1:])
		if len(f) > 2 && f[2] == strconv.Itoa(pid) && f[0] != "Z" && f[0] != "X" {
			return false
		}
	}
	return true
}
