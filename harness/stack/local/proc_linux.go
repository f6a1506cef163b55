package local

import "syscall"

// childAttr puts a child into a process group of its own and has the kernel
// kill it when the thread that forked it ends (prctl(2), PR_SET_PDEATHSIG).
func childAttr() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
