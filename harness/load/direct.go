package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"syscall"
	"time"

	"idlerace/harness/record"
)

// MeasureClose opens n connections straight to one of the origin's servers,
// sends one request on each and waits until the server closes it: the upstream
// idle timeout as it really is. The wait ends with an error after limit or
// with ctx.
func MeasureClose(ctx context.Context, server, addr string, n int, limit time.Duration) []record.Direct {
	out := make([]record.Direct, n)
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() {
			after, err := measureClose(ctx, addr, limit)
			out[i] = record.Direct{Server: server, After: after}
			if err != nil {
				out[i] = record.Direct{Server: server, Err: err.Error()}
			}
		})
	}
	wg.Wait()
	return out
}

func measureClose(ctx context.Context, addr string, limit time.Duration) (time.Duration, error) {
	conn, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if err := conn.SetDeadline(time.Now().Add(limit + shotTimeout)); err != nil {
		return 0, err
	}
	if _, err := fmt.Fprintf(conn, "GET / HTTP/1.1\r\nHost: %s\r\n\r\n", addr); err != nil {
		return 0, err
	}
	br := bufio.NewReader(conn)
	resp, err := http.ReadResponse(br, nil)
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return 0, err
	}
	idle := time.Now()
	_, err = br.ReadByte()
	after := time.Since(idle)
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET):
		return after, nil
	case err == nil:
		return 0, errors.New("the server sent more than its response")
	}
	return 0, err
}
