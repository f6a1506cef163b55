package stack

import "testing"

func TestExitError(t *testing.T) {
	for _, tt := range []struct {
		err   ExitError
		text  string
		inUse bool
	}{
		{ExitError{Service: "nginx", Reason: "exit status 1"}, "nginx: exit status 1", false},
		{
			ExitError{"nginx", "exit status 1", []string{"bind() to 127.0.0.1:80 failed (98: Address already in use)", "bye"}},
			"nginx: exit status 1; its last log lines:\n    bind() to 127.0.0.1:80 failed (98: Address already in use)\n    bye", true,
		},
		{ExitError{"origin", "exit status 1", []string{"listen tcp 127.0.0.1:80: bind: address already in use"}},
			"origin: exit status 1; its last log lines:\n    listen tcp 127.0.0.1:80: bind: address already in use", true},
		{ExitError{Service: "origin", Reason: "listen tcp 127.0.0.1:80: bind: address already in use"},
			"origin: listen tcp 127.0.0.1:80: bind: address already in use", true},
		{ExitError{"origin", "exit status 1", []string{"listen tcp 127.0.0.1:80: bind: permission denied"}},
			"origin: exit status 1; its last log lines:\n    listen tcp 127.0.0.1:80: bind: permission denied", false},
	} {
		if got := tt.err.Error(); got != tt.text {
			t.Errorf("got  %q\nwant %q", got, tt.text)
		}
		if got := tt.err.AddressInUse(); got != tt.inUse {
			t.Errorf("%q: AddressInUse is %v", tt.text, got)
		}
	}
}
