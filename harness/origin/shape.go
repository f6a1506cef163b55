package origin

import (
	"fmt"
	"net"
	"strconv"
	"time"

	"idlerace/harness/origin/netem"
)

// shape has the kernel delay what leaves the servers with a netem link, before
// anybody can connect to them. Without one it does nothing.
func shape(servers []Server) (*netem.Shaper, error) {
	var paths []netem.Path
	for _, s := range servers {
		if s.Link == nil || !s.Link.Netem {
			continue
		}
		port, err := portOf(s.Listen)
		if err != nil {
			return nil, fmt.Errorf("server %s: %w", s.Name, err)
		}
		paths = append(paths, netem.Path{Port: port, Delay: time.Duration(s.Link.Down), Jitter: time.Duration(s.Link.JitterDown)})
	}
	if len(paths) == 0 {
		return nil, nil
	}
	interfaces, err := netem.Interfaces()
	if err != nil {
		return nil, err
	}
	return netem.Install(interfaces, paths)
}

// portOf is the port of a listen address; a name or 0 is none.
func portOf(listen string) (uint16, error) {
	_, text, err := net.SplitHostPort(listen)
	if err != nil {
		return 0, err
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%q is no port to shape", text)
	}
	return uint16(port), nil
}

// beyondNetem lists what of l netem cannot do for a server that listens there.
func (l Link) beyondNetem(listen string, contained bool) (faults []string) {
	if !contained {
		faults = append(faults, `it would shape the network of this machine: only for an origin that is "contained", in a network of its own`)
	}
	if l.Up != 0 || l.JitterUp != 0 {
		faults = append(faults, "it delays what leaves the server: say the whole round trip as down and jitter_down")
	}
	if l.Idle != 0 || l.HalfClosed != 0 {
		faults = append(faults, "it has no middlebox: idle and half_closed are the relay's")
	}
	if _, err := portOf(listen); err != nil {
		faults = append(faults, err.Error())
	}
	return faults
}
