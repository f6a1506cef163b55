// Package stack describes the processes of a run as plain data. Adapters make
// Services, runtimes start them. It imports nothing of this module.
package stack

import (
	"context"
	"fmt"
	"strings"
)

// Service is one process (or container) of a run.
type Service struct {
	Name  string            // path-safe, unique in a run
	Files map[string]string // path relative to the service's folder -> content

	// Binary is an executable's path or name on PATH; empty means this program
	// itself. Args may contain {dir}, the service's folder as the process sees it.
	Binary string
	Args   []string
	Image  string // container image that has Binary; runtimes without containers ignore it

	// Ready has the host:port addresses it listens on, as Runtime.Reserve gave
	// them; when it is up, each accepts connections.
	Ready []string

	// ReadyPath is for a service that accepts before it serves: when it is up,
	// a GET of this path is answered 200 at every Ready address.
	ReadyPath string

	// Capabilities are rights that a container does not have by itself, such as
	// NET_ADMIN, which it has over its own network alone. Runtimes without
	// containers refuse to start a service that asks for any.
	Capabilities []string
}

// Instance is a started Service.
type Instance interface {
	Service() Service
	// Address is where this program reaches what listens on one of Ready; Peer
	// is where the other services of the same runtime reach it.
	Address(ready string) string
	Peer(ready string) string
	// Stdout and Stderr are paths of growing files that hold what it printed.
	Stdout() string
	Stderr() string
	// Done is closed when it has ended; Err is nil before that, and then says
	// how it ended, with its last log lines.
	Done() <-chan struct{}
	Err() error
	// Pause makes it, and all that it started, stand still until Resume. It keeps
	// its sockets; the system goes on accepting and buffering for it. Resuming
	// what is not paused, or has ended, is harmless.
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	// Stop ends it, paused or not: politely first, by force when ctx is done. It returns when
	// it and all that it started are gone. Stopping twice is harmless.
	Stop(ctx context.Context) error
}

// Runtime starts services.
type Runtime interface {
	Name() string
	// Reserve gives n addresses to listen on that no other service of this
	// runtime has. Release them, which is harmless twice, right before the
	// services start.
	Reserve(n int) (Addresses, error)
	// Start returns when every Ready address accepts a connection. On an error
	// nothing is left running.
	Start(ctx context.Context, s Service, dir string) (Instance, error)
}

// Addresses are host:port pairs that are kept free until Release.
type Addresses interface {
	List() []string
	Release() error
}

// ExitError says that a service ended or never became ready.
type ExitError struct {
	Service string
	Reason  string   // "exit status 1", "not ready after 10s: 127.0.0.1:8080 refuses connections"
	Tail    []string // last lines it logged, at most ten
}

func (e *ExitError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s", e.Service, e.Reason)
	if len(e.Tail) > 0 {
		b.WriteString("; its last log lines:")
		for _, l := range e.Tail {
			b.WriteString("\n    " + l)
		}
	}
	return b.String()
}

// AddressInUse reports whether the service ended, or was not started, because
// another process had taken one of its ports.
func (e *ExitError) AddressInUse() bool {
	for _, l := range append([]string{e.Reason}, e.Tail...) {
		if strings.Contains(strings.ToLower(l), "address already in use") {
			return true
		}
	}
	return false
}
