package wire

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/bpf"
)

func newVM(t testing.TB, prog []bpf.Instruction) *bpf.VM {
	t.Helper()
	vm, err := bpf.NewVM(prog)
	if err != nil {
		t.Fatal(err)
	}
	return vm
}

func TestSpans(t *testing.T) {
	for _, tt := range []struct {
		ports []uint16
		limit int
		want  []span
	}{
		{[]uint16{80}, 4, []span{{80, 80}}},
		{[]uint16{82, 80, 81, 80, 90}, 4, []span{{80, 82}, {90, 90}}},
		{[]uint16{0, 65535}, 4, []span{{0, 0}, {65535, 65535}}},
		{[]uint16{10, 20, 23, 40}, 3, []span{{10, 10}, {20, 23}, {40, 40}}},
		{[]uint16{10, 20, 23, 40}, 1, []span{{10, 40}}},
	} {
		if diff := cmp.Diff(tt.want, spans(tt.ports, tt.limit), cmp.AllowUnexported(span{})); diff != "" {
			t.Errorf("%v, %d (-want +got):\n%s", tt.ports, tt.limit, diff)
		}
	}
}

func TestFilter(t *testing.T) {
	scattered := func(n int) (ports []uint16) {
		rng := rand.New(rand.NewPCG(1, uint64(n)))
		for range n {
			ports = append(ports, uint16(rng.IntN(1<<16)))
		}
		return ports
	}
	for _, ports := range [][]uint16{{8080}, {8080, 8081, 8082, 9000}, {0, 65535}, scattered(5), scattered(200), scattered(2000)} {
		prog := filter(ports, 300)
		if _, err := bpf.Assemble(prog); err != nil || len(prog) > 4000 {
			t.Fatalf("%d ports: %d instructions, %v", len(ports), len(prog), err)
		}
		vm := newVM(t, prog)
		wanted := spans(ports, maxSpans)
		try := append(scattered(300), 0, 1, 65535, 8080)
		for _, p := range ports[:min(len(ports), 50)] {
			try = append(try, p-1, p, p+1)
		}
		for _, p := range try {
			in := slices.ContainsFunc(wanted, func(s span) bool { return s.lo <= p && p <= s.hi })
			for _, host := range []string{"10.0.0.1", "[fd00::1]"} {
				// The other end's port is outside, or the packet is wanted anyway.
				a, b := fmt.Sprintf("%s:%d", host, p), host+":1"
				other := slices.ContainsFunc(wanted, func(s span) bool { return s.lo <= 1 && 1 <= s.hi })
				for _, packet := range [][]byte{segmentOf{src: a, dst: b}.bytes(), segmentOf{src: b, dst: a}.bytes()} {
					want := 0
					if in || other {
						want = 300
					}
					got, err := vm.Run(append(packet, make([]byte, 400)...))
					if err != nil || got != want {
						t.Fatalf("%d ports, %s: keeps %d bytes, %v, want %d", len(ports), a, got, err, want)
					}
				}
			}
		}
	}
}

func TestFilterDrops(t *testing.T) {
	v4 := segmentOf{src: peer4, dst: server4}.bytes()
	v6 := segmentOf{src: peer6, dst: server6}.bytes()
	vm := newVM(t, filter([]uint16{8080}, 300))
	for name, b := range map[string][]byte{
		"UDP over IPv4": edit(v4, 9, 17), "UDP over IPv6": edit(v6, 6, 17), "later fragment": edit(v4, 7, 1),
		"neither IPv4 nor IPv6": edit(v4, 0, 0x55), "cut": v4[:minIPv4+1], "nothing": {},
	} {
		if got, err := vm.Run(b); err != nil || got != 0 {
			t.Errorf("%s: keeps %d bytes, %v", name, got, err)
		}
	}
}
