package load

import (
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"
)

func TestMeasureClose(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.IdleTimeout = 60 * time.Millisecond
	srv.Start()
	defer srv.Close()
	for _, d := range MeasureClose(t.Context(), "u60ms", srv.Listener.Addr().String(), 3, 30*time.Second) {
		if d.Err != "" || d.Server != "u60ms" || d.After < 50*time.Millisecond {
			t.Errorf("%+v: a timer cannot fire that early", d)
		}
	}
}

func TestMeasureCloseErrors(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Write([]byte("SSH-2.0-hello\r\n"))
			c.Close()
		}
	}()
	for _, d := range MeasureClose(t.Context(), "s", addr, 2, time.Second) {
		if d.Err == "" || d.After != 0 {
			t.Errorf("a server that does not speak HTTP was measured: %+v", d)
		}
	}
	l.Close()
	for _, d := range MeasureClose(t.Context(), "s", addr, 1, time.Second) {
		if d.Err == "" {
			t.Errorf("nothing listens, yet: %+v", d)
		}
	}
}
