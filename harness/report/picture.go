package report

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"unicode/utf8"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

func init() { register(picture{}) }

// picture is the matrices alone, for a README or a slide.
type picture struct{}

func (picture) Name() string { return "picture" }

func (picture) About() string {
	return "an SVG of the matrices, light and dark, for a README or a slide"
}

//go:embed html/picture.tmpl
var pictureText string

var pictureTemplate = template.Must(template.New("picture").Parse(pictureText))

// Measures of the drawing, in px.
const (
	pictureMargin = 16
	pictureCellW  = 92
	pictureCellH  = 34
	pictureRowW   = 62 // names of rows
	pictureTitleH = 48 // title and names of columns
	pictureGap    = 28 // between matrices
	pictureWide   = 2  // matrices side by side
	pictureGlyph  = 7  // a character, with room
)

type drawing struct {
	Style         template.CSS
	Title         string
	Width, Height int
	Texts         []inked
	Boxes         []box
}

type inked struct {
	X, Y  int
	Class string
	Text  string
}

type box struct {
	X, Y, W, H int
	look
	Shade string // of CSS
	Count string
	About string
}

func (picture) Write(w io.Writer, d *judge.Document, _ Options) error {
	p := drawing{Style: template.CSS(paletteCSS()), Title: plain(d.Run.Scenario + ": " + headline(d))}
	text := func(x, y int, class, s string) {
		p.Texts = append(p.Texts, inked{x, y, class, s})
		p.Width = max(p.Width, x+pictureGlyph*utf8.RuneCountInString(s)+pictureMargin)
	}
	y := pictureMargin + 12
	text(pictureMargin, y, "lead", headline(d))
	y += 22
	text(pictureMargin, y, "muted", "rows: idle timeout of the proxy's pool; columns: idle timeout of the upstream; n/m: of m aimed requests")
	top, x, tallest := y+22, pictureMargin, 0
	for i, b := range blocks(d) {
		if i%pictureWide == 0 && i > 0 {
			top, x, tallest = top+tallest+pictureGap, pictureMargin, 0
		}
		text(x, top+14, "title", plain(b.title))
		for n, col := range b.cols {
			text(x+pictureRowW+n*pictureCellW+4, top+38, "name", plain(col))
		}
		for m, row := range b.rows {
			cy := top + pictureTitleH + m*pictureCellH
			text(x, cy+21, "name", plain(row))
			for n, col := range b.cols {
				if v := b.cell(row, col); v != nil {
					p.Boxes = append(p.Boxes, boxOf(v, x+pictureRowW+n*pictureCellW, cy))
				}
			}
		}
		tallest = max(tallest, pictureTitleH+len(b.rows)*pictureCellH)
		p.Width = max(p.Width, x+pictureRowW+len(b.cols)*pictureCellW+pictureMargin)
		x += pictureRowW + len(b.cols)*pictureCellW + pictureGap
	}
	y = top + tallest + pictureGap
	for _, s := range present(d) {
		l := lookOf(s)
		_, meaning := legend(s)
		text(pictureMargin, y, "name", l.Sign+" "+l.Word+": "+meaning)
		y += 20
	}
	for _, q := range sentences(d)[1:] {
		text(pictureMargin, y, "name", plain(q))
		y += 20
	}
	p.Height = y
	if err := pictureTemplate.Execute(w, p); err != nil {
		return fmt.Errorf("picture: %w", err)
	}
	return nil
}

// boxOf places a cell. Its count is the one that its state stands on.
func boxOf(v *judge.Verdict, x, y int) box {
	b := box{X: x, Y: y, W: pictureCellW - 3, H: pictureCellH - 3, look: lookOf(v.State), Count: hits(v), About: plain(v.ID + ": " + v.Why)}
	b.Shade = b.Class
	if v.State == spec.Races {
		b.Shade = "deep"
	}
	return b
}
