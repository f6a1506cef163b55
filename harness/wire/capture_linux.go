package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

const (
	kernelBuffer = 8 << 20               // bytes asked for, of which Linux makes twice as many: 1,500 packets of 16 KiB, 30,000 small ones
	pause        = 10 * time.Millisecond // packets are gathered so long: the reader must not disturb what it watches
	batch        = 256                   // packets read under one lock
	stampWait    = time.Second           // longest wait for the kernel's stamps
	stampStep    = time.Millisecond      // between two looks
)

// socket is an AF_PACKET socket on all interfaces, without link headers.
type socket struct {
	file   *os.File
	raw    syscall.RawConn
	closed chan struct{}

	// Under the lock of the capture:
	buf, oob []byte
	lost     uint64 // dropped by the kernel, as far as asked
}

func openSocket(ports []uint16, snap int) (*socket, error) {
	// Protocol 0 receives nothing until bind: no packet passes before the
	// filter stands.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil, fmt.Errorf("%w: %w", ErrNoRight, os.NewSyscallError("socket", err))
	}
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := setUp(fd, ports, snap); err != nil {
		return nil, errors.Join(err, os.NewSyscallError("close", unix.Close(fd)))
	}
	s := &socket{
		file: os.NewFile(uintptr(fd), "packets"), closed: make(chan struct{}),
		buf: make([]byte, snap), oob: make([]byte, 128),
	}
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func setUp(fd int, ports []uint16, snap int) error {
	own, err := skipLoopback()
	if err != nil {
		return err
	}
	prog, err := bpf.Assemble(append(own, filter(ports, snap)...))
	if err != nil {
		return err
	}
	code := make([]unix.SockFilter, len(prog))
	for i, in := range prog {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", err)
	}
	// Beyond the system's limit only with CAP_NET_ADMIN; below it is good too.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, kernelBuffer) != nil {
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, kernelBuffer); err != nil {
			return os.NewSyscallError("setsockopt SO_RCVBUF", err)
		}
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		return os.NewSyscallError("setsockopt SO_TIMESTAMPNS", err)
	}
	awaitStamps()
	return os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}))
}

// awaitStamps returns when the kernel stamps packets, which the first socket
// that wants it turns on, in the background. A packet from before would get the
// time at which it is read, later than those behind it. It sends itself
// datagrams to see. Where that fails it returns at once, and after stampWait
// anyway.
func awaitStamps() {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	// Unlike SO_TIMESTAMPNS this leaves out a stamp that the kernel did not make
	// in time.
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPING, unix.SOF_TIMESTAMPING_RX_SOFTWARE|unix.SOF_TIMESTAMPING_SOFTWARE) != nil ||
		unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}) != nil {
		return
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return
	}
	oob := make([]byte, 128)
	for end := time.Now().Add(stampWait); time.Now().Before(end); {
		if unix.Sendto(fd, nil, 0, self) != nil {
			return
		}
		time.Sleep(stampStep) // the last one too: the kernel changes one place after another
		if _, n, _, _, err := unix.Recvmsg(fd, nil, oob, 0); err == nil && n > 0 {
			return
		}
	}
}

func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// skipLoopback begins a filter: it leaves out what a loopback interface sends,
// which that interface receives too.
func skipLoopback() ([]bpf.Instruction, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil, err
	}
	var prog []bpf.Instruction
	for _, i := range interfaces {
		if i.Flags&net.FlagLoopback != 0 {
			prog = append(prog,
				bpf.LoadExtension{Num: bpf.ExtInterfaceIndex},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: uint32(i.Index), SkipTrue: 3},
				bpf.LoadExtension{Num: bpf.ExtType},
				bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 1},
				bpf.RetConstant{Val: 0},
			)
		}
	}
	return prog, nil
}

// wait calls drain when packets have come and again after every pause in which
// some did, until close.
func (s *socket) wait(drain func() int) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if s.raw.Read(func(uintptr) bool { return drain() > 0 }) != nil {
			return
		}
		timer.Reset(pause)
		select {
		case <-s.closed:
			return
		case <-timer.C:
		}
	}
}

// read gives at most batch packets to add. more: there may be others. It reads
// nothing after close.
func (s *socket) read(add func(at int64, iface int32, raw []byte)) (n int, more bool, err error) {
	s.raw.Control(func(fd uintptr) { // fails when closed
		for n < batch {
			size, oobSize, _, from, e := unix.Recvmsg(int(fd), s.buf, s.oob, unix.MSG_DONTWAIT)
			switch e {
			case nil:
			case unix.EAGAIN:
				return
			case unix.EINTR, unix.ENETDOWN:
				continue
			default:
				err = os.NewSyscallError("recvmsg", e)
				return
			}
			n++
			var iface int32
			if ll, ok := from.(*unix.SockaddrLinklayer); ok {
				iface = int32(ll.Ifindex)
			}
			add(timestamp(s.oob[:oobSize]), iface, s.buf[:size])
		}
		more = true
	})
	return n, more, err
}

// timestamp is the kernel's, in Unix ns; without one it is now.
func timestamp(oob []byte) int64 {
	for len(oob) > 0 {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SO_TIMESTAMPNS {
			if len(data) >= 16 {
				return int64(binary.NativeEndian.Uint64(data))*1e9 + int64(binary.NativeEndian.Uint64(data[8:]))
			}
			if len(data) >= 8 { // 32-bit systems
				return int64(binary.NativeEndian.Uint32(data))*1e9 + int64(binary.NativeEndian.Uint32(data[4:]))
			}
		}
		oob = rest
	}
	return time.Now().UnixNano()
}

// dropped is how many packets the kernel had no room for. The kernel counts
// from the last question on.
func (s *socket) dropped() (uint64, error) {
	var err error
	s.raw.Control(func(fd uintptr) { // fails when closed: the count stays
		var st *unix.TpacketStats
		if st, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
			s.lost += uint64(st.Drops)
		}
	})
	return s.lost, os.NewSyscallError("getsockopt PACKET_STATISTICS", err)
}

func (s *socket) close() error {
	err := s.file.Close()
	if err == nil {
		close(s.closed)
	}
	return err
}
