// Command idlerace proves which pairs of idle timeouts, of a reverse proxy and
// of the upstream behind it, lose requests to the keep-alive race.
package main

import (
	"context"
	"os"
)

func main() {
	os.Exit(idlerace(context.Background(), os.Args[1:], os.Stdout, os.Stderr))
}
