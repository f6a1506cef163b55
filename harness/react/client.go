package react

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"idlerace/harness/record"
)

// trialTimeout bounds the wait for one response. It is the one clock of a
// trial, and only a proxy that neither answers nor hangs up meets it.
const trialTimeout = 5 * time.Second

// client is one connection to a proxy. Nothing it sends is sent again.
type client struct {
	nc *net.TCPConn
	br *bufio.Reader
}

func dial(ctx context.Context, addr string) (*client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &client{nc.(*net.TCPConn), bufio.NewReader(nc)}, nil
}

// close resets the connection: it leaves no TIME_WAIT, and a body that is still
// being sent is of no use to anyone.
func (c *client) close() {
	c.nc.SetLinger(0)
	c.nc.Close()
}

// do sends one request and says what came back. A proxy may answer before it
// has the whole body, and may not want the rest: what counts is what it says.
func (c *client) do(ctx context.Context, cs Case, cell string, seq int) (o Outcome, status int, err error) {
	c.nc.SetDeadline(time.Now().Add(trialTimeout))
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	var head strings.Builder
	// The path carries the id as well: some error logs have nothing else.
	fmt.Fprintf(&head, "%s /%s/%d HTTP/1.1\r\nHost: idlerace\r\n%s: %s\r\n%s: %d\r\n",
		cs.Method, cell, seq, record.HeaderCell, cell, record.HeaderSeq, seq)
	if cs.Body > 0 {
		fmt.Fprintf(&head, "Content-Type: text/plain\r\nContent-Length: %d\r\n", cs.Body)
	}
	if cs.Keyed {
		fmt.Fprintf(&head, "Idempotency-Key: %q\r\n", cell)
	}
	head.WriteString("\r\n")
	head.WriteString(strings.Repeat("x", cs.Body))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		io.WriteString(c.nc, head.String()) // its fault is the reader's, too
	}()
	defer func() {
		if err != nil || o != OutcomeResponse {
			c.nc.SetWriteDeadline(time.Unix(1, 0))
		}
		<-sent
	}()
	resp, err := http.ReadResponse(c.br, &http.Request{Method: cs.Method})
	if err != nil {
		o, err = failure(err)
		return o, 0, err
	}
	// What follows is the proxy's own error page, or the origin's whole answer:
	// the origin breaks off before a response and never within one.
	_, err = io.Copy(io.Discard, resp.Body)
	if err == nil || resp.StatusCode/100 != 2 {
		c.nc.SetWriteDeadline(time.Unix(1, 0)) // answered: the rest of the body is not wanted
		return OutcomeResponse, resp.StatusCode, nil
	}
	return OutcomeOther, resp.StatusCode, fmt.Errorf("status %d, then: %w", resp.StatusCode, err)
}

// failure classifies the error of a request without a response.
func failure(err error) (Outcome, error) {
	var netErr net.Error
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return OutcomeClosed, nil
	case errors.As(err, &netErr) && netErr.Timeout():
		return OutcomeTimeout, nil
	}
	return OutcomeOther, err
}
