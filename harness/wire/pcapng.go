package wire

import (
	"cmp"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// maxComment is the longest comment in bytes: an option's length has 16 bits.
const maxComment = 1<<16 - 1

// WritePcapng writes packets of any connections as a pcapng file of link type
// raw IP, in the order of time. comment gives the text that Wireshark shows
// with a packet; empty for none. comment may be nil. The error is that of w, or
// says which packet has no Raw of a TCP packet.
func WritePcapng(w io.Writer, packets []Packet, comment func(Packet) string) error {
	options := pcapgo.DefaultNgWriterOptions
	options.SectionInfo.Application = "idlerace"
	out, err := pcapgo.NewNgWriterInterface(w, pcapgo.NgInterface{
		Name: "any", OS: runtime.GOOS, LinkType: layers.LinkTypeRaw, TimestampResolution: 9,
	}, options)
	if err != nil {
		return err
	}
	for i, p := range slices.SortedStableFunc(slices.Values(packets), func(a, b Packet) int { return cmp.Compare(a.At, b.At) }) {
		h, ok := decode(p.Raw)
		if !ok {
			return fmt.Errorf("packet %d: %w", i+1, errNotTCP)
		}
		var o pcapgo.NgPacketOptions
		if comment != nil {
			if text := comment(p); text != "" {
				o.Comments = []string{strings.ToValidUTF8(text[:min(len(text), maxComment)], "")}
			}
		}
		ci := gopacket.CaptureInfo{Timestamp: time.Unix(0, p.At), CaptureLength: len(h.raw), Length: h.size}
		if err := out.WritePacketWithOptions(ci, h.raw, o); err != nil {
			return fmt.Errorf("packet %d: %w", i+1, err)
		}
	}
	return out.Flush()
}
