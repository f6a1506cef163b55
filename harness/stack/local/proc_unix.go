//go:build unix

package local

import "syscall"

func terminate(pid int) { syscall.Kill(pid, syscall.SIGTERM) }

// killGroup kills every process of the group that pid leads; none left is fine.
func killGroup(pid int) { syscall.Kill(-pid, syscall.SIGKILL) }
