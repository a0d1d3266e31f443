package caddymodule

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// dialMapped connects to an IPv4 address from an IPv6 socket, which is what
// [::ffff:127.0.0.1] means. Go's own dialer would make an IPv4 socket.
func dialMapped(port int) (net.Conn, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "mapped")
	defer f.Close()
	to := &unix.SockaddrInet6{Port: port}
	copy(to.Addr[:], net.ParseIP("127.0.0.1").To16())
	if err := unix.Connect(fd, to); err != nil {
		return nil, err
	}
	return net.FileConn(f)
}

// F05: each request keeps its instance from being stopped, whatever address it came
// through.
func TestNoRequestIsIdleWhateverItsAddress(t *testing.T) {
	const idle = 400 * time.Millisecond
	ways := map[string]func(port int) (net.Conn, error){
		"127.0.0.1":          func(port int) (net.Conn, error) { return net.Dial("tcp4", fmt.Sprintf("127.0.0.1:%d", port)) },
		"[::1]":              func(port int) (net.Conn, error) { return net.Dial("tcp6", fmt.Sprintf("[::1]:%d", port)) },
		"[::ffff:127.0.0.1]": dialMapped,
	}
	site := "bind ::1\n"
	for n := range len(ways) {
		site += fmt.Sprintf("fairway /%[1]d way%[1]d {\n image app:1\n idle_timeout %[2]s\n}\n", n, idle)
	}
	h := startHost(t, site, hello)
	port, err := strconv.Atoi(h.port)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	n := 0
	for way, dial := range ways {
		// A connection for each request: the way is that of each of them.
		transport := &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return dial(port) }}
		url := fmt.Sprintf("%s/%d", h.url, n)
		n++
		all.Go(func() {
			ask := func() string {
				resp, err := (&http.Client{Transport: transport}).Get(url)
				if err != nil {
					t.Errorf("%s: %v", way, err)
					return ""
				}
				defer resp.Body.Close()
				b, _ := io.ReadAll(resp.Body)
				return string(b)
			}
			tick := time.NewTicker(idle / 20)
			defer tick.Stop()
			first := ask()
			began, last := time.Now(), time.Now()
			for time.Since(began) < 3*idle && first != "" {
				<-tick.C
				got := ask()
				// What has not been asked for in time may have gone: then it begins again.
				if now := time.Now(); now.Sub(last) >= idle/2 {
					first, began = got, now
				} else if got != first {
					t.Errorf("%s: served by %s, %s after a request to %s", way, got, now.Sub(last), first)
					return
				}
				last = time.Now()
			}
		})
	}
	all.Wait()
	for n := range len(ways) {
		settled(t, fmt.Sprintf("way%d", n))
	}
}
