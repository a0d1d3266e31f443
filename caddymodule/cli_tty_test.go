package caddymodule

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fairway-run/fairway/revisions"
)

// screen is a terminal: tty is the program's end of it, keys what is typed.
type screen struct {
	tty, keys *os.File

	mu    sync.Mutex // guards shown
	shown bytes.Buffer
	done  sync.WaitGroup
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	keys, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	if err := unix.IoctlSetPointerInt(int(keys.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Skip(err)
	}
	n, err := unix.IoctlGetInt(int(keys.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Skip(err)
	}
	tty, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	if err := unix.IoctlSetWinsize(int(tty.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 60}); err != nil {
		t.Fatal(err)
	}
	s := &screen{tty: tty, keys: keys}
	s.done.Go(func() {
		buf := make([]byte, 4096)
		for {
			n, err := keys.Read(buf)
			s.mu.Lock()
			s.shown.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return // the last program has closed its end
			}
		}
	})
	t.Cleanup(func() {
		tty.Close()
		s.done.Wait()
		keys.Close()
	})
	return s
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shown.String()
}

func (s *screen) wants(t *testing.T, text string) {
	t.Helper()
	for range 1000 {
		if strings.Contains(s.text(), text) {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Errorf("%q is not on the screen:\n%q", text, s.text())
}

func (s *screen) run(t *testing.T, c *console, args ...string) int {
	t.Helper()
	return runCommandOn(t.Context(), s.tty, s.tty, s.tty, append([]string{"--address", c.address}, args...)...)
}

func TestTerminal(t *testing.T) {
	t.Setenv("LC_ALL", "C.UTF-8")
	t.Setenv("TERM", "xterm")
	c := startConsoleOf(t, "\tfairway", func(id string, rev *revisions.Revision) http.Handler {
		time.Sleep(2 * pollInterval)
		return hello(id, rev)
	})
	s := newScreen(t)
	if code := s.run(t, c, "deploy", "hello", "--image=app:1"); code != 0 {
		t.Fatal(code)
	}
	s.wants(t, "\r\x1b[KDeploying service [hello]: ")
	s.wants(t, "\r\x1b[KService [hello] revision [hello-00001] has been deployed")
	s.run(t, c, "services")
	s.wants(t, "✔  hello")
	s.run(t, c, "deploy", "broken", "--image=missing:1")
	s.run(t, c, "services")
	s.wants(t, "✗  broken")
	for line := range strings.SplitSeq(s.text(), "\r\x1b[K") {
		if strings.HasPrefix(line, "Deploying") && len([]rune(line)) > 59 {
			t.Errorf("the live line is wider than the terminal: %q", line)
		}
	}

	io.WriteString(s.keys, "n\n")
	if code := s.run(t, c, "delete", "hello"); code != exitFailed {
		t.Errorf("exit code %d", code)
	}
	s.wants(t, "Service [hello] will be deleted with all revisions.\r\n\r\nDo you want to continue (Y/n)?  ")
	s.wants(t, "nothing is deleted")
	if code := s.run(t, c, "delete", "broken", "--quiet"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	io.WriteString(s.keys, "\n")
	if code := s.run(t, c, "delete", "hello"); code != 0 {
		t.Errorf("exit code %d", code)
	}
	s.wants(t, "Deleted service [hello].")
}
