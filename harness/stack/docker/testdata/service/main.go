// Command service plays the services of this package's tests.
package main

import (
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() { os.Exit(play(os.Args[1], os.Args[2:])) }

func play(role string, args []string) int {
	terminated := make(chan os.Signal, 1)
	signal.Notify(terminated, syscall.SIGTERM)
	switch role {
	case "server": // listens on every argument until told to end
		listen(args)
		fmt.Println("listening")
		<-terminated
		fmt.Println("terminated")
	case "late": // as server, a second later
		time.Sleep(time.Second)
		return play("server", args)
	case "stubborn": // as server, but never ends
		listen(args)
		for range terminated {
			fmt.Println("no")
		}
	case "mute": // never listens
		fmt.Println("looking at the wall")
		<-terminated
	case "talker": // says n lines on each stream and dies
		n, _ := strconv.Atoi(args[0])
		for i := range n {
			fmt.Fprintf(os.Stdout, "out %d\n", i)
			fmt.Fprintf(os.Stderr, "err %d\n", i)
		}
		return 3
	case "clock": // says the time of day again and again
		listen(args)
		for {
			select {
			case <-terminated:
				return 0
			case <-time.After(10 * time.Millisecond):
				fmt.Println(time.Now().UnixNano())
			}
		}
	case "look": // tells what is in its folder, then dies well
		dir, err := os.Getwd()
		fmt.Println(dir, err)
		filepath.WalkDir(args[0], func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				fmt.Println(path, err)
				return nil
			}
			info, _ := d.Info()
			b, _ := os.ReadFile(path)
			fmt.Printf("%s %s %q\n", path, info.Mode(), b)
			return nil
		})
		fmt.Println(os.WriteFile(filepath.Join(args[0], "mine"), nil, 0o644))
	case "peer": // tells what the first argument says, then is a server at the second
		c, err := net.DialTimeout("tcp", args[0], 10*time.Second)
		if err != nil {
			fmt.Println(err)
			return 1
		}
		b, err := io.ReadAll(c)
		fmt.Println(string(b), err)
		return play("server", args[1:])
	case "hog": // wants all memory
		var all [][]byte
		for {
			b := make([]byte, 16<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
	case "limits":
		for _, f := range []string{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"} {
			if b, err := os.ReadFile(f); err == nil {
				fmt.Println(filepath.Base(f), strings.TrimSpace(string(b)))
			}
		}
		var n syscall.Rlimit
		syscall.Getrlimit(syscall.RLIMIT_NOFILE, &n)
		fmt.Println("nofile", n.Max)
	case "capabilities": // says in hexadecimal what it may do
		b, _ := os.ReadFile("/proc/self/status")
		for line := range strings.Lines(string(b)) {
			if mask, ok := strings.CutPrefix(line, "CapEff:"); ok {
				fmt.Println(strings.TrimSpace(mask))
			}
		}
	case "sleep":
		<-terminated
		time.Sleep(time.Hour)
	}
	return 0
}

func listen(addrs []string) {
	for _, addr := range addrs {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				c.Write([]byte("hi"))
				c.Close()
			}
		}()
	}
}
