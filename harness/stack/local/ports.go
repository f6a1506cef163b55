package local

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"syscall"

	"idlerace/harness/stack"
)

// Ports of services are taken below Linux' default range of ephemeral ports
// (32768 to 60999), so that no outgoing connection can take one between
// reservation and use.
const (
	firstPort = 15000
	lastPort  = 32000
)

// Ports holds reserved TCP ports of 127.0.0.1: they stay bound, by this
// process, until Release.
type Ports struct {
	Addrs     []string // "127.0.0.1:20123"
	listeners []net.Listener
}

// Reserve implements stack.Runtime.
func (*Runtime) Reserve(n int) (stack.Addresses, error) { return Reserve(n) }

// List implements stack.Addresses.
func (p *Ports) List() []string { return p.Addrs }

// Reserve binds n free ports. The caller must Release them.
func Reserve(n int) (*Ports, error) {
	tooFew := fmt.Errorf("fewer than %d free TCP ports between %d and %d on 127.0.0.1", n, firstPort, lastPort)
	if n > lastPort-firstPort+1 {
		return nil, tooFew
	}
	p := &Ports{}
	port := firstPort + rand.IntN(lastPort-firstPort)
	for tried := 0; len(p.listeners) < n; tried++ {
		if tried > lastPort-firstPort {
			p.Release()
			return nil, tooFew
		}
		if port++; port > lastPort {
			port = firstPort
		}
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		l, err := net.Listen("tcp", addr)
		if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
			p.Release()
			return nil, fmt.Errorf("%d TCP ports: %w", n, err)
		}
		if err != nil {
			continue
		}
		p.listeners = append(p.listeners, l)
		p.Addrs = append(p.Addrs, addr)
	}
	return p, nil
}

// Release frees the ports for the services that will listen on them. Calling
// it twice is harmless.
func (p *Ports) Release() error {
	var errs []error
	for _, l := range p.listeners {
		errs = append(errs, l.Close())
	}
	p.listeners = nil
	return errors.Join(errs...)
}
