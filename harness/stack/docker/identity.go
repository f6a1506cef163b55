package docker

import (
	"cmp"
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// Labels of everything that a run makes.
const (
	labelRun     = "idlerace.run"
	labelID      = "idlerace.id" // tells apart two Runtimes of one run's name
	labelPID     = "idlerace.pid"
	labelStarted = "idlerace.started" // tells apart two processes of one pid
	labelHost    = "idlerace.host"
)

// identity says which process made something, so that another one can tell
// whether it still lives.
type identity struct {
	machine string // of one file system: its name and machine-id
	boot    string // of one start of the kernel and one pid namespace in it
	pid     int
	started string
}

func thisProcess() (identity, error) {
	name, err := os.Hostname()
	if err != nil {
		return identity{}, err
	}
	// Containers of one image share the machine-id, machines may share a name.
	id, _ := os.ReadFile("/etc/machine-id")
	started, err := processStarted(os.Getpid())
	return identity{
		machine: name + "." + cmp.Or(strings.TrimSpace(string(id)), "-"),
		boot:    bootID(), pid: os.Getpid(), started: started,
	}, err
}

func (i identity) labels(run, id string) map[string]string {
	return map[string]string{
		labelRun: run, labelID: id, labelPID: strconv.Itoa(i.pid), labelStarted: i.started,
		labelHost: i.machine + "/" + i.boot,
	}
}

// dead says whether the process that set labels is gone, as far as i can
// tell, and why or why not. started is processStarted.
func (i identity) dead(labels map[string]string, started func(pid int) (string, error)) (bool, string) {
	machine, boot, _ := strings.Cut(labels[labelHost], "/")
	pid, err := strconv.Atoi(labels[labelPID])
	switch {
	case err != nil || boot == "":
		return false, "its labels do not tell whose it is"
	case machine != i.machine:
		return false, "belongs to another host: " + machine
	case boot != i.boot && kernel(boot) == kernel(i.boot):
		return false, "belongs to another pid namespace of this host"
	case boot != i.boot:
		return true, "this host has restarted since"
	}
	switch at, err := started(pid); {
	case errors.Is(err, fs.ErrNotExist), err == nil && at != labels[labelStarted]:
		return true, "its process " + labels[labelPID] + " is gone"
	case err != nil:
		return false, err.Error()
	}
	return false, "its process " + labels[labelPID] + " runs"
}

// kernel is the part of a boot label that all pid namespaces share.
func kernel(boot string) string {
	k, _, _ := strings.Cut(boot, "/")
	return k
}
