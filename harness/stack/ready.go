package stack

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

// ReadyTimeout is how long a service may take until it is ready.
const ReadyTimeout = 20 * time.Second

const (
	readyPoll = 5 * time.Millisecond
	tailLines = 10
)

// AwaitReady waits until knock finds somebody at every Ready address of a
// started instance. The error is an *ExitError unless ctx was cancelled.
func AwaitReady(ctx context.Context, inst Instance, knock func(ctx context.Context, addr, path string) error) error {
	limited, cancel := context.WithTimeout(ctx, ReadyTimeout)
	defer cancel()
	s, begun := inst.Service(), time.Now()
	for _, ready := range s.Ready {
		var why error
		for {
			err := knock(limited, inst.Address(ready), s.ReadyPath)
			if err == nil {
				break
			}
			// An attempt cut short says less than the one before it.
			if netErr, ok := errors.AsType[net.Error](err); why == nil || !ok || !netErr.Timeout() {
				why = err
			}
			select {
			case <-inst.Done():
				return inst.Err()
			case <-limited.Done():
				if errors.Is(ctx.Err(), context.Canceled) {
					return fmt.Errorf("%s: %w", s.Name, context.Cause(ctx))
				}
				return &ExitError{Service: s.Name, Tail: Tail(inst),
					Reason: fmt.Sprintf("not ready after %s: %v", time.Since(begun).Round(time.Millisecond), why)}
			case <-time.After(readyPoll):
			}
		}
	}
	// A port that answers may be another process's; ours must still be there.
	select {
	case <-inst.Done():
		return inst.Err()
	default:
		return nil
	}
}

// Knock connects to addr and, where there is a path, wants it answered 200.
func Knock(ctx context.Context, addr, path string) error {
	if path == "" {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		return conn.Close()
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET %s: %s", req.URL, resp.Status)
	}
	return nil
}

// Tail gives the last lines of what an instance printed to stderr, or to
// stdout when that is empty.
func Tail(inst Instance) []string {
	for _, path := range []string{inst.Stderr(), inst.Stdout()} {
		if lines := lastLines(path, tailLines); len(lines) > 0 {
			return lines
		}
	}
	return nil
}

func lastLines(path string, n int) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	const window = 16 << 10
	if st, err := f.Stat(); err == nil && st.Size() > window {
		f.Seek(-window, 2)
	}
	var lines []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		lines = append(lines, strings.ToValidUTF8(sc.Text(), "?"))
		if len(lines) > n {
			lines = lines[1:]
		}
	}
	return lines
}
