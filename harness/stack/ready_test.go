package stack

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestKnock(t *testing.T) {
	serving := false
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !serving || r.URL.Path != "/ping" {
			http.NotFound(w, r)
		}
	}))
	addr := srv.Listener.Addr().String()
	if err := Knock(t.Context(), addr, ""); err != nil {
		t.Errorf("a server that accepts: %v", err)
	}
	if err := Knock(t.Context(), addr, "/ping"); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a server that accepts and does not serve: %v", err)
	}
	serving = true
	if err := Knock(t.Context(), addr, "/ping"); err != nil {
		t.Errorf("a server that serves: %v", err)
	}
	srv.Close()
	for _, path := range []string{"", "/ping"} {
		if err := Knock(t.Context(), addr, path); err == nil {
			t.Errorf("nothing listens, yet %q was answered", path)
		}
	}
}
