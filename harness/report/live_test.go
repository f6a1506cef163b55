package report

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/charmbracelet/lipgloss"
	"github.com/charmbracelet/x/ansi"

	"idlerace/harness/judge"
	"idlerace/harness/plan"
	"idlerace/harness/spec"
)

// underWay is a run of these proxies, each with a matrix of these timeouts for
// GET and for POST, after so many aimed shots of 300 per cell. The law decides
// where each cell will end; cells of the first proxies are ahead.
func underWay(shots int, proxies []string, idles ...time.Duration) *Live {
	s := &spec.Scenario{Upstream: spec.Upstream{Kind: "go"}, Axes: spec.Axes{UpstreamIdle: idles, Method: []string{"GET", "POST"},
		Retry: []spec.Retry{spec.RetryDefault}, Close: []spec.Close{spec.CloseFIN}, RTT: []time.Duration{0}}}
	for _, d := range idles {
		s.Axes.ProxyIdle = append(s.Axes.ProxyIdle, spec.Idle(d))
	}
	for _, name := range proxies {
		s.Proxies = append(s.Proxies, spec.Proxy{Name: name})
	}
	items := plan.New(s, func(spec.Cell) string { return "" }).Items
	l := &Live{Elapsed: time.Duration(shots) * 100 * time.Millisecond, Left: max(30*time.Second-time.Duration(shots)*100*time.Millisecond, 0), Budget: time.Minute}
	for i := range items {
		o := judge.Interim{Item: &items[i], State: spec.Inconclusive, Asked: 300}
		c := items[i].Cell
		races := c.ProxyIdle != spec.Off && time.Duration(c.ProxyIdle) >= c.UpstreamIdle
		lead := min(shots, 40*(len(proxies)-1-slices.Index(proxies, c.Proxy)))
		o.Aimed = min(shots+lead, 300)
		o.Shots = o.Aimed + 20
		at := func(aimed int) time.Duration {
			return time.Duration(aimed-lead)*100*time.Millisecond + 37*time.Millisecond
		}
		switch {
		case races && c.Method == "POST":
			if o.Aimed >= 40 {
				o.State, o.Failures, o.Attributed, o.Late, o.Proven = spec.Races, 1+i%7, 1+i%7, 1+i%7, max(at(40), 1)
			}
			if o.Aimed >= 120 {
				o.Aimed, o.Decided = 120, max(at(120), 1)
			}
		case o.Aimed >= 300:
			o.State, o.Decided = spec.Safe, max(at(300), 1)
			if races {
				o.State, o.Late = spec.Masked, 3+i%50
			}
		}
		l.Failures += o.Failures
		l.Total++
		if o.Proven > 0 {
			l.Proven++
		}
		if o.Decided > 0 {
			l.Decided++
		}
		l.Cells = append(l.Cells, o)
	}
	return l
}

const half, one, two = 500 * time.Millisecond, time.Second, 2 * time.Second

var four = []string{"gohttp", "nginx", "envoy", "traefik"}

// lives are the runs of the golden files.
var lives = map[string]func() *Live{
	"begun":      func() *Live { return underWay(0, []string{"gohttp", "nginx"}, half, one, two) },
	"quickstart": func() *Live { return underWay(110, four, half, one, two) },
	"cells-200":  func() *Live { return underWay(110, four, half, one, 3*half, two, 5*half) },
	// All but the last proxy are done.
	"cells-200-late": func() *Live { return underWay(270, four, half, one, 3*half, two, 5*half) },
	"several": func() *Live { // settings besides the timeouts, a hole, and what cannot be run
		l := underWay(200, []string{"nginx"}, half, one)
		for i := range l.Cells {
			switch o := &l.Cells[i]; {
			case o.Item.Role == plan.RoleMustNotRace:
				o.State, o.Failures = spec.Inconclusive, 3
				o.Decided = 19 * time.Second
			case o.Item.Role != plan.RoleCell:
			case i%4 == 0:
				o.Item.Cell.Retry, o.Item.Cell.RTT = spec.RetryOn, 40*time.Millisecond
			case i%4 == 1:
				o.State, o.Decided, o.Item.Unsupported = spec.Unsupported, 0, "it cannot"
			case i%4 == 2:
				o.State, o.Decided, o.Failures = spec.Inconclusive, 12*time.Second, 7
			case i%4 == 3:
				o.State, o.Decided = spec.Broken, 0
			}
		}
		return l
	},
	"hostile": func() *Live {
		l := underWay(110, []string{nasty, "日本語のとても長いプロキシの名前です", strings.Repeat("x", 200)}, half, one, two)
		for i := range l.Cells {
			l.Cells[i].Item.Cell.Method = nasty
		}
		return l
	},
	"nothing": func() *Live { return &Live{} },
}

func TestLive(t *testing.T) {
	for name, live := range lives {
		for _, size := range [][2]int{{80, 24}, {120, 40}, {40, 10}} {
			golden := fmt.Sprintf("live-%s-%dx%d.txt", name, size[0], size[1])
			t.Run(golden, func(t *testing.T) {
				// The cursor needs a row as well.
				checkGolden(t, golden, strings.Join(live().Frame(size[0], size[1]-1, false), "\n")+"\n")
			})
		}
	}
}

// Whatever the terminal's size, a frame fits, says how far the run is as far as
// there is room, and says the same with colours and without.
func TestLiveFits(t *testing.T) {
	for name, live := range lives {
		l := live()
		for width := 1; width <= 140; width += 7 {
			for height := -1; height <= 45; height += 2 {
				lines := l.Frame(width, height, false)
				coloured := l.Frame(width, height, true)
				if len(lines) > max(height, 0) {
					t.Fatalf("%s: %d lines in a height of %d", name, len(lines), height)
				}
				if len(lines) != len(coloured) {
					t.Fatalf("%s, %dx%d: %d lines, %d with colours", name, width, height, len(lines), len(coloured))
				}
				for i, s := range lines {
					if w := lipgloss.Width(s); w > max(width, 2) { // a wide rune cannot be cut
						t.Fatalf("%s, %dx%d: line %d is %d columns wide: %q", name, width, height, i, w, s)
					}
					if strings.HasSuffix(s, " ") {
						t.Fatalf("%s, %dx%d: line %d ends in a blank: %q", name, width, height, i, s)
					}
					if j := strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }); j >= 0 {
						t.Fatalf("%s, %dx%d: line %d prints %q", name, width, height, i, s[j:])
					}
					if ansi.Strip(coloured[i]) != s {
						t.Fatalf("%s, %dx%d: line %d is %q, with colours %q", name, width, height, i, s, coloured[i])
					}
				}
				if height >= 8 && width >= 60 && !strings.Contains(strings.Join(lines, "\n"), fmt.Sprintf("%d of %d cells", l.Decided, l.Total)) {
					t.Fatalf("%s, %dx%d: no status:\n%s", name, width, height, strings.Join(lines, "\n"))
				}
			}
		}
	}
}

func TestLiveColour(t *testing.T) {
	s := strings.Join(underWay(250, four, half, one, two).Frame(80, 23, true), "\n")
	p := newPage(Options{Color: true})
	for _, want := range []string{p.bad.Render("RACES"), p.hidden.Render("masked"), p.good.Render("safe")} {
		if !strings.Contains(s, want) {
			t.Errorf("no %q in\n%s", want, s)
		}
	}
}

func BenchmarkLiveFrame(b *testing.B) {
	for _, bb := range []struct {
		name string
		live *Live
	}{
		{"72", lives["quickstart"]()},
		{"200", lives["cells-200"]()},
		{"1024", underWay(110, four, half, one, 3*half, two, 5*half, 3*one, 7*half, 4*one, 5*one, 6*one, 7*one)},
	} {
		for _, size := range [][2]int{{80, 24}, {200, 60}} {
			b.Run(fmt.Sprintf("cells=%s/%dx%d", bb.name, size[0], size[1]), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					bb.live.Frame(size[0], size[1]-1, true)
				}
			})
		}
	}
}
