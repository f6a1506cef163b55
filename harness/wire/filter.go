package wire

import (
	"slices"

	"golang.org/x/net/bpf"
)

// maxSpans keeps the filter below the kernel's limit of 4096 instructions: two
// trees of at most 6 a span.
const maxSpans = 256

// span is the ports lo to hi.
type span struct{ lo, hi uint16 }

// spans gives the ports as at most limit spans, in order. Where there would be
// more, the narrowest holes between ports are taken in.
func spans(ports []uint16, limit int) []span {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	var list []span
	for _, p := range ports {
		if n := len(list); n > 0 && list[n-1].hi+1 == p {
			list[n-1].hi = p
		} else {
			list = append(list, span{p, p})
		}
	}
	for len(list) > limit {
		narrow := 1
		for i := 2; i < len(list); i++ {
			if list[i].lo-list[i-1].hi < list[narrow].lo-list[narrow-1].hi {
				narrow = i
			}
		}
		list[narrow-1].hi = list[narrow].hi
		list = slices.Delete(list, narrow, narrow+1)
	}
	return list
}

// filter is a program for packets without link header. It keeps snap bytes of
// every TCP packet from or to one of the ports, first fragments and IPv6
// without extension headers only. It finds a port in a number of steps that is
// the logarithm of the number of spans.
func filter(ports []uint16, snap int) []bpf.Instruction {
	list := spans(ports, maxSpans)
	dst, src := search(list, snap), search(list, snap)
	prog := []bpf.Instruction{
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 8},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 4, SkipTrue: 6},
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoTCP, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 6, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: 0x1fff, SkipTrue: 2},
		bpf.LoadMemShift{Off: 0}, // X: bytes of the IPv4 header
		bpf.Jump{Skip: 5},
		bpf.RetConstant{Val: 0},
		bpf.LoadAbsolute{Off: 6, Size: 1}, // IPv6
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: protoTCP, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.LoadConstant{Dst: bpf.RegX, Val: ipv6Bytes},
		bpf.LoadIndirect{Off: 2, Size: 2},
	}
	prog = append(prog, dst...)
	prog = append(prog, bpf.LoadIndirect{Off: 0, Size: 2})
	prog = append(prog, src...)
	return append(prog, bpf.RetConstant{Val: 0})
}

// search returns snap when A is in the list, and runs off its end when not.
func search(list []span, snap int) []bpf.Instruction {
	if len(list) == 1 {
		return []bpf.Instruction{
			bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(list[0].lo), SkipTrue: 2},
			bpf.JumpIf{Cond: bpf.JumpGreaterThan, Val: uint32(list[0].hi), SkipTrue: 1},
			bpf.RetConstant{Val: uint32(snap)},
		}
	}
	left, right := search(list[:len(list)/2], snap), search(list[len(list)/2:], snap)
	prog := []bpf.Instruction{
		bpf.JumpIf{Cond: bpf.JumpLessThan, Val: uint32(list[len(list)/2].lo), SkipTrue: 1},
		bpf.Jump{Skip: uint32(len(left)) + 1},
	}
	prog = append(prog, left...)
	prog = append(prog, bpf.Jump{Skip: uint32(len(right))})
	return append(prog, right...)
}
