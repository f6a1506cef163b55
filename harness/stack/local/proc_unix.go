//go:build unix

package local

import "syscall"

func terminate(pid int) { syscall.Kill(pid, syscall.SIGTERM) }

// stopGroup makes every process of the group that pid leads stand still, until
// continueGroup.
func stopGroup(pid int) error { return syscall.Kill(-pid, syscall.SIGSTOP) }

func continueGroup(pid int) error { return syscall.Kill(-pid, syscall.SIGCONT) }

// killGroup kills every process of the group that pid leads; none left is fine.
func killGroup(pid int) { syscall.Kill(-pid, syscall.SIGKILL) }
