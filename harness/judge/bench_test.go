package judge

import (
	"fmt"
	"io"
	"runtime"
	"runtime/metrics"
	"strconv"
	"sync"
	"testing"
	"time"

	"idlerace/harness/plan"
	"idlerace/harness/record"
)

// BenchmarkJudgeMillion reads and judges the text of a million observations of
// 32 cells, and of 200,000: the time, generator included, and the peak of the
// heap, which must not depend on the count. It is meant for -benchtime 1x.
func BenchmarkJudgeMillion(b *testing.B) {
	for b.Loop() {
		start := time.Now()
		if _, err := io.Copy(io.Discard, newMany(1_000_000)); err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(time.Since(start).Seconds(), "s-generator/1M")
		few := judgeMany(b, 200_000)
		million := judgeMany(b, 1_000_000)
		b.ReportMetric(million.took.Seconds(), "s/1M")
		b.ReportMetric(few.peak, "MiB-peak/200k")
		b.ReportMetric(million.peak, "MiB-peak/1M")
		b.ReportMetric(few.live, "MiB-live/200k")
		b.ReportMetric(million.live, "MiB-live/1M")
		b.ReportMetric(million.live/few.live, "live-ratio")
	}
}

// cost is what a judgement took. peak is the most the heap held, garbage
// included, live the most a collection left of it; both in MiB.
type cost struct {
	took       time.Duration
	peak, live float64
}

// judgeMany judges n observations.
func judgeMany(b *testing.B, n int) (c cost) {
	m, s := controlled()
	cell := m.Items[0].Cell
	m.Items = nil
	for i := range manyCells {
		m.Items = append(m.Items, plan.Item{ID: manyCell(i), Role: plan.RoleCell, Cell: cell, Server: "u500ms-fin"})
	}
	runtime.GC()
	done := make(chan struct{})
	var sampling sync.WaitGroup
	sampling.Go(func() {
		heap := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}, {Name: "/gc/heap/live:bytes"}}
		for {
			select {
			case <-done:
				return
			case <-time.After(5 * time.Millisecond):
				metrics.Read(heap)
				c.peak = max(c.peak, float64(heap[0].Value.Uint64())/(1<<20))
				c.live = max(c.live, float64(heap[1].Value.Uint64())/(1<<20))
			}
		}
	})
	start := time.Now()
	d, err := Judge(m, s, record.Read(newMany(n)))
	c.took = time.Since(start)
	close(done)
	sampling.Wait()
	if err != nil {
		b.Fatal(err)
	}
	shots, late := 0, 0
	for _, v := range d.Cells {
		shots += v.Shots
		late += v.Late
	}
	if shots != n || late == 0 || len(d.Run.Warnings) > 0 {
		b.Fatalf("%d observations of %d, %d of them late; %q", shots, n, late, d.Run.Warnings)
	}
	return c
}

const (
	manyCells = 32
	manyLanes = 40
)

func manyCell(i int) string {
	return fmt.Sprintf("gohttp_go_p%ds_u500ms_POST_default_fin_rtt0s", i+1)
}

// many is the text of observations.jsonl for a number of shots, written as it
// is read, with the kinds of line in the proportions of a run of
// scenarios/quickstart.yaml: for each shot one request, idle begin and log
// line, two thirds of an accept and a close, and a late request for one in 40.
type many struct {
	left, round int
	shots       [manyCells]int
	n           int
	at          int64
	text        []byte
	rest        []byte
}

func newMany(shots int) *many { return &many{left: shots, at: 1795264802296218239} }

func (m *many) Read(p []byte) (int, error) {
	if len(m.rest) == 0 {
		if m.left == 0 {
			return 0, io.EOF
		}
		m.text = m.text[:0]
		m.burst(m.round % manyCells)
		m.round++
		m.rest = m.text
	}
	n := copy(p, m.rest)
	m.rest = m.rest[n:]
	return n, nil
}

// add appends texts and numbers.
func (m *many) add(parts ...any) {
	for _, part := range parts {
		switch part := part.(type) {
		case string:
			m.text = append(m.text, part...)
		case int:
			m.text = strconv.AppendInt(m.text, int64(part), 10)
		case int64:
			m.text = strconv.AppendInt(m.text, part, 10)
		}
	}
}

// event begins an event's line.
func (m *many) event(conn int, kind string) {
	m.n++
	m.at += 10_000
	m.add(`{"t":"event","event":{"at":`, m.at, `,"n":`, m.n, `,"server":"u500ms-fin","conn":`, conn, `,"kind":"`, kind, `"`)
}

// burst writes a burst of one cell. A third of its lanes reach the upstream on
// connections that live on; the others' are new, and closed by the proxy or,
// one in 40, by the idle timer before the request arrives.
func (m *many) burst(cell int) {
	id, lanes, burst := manyCell(cell), min(manyLanes, m.left), m.round/manyCells
	m.left -= lanes
	first := m.shots[cell]
	m.shots[cell] += lanes
	m.at += 500_000_000 / manyCells
	for lane := range lanes {
		seq, status, nth := first+lane, 200, 1
		kept, late := lane%3 == 0, lane == 7
		conn := 1 + cell*manyLanes + lane
		if kept {
			nth = 1 + burst
		} else {
			conn = manyCells*manyLanes + m.round*manyLanes + lane
		}
		addr := "127.0.0.1:" + strconv.Itoa(32768+conn%28000)
		if nth == 1 {
			m.event(conn, "accept")
			m.add(`,"peer":"`, addr, "\"}}\n")
		}
		if late {
			status = 502
			m.event(conn, "idle")
			m.add("}}\n")
			m.close(conn, addr, id, seq, "upstream", "idle-timeout")
			m.event(conn, "late")
			m.add(`,"peer":"`, addr, `","cell":"`, id, `","seq":`, seq, `,"method":"POST","idle_ns":500998159}}`, "\n")
		} else {
			m.event(conn, "request")
			m.add(`,"peer":"`, addr, `","cell":"`, id, `","seq":`, seq, `,"method":"POST","nth":`, nth, `,"executed":true}}`, "\n")
			m.event(conn, "idle")
			m.add("}}\n")
			if !kept {
				m.close(conn, addr, id, seq, "peer", "peer-closed")
			}
		}
		m.add(`{"t":"log","log":{"cell":"`, id, `","seq":`, seq, `,"status":`, status,
			`,"attempts":[{"upstream":"127.0.0.1:16812","local":"`, addr, `","status":`, status, "}]}}\n")
		m.add(`{"t":"shot","shot":{"cell":"`, id, `","seq":`, seq, `,"lane":`, lane, `,"burst":`, burst,
			`,"phase":"aimed","target":"upstream","planned_ns":500100000,"age_ns":500213418,"edge_ns":500000000,"sent":`, m.at,
			`,"latency_ns":20247670,"status":`, status, `,"outcome":"response"}}`, "\n")
	}
	m.add(`{"t":"settled","settled":{"cell":"`, id, `","burst":`, burst, `,"seq":`, first+lanes-1, "}}\n")
}

func (m *many) close(conn int, addr, id string, seq int, by, why string) {
	m.event(conn, "close")
	m.add(`,"peer":"`, addr, `","cell":"`, id, `","seq":`, seq, `,"nth":1,"idle_ns":500998159,"by":"`, by, `","why":"`, why, "\"}}\n")
}
