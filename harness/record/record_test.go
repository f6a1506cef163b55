package record

import (
	"strings"
	"testing"
	"unicode/utf8"
)

func TestShort(t *testing.T) {
	long := strings.Repeat("é", 200) // 400 bytes
	for _, in := range []string{"", "text", long, "x" + long, strings.Repeat("\xff", 400), "a\xffb"} {
		got := Short(in)
		if len(got) > 300 || !utf8.ValidString(got) {
			t.Errorf("Short(%q) = %q, %d bytes", in, got, len(got))
		}
	}
	if got := Short("x" + long); len(got) != 299 {
		t.Errorf("%d bytes are left of a text that has a rune across the 300th, want 299", len(got))
	}
}
