package run

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime"
	"strings"
	"time"

	"idlerace/harness/proxy"
	"idlerace/harness/record"
	"idlerace/harness/stack"
)

// journal reads the origin's journal over its admin endpoint.
type journal struct {
	base   string // "http://host:port"
	client *http.Client
	seen   uint64 // number of the last event handed to the hub; guarded by its lock
}

func newJournal(admin string) *journal {
	return &journal{base: "http://" + admin, client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
}

func (j *journal) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, j.base+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := j.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("origin: GET %s: %s", path, resp.Status)
	}
	return resp, nil
}

// mark is the number of the newest event.
func (j *journal) mark(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	resp, err := j.get(ctx, "/journal/mark")
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var m struct{ N uint64 }
	return m.N, json.NewDecoder(resp.Body).Decode(&m)
}

// journalBatch bounds the events handed to the hub in one go. What a burst
// leaves to be written down is read while other bursts are sent: small bites
// keep it from making them late.
const journalBatch = 16

// follow hands every event to the hub until ctx is done or the origin is gone.
// It calls connected once the stream stands. Every origin counts from one: side
// makes its connections distinct in the run.
func (j *journal) follow(ctx context.Context, h *hub, side uint64, connected func()) error {
	resp, err := j.get(ctx, "/journal?follow=1")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	connected()
	br := bufio.NewReaderSize(resp.Body, 256<<10)
	var batch []record.Line
	for {
		raw, err := br.ReadSlice('\n')
		if err != nil {
			if ctx.Err() != nil || err == io.EOF {
				return nil
			}
			return fmt.Errorf("origin: journal: %w", err)
		}
		var e record.Event
		if err := json.Unmarshal(raw, &e); err != nil {
			return fmt.Errorf("origin: journal: %w", err)
		}
		e.Conn |= side << record.ConnBits
		batch = append(batch, record.Line{T: record.KindEvent, Event: &e})
		if br.Buffered() == 0 || len(batch) >= journalBatch {
			h.addFrom(j, e.N, batch...)
			batch = batch[:0]
		}
		runtime.Gosched() // a lane whose moment has come goes first
	}
}

// tailPoll is how often a proxy's log is looked at. Nothing waits for it but
// the settling of a burst, in the middle of a gap.
const tailPoll = 20 * time.Millisecond

// tail reads an instance's growing logs line by line and hands what the
// adapter understands to the hub, until ctx is done.
func tail(ctx context.Context, a proxy.Adapter, inst stack.Instance, h *hub) error {
	var readers []*lineReader
	for _, path := range []string{inst.Stdout(), inst.Stderr()} {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		readers = append(readers, &lineReader{f: f})
	}
	tick := time.NewTicker(tailPoll)
	defer tick.Stop()
	for {
		for _, r := range readers {
			if err := r.each(func(line string) {
				if l, ok := a.Parse(line); ok {
					h.addLog(l, line)
				}
				runtime.Gosched()
			}); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// lineReader reads the whole lines of a growing file.
type lineReader struct {
	f    *os.File
	rest strings.Builder
	buf  [64 << 10]byte
}

// maxLogLine bounds what a line without an end may take.
const maxLogLine = 64 << 10

func (r *lineReader) each(f func(line string)) error {
	for {
		n, err := r.f.Read(r.buf[:])
		chunk := string(r.buf[:n])
		for {
			line, after, whole := strings.Cut(chunk, "\n")
			if r.rest.Len()+len(line) <= maxLogLine {
				r.rest.WriteString(line)
			}
			if !whole {
				break
			}
			f(r.rest.String())
			r.rest.Reset()
			chunk = after
		}
		if err == io.EOF || n == 0 {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
