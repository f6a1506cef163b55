package report

import (
	"bytes"
	"context"
	"fmt"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	cdplog "github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	cdpage "github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"idlerace/harness/judge"
	"idlerace/harness/spec"
)

// browserName is how IDLERACE_REQUIRE asks for a browser.
const browserName = "chromium"

// browser starts a headless browser, or skips the test where there is none and
// nobody asks for one.
func browser(t testing.TB) context.Context {
	t.Helper()
	var path string
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if p, err := exec.LookPath(name); err == nil {
			path = p
			break
		}
	}
	if path == "" {
		if slices.Contains(strings.Split(os.Getenv("IDLERACE_REQUIRE"), ","), browserName) {
			t.Fatalf("%s is required (IDLERACE_REQUIRE) and not on PATH", browserName)
		}
		t.Skipf("%s: not on PATH; to get it: apt-get install -y chromium", browserName)
	}
	// On a machine with too much to do a browser starts late; a test that hangs is
	// for go test to end.
	const patience = 3 * time.Minute
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.WSURLReadTimeout(patience))
	if os.Geteuid() == 0 {
		options = append(options, chromedp.NoSandbox)
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	ctx, cancel = chromedp.NewContext(ctx, chromedp.WithBrowserOption(chromedp.WithDialTimeout(patience)))
	t.Cleanup(cancel)
	if err := chromedp.Run(ctx); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return ctx
}

// sight is what a page did while it was looked at.
type sight struct {
	mu       sync.Mutex
	messages []string // of the console, exceptions and the browser's log
	requests []string
}

func watch(ctx context.Context) *sight {
	s := &sight{}
	chromedp.ListenTarget(ctx, func(event any) {
		s.mu.Lock()
		defer s.mu.Unlock()
		switch e := event.(type) {
		case *runtime.EventConsoleAPICalled:
			s.messages = append(s.messages, fmt.Sprintf("console: %s", e.Type))
		case *runtime.EventExceptionThrown:
			s.messages = append(s.messages, "exception: "+e.ExceptionDetails.Text)
		case *cdplog.EventEntryAdded:
			s.messages = append(s.messages, "log: "+e.Entry.Text)
		case *cdpage.EventJavascriptDialogOpening:
			s.messages = append(s.messages, "dialog: "+e.Message)
		case *network.EventRequestWillBeSent:
			if !strings.HasPrefix(e.Request.URL, "data:") {
				s.requests = append(s.requests, e.Request.URL)
			}
		}
	})
	return s
}

func do(t testing.TB, ctx context.Context, actions ...chromedp.Action) {
	t.Helper()
	if err := chromedp.Run(ctx, actions...); err != nil {
		t.Fatal(err)
	}
}

// store writes a document as a page and gives its address.
func store(t testing.TB, d *judge.Document, o Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "report.html")
	var b bytes.Buffer
	if err := (html{}).Write(&b, d, o); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	return "file://" + path
}

func tab(t testing.TB, parent context.Context) context.Context {
	t.Helper()
	ctx, cancel := chromedp.NewContext(parent)
	t.Cleanup(cancel)
	do(t, ctx, network.Enable(), cdplog.Enable(), runtime.Enable(), cdpage.Enable(), chromedp.EmulateViewport(1200, 900))
	return ctx
}

// pages are documents to look at.
func pages() map[string]*judge.Document {
	out := map[string]*judge.Document{"full": full(32)}
	for name, document := range documents {
		out[name] = document()
	}
	return out
}

// TestBrowserOpens: every page opens without a message and asks for nothing, and
// at 360 px nothing is wider than the page but what scrolls by itself.
func TestBrowserOpens(t *testing.T) {
	b := browser(t)
	for name, d := range pages() {
		t.Run(name, func(t *testing.T) {
			url := store(t, d, Options{Files: folderOf(d), Reactions: reactions})
			ctx := tab(t, b)
			seen := watch(ctx)
			var title, h1 string
			do(t, ctx, chromedp.Navigate(url), chromedp.Title(&title), chromedp.Text("h1", &h1))
			if h1 == "" || !strings.HasPrefix(title, h1) {
				t.Errorf("title %q, heading %q", title, h1)
			}
			// Parts, as a reader would open them.
			var parts int
			do(t, ctx, chromedp.Evaluate(`(() => { const all = [...document.querySelectorAll('.cell')]; for (const c of all.slice(0, 8)) location.hash = c.id; return all.length })()`, &parts))
			if want := len(d.Cells) + len(d.Controls); parts != want {
				t.Errorf("%d parts, want %d", parts, want)
			}
			var wide []string
			do(t, ctx, chromedp.EmulateViewport(360, 740, chromedp.EmulateMobile),
				chromedp.Evaluate(`(() => { const bad = []; const check = () => { if (document.documentElement.scrollWidth > 360) bad.push(location.hash + ' ' + document.documentElement.scrollWidth) };
					check(); for (const d of document.querySelectorAll('details')) d.open = true;
					for (const c of [...document.querySelectorAll('.cell')].slice(0, 8)) { location.hash = c.id; check() } return bad })()`, &wide))
			if len(wide) > 0 {
				t.Errorf("wider than the screen: %q", wide)
			}
			seen.mu.Lock()
			defer seen.mu.Unlock()
			if len(seen.messages) > 0 {
				t.Errorf("messages: %q", seen.messages)
			}
			for _, r := range seen.requests {
				if r, _, _ := strings.Cut(r, "#"); r != url {
					t.Errorf("request for %s", r)
				}
			}
		})
	}
}

// The watching itself must be able to see something.
func TestBrowserWatches(t *testing.T) {
	ctx := tab(t, browser(t))
	seen := watch(ctx)
	path := filepath.Join(t.TempDir(), "loud.html")
	if err := os.WriteFile(path, []byte(`<title>x</title><img src="no-such.png"><script>console.log("x"); nothing()</script>`), 0o644); err != nil {
		t.Fatal(err)
	}
	do(t, ctx, chromedp.Navigate("file://"+path))
	told := func() (messages, requests int) {
		seen.mu.Lock()
		defer seen.mu.Unlock()
		return len(seen.messages), len(seen.requests)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		messages, requests := told()
		if messages >= 2 && requests >= 2 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("messages %q, requests %q", seen.messages, seen.requests)
		}
	}
}

// TestBrowserKeyboard: Tab reaches every cell of the matrices, Enter opens its
// part, and the next Tab goes on inside it.
func TestBrowserKeyboard(t *testing.T) {
	ctx := tab(t, browser(t))
	d := typical()
	do(t, ctx, chromedp.Navigate(store(t, d, Options{})))
	reached := map[string]bool{}
	var at string
	for range 3 * len(d.Cells) {
		do(t, ctx, chromedp.KeyEvent(kb.Tab), chromedp.Evaluate(`(document.activeElement.closest('.matrix td') ? document.activeElement.hash : '')`, &at))
		if at != "" {
			reached[at] = true
		}
		if len(reached) == len(d.Cells) {
			break
		}
	}
	if len(reached) != len(d.Cells) {
		t.Fatalf("Tab reaches %d of %d cells", len(reached), len(d.Cells))
	}
	var shown, inside bool
	do(t, ctx, chromedp.KeyEvent(kb.Enter),
		chromedp.Evaluate(`getComputedStyle(document.querySelector(':target')).display == 'block'`, &shown),
		chromedp.KeyEvent(kb.Tab),
		chromedp.Evaluate(`document.querySelector(':target').contains(document.activeElement)`, &inside))
	if !shown || !inside {
		t.Errorf("after Enter on %s: shown %t, focus inside %t", at, shown, inside)
	}
}

// TestBrowserProof: from the matrix one click opens the part of a racing cell,
// with its diagram in it.
func TestBrowserProof(t *testing.T) {
	ctx := tab(t, browser(t))
	d := full(128)
	do(t, ctx, chromedp.Navigate(store(t, d, Options{})))
	var lacking []string
	var clicked int
	do(t, ctx, chromedp.Evaluate(`(() => { window.clicked = 0; const bad = [];
		for (const a of document.querySelectorAll('.matrix td.races a')) {
			a.click(); window.clicked++;
			const part = document.querySelector(':target'), seq = part.querySelector('.seq svg');
			if (!seq || seq.getBoundingClientRect().height < 100) bad.push(location.hash);
		} return bad })()`, &lacking), chromedp.Evaluate(`window.clicked`, &clicked))
	if want := tally(d)[spec.Races]; clicked != want || want == 0 {
		t.Errorf("%d racing cells have a link, want %d", clicked, want)
	}
	if len(lacking) > 0 {
		t.Errorf("no proof: %q", lacking)
	}
}

// contrast gives every text whose contrast against what is behind it is below
// what WCAG 2.2 AA asks for.
const contrast = `(() => {
	const rgb = c => c.match(/[\d.]+/g).map(Number);
	const lum = c => { const [r, g, b] = rgb(c).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4); return .2126 * r + .7152 * g + .0722 * b };
	const behind = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor; if (!/^rgba\(.*, 0\)$/.test(c)) return c } return 'rgb(255, 255, 255)' };
	const bad = new Map(); let texts = 0;
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.data.trim() || !e.checkVisibility()) continue;
		texts++;
		const s = getComputedStyle(e), fg = e.ownerSVGElement ? s.fill : s.color;
		const [x, y] = [lum(fg), lum(behind(e))].sort((a, b) => b - a), ratio = (x + .05) / (y + .05);
		if (ratio < 4.5) bad.set(e.className + ' ' + e.tagName + ' ' + fg + ' on ' + behind(e), ratio.toFixed(2));
	}
	return [String(texts), ...[...bad].map(b => b.join(': '))] })()`

// TestBrowserLooks takes the page in light, in dark, on a phone and on paper:
// none is blank, each is as it should be, and all text has contrast.
func TestBrowserLooks(t *testing.T) {
	b := browser(t)
	d := full(32)
	url := store(t, d, Options{Files: folderOf(d), Reactions: reactions})
	dir := t.ArtifactDir()
	cell := "#cell-" + slug(d.Cells[len(d.Cells)-1].ID)
	for i := range d.Cells {
		if d.Cells[i].State == spec.Races {
			cell = "#cell-" + slug(d.Cells[i].ID)
			break
		}
	}
	brightness := map[string]float64{}
	for name, look := range map[string]struct {
		hash, media, scheme string
		width               int64
	}{
		"light": {"", "screen", "light", 1200}, "dark": {"", "screen", "dark", 1200},
		"cell": {cell, "screen", "light", 1200}, "cell-dark": {cell, "screen", "dark", 1200},
		"phone": {"", "screen", "light", 360}, "cell-phone": {cell, "screen", "light", 360},
		"print": {cell, "print", "dark", 900},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := tab(t, b)
			var shot []byte
			var texts []string
			do(t, ctx, chromedp.EmulateViewport(look.width, 900),
				emulation.SetEmulatedMedia().WithMedia(look.media).WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: look.scheme}}),
				chromedp.Navigate(url+look.hash), chromedp.Evaluate(contrast, &texts), chromedp.CaptureScreenshot(&shot))
			if len(texts) != 1 || texts[0] == "0" {
				t.Errorf("too little contrast, of %s texts: %q", texts[0], texts[1:])
			}
			if err := os.WriteFile(filepath.Join(dir, name+".png"), shot, 0o644); err != nil {
				t.Fatal(err)
			}
			var most float64
			brightness[name], most = pixels(t, shot)
			if most > 0.97 {
				t.Errorf("%.1f %% of all pixels have one colour", 100*most)
			}
		})
	}
	if brightness["dark"] > 0.4 || brightness["cell-dark"] > 0.4 {
		t.Errorf("dark is not dark: %v", brightness)
	}
	for _, name := range []string{"light", "cell", "phone", "cell-phone", "print"} {
		if brightness[name] < 0.6 {
			t.Errorf("%s is not light: %v", name, brightness)
		}
	}
	t.Run("paper", func(t *testing.T) {
		ctx := tab(t, b)
		var pdf []byte
		do(t, ctx, chromedp.Navigate(url+cell), chromedp.ActionFunc(func(ctx context.Context) (err error) {
			pdf, _, err = cdpage.PrintToPDF().Do(ctx)
			return err
		}))
		if !bytes.HasPrefix(pdf, []byte("%PDF")) || len(pdf) < 20_000 {
			t.Errorf("%d bytes, beginning with %q", len(pdf), pdf[:min(len(pdf), 8)])
		}
		if err := os.WriteFile(filepath.Join(dir, "paper.pdf"), pdf, 0o644); err != nil {
			t.Fatal(err)
		}
	})
}

// pixels gives the mean brightness of a picture, 0 to 1, and the share of its
// most frequent colour.
func pixels(t *testing.T, picture []byte) (brightness, most float64) {
	t.Helper()
	m, err := png.Decode(bytes.NewReader(picture))
	if err != nil {
		t.Fatal(err)
	}
	colours := map[[3]uint32]int{}
	n := 0
	for y := m.Bounds().Min.Y; y < m.Bounds().Max.Y; y++ {
		for x := m.Bounds().Min.X; x < m.Bounds().Max.X; x++ {
			r, g, b, _ := m.At(x, y).RGBA()
			brightness += float64(r+g+b) / 3 / 0xffff
			colours[[3]uint32{r, g, b}]++
			n++
		}
	}
	for _, c := range colours {
		most = max(most, float64(c)/float64(n))
	}
	return brightness / float64(n), most
}

// BenchmarkOpen is the time from asking a browser for the page of 128 cells to
// the end of its load event and its first frame.
func BenchmarkOpen(b *testing.B) {
	parent := browser(b)
	d := full(128)
	url := store(b, d, Options{Files: folderOf(d)})
	ctx := tab(b, parent)
	for b.Loop() {
		do(b, ctx, chromedp.Navigate("about:blank"), chromedp.Navigate(url),
			chromedp.Evaluate(`new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))`, nil,
				func(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }))
	}
}
