package report

import (
	"fmt"
	"strings"

	"idlerace/harness/spec"
)

// look is how a state shows: never by colour alone.
type look struct {
	Class string // of CSS
	Sign  string
	Word  string
}

// lookOf gives the look of a state, also of one that this version does not know.
func lookOf(s spec.State) look {
	switch s {
	case spec.Races:
		return look{"races", "✕", "races"}
	case spec.Masked:
		return look{"masked", "↻", "masked"}
	case spec.Safe:
		return look{"safe", "✓", "safe"}
	case spec.Inconclusive:
		return look{"open", "?", "unproven"}
	case spec.Unsupported:
		return look{"none", "–", "n/a"}
	case spec.Broken:
		return look{"broken", "!", "broken"}
	}
	return look{"open", "?", plain(string(s))}
}

// colour is a custom property of the page's CSS. Blue, yellow and vermilion
// keep apart under every common colour blindness, and the shades of one state
// differ in lightness.
type colour struct{ name, light, dark string }

var palette = []colour{
	{"bg", "#ffffff", "#14171a"},
	{"fg", "#1b1d1f", "#e8eaed"},
	{"muted", "#555b61", "#a9b0b7"},
	{"line", "#c9ced3", "#3c434a"},
	{"panel", "#f4f5f7", "#1e2328"},
	{"link", "#0b57a4", "#8ec5ff"},
	{"ink", "#1b1d1f", "#f4f5f7"},  // on a state's light shades in light, on dark ones in dark
	{"deep", "#ffffff", "#14171a"}, // on a state's strongest shade
	{"races-1", "#fbd5c0", "#54281a"},
	{"races-2", "#f2a582", "#87401f"},
	{"races-3", "#a83600", "#ff9d6b"},
	{"masked-1", "#fcf0b6", "#443a10"},
	{"masked-2", "#f3d75f", "#665612"},
	{"masked-3", "#6f5600", "#f2d25a"},
	{"safe-1", "#d2e7f8", "#143a5a"},
	{"open-1", "#e3e5e8", "#3a4047"},
	{"none-1", "#f4f5f7", "#1e2328"},
	{"broken-1", "#e2d2f0", "#4a2f66"},
	{"calm", "#7e98ae", "#4d667e"}, // a plot's bars
	{"hit", "#842900", "#ffa275"},  // those of them that met a closed connection
}

// paletteCSS writes the palette as CSS: light, and dark where a screen asks for
// it. Paper is light.
func paletteCSS() string {
	var b strings.Builder
	write := func(of func(colour) string) {
		b.WriteString(":root{")
		for _, c := range palette {
			fmt.Fprintf(&b, "--%s:%s;", c.name, of(c))
		}
		b.WriteString("}")
	}
	write(func(c colour) string { return c.light })
	b.WriteString("\n@media screen and (prefers-color-scheme:dark){")
	write(func(c colour) string { return c.dark })
	b.WriteString("}\n")
	return b.String()
}
