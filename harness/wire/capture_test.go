package wire

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// patience bounds every wait for something that must happen.
const patience = 10 * time.Second

func TestOptions(t *testing.T) {
	for _, tt := range []struct {
		in   Options
		want string
	}{
		{Options{}, ""},
		{Options{Snap: 128, Bytes: 32 * 192}, ""},
		{Options{Snap: 127}, "snap length of 127 bytes: want 128 to 65535"},
		{Options{Bytes: 1000}, "1000 bytes for packets: want 34816 at least"},
		{Options{Age: -time.Second}, "packets of an age of -1s: want more than 0"},
	} {
		var got string
		if err := tt.in.fill(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.in, got, tt.want)
		}
	}
	if _, err := Open(nil, Options{}); err == nil {
		t.Error("a capture of no ports was opened")
	}
}

// open captures the ports, or skips the test where it may not.
func open(t testing.TB, ports ...uint16) *Capture {
	t.Helper()
	c, err := Open(ports, Options{})
	if errors.Is(err, ErrNoRight) || errors.Is(err, ErrNoSystem) {
		t.Skip(err) // capturing takes a right that not every user has
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil && !errors.Is(err, os.ErrClosed) {
			t.Error(err)
		}
	})
	return c
}

// pair is a connection over a loopback interface, its capture and its name.
type pair struct {
	client, server *net.TCPConn
	capture        *Capture
	conn           Conn
}

func dial(t testing.TB, address string) *pair {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Skip(err) // no IPv6
	}
	defer l.Close()
	p := &pair{capture: open(t, l.Addr().(*net.TCPAddr).AddrPort().Port())}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	p.client, p.server = client.(*net.TCPConn), server.(*net.TCPConn)
	p.conn = Conn{l.Addr().(*net.TCPAddr).AddrPort().Port(), netip.MustParseAddrPort(server.RemoteAddr().String())}
	t.Cleanup(func() { client.Close(); server.Close() })
	return p
}

// exchange sends a request with an id and its answer.
func (p *pair) exchange(t testing.TB, seq int) {
	t.Helper()
	for _, m := range []struct {
		from, to *net.TCPConn
		text     string
	}{{p.client, p.server, requestText(seq)}, {p.server, p.client, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"}} {
		if _, err := m.from.Write([]byte(m.text)); err != nil {
			t.Fatal(err)
		}
		m.to.SetReadDeadline(time.Now().Add(patience))
		if _, err := io.ReadFull(m.to, make([]byte, len(m.text))); err != nil {
			t.Fatal(err)
		}
	}
}

func requestText(seq int) string {
	return fmt.Sprintf("POST / HTTP/1.1\r\nHost: x\r\nX-Vegeta-Attack: c\r\nX-Vegeta-Seq: %d\r\n\r\n", seq)
}

// all is every packet of the connection so far.
func (p *pair) all() []Packet {
	return p.capture.Lookup(p.conn, 0, time.Now().Add(time.Hour).UnixNano())
}

// await waits for a packet and gives all up to now.
func (p *pair) await(t testing.TB, what string, want func(Packet) bool) []Packet {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		got := p.all()
		if slices.ContainsFunc(got, want) {
			return got
		}
		if time.Now().After(end) {
			t.Fatalf("no %s in\n%s", what, strings.Join(show(got), "\n"))
		}
	}
}

func TestCapture(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0"} {
		t.Run(address, func(t *testing.T) {
			begin := time.Now().UnixNano()
			p := dial(t, address)
			for seq := range 3 {
				p.exchange(t, seq)
			}
			p.client.CloseWrite()
			got := p.await(t, "FIN of the peer", func(p Packet) bool { return p.FromPeer && p.Flags&FIN != 0 })

			var ids []string
			bytes := map[bool]int{}
			for i, q := range got {
				if q.At < begin || q.At > time.Now().UnixNano() || i > 0 && q.At < got[i-1].At {
					t.Errorf("packet %d at %d", i, q.At)
				}
				if cell, seq, ok := q.RequestID(); ok {
					ids = append(ids, fmt.Sprintf("%s/%d", cell, seq))
				}
				bytes[q.FromPeer] += q.Len
			}
			if got[0].Flags&(SYN|ACK) != SYN || !got[0].FromPeer || got[1].Flags&(SYN|ACK) != SYN|ACK || got[1].FromPeer {
				t.Errorf("does not begin with the handshake:\n%s", strings.Join(show(got), "\n"))
			}
			if diff := cmp.Diff([]string{"c/0", "c/1", "c/2"}, ids); diff != "" {
				t.Errorf("ids (-want +got):\n%s", diff)
			}
			if want := (map[bool]int{true: 3 * len(requestText(0)), false: 3 * 38}); !cmp.Equal(bytes, want) {
				t.Errorf("bytes by direction %v, want %v: each packet once", bytes, want)
			}
			st, err := p.capture.Stats()
			if err != nil || st.Captured < uint64(len(got)) || st.Dropped != 0 || st.Duplicates != 0 || st.Evicted != 0 {
				t.Errorf("%+v, %v", st, err)
			}
			if got := p.capture.Lookup(Conn{p.conn.Port + 1, p.conn.Peer}, 0, time.Now().UnixNano()); got != nil {
				t.Errorf("another port has\n%s", strings.Join(show(got), "\n"))
			}
			if err := p.capture.Close(); err != nil {
				t.Error(err)
			}
			if len(p.all()) < len(got) {
				t.Error("packets are gone after Close")
			}
			if err := p.capture.Close(); !errors.Is(err, os.ErrClosed) {
				t.Errorf("second Close: %v", err)
			}
		})
	}
}

// race has the server close an idle connection and the client write a request
// on it, and gives the packets when the kernel has answered with a reset.
func race(t *testing.T) []Packet {
	t.Helper()
	p := dial(t, "127.0.0.1:0")
	p.exchange(t, 122)
	p.server.Close()
	p.await(t, "FIN of the server", func(p Packet) bool { return !p.FromPeer && p.Flags&FIN != 0 })
	if _, err := p.client.Write([]byte(requestText(123))); err != nil {
		t.Fatal(err)
	}
	return p.await(t, "RST of the server", func(p Packet) bool { return !p.FromPeer && p.Flags&RST != 0 })
}

// tshark reads a file and gives the fields of each packet.
func tshark(t *testing.T, file string, fields ...string) [][]string {
	t.Helper()
	path, err := exec.LookPath("tshark")
	if err != nil {
		t.Skip(err) // it is another program, not on every machine; CI installs it
	}
	args := []string{"-n", "-r", file, "-T", "fields", "-E", "separator=|"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(t.Context(), path, args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir()) // no preferences of the user's
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s: %v: %s", cmd, err, &stderr)
	}
	warnings := strings.TrimSpace(strings.ReplaceAll(stderr.String(), `Running as user "root" and group "root". This could be dangerous.`, ""))
	if warnings != "" {
		t.Errorf("%s: %s", cmd, warnings)
	}
	var rows [][]string
	for line := range strings.Lines(stdout.String()) {
		rows = append(rows, strings.Split(strings.TrimSuffix(line, "\n"), "|"))
	}
	return rows
}

func writeFile(t *testing.T, packets []Packet, comment func(Packet) string) string {
	t.Helper()
	var b bytes.Buffer
	if err := WritePcapng(&b, packets, comment); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "evidence.pcapng")
	if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// What we say of a real race is what tshark says of the evidence.
func TestEvidence(t *testing.T) {
	packets := race(t)
	comment := func(p Packet) string {
		if cell, seq, ok := p.RequestID(); ok {
			return fmt.Sprintf("request id %s/%d", cell, seq)
		}
		if !p.FromPeer && p.Flags&FIN != 0 {
			return "FIN: idle timer"
		}
		return ""
	}
	shuffled := slices.Clone(packets)
	slices.Reverse(shuffled)
	slices.SortStableFunc(shuffled, func(a, b Packet) int { return len(a.Raw) - len(b.Raw) })
	rows := tshark(t, writeFile(t, shuffled, comment), "frame.comment", "frame.time_epoch", "tcp.flags", "tcp.seq", "tcp.len", "frame.encap_type", "_ws.malformed")
	want := make([][]string, len(packets))
	fin, request, rst := -1, -1, -1
	for i, p := range packets {
		want[i] = []string{comment(p), fmt.Sprintf("%d.%09d", p.At/1e9, p.At%1e9), fmt.Sprintf("0x%04x", uint8(p.Flags)), fmt.Sprint(p.Seq), fmt.Sprint(p.Len), "7", ""}
		switch text := comment(p); {
		case text == "FIN: idle timer":
			fin = i
		case text == "request id c/123":
			request = i
		case p.Flags&RST != 0 && rst < 0:
			rst = i
		}
	}
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("tshark's packets (-ours +tshark's):\n%s", diff)
	}
	if fin < 0 || fin > request || request > rst {
		t.Errorf("FIN is packet %d, the request %d, RST %d:\n%s", fin, request, rst, strings.Join(show(packets), "\n"))
	}
}

// Packets cut to the snap length, of both families, with and without comment of
// each length modulo 4.
func TestEvidenceForms(t *testing.T) {
	r := newRing([]uint16{8080}, defaultBytes, defaultAge)
	var want [][]string
	for i := range 8 {
		text := strings.Repeat("x", i)
		b := segmentOf{src: peer4, dst: server4, seq: uint32(i), flags: ACK, payload: strings.Repeat("y", 100+i)}.bytes()
		if i%2 == 1 {
			b = segmentOf{src: peer6, dst: server6, seq: uint32(i), flags: ACK, payload: strings.Repeat("y", 100+i)}.bytes()
		}
		r.add(int64(i), 1, b[:len(b)-40-i])
		want = append(want, []string{text, fmt.Sprint(len(b)), fmt.Sprint(len(b) - 40 - i), fmt.Sprint(100 + i)})
	}
	packets := append(r.find(Conn{8080, netip.MustParseAddrPort(peer4)}, 0, 9), r.find(Conn{8080, netip.MustParseAddrPort(peer6)}, 0, 9)...)
	rows := tshark(t, writeFile(t, packets, func(p Packet) string { return strings.Repeat("x", p.Len-100) }), "frame.comment", "frame.len", "frame.cap_len", "tcp.len")
	if diff := cmp.Diff(want, rows); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if rows := tshark(t, writeFile(t, nil, nil), "frame.len"); len(rows) != 0 {
		t.Errorf("a file of no packets has %v", rows)
	}
	if err := WritePcapng(io.Discard, append(packets, Packet{At: 100}), nil); !errors.Is(err, errNotTCP) || !strings.HasPrefix(err.Error(), "packet 9: ") {
		t.Errorf("a packet without Raw: %v", err)
	}
}

// The cost of one packet from the kernel's queue into the ring.
func BenchmarkDrain(b *testing.B) {
	p := dial(b, "127.0.0.1:0")
	go io.Copy(io.Discard, p.server)
	before, err := p.capture.Stats()
	if err != nil {
		b.Fatal(err)
	}
	// The reader sleeps or waits for this lock: all work is drain's.
	var spent time.Duration
	var packets int
	for b.Loop() {
		p.capture.mu.Lock()
		for range 64 {
			if _, err := p.client.Write([]byte(head)); err != nil {
				b.Fatal(err)
			}
		}
		begin := time.Now()
		for {
			n, more, err := p.capture.socket.read(p.capture.ring.add)
			if err != nil {
				b.Fatal(err)
			}
			if packets += n; !more {
				break
			}
		}
		spent += time.Since(begin)
		p.capture.mu.Unlock()
	}
	b.ReportMetric(float64(spent.Nanoseconds())/float64(packets), "ns/packet")
	after, err := p.capture.Stats()
	if err != nil || after.Dropped > before.Dropped {
		b.Errorf("%+v, %v", after, err)
	}
}
