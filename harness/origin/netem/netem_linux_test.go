package netem_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"idlerace/harness/origin/netem"
	"idlerace/harness/wire"
)

// inside is set in a test process that has a network of its own.
const inside = "IDLERACE_TEST_NETEM_INSIDE"

// TestMain gives root's tests a network namespace: none of them touches the
// machine's.
func TestMain(m *testing.M) {
	if os.Geteuid() != 0 || os.Getenv(inside) != "" {
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	runtime.LockOSThread() // whose end would be the child's
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		os.Exit(exit.ExitCode())
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "a network namespace for the tests:", err)
		os.Exit(1)
	}
}

// requireVar is run.RequireVar, which turns a skip into a failure.
const requireVar = "IDLERACE_REQUIRE"

func lack(t *testing.T, why string) {
	t.Helper()
	if slices.Contains(strings.Split(os.Getenv(requireVar), ","), "netem") {
		t.Fatalf("netem is required by %s: %s", requireVar, why)
	}
	t.Skip("netem: " + why)
}

// needOwn skips a test where it has no network of its own.
func needOwn(t *testing.T) {
	t.Helper()
	if os.Getenv(inside) == "" {
		lack(t, "a network namespace of the tests' own takes root")
	}
}

// needNetem skips a test on a kernel that cannot shape.
func needNetem(t *testing.T) {
	t.Helper()
	needOwn(t)
	if err := netem.Probe(); err != nil {
		lack(t, err.Error())
	}
}

// kinds gives the kinds of queueing discipline of an interface of this thread's
// namespace.
func kinds(t *testing.T, name string) (out []string) {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	list, err := netlink.QdiscList(link)
	if err != nil {
		t.Fatal(err)
	}
	for _, q := range list {
		out = append(out, q.Type())
	}
	return out
}

// TestMissing is for kernels without netem: they are told by name, and nothing
// is left of the attempt.
func TestMissing(t *testing.T) {
	needOwn(t)
	s, err := netem.Install([]string{"lo"}, []netem.Path{{Port: 80, Delay: time.Millisecond}})
	if err == nil {
		s.Close()
		t.Skip("this kernel has netem")
	}
	missing, ok := errors.AsType[*netem.MissingError](err)
	if !ok || !strings.Contains(err.Error(), "netem: lo: this kernel has no "+missing.Name+" ("+missing.Module+")") || s != nil {
		t.Fatalf("%v, %v", s, err)
	}
	if got := kinds(t, "lo"); slices.Contains(got, "htb") {
		t.Errorf("left behind: %v", got)
	}
	if probed := netem.Probe(); !errors.Is(probed, missing) {
		t.Errorf("Probe: %v, Install: %v", probed, err)
	}
}

// TestNoRight works on every kernel: the right is asked for first.
func TestNoRight(t *testing.T) {
	errs := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine, and its want of rights too
		head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err := unix.Capset(&head, &caps[0]); err != nil {
			errs <- os.NewSyscallError("capset", err)
			return
		}
		s, err := netem.Install([]string{"lo"}, []netem.Path{{Port: 80, Delay: time.Millisecond}})
		if err == nil {
			err = errors.Join(errors.New("installed"), s.Close())
		}
		errs <- err
	}()
	if err := <-errs; !errors.Is(err, netem.ErrNoRight) || err.Error() != "netem: lo: no right to shape (CAP_NET_ADMIN)" {
		t.Error(err)
	}
}

func TestInstallErrors(t *testing.T) {
	for _, tt := range []struct {
		path netem.Path
		want string
	}{
		{netem.Path{Port: 80, Delay: -1}, "netem: port 80: delay -1ns, jitter 0s: want none below 0, and a jitter of at most 4s"},
		{netem.Path{Port: 80, Jitter: 5 * time.Second}, "netem: port 80: delay 0s, jitter 5s: want none below 0, and a jitter of at most 4s"},
		{netem.Path{Port: 80}, "netem: no-such: Link not found"},
	} {
		_, err := netem.Install([]string{"no-such"}, []netem.Path{tt.path})
		if err == nil || err.Error() != tt.want {
			t.Errorf("%+v: %v, want %s", tt.path, err, tt.want)
		}
	}
}

// TestInterfaces: a network that is not a container's is left alone.
func TestInterfaces(t *testing.T) {
	needOwn(t)
	if _, err := netem.Interfaces(); err == nil || err.Error() != "netem: no interface is up" {
		t.Errorf("of none: %v", err)
	}
	newCable(t)
	if got, err := netem.Interfaces(); err != nil || !slices.Equal(got, []string{"cable"}) {
		t.Errorf("of a cable: %v, %v", got, err)
	}
	add(t, &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "docker0"}})
	if got, err := netem.Interfaces(); err == nil || !strings.HasPrefix(err.Error(), "netem: interface docker0 is a bridge, not a container's (veth)") {
		t.Errorf("of a machine: %v, %v", got, err)
	}
}

// TestShapedByOthers: what somebody else has set up stays.
func TestShapedByOthers(t *testing.T) {
	needNetem(t)
	link, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	theirs := netlink.NewNetem(netlink.QdiscAttrs{LinkIndex: link.Attrs().Index, Parent: netlink.HANDLE_ROOT, Handle: netlink.MakeHandle(7, 0)}, netlink.NetemQdiscAttrs{Latency: 1})
	if err := netlink.QdiscAdd(theirs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.QdiscDel(theirs) })
	_, err = netem.Install([]string{"lo"}, []netem.Path{{Port: 80, Delay: time.Millisecond}})
	if err == nil || err.Error() != "netem: lo: it is shaped already, by somebody else, and is left alone" {
		t.Error(err)
	}
	if got := kinds(t, "lo"); !slices.Equal(got, []string{"netem"}) {
		t.Errorf("theirs is %v by now", got)
	}
}

// add makes an interface, and sets it up.
func add(t *testing.T, link netlink.Link) {
	t.Helper()
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { netlink.LinkDel(link) })
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

// cable leads from this process' network, the proxy's side, to a server's.
type cable struct {
	t  *testing.T
	ns *os.File
}

const (
	proxyIP  = "10.77.0.1"
	serverIP = "10.77.0.2"
)

func newCable(t *testing.T) *cable {
	t.Helper()
	c := &cable{t: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever, or the thread would bring its namespace along
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			c.ns, err = os.Open("/proc/thread-self/ns/net")
		}
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.ns.Close() })
	lo, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetUp(lo)
	}
	if err != nil {
		t.Fatal(err)
	}
	add(t, &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "cable"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(c.ns.Fd())})
	addressed := func(name, ip string) error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(ip), Mask: net.CIDRMask(24, 32)}}
		return errors.Join(netlink.AddrAdd(link, addr), netlink.LinkSetUp(link))
	}
	if err := addressed("cable", proxyIP); err != nil {
		t.Fatal(err)
	}
	c.there(func() error { return addressed("eth0", serverIP) })
	return c
}

// there calls f in the server's network.
func (c *cable) there(f func() error) {
	c.t.Helper()
	if err := c.enter(f); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cable) enter(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever, as above
		err := unix.Setns(int(c.ns.Fd()), unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// install shapes the server's end of the cable.
func (c *cable) install(paths ...netem.Path) {
	c.t.Helper()
	c.there(func() error {
		names, err := netem.Interfaces()
		if err != nil {
			return err
		}
		s, err := netem.Install(names, paths)
		if err == nil {
			c.t.Cleanup(func() {
				if err := s.Close(); err != nil {
					c.t.Error(err)
				}
				c.there(func() error {
					if got := kinds(c.t, "eth0"); slices.Contains(got, "htb") {
						c.t.Errorf("after Close: %v", got)
					}
					return nil
				})
			})
		}
		return err
	})
}

// serve has every connection to a port of the server's handled.
func (c *cable) serve(port uint16, handle func(*net.TCPConn)) string {
	c.t.Helper()
	addr := netip.AddrPortFrom(netip.MustParseAddr(serverIP), port).String()
	c.there(func() error {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			return err
		}
		c.t.Cleanup(func() { l.Close() })
		go func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				go handle(conn.(*net.TCPConn))
			}
		}()
		return nil
	})
	return addr
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	conn, err := net.DialTimeout("tcp", addr, 30*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn.(*net.TCPConn)
}

// trip is the shortest of a few round trips over a connection, and the time
// that setting it up took.
func trip(t *testing.T, addr string) (shortest, setUp time.Duration) {
	t.Helper()
	begun := time.Now()
	conn := dial(t, addr)
	setUp = time.Since(begun)
	shortest = time.Hour
	for range 5 {
		begun := time.Now()
		if _, err := conn.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(conn, make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		shortest = min(shortest, time.Since(begun))
	}
	return shortest, setUp
}

func echo(c *net.TCPConn) { io.Copy(c, c) }

// TestRoundTrip: each port has its own delay, the handshake has it too, and
// other ports have none.
func TestRoundTrip(t *testing.T) {
	needNetem(t)
	c := newCable(t)
	const short, long = 100 * time.Millisecond, 300 * time.Millisecond
	c.install(netem.Path{Port: 7001, Delay: short}, netem.Path{Port: 7002, Delay: long}, netem.Path{Port: 7003, Delay: short})
	for _, tt := range []struct {
		port        uint16
		least, most time.Duration // most is the next port's least: a slow machine is no fault of the kernel's
	}{{7001, short, long}, {7002, long, time.Hour}, {7003, short, long}, {7004, 0, short}} {
		got, setUp := trip(t, c.serve(tt.port, echo))
		t.Logf("port %d: %s, set up in %s", tt.port, got, setUp)
		if got < tt.least || got >= tt.most || setUp < tt.least {
			t.Errorf("port %d: %s, set up in %s; want %s at least, and a trip below %s", tt.port, got, setUp, tt.least, tt.most)
		}
	}
}

// segments is what a server sends in the tests of order, one write each.
const segments = 50

// talk sends segments and, when the client has had them all, an FIN with an RST
// right behind it.
func talk(c *net.TCPConn) {
	defer c.Close()
	c.SetNoDelay(true)
	for i := range segments {
		if _, err := c.Write([]byte{byte(i)}); err != nil {
			return
		}
		time.Sleep(300 * time.Microsecond)
	}
	if _, err := c.Read(make([]byte, 1)); err != nil {
		return
	}
	c.CloseWrite()
	c.SetLinger(0)
}

// overtaken plays a few talks and says how many packets left the server
// behind one that the server had sent after it, and how many FINs behind their
// RST.
func (c *cable) overtaken(capture *wire.Capture, addr string) (packets, fins int) {
	t := c.t
	t.Helper()
	for range 10 {
		conn := dial(t, addr)
		if _, err := io.ReadFull(conn, make([]byte, segments)); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Write([]byte{0}); err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, conn) // to its FIN or RST
		of := wire.Conn{Port: netip.MustParseAddrPort(addr).Port(), Peer: netip.MustParseAddrPort(conn.LocalAddr().String())}
		sent := func() []wire.Packet {
			return slices.DeleteFunc(capture.Lookup(of, 0, time.Now().UnixNano()), func(p wire.Packet) bool { return p.FromPeer })
		}
		first := func(flag wire.Flags) int {
			return slices.IndexFunc(sent(), func(p wire.Packet) bool { return p.Flags&flag != 0 })
		}
		for end := time.Now().Add(30 * time.Second); first(wire.FIN) < 0 || first(wire.RST) < 0; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("no FIN and RST in %d packets", len(sent()))
			}
		}
		if first(wire.RST) < first(wire.FIN) {
			fins++
		}
		var last uint16
		for i, p := range sent() {
			// From the SYN,ACK on Linux numbers what a connection sends, what it
			// sends again included, up to its RST.
			id := binary.BigEndian.Uint16(p.Raw[4:])
			if i > 1 && int16(id-last) < 0 {
				packets++
			}
			if last = id; p.Flags&wire.RST != 0 {
				break
			}
		}
	}
	return packets, fins
}

// TestOrder: jitter lets no packet overtake another, FIN and RST included. That
// the test can fail shows a netem as it comes.
func TestOrder(t *testing.T) {
	needNetem(t)
	c := newCable(t)
	path := netem.Path{Port: 7001, Delay: 20 * time.Millisecond, Jitter: 40 * time.Millisecond}
	c.install(path)
	addr := c.serve(path.Port, talk)
	// At the server's end, as an origin captures: behind netem, and before the
	// cable, whose other end may be served by two cores at once.
	var capture *wire.Capture
	c.there(func() (err error) {
		capture, err = wire.Open([]uint16{path.Port}, wire.Options{})
		return err
	})
	t.Cleanup(func() { capture.Close() })
	if packets, fins := c.overtaken(capture, addr); packets+fins > 0 {
		t.Errorf("%d packets and %d FINs came too late", packets, fins)
	}
	c.there(func() error {
		link, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		list, err := netlink.QdiscList(link)
		if err != nil {
			return err
		}
		for _, q := range list {
			if n, ok := q.(*netlink.Netem); ok {
				plain := netlink.NewNetem(n.QdiscAttrs, netlink.NetemQdiscAttrs{Latency: 40_000, Jitter: 20_000})
				return errors.Join(netlink.QdiscDel(n), netlink.QdiscAdd(plain)) // a change would keep the rate
			}
		}
		return errors.New("no netem")
	})
	packets, fins := 0, 0
	for try := 0; try < 5 && (packets == 0 || fins == 0); try++ { // chance may keep an order now and then
		p, f := c.overtaken(capture, addr)
		packets, fins = packets+p, fins+f
	}
	t.Logf("a netem as it comes: %d packets and %d FINs too late", packets, fins)
	if packets == 0 || fins == 0 {
		t.Error("a netem as it comes kept the order, too: this test shows nothing")
	}
}
