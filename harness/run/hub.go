package run

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"idlerace/harness/metrics"
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/results"
	"idlerace/harness/wire"
)

// hub is where all witnesses' statements arrive: it writes them down, joins
// them and lets each cell's aim and tally learn from them.
type hub struct {
	mu      sync.Mutex
	waiting map[*waiter]bool
	out     *record.Writer
	file    *os.File
	joiner  record.Joiner
	cells   map[string]*cell
	conns   map[uint64]*cell // open upstream connections that served a request
	ended   bool             // nothing is recorded any more
	abort   func(error)      // ends the run: the record cannot be written
	behind  int              // bursts settled although the journal had not caught up
	metrics *metrics.Set
}

func newHub(f *results.Folder, m *metrics.Set) (*hub, error) {
	file, err := f.CreateFile(results.ObservationsFile)
	if err != nil {
		return nil, err
	}
	h := &hub{waiting: map[*waiter]bool{}, file: file, out: record.NewWriter(file), cells: map[string]*cell{}, conns: map[uint64]*cell{}, metrics: m}
	h.joiner = record.Joiner{
		Observe: func(o record.Observation) {
			if c := h.cells[o.Shot.Cell]; c != nil {
				cause := c.tally.Cause(o)
				if len(o.Disturbed) == 0 && cause != record.CauseRestart { // else it says nothing of an edge
					c.aim.Observe(o)
				}
				before := c.tally.Counts()
				c.tally.Observe(o)
				after := c.tally.Counts()
				if after.Attributed > 0 && c.proven.IsZero() {
					c.proven = time.Now()
				}
				h.metrics.Observe(c.item, o, cause, after.Aimed > before.Aimed)
			}
		},
		Close: func(e record.Event) {
			if c := h.cells[e.Cell]; c != nil {
				c.aim.Close(e)
				c.tally.Close(e)
			}
		},
		Orphan: func(e record.Event) {
			if c := h.cells[e.Cell]; c != nil && e.Kind == record.EventLate {
				c.tally.Orphan(e)
			}
		},
	}
	return h, nil
}

// add takes lines of any kind.
func (h *hub) add(lines ...record.Line) { h.addFrom(nil, 0, lines...) }

// addFrom takes lines of a journal, up to its event n.
func (h *hub) addFrom(j *journal, n uint64, lines ...record.Line) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if j != nil {
		j.seen = n
	}
	for _, l := range lines {
		h.addLocked(l)
	}
	h.wake()
}

// waiter waits for a condition. Whoever changes something looks whether it
// holds: waking a hundred cells for each line, to look themselves, costs more
// than all else.
type waiter struct {
	cond func() bool
	ok   chan struct{} // closed when cond holds
}

func (h *hub) wake() {
	for w := range h.waiting {
		if w.cond() {
			delete(h.waiting, w)
			close(w.ok)
		}
	}
}

func (h *hub) addLocked(l record.Line) {
	if h.ended {
		return
	}
	h.out.Write(l)
	if e := l.Event; e != nil {
		h.follow(*e)
	}
	if l.Direct != nil && l.Direct.Err == "" {
		for _, c := range h.cells {
			if c.item.Server == l.Direct.Server && c.side == l.Direct.Runtime {
				c.aim.Direct(l.Direct.After)
				c.tally.Direct(l.Direct.After)
			}
		}
	}
	if s := l.Shot; s != nil {
		if c := h.cells[s.Cell]; c != nil && s.Failed() {
			c.unproven[s.Seq] = true
		}
	}
	h.joiner.Add(l)
}

// flush hands the record on to the file, so that a killed run leaves it.
func (h *hub) flush() {
	if err := h.out.Flush(); err != nil && h.abort != nil {
		h.abort(fmt.Errorf("the record could not be written: %w", err))
	}
}

// follow keeps what settling a burst needs to know.
func (h *hub) follow(e record.Event) {
	switch e.Kind {
	case record.EventRequest:
		if c := h.cells[e.Cell]; c != nil && h.conns[e.Conn] == nil {
			h.conns[e.Conn] = c
			c.open++
		}
	case record.EventLate:
		if c := h.cells[e.Cell]; c != nil {
			delete(c.unproven, e.Seq)
			c.lateSeen[e.Seq] = true
			c.suspect(e)
		}
	case record.EventClose:
		if c := h.conns[e.Conn]; c != nil {
			delete(h.conns, e.Conn)
			c.open--
			c.suspect(e)
		}
	}
	if c := h.cells[e.Cell]; c != nil {
		c.files.event(e)
	}
}

// addLog takes one line of a proxy's log.
func (h *hub) addLog(l record.LogLine, raw string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	c := h.cells[l.Cell]
	if c == nil || h.ended {
		return
	}
	if l.Status != 0 {
		c.logged++
	}
	c.files.log(raw)
	h.addLocked(record.Line{T: record.KindLog, Log: &l})
	h.wake()
}

// wait blocks until cond holds, limit has passed or ctx is done, and reports
// whether cond holds. cond runs with the hub locked.
func (h *hub) wait(ctx context.Context, limit time.Duration, cond func() bool) bool {
	if limit <= 0 {
		limit = time.Nanosecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w := &waiter{cond, make(chan struct{})}
	h.mu.Lock()
	if cond() {
		h.mu.Unlock()
		return true
	}
	h.waiting[w] = true
	h.mu.Unlock()
	select {
	case <-w.ok:
		return true
	case <-ctx.Done():
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.waiting, w)
	return cond()
}

// with runs f with the hub locked.
func (h *hub) with(f func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	f()
}

// end writes the last line and closes the record. What arrives later is the
// noise of tearing down, and is dropped.
func (h *hub) end(reason string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.joiner.Flush() // counts what no settled burst has covered
	h.out.Write(record.Line{T: record.KindEnd, End: &record.End{At: time.Now().UnixNano(), Reason: reason}})
	h.ended = true
	err := h.out.Flush()
	for _, c := range h.cells {
		if e := c.files.close(); err == nil {
			err = e
		}
	}
	if e := h.file.Close(); err == nil {
		err = e
	}
	return err
}

// cellFiles are the files of one cell's folder that grow during a run. Methods
// of a nil *cellFiles do nothing.
type cellFiles struct {
	mu      sync.Mutex
	all     []*os.File
	bufs    []*bufio.Writer
	journal *json.Encoder
	proxy   *bufio.Writer
	attack  vegeta.Encoder
	err     error

	// Of connections that a request met too late, and those requests.
	packets []wire.Packet
	late    map[requestID]bool
	write   func(packets []wire.Packet, late map[requestID]bool) error
}

func newCellFiles(f *results.Folder, it plan.Item) (*cellFiles, error) {
	c := &cellFiles{write: func(packets []wire.Packet, late map[requestID]bool) error {
		return writeEvidence(f, filepath.Join(results.CellsDir, it.ID, results.EvidenceFile), packets, late)
	}}
	for _, name := range []string{"journal.jsonl", "proxy.log", "attack.json"} {
		file, err := f.CreateFile(filepath.Join(results.CellsDir, it.ID, name))
		if err != nil {
			c.close()
			return nil, err
		}
		c.all = append(c.all, file)
		c.bufs = append(c.bufs, bufio.NewWriter(file))
	}
	c.journal, c.proxy, c.attack = json.NewEncoder(c.bufs[0]), c.bufs[1], vegeta.NewJSONEncoder(c.bufs[2])
	return c, nil
}

func (c *cellFiles) keep(err error) {
	if c.err == nil {
		c.err = err
	}
}

func (c *cellFiles) event(e record.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.keep(c.journal.Encode(e))
}

func (c *cellFiles) log(raw string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, err := c.proxy.WriteString(raw + "\n")
	c.keep(err)
}

// result is load.Attack's Result. Bodies and headers would be most of the file
// and say nothing.
func (c *cellFiles) result(r *vegeta.Result) {
	c.mu.Lock()
	defer c.mu.Unlock()
	r.Body, r.Headers = nil, nil
	c.keep(c.attack.Encode(r))
}

func (c *cellFiles) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, b := range c.bufs {
		c.keep(b.Flush())
	}
	for _, f := range c.all {
		c.keep(f.Close())
	}
	c.all, c.bufs = nil, nil
	if c.write != nil {
		c.keep(c.write(c.packets, c.late))
	}
	c.packets, c.write = nil, nil
	return c.err
}
