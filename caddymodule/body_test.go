package caddymodule

import (
	"bufio"
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/fairway-run/fairway/revisions"
)

// TestARefusedBodyIsNotAwaited asks whether a body is wanted, and is told no. It does not
// send it, so an answer that waited for it would never come.
func TestARefusedBodyIsNotAwaited(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n}", func(string, *revisions.Revision) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusExpectationFailed) })
	})
	for _, length := range []string{"Content-Length: 4", "Transfer-Encoding: chunked"} {
		conn, err := net.Dial("tcp", "127.0.0.1:"+h.port)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nExpect: 100-continue\r\n%s\r\n\r\n", h.port, length)
		if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || !strings.Contains(line, "417") {
			t.Errorf("%s: %q, %v", length, line, err)
		}
	}
}
