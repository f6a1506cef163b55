package wire

import (
	"errors"
	"net"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

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
		c, err := Open([]uint16{8080}, Options{})
		if err == nil {
			err = errors.Join(errors.New("opened"), c.Close())
		}
		errs <- err
	}()
	err := <-errs
	if !errors.Is(err, ErrNoRight) || !strings.HasPrefix(err.Error(), "capture: no right to capture packets (CAP_NET_RAW)") {
		t.Errorf("error %v", err)
	}
}

// deafen has the kernel drop what arrives for a socket from now on, before TCP
// sees it: as a packet that is still on its way.
func deafen(t *testing.T, c *net.TCPConn) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	var setErr error
	if err := raw.Control(func(fd uintptr) {
		setErr = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	}); err != nil || setErr != nil {
		t.Fatal(err, setErr)
	}
}

// Each order as the kernel makes it.
func TestRealOrders(t *testing.T) {
	server := func(flag Flags) func(Packet) bool {
		return func(p Packet) bool { return !p.FromPeer && p.Flags&flag != 0 }
	}
	request := func(p Packet) bool {
		_, seq, ok := p.RequestID()
		return ok && seq == 123
	}
	send := func(t *testing.T, p *pair) {
		t.Helper()
		if _, err := p.client.Write([]byte(requestText(123))); err != nil {
			t.Fatal(err)
		}
		p.await(t, "request", request)
	}
	for order, play := range map[Order]func(*testing.T, *pair){
		RequestFirst: func(t *testing.T, p *pair) {
			send(t, p)
			p.server.Close()
			p.await(t, "RST", server(RST))
		},
		Crossing: func(t *testing.T, p *pair) {
			deafen(t, p.client)
			p.server.Close()
			p.await(t, "FIN", server(FIN))
			send(t, p)
			p.await(t, "RST", server(RST))
		},
		Unnoticed: func(t *testing.T, p *pair) {
			p.server.Close()
			p.await(t, "FIN", server(FIN))
			send(t, p)
			p.await(t, "RST", server(RST))
		},
		Reset: func(t *testing.T, p *pair) {
			deafen(t, p.client)
			p.server.SetLinger(0)
			p.server.Close()
			p.await(t, "RST", server(RST))
			send(t, p)
		},
		Silence: func(t *testing.T, p *pair) {
			deafen(t, p.server)
			send(t, p)
		},
	} {
		t.Run(string(order), func(t *testing.T) {
			p := dial(t, "127.0.0.1:0")
			p.exchange(t, 122)
			play(t, p)
			packets := p.all()
			for name, late := range map[string]Late{"id": {Cell: "c", Seq: 123}, "time": {At: time.Now().UnixNano()}} {
				if got := OrderOf(packets, late); got != order {
					t.Errorf("by %s %q, want %q:\n%s", name, got, order, strings.Join(show(packets), "\n"))
				}
			}
		})
	}
}
