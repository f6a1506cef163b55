//go:build unix && !linux

package local

import "syscall"

// childAttr puts a child into a process group of its own. This system has no
// parent-death signal: a killed harness leaves its children running.
func childAttr() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// groupGone reports whether no process of the group that pid led is left.
func groupGone(pid int) bool { return syscall.Kill(-pid, 0) != nil }
