package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"idlerace/harness/gohttp"
	"idlerace/harness/origin"
	"idlerace/harness/spec"
)

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run one of the servers that a run is made of, by hand",
		Args:  cobra.NoArgs,
	}
	cmd.AddCommand(serveOriginCommand(), serveGoHTTPCommand(), serveBurnCommand())
	return cmd
}

func serveGoHTTPCommand() *cobra.Command {
	var config string
	cmd := &cobra.Command{
		Use:   "gohttp --config FILE",
		Short: "Run the embedded proxy: httputil.ReverseProxy, a listener and a pool per route",
		Long: `Run the embedded proxy until it is interrupted. Each request becomes a line of
JSON on stdout: request id, status, and every attempt with the proxy's own
address of the upstream connection. The configuration is JSON:

  {"pool_size": 80, "routes": [
    {"listen": "127.0.0.1:8080", "upstream": "127.0.0.1:9000", "idle": "1s", "retry": "default"}]}

idle is a Go duration or "off"; retry is "default", "off" or "on".`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := os.Open(config)
			if err != nil {
				return err
			}
			defer f.Close()
			cfg, err := gohttp.ReadConfig(f)
			if err != nil {
				return fmt.Errorf("%s: %w", config, err)
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return environmentExit(gohttp.Run(ctx, cfg, cmd.OutOrStdout()))
		},
	}
	cmd.Flags().StringVar(&config, "config", "", "configuration `FILE`")
	cmd.MarkFlagRequired("config")
	return cmd
}

func serveBurnCommand() *cobra.Command {
	return &cobra.Command{
		Use:    "burn",
		Short:  "Keep every core busy until ended",
		Hidden: true,
		Args:   cobra.NoArgs,
		Run: func(*cobra.Command, []string) {
			for range runtime.NumCPU() - 1 {
				go spin()
			}
			spin()
		},
	}
}

// spin never ends: n stays odd.
func spin() {
	for n := 1; n != 0; n += 2 {
	}
}

func serveOriginCommand() *cobra.Command {
	var config, admin string
	var one origin.Server
	var idle, linger, delay time.Duration
	var style string
	var trap int
	var executed bool
	cmd := &cobra.Command{
		Use:   "origin",
		Short: "Run the configurable Go upstream, which journals every connection and request",
		Long: `Run the upstream of a run by itself, until it is interrupted: net/http servers
with idle timeouts and ways to close of your choice, and a journal of every
connection and request with who closed it and why. Useful behind any proxy.

One server is set by flags; several by --config FILE (JSON):

  {"admin": "127.0.0.1:9100", "servers": [
    {"name": "a", "listen": "127.0.0.1:9001", "idle_timeout": "5s", "close": "fin"},
    {"name": "b", "listen": "127.0.0.1:9002", "idle_timeout": "5s", "close": "rst",
     "keep_alive_hint": 5, "delay": "20ms", "size": 4096, "max_requests": 100,
     "announce": true, "trap": {"after": 1, "executed": false}},
    {"name": "far", "listen": "127.0.0.1:9003", "idle_timeout": "5s",
     "link": {"up": "20ms", "down": "20ms", "jitter_up": "1ms",
              "idle": "350s", "on_idle": "drop", "half_closed": "60s"}}],
   "capture": true, "contained": false}

link is an emulated network in front of a server: delays each way, and a
middlebox that gives up idle connections ("drop", "reset", "reset-late") and
forgets half-closed ones. With {"netem": true, "down": "40ms", "jitter_down":
"1ms"} the kernel delays what leaves the server's port, for an origin that is
"contained": in a container's network of its own (CAP_NET_ADMIN). capture
records the servers' packets (CAP_NET_RAW).

How an idle connection is closed:
  fin         FIN at once; reads on, notes the id of a late request, resets
  plain       an ordinary close, as other servers do
  rst         RST at once
  half-close  FIN; late requests are read, noted and never answered

The admin address answers:
  GET /journal[?after=N][&follow=1]  events as JSON lines
  GET /journal/mark                  number of the newest event
  GET /health                        200 when up, with the addresses
  GET /config                        the configuration in force
  GET /capture                       whether packets are captured, and how many
  POST /packets                      [{"port": P, "peer": "ip:port", "from": Unix ns, "to": Unix ns}, ...]
  POST /recycle                      closes all connections without notice, as a
                                     rolling deploy does; those in work when answered

A request is known by its headers X-Vegeta-Attack and X-Vegeta-Seq. With
X-Idlerace-Hold: 12ms the requests of one X-Vegeta-Attack that arrive within
that time are answered together.`,
		Example: `  idlerace serve origin --listen 127.0.0.1:9000 --idle 5s
  idlerace serve origin --listen 127.0.0.1:9000 --idle 5s --close rst --hint 5
  idlerace serve origin --listen 127.0.0.1:9000 --trap-after 1
  curl -s '127.0.0.1:9100/journal?follow=1'`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			one.Name, one.Close = "origin", spec.Close(style)
			one.IdleTimeout, one.Linger, one.Delay = origin.Duration(idle), origin.Duration(linger), origin.Duration(delay)
			if cmd.Flags().Changed("trap-after") {
				one.Trap = &origin.Trap{After: trap, Executed: executed}
			} else if executed {
				return errors.New("--trap-executed needs --trap-after")
			}
			cfg := origin.Config{Admin: admin, Servers: []origin.Server{one}}
			if config != "" {
				f, err := os.Open(config)
				if err != nil {
					return err
				}
				defer f.Close()
				if cfg, err = origin.ReadConfig(f); err != nil {
					return fmt.Errorf("%s: %w", config, err)
				}
			} else if err := cfg.Validate(); err != nil {
				return err
			}
			ctx, stop := signal.NotifyContext(cmd.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return environmentExit(origin.Run(ctx, cfg, func(addrs map[string]string) {
				for _, name := range slices.Sorted(maps.Keys(addrs)) {
					fmt.Fprintf(cmd.ErrOrStderr(), "%s: http://%s\n", name, addrs[name])
				}
			}))
		},
	}
	f := cmd.Flags()
	f.StringVar(&config, "config", "", "JSON configuration `FILE` instead of the flags below")
	f.StringVar(&admin, "admin", "127.0.0.1:9100", "`ADDR` of the admin endpoint")
	f.StringVar(&one.Listen, "listen", "127.0.0.1:9000", "`ADDR` of the server")
	f.DurationVar(&idle, "idle", 5*time.Second, "idle timeout; 0: never")
	f.StringVar(&style, "close", string(spec.CloseFIN), "how an idle connection is closed: fin, plain, rst, half-close")
	f.DurationVar(&linger, "linger", origin.DefaultLinger, "how long a socket is read on after its FIN (fin, half-close)")
	f.IntVar(&one.KeepAliveHint, "hint", 0, "send \"Keep-Alive: timeout=`N`\", in seconds")
	f.DurationVar(&delay, "delay", 0, "time from request to response")
	f.IntVar(&one.Size, "size", origin.DefaultSize, "`BYTES` of the response body")
	f.IntVar(&one.MaxRequests, "max-requests", 0, "close a connection after `N` requests; 0: never")
	f.BoolVar(&one.Announce, "announce", false, "say \"Connection: close\" with the last of --max-requests")
	f.IntVar(&trap, "trap-after", 0, "after `N` requests on a connection, read the next one and close without answering")
	f.BoolVar(&executed, "trap-executed", false, "count the trapped request as executed")
	cmd.MarkFlagsMutuallyExclusive("config", "listen")
	cmd.RegisterFlagCompletionFunc("close", func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		var out []string
		for _, c := range spec.Closes() {
			out = append(out, string(c))
		}
		return out, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}
