package report

import (
	"encoding/xml"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

func init() { register(badge{}) }

// badge is one line for a README.
type badge struct{}

func (badge) Name() string { return "badge" }

func (badge) About() string { return "a small SVG: cells by state, coloured by the worst" }

// badgeColours go from the worst state to the best; white text on each has a
// contrast of at least 4.5.
var badgeColours = []struct {
	state  spec.State
	colour string
}{
	{spec.Races, "#a63a00"},
	{spec.Broken, "#6a3d9a"},
	{spec.Inconclusive, "#5f6368"},
	{spec.Masked, "#7a5600"},
	{spec.Safe, "#0060a8"},
}

func (badge) Write(w io.Writer, d *judge.Document, _ Options) error {
	const name = "idlerace"
	value := badgeText(d)
	n, colour := tally(d), "#5f6368"
	for _, c := range badgeColours {
		if n[c.state] > 0 {
			colour = c.colour
			break
		}
	}
	var escaped strings.Builder
	if err := xml.EscapeText(&escaped, []byte(value)); err != nil {
		return fmt.Errorf("badge: %w", err)
	}
	// 7 px a character and 6 px either side; textLength makes every font fit.
	left, right := 7*len(name), 7*utf8.RuneCountInString(value)
	_, err := fmt.Fprintf(w, `<svg xmlns="http://www.w3.org/2000/svg" width="%[1]d" height="20" role="img" aria-label="%[2]s: %[3]s">
<title>%[2]s: %[3]s</title>
<rect width="%[4]d" height="20" fill="#444"/>
<rect x="%[4]d" width="%[5]d" height="20" fill="%[6]s"/>
<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">
<text x="6" y="14" textLength="%[7]d">%[2]s</text>
<text x="%[8]d" y="14" textLength="%[9]d">%[3]s</text>
</g>
</svg>
`, left+right+24, name, escaped.String(), left+12, right+12, colour, left, left+18, right)
	return err
}

// badgeText is "24 safe, 18 masked, 30 race", and what makes that worth less.
func badgeText(d *judge.Document) string {
	n := tally(d)
	var parts []string
	for _, s := range present(d) {
		word := string(s)
		if s == spec.Races {
			word = "race"
		}
		parts = append(parts, fmt.Sprintf("%d %s", n[s], word))
	}
	if len(d.Cells) == 0 {
		parts = append(parts, "no cell judged")
	}
	for _, c := range controls(d) {
		if !c.mustRaceOK || !c.mustNOK {
			parts = append(parts, "controls failed or missing")
			break
		}
	}
	if d.Run.Partial != "" {
		parts = append(parts, "partial run")
	}
	return strings.Join(parts, ", ")
}
