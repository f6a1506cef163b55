package local

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"idlerace/harness/stack"
)

func init() { helpParent = startAndWait }

// startAndWait is a harness that starts a child from a thread that ends, prints
// the child's pid and waits to be killed.
func startAndWait(dir, addr string) int {
	type started struct {
		pid, thread int
		err         error
	}
	c := make(chan started)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with this goroutine
		r := New(os.Args[0])
		inst, err := r.Start(context.Background(), stack.Service{Name: "child", Args: []string{"stubborn", addr}, Ready: []string{addr}}, dir)
		if err != nil {
			c <- started{err: err}
			return
		}
		c <- started{inst.(*process).cmd.Process.Pid, syscall.Gettid(), nil}
	}()
	s := <-c
	if s.err != nil {
		fmt.Println(s.err)
		return 1
	}
	for exists(fmt.Sprintf("/proc/self/task/%d", s.thread)) {
		time.Sleep(time.Millisecond)
	}
	fmt.Println(s.pid)
	select {}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// A killed harness leaves no child behind, whichever of its threads asked for
// it.
func TestParentDeath(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	addr := addrs(t, 1)[0]
	parent := exec.Command(self, "parent", t.TempDir(), addr)
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	kill := func() {
		parent.Process.Kill()
		io.Copy(io.Discard, out)
		parent.Wait()
	}
	defer kill()
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(line))
	if err != nil {
		t.Fatal(line)
	}
	// A process that is being killed may still be listed, but it answers nobody.
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("the child died with the thread that asked for it: %v", err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if b, err := io.ReadAll(c); err != nil || string(b) != "hi" {
		t.Fatalf("the child died with the thread that asked for it: %q, %v", b, err)
	}
	kill()
	eventually(t, "the child's death", func() bool { return !alive(t, child) })
}
