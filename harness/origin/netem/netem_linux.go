package netem

import (
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The parts of the kernel.
var (
	classes = &MissingError{"classes of packets", "sch_htb"}
	delays  = &MissingError{"netem", "sch_netem"}
	filters = &MissingError{"filter of packets", "cls_u32"}
)

const (
	// lineRate is what a line carries, in bytes a second: so much that it takes
	// no time, below what 32 bits hold.
	lineRate = 4e9
	burst    = 1 << 20 // bytes that a class may send in one go: the longest segment many times
	quantum  = 60_000  // bytes that a class sends before it is another's turn
	inFlight = 1 << 20 // packets that a line holds: never reached, TCP's windows bound them
	direct   = 10_000  // packets of other ports that wait for the device
)

// Shaper is what Install has set up. Methods of a nil *Shaper do nothing.
type Shaper struct {
	handle *netlink.Handle
	links  []netlink.Link
}

// Interfaces names those that are up, loopback left out, in this thread's
// network namespace. A kind that a container's network has not got is an error:
// it would be a machine's own.
func Interfaces() ([]string, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netem: %w", err)
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("netem: %w", err)
	}
	var names []string
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagUp == 0 || a.Flags&net.FlagLoopback != 0 {
			continue
		}
		if l.Type() != "veth" {
			return nil, fmt.Errorf("netem: interface %s is a %s, not a container's (veth): this network may be a machine's own, and is left alone", a.Name, l.Type())
		}
		names = append(names, a.Name)
	}
	if len(names) == 0 {
		return nil, errors.New("netem: no interface is up")
	}
	return names, nil
}

// Install delays what leaves the ports of paths over the interfaces, in this
// thread's network namespace; all else passes as before. The error is a
// *MissingError, ErrNoRight, or one of a path or a system call; nothing is left
// then.
func Install(interfaces []string, paths []Path) (*Shaper, error) {
	for _, p := range paths {
		if p.Delay < 0 || p.Jitter < 0 || p.Jitter > MaxJitter {
			return nil, fmt.Errorf("netem: port %d: delay %s, jitter %s: want none below 0, and a jitter of at most %s", p.Port, p.Delay, p.Jitter, MaxJitter)
		}
	}
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("netem: %w", err)
	}
	s := &Shaper{handle: h}
	for _, name := range interfaces {
		link, err := h.LinkByName(name)
		if err == nil {
			err = s.shape(link, paths)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("netem: %s: %w", name, err), s.Close())
		}
	}
	return s, nil
}

// shape gives a link a root with a class for each distinct line, a netem below
// each, and filters by source port.
//
// Note: the root is an htb because it sends what belongs to no class at once. A
// prio has 16 bands, and a drr waits for the first class that has a packet,
// which with a netem below it is not due.
func (s *Shaper) shape(link netlink.Link, paths []Path) error {
	at := link.Attrs().Index
	root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: at, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)})
	root.DirectQlen = new(uint32)
	*root.DirectQlen = direct
	if err := s.handle.QdiscAdd(root); errors.Is(err, unix.EEXIST) {
		return errors.New("it is shaped already, by somebody else, and is left alone")
	} else if err != nil {
		return reason(err, classes)
	}
	s.links = append(s.links, link)
	type line struct{ delay, jitter time.Duration }
	lines := map[line]uint16{}
	for _, p := range paths {
		l := line{p.Delay, p.Jitter}
		n := lines[l]
		if n == 0 {
			n = uint16(len(lines) + 2) // 1 is the root
			lines[l] = n
			class := netlink.NewHtbClass(netlink.ClassAttrs{LinkIndex: at, Parent: root.Handle, Handle: netlink.MakeHandle(1, n)},
				netlink.HtbClassAttrs{Rate: 8 * lineRate, Buffer: burst, Cbuffer: burst, Quantum: quantum})
			if err := s.handle.ClassAdd(class); err != nil {
				return reason(err, classes)
			}
			if err := s.handle.QdiscAdd(delay(at, n, p)); err != nil {
				return reason(err, delays)
			}
		}
		for _, f := range portFilters(at, n, p.Port) {
			if err := s.handle.FilterAdd(f); err != nil {
				return reason(err, filters)
			}
		}
	}
	return nil
}

// delay is the netem of class n.
//
// Note: with a jitter alone, netem lets packets overtake each other, and a fifo
// below it sees them too late. With a rate it reckons each packet's time from
// that of the one before.
func delay(link int, n uint16, p Path) *netlink.Netem {
	attrs := netlink.NetemQdiscAttrs{Limit: inFlight}
	if p.Jitter > 0 {
		attrs.Rate64 = lineRate
	}
	// The kernel draws from middle - half to middle + half.
	half := p.Jitter / 2
	attrs.Latency, attrs.Jitter = uint32((p.Delay + half).Microseconds()), uint32(half.Microseconds())
	return netlink.NewNetem(netlink.QdiscAttrs{LinkIndex: link, Parent: netlink.MakeHandle(1, n), Handle: netlink.MakeHandle(n, 0)}, attrs)
}

// portFilters send to class n what leaves a TCP port, over IPv4 without options
// and over IPv6.
func portFilters(link int, n, port uint16) []netlink.Filter {
	const tcp = unix.IPPROTO_TCP
	filter := func(prio, protocol uint16, keys ...netlink.TcU32Key) netlink.Filter {
		return &netlink.U32{
			FilterAttrs: netlink.FilterAttrs{LinkIndex: link, Parent: netlink.MakeHandle(1, 0), Priority: prio, Protocol: protocol},
			ClassId:     netlink.MakeHandle(1, n),
			Sel:         &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL, Keys: keys},
		}
	}
	source := func(off int32) netlink.TcU32Key {
		return netlink.TcU32Key{Mask: 0xffff << 16, Val: uint32(port) << 16, Off: off}
	}
	return []netlink.Filter{
		filter(1, unix.ETH_P_IP, netlink.TcU32Key{Mask: 0x0f000000, Val: 5 << 24, Off: 0}, netlink.TcU32Key{Mask: 0xff << 16, Val: tcp << 16, Off: 8}, source(20)),
		filter(2, unix.ETH_P_IPV6, netlink.TcU32Key{Mask: 0xff << 8, Val: tcp << 8, Off: 4}, source(40)),
	}
}

// reason says in our words why a part of the kernel could not be set up.
func reason(err error, part *MissingError) error {
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		return ErrNoRight
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EOPNOTSUPP):
		return part
	}
	return fmt.Errorf("%s: %w", part.Module, err)
}

// Close takes away what Install has set up, if the interfaces are still there.
func (s *Shaper) Close() error {
	if s == nil {
		return nil
	}
	var errs []error
	for _, l := range s.links {
		root := netlink.NewHtb(netlink.QdiscAttrs{LinkIndex: l.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(1, 0)})
		if err := s.handle.QdiscDel(root); err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("netem: %s: %w", l.Attrs().Name, err))
		}
	}
	s.handle.Close()
	return errors.Join(errs...)
}
