package origin

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"idlerace/harness/record"
)

// adminName is the admin endpoint's key among the addresses, and so no name
// for a server.
const adminName = "admin"

const (
	followDelay = 2 * time.Millisecond // events are gathered this long before they are flushed to a follower
	batchSize   = 256                  // events copied at a time: the journal's lock is held for some 10 µs
)

// adminHandler serves, to GET but for the last two:
//
//	/journal?after=N[&follow=1]  events numbered above N (default 0), one JSON object a line
//	/journal/mark                {"n": number of the newest event}
//	/health                      {"status":"ok","servers":{name: address},"now": Unix ns}
//	/config                      the configuration with its defaults filled in
//	/capture                     CaptureStatus
//	/packets                     POST a list of PacketQuestion: a list of wire.Packet for each
//	/recycle                     POST: Recycled, see origin.recycle
//
// With follow=1 events are streamed as they come until the client leaves or
// the origin stops. Where events were dropped before the reader got to them
// stands one of kind "lost": Nth counts them, N is the number of the last, so
// "after=N" of any line resumes behind it. A bad query is answered with 400.
func adminHandler(j *journal, p packets, cfg Config, addrs map[string]string, recycle func() Recycled) http.Handler {
	servers := make(map[string]string, len(cfg.Servers))
	for _, s := range cfg.Servers {
		servers[s.Name] = addrs[s.Name]
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /journal", j.serve)
	mux.HandleFunc("GET /journal/mark", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]uint64{"n": j.mark()})
	})
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, map[string]any{"status": "ok", "servers": servers, "now": j.now()})
	})
	mux.HandleFunc("GET /config", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, cfg)
	})
	mux.HandleFunc("GET /capture", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, p.status())
	})
	mux.HandleFunc("POST /packets", p.serve)
	mux.HandleFunc("POST /recycle", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, recycle())
	})
	return mux
}

func writeJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // fails only when the client left
}

// serve answers GET /journal.
func (j *journal) serve(w http.ResponseWriter, r *http.Request) {
	after, follow, err := journalQuery(r.URL.RawQuery)
	until := j.mark()
	if err == nil && after > until {
		err = fmt.Errorf("after=%d: the journal ends at %d", after, until)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")

	out := bufio.NewWriterSize(w, 32<<10)
	enc := json.NewEncoder(out)
	enc.SetEscapeHTML(false)
	buf := make([]record.Event, 0, batchSize)
	for {
		for {
			events, lost := j.read(buf, after)
			if lost > 0 {
				after += lost
				events = slices.Insert(events, 0, record.Event{At: j.now(), N: after, Kind: record.EventLost, Nth: int(lost)})
			}
			for _, e := range events {
				if !follow && e.N > until {
					break
				}
				if enc.Encode(e) != nil {
					return // the client left
				}
				after = e.N
			}
			if len(events) < batchSize || !follow && after >= until {
				break
			}
		}
		if out.Flush() != nil || !follow {
			return
		}
		if http.NewResponseController(w).Flush() != nil || !j.wait(r.Context(), after) {
			return
		}
		sleep(r.Context(), followDelay)
	}
}

// journalQuery reads the query of GET /journal. Unknown or repeated keys are
// errors: a misspelt "follow" must not look like an empty journal.
func journalQuery(query string) (after uint64, follow bool, err error) {
	values, err := url.ParseQuery(query)
	if err != nil {
		return 0, false, fmt.Errorf("query: %w", err)
	}
	for key, vs := range values {
		if len(vs) > 1 {
			return 0, false, fmt.Errorf("%s: given %d times", key, len(vs))
		}
		switch v := vs[0]; key {
		case "after":
			if after, err = strconv.ParseUint(v, 10, 64); err != nil {
				return 0, false, fmt.Errorf("after=%s: want the number of an event, 0 for all", v)
			}
		case "follow":
			if v != "0" && v != "1" {
				return 0, false, fmt.Errorf("follow=%s: want 0 or 1", v)
			}
			follow = v == "1"
		default:
			return 0, false, fmt.Errorf("%s: no such parameter, there are after and follow", key)
		}
	}
	return after, follow, nil
}
