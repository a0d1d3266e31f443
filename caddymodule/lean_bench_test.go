package caddymodule

import (
	"bytes"
	"net"
	"testing"
)

// BenchmarkProxied is a request over a kept connection, through Caddy, to a
// container. What it allocates is Caddy's: client and container allocate nothing.
func BenchmarkProxied(b *testing.B) {
	r := newRig(b, "")
	for _, s := range r.sides {
		b.Run(s.name, func(b *testing.B) {
			r.container.say(terse)
			conn, err := net.Dial("tcp", s.address)
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			request := []byte("GET /path?query=1 HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: bench\r\nAccept: */*\r\nAccept-Encoding: gzip\r\nCookie: session=1\r\n\r\n")
			answer := make([]byte, 4<<10)
			ask := func() {
				if _, err := conn.Write(request); err != nil {
					b.Fatal(err)
				}
				// The whole answer comes in one write.
				if n, err := conn.Read(answer); err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200 ")) {
					b.Fatalf("%q, %v", answer[:n], err)
				}
			}
			ask()
			b.ReportAllocs()
			for b.Loop() {
				ask()
			}
		})
	}
}

// terse is a reply to which the container falls silent: it notes nothing any more.
const terse = "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nX-Terse: 1\r\n\r\nhello"

// serveTersely answers without a look at what it is asked, as long as each request
// comes in one piece.
func (c *container) serveTersely(conn net.Conn) {
	reply := []byte(terse)
	buf := make([]byte, 4<<10)
	for {
		if _, err := conn.Read(buf); err != nil {
			return
		}
		if _, err := conn.Write(reply); err != nil {
			return
		}
	}
}
