package e2e

import (
	"bufio"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
)

// exchange does one request and reads the whole response.
func (c *client) exchange(t *testing.T, method, service, path string, body io.Reader, change func(*http.Request)) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, c.url(service, path), body)
	if err != nil {
		t.Fatal(err)
	}
	change(req)
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("reading the body: %v", err)
	}
	return resp, string(got)
}

func asIs(*http.Request) {}

// TestProtocols does what HTTP can by every protocol, to an app that listens for
// HTTP/1.1 and to one that listens for HTTP/2. The first request of each starts the app.
func TestProtocols(t *testing.T) {
	h := newProtocolHost(t)
	ports := map[string]string{"http1": "port 8080", "h2c": "port h2c 8080"}
	var site strings.Builder
	for name := range h.clients {
		for port, option := range ports {
			site.WriteString(h.service(name+"-"+port, option))
		}
	}
	h.start(h.everywhere(site.String()))
	for name, c := range h.clients {
		for port := range ports {
			service := name + "-" + port
			h.run(service, func(t *testing.T) {
				want := "HTTP/1.1"
				if port == "h2c" {
					want = "HTTP/2.0"
				}
				if resp, got := c.exchange(t, http.MethodGet, service, "/", nil, asIs); got != want || resp.Proto != c.proto {
					t.Errorf("the app is asked by %s and the client answered by %s; want %s and %s", got, resp.Proto, want, c.proto)
				}
				for what, check := range map[string]func(*testing.T, *client, string){
					"events": checkEvents, "early hints": checkEarly, "trailers": checkTrailers, "expectations": checkExpectations,
					"files": checkFiles, "headers": checkHeaders, "duplex": checkDuplex, "upload": checkUpload,
				} {
					t.Run(what, func(t *testing.T) { check(t, c, service) })
				}
				h.awaitInFlight(service, 0)
			})
		}
	}
}

// checkEvents gets the second event only after it has acknowledged the first.
func checkEvents(t *testing.T, c *client, service string) {
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url(service, "/events?name=one"), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	events := bufio.NewReader(resp.Body)
	if line, err := events.ReadString('\n'); line != "data: 1\n" {
		t.Fatalf("%q, %v", line, err)
	}
	c.exchange(t, http.MethodPost, service, "/ack?name=one", nil, asIs)
	if rest, err := io.ReadAll(events); string(rest) != "\ndata: 2\n\n" || err != nil {
		t.Errorf("%q, %v", rest, err)
	}
}

// checkEarly gets both responses before the one that counts.
func checkEarly(t *testing.T, c *client, service string) {
	var links []string
	resp, got := c.exchange(t, http.MethodGet, service, "/early", nil, func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
				links = append(links, fmt.Sprint(code, " ", header.Get("Link")))
				return nil
			},
		}))
	})
	if want := []string{"103 </0.css>; rel=preload", "103 </1.css>; rel=preload"}; !cmp.Equal(links, want) || got != "late" || resp.StatusCode != http.StatusOK {
		t.Errorf("%q, then %d %q", links, resp.StatusCode, got)
	}
}

// checkTrailers has its trailers sent back.
func checkTrailers(t *testing.T, c *client, service string) {
	resp, got := c.exchange(t, http.MethodPost, service, "/trailers", io.MultiReader(strings.NewReader("body")), func(r *http.Request) {
		r.Trailer = http.Header{"X-Sum": {"42"}}
	})
	want := "42"
	if c.proto == "HTTP/3.0" {
		want = "" // quic-go tells the server of a request's trailers when Caddy's proxy has copied it
	}
	if got != "body" || resp.Trailer.Get("X-Sum") != want || strings.TrimSpace(resp.Trailer.Get("X-Late")) != strings.TrimSpace("of "+want) {
		t.Errorf("%q, trailer %v", got, resp.Trailer)
	}
}

// tattling tells whether it was read.
type tattling struct {
	io.Reader
	read bool
}

func (r *tattling) Read(p []byte) (int, error) {
	r.read = true
	return r.Reader.Read(p)
}

// checkExpectations asks before it sends a body: whether it is wanted is for the app to say.
func checkExpectations(t *testing.T, c *client, service string) {
	ask := func(r *http.Request) { r.Header.Set("Expect", "100-continue") }
	resp, got := c.exchange(t, http.MethodPost, service, "/upload", io.MultiReader(strings.NewReader("body")), ask)
	if resp.StatusCode != http.StatusOK || !strings.Contains(got, " 4 ") {
		t.Errorf("wanted: %d %q", resp.StatusCode, got)
	}
	if c.proto != "HTTP/1.1" {
		return // the other clients do not wait for the answer
	}
	body := &tattling{Reader: strings.NewReader("body")}
	resp, _ = c.exchange(t, http.MethodPost, service, "/refuse", body, ask)
	if resp.StatusCode != http.StatusExpectationFailed || body.read {
		t.Errorf("refused: %d, the body was sent: %t", resp.StatusCode, body.read)
	}
}

// checkFiles asks for a file, for parts of it, and for what is known of it.
func checkFiles(t *testing.T, c *client, service string) {
	resp, whole := c.exchange(t, http.MethodGet, service, "/file", nil, asIs)
	if resp.StatusCode != http.StatusOK || len(whole) != 1<<20 || resp.ContentLength != 1<<20 {
		t.Fatalf("%d, %d bytes of %d", resp.StatusCode, len(whole), resp.ContentLength)
	}
	tag := resp.Header.Get("ETag")
	resp, got := c.exchange(t, http.MethodHead, service, "/file", nil, asIs)
	if resp.StatusCode != http.StatusOK || got != "" || resp.ContentLength != 1<<20 || resp.Header.Get("Accept-Ranges") != "bytes" {
		t.Errorf("HEAD: %d, %d bytes, %v", resp.StatusCode, len(got), resp.Header)
	}
	part := func(of string) func(*http.Request) {
		return func(r *http.Request) { r.Header.Set("Range", "bytes="+of) }
	}
	resp, got = c.exchange(t, http.MethodGet, service, "/file", nil, part("1000-1999"))
	if resp.StatusCode != http.StatusPartialContent || got != whole[1000:2000] || resp.Header.Get("Content-Range") != "bytes 1000-1999/1048576" {
		t.Errorf("a part: %d, %d bytes, %v", resp.StatusCode, len(got), resp.Header)
	}
	resp, got = c.exchange(t, http.MethodGet, service, "/file", nil, part("0-9,-10"))
	if resp.StatusCode != http.StatusPartialContent || !strings.Contains(got, whole[:10]) || !strings.Contains(got, whole[len(whole)-10:]) {
		t.Errorf("two parts: %d, %d bytes, %v", resp.StatusCode, len(got), resp.Header)
	}
	if resp, _ := c.exchange(t, http.MethodGet, service, "/file", nil, part("2000000-")); resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
		t.Errorf("a part that is not there: %d", resp.StatusCode)
	}
	if resp, _ := c.exchange(t, http.MethodGet, service, "/file", nil, func(r *http.Request) { r.Header.Set("If-None-Match", tag) }); resp.StatusCode != http.StatusNotModified {
		t.Errorf("the same as before: %d", resp.StatusCode)
	}
}

// checkHeaders sends and gets large headers, and one that Caddy does not take.
func checkHeaders(t *testing.T, c *client, service string) {
	large := func(size int) func(*http.Request) {
		return func(r *http.Request) {
			for left := size; left > 0; left -= 1000 {
				r.Header.Add("X-Large", strings.Repeat("x", min(left, 1000)))
			}
		}
	}
	// Caddy takes 16 KB unless it is told otherwise: max_header_size.
	const sent, got = 10_000, 200_000
	resp, told := c.exchange(t, http.MethodGet, service, "/headers?bytes="+strconv.Itoa(got), nil, large(sent))
	if n := len(strings.Join(resp.Header.Values("X-Large"), "")); resp.StatusCode != http.StatusOK || told != strconv.Itoa(sent) || n != got {
		t.Errorf("%d: a header of %s bytes went, one of %d came; want %d and %d", resp.StatusCode, told, n, sent, got)
	}
	if c.proto == "HTTP/2.0" {
		return // its client is told the limit, and does not even try
	}
	if resp, _ := c.exchange(t, http.MethodGet, service, "/", nil, large(50_000)); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("a header of 50 KB: %d", resp.StatusCode)
	}
}

// checkDuplex sends each part of its body after it has got the one before back.
func checkDuplex(t *testing.T, c *client, service string) {
	if c.proto == "HTTP/1.1" || strings.HasSuffix(service, "-http1") {
		return // HTTP/1.1 does not promise it
	}
	body, w := io.Pipe()
	defer func() { _ = w.Close() }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url(service, "/duplex"), body)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = w.Write([]byte("0")) }()
	resp, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	for n := range 10 {
		var got [1]byte
		if _, err := io.ReadFull(resp.Body, got[:]); err != nil || got[0] != byte('0'+n) {
			t.Fatalf("part %d: %q, %v", n, got, err)
		}
		if _, err := w.Write([]byte{byte('1' + n)}); err != nil {
			t.Fatal(err)
		}
	}
}

// checkUpload sends a body whose length it does not say.
func checkUpload(t *testing.T, c *client, service string) {
	upload(t, c, service, 8<<20)
}

func upload(t *testing.T, c *client, service string, size int64) {
	t.Helper()
	sum := sha256.New()
	source := io.TeeReader(io.LimitReader(rand.NewChaCha8([32]byte{1}), size), sum)
	resp, got := c.exchange(t, http.MethodPost, service, "/upload", source, asIs)
	if want := fmt.Sprintln(hex.EncodeToString(sum.Sum(nil)), size, -1); resp.StatusCode != http.StatusOK || got != want {
		t.Errorf("%d %q; want %q", resp.StatusCode, got, want)
	}
}

// TestUpload sends far more than Caddy may need for it.
func TestUpload(t *testing.T) {
	const size = 256 << 20
	h := newProtocolHost(t)
	h.start(h.everywhere(h.service("hello")))
	names := []string{"h1"}
	if full() {
		names = []string{"h1", "h1tls", "h2", "h2c", "h3"}
	}
	for _, name := range names {
		upload(t, h.clients[name], "hello", 1<<20)
		before := h.mostMemory()
		upload(t, h.clients[name], "hello", size)
		if grown := h.mostMemory() - before; grown > size/4 {
			t.Errorf("%s: while %d MB went through Caddy it has grown by %d MB", name, size>>20, grown>>20)
		}
	}
}

// mostMemory is the most that Caddy has held so far, in bytes.
func (h *host) mostMemory() int64 {
	h.t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", h.pid()))
	h.check(err)
	for line := range strings.Lines(string(data)) {
		if value, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			h.check(err)
			return kb << 10
		}
	}
	h.t.Fatal("Caddy's memory is not told")
	return 0
}

// TestGRPC makes calls of every kind, from zero and warm, to Go's HTTP server and to
// grpc-go's own.
func TestGRPC(t *testing.T) {
	h := newProtocolHost(t)
	kinds := map[string]func(context.Context, *testing.T, grpc_testing.TestServiceClient){
		"unary": checkUnary, "client": checkClientStream, "server": checkServerStream, "both": checkBothStreams, "failure": checkFailure,
	}
	var site strings.Builder
	checks := make(map[string]func(context.Context, *testing.T, grpc_testing.TestServiceClient))
	for kind, check := range kinds {
		for server, own := range map[string]string{"http": "0", "own": "1"} {
			service := kind + "-" + server
			checks[service] = check
			site.WriteString(h.service(service, "port h2c 8080", "concurrency 10", "env GRPC "+own))
		}
	}
	h.start(h.everywhere(site.String()))
	for service, check := range checks {
		h.run(service, func(t *testing.T) {
			conn := h.dialGRPC(service)
			ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
			defer cancel()
			check(ctx, t, grpc_testing.NewTestServiceClient(conn))
			wg := crowd(t)
			for range 20 {
				wg.Go(func() { check(ctx, t, grpc_testing.NewTestServiceClient(conn)) })
			}
			wg.Wait()
			h.awaitInFlight(service, 0)
		})
	}
}

// dialGRPC makes a client of a service.
func (h *protocolHost) dialGRPC(service string) *grpc.ClientConn {
	h.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+h.tls, grpc.WithAuthority(service+".test"),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: h.roots, ServerName: service + ".test"})))
	h.check(err)
	h.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

const (
	rpcHeader  = "x-grpc-test-echo-initial"
	rpcTrailer = "x-grpc-test-echo-trailing-bin"
)

func withMetadata(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, rpcHeader, "at first", rpcTrailer, "\x00at last")
}

func checkMetadata(t *testing.T, header, trailer metadata.MD) {
	t.Helper()
	if first, last := header.Get(rpcHeader), trailer.Get(rpcTrailer); !cmp.Equal(first, []string{"at first"}) || !cmp.Equal(last, []string{"\x00at last"}) {
		t.Errorf("header %q, trailer %q", first, last)
	}
}

func payload(size int) *grpc_testing.Payload {
	return &grpc_testing.Payload{Body: []byte(strings.Repeat("x", size))}
}

func checkUnary(ctx context.Context, t *testing.T, c grpc_testing.TestServiceClient) {
	var header, trailer metadata.MD
	want := payload(300_000)
	got, err := c.UnaryCall(withMetadata(ctx), &grpc_testing.SimpleRequest{Payload: want}, grpc.Header(&header), grpc.Trailer(&trailer))
	if err != nil || !proto.Equal(got.GetPayload(), want) {
		t.Errorf("%d bytes, %v", len(got.GetPayload().GetBody()), err)
	}
	checkMetadata(t, header, trailer)
}

func checkClientStream(ctx context.Context, t *testing.T, c grpc_testing.TestServiceClient) {
	stream, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	for range 10 {
		if err := stream.Send(&grpc_testing.StreamingInputCallRequest{Payload: payload(10_000)}); err != nil {
			t.Error(err)
			return
		}
	}
	if got, err := stream.CloseAndRecv(); err != nil || got.GetAggregatedPayloadSize() != 100_000 {
		t.Errorf("%v, %v", got, err)
	}
}

func checkServerStream(ctx context.Context, t *testing.T, c grpc_testing.TestServiceClient) {
	in := new(grpc_testing.StreamingOutputCallRequest)
	for n := range 10 {
		in.ResponseParameters = append(in.ResponseParameters, &grpc_testing.ResponseParameters{Size: int32(1000 * n)})
	}
	stream, err := c.StreamingOutputCall(ctx, in)
	if err != nil {
		t.Error(err)
		return
	}
	for n := range 10 {
		if got, err := stream.Recv(); err != nil || len(got.GetPayload().GetBody()) != 1000*n {
			t.Errorf("message %d: %d bytes, %v", n, len(got.GetPayload().GetBody()), err)
		}
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
}

// checkBothStreams sends each message after it has got the one before back.
func checkBothStreams(ctx context.Context, t *testing.T, c grpc_testing.TestServiceClient) {
	stream, err := c.FullDuplexCall(withMetadata(ctx))
	if err != nil {
		t.Error(err)
		return
	}
	for n := range 10 {
		want := payload(100 * n)
		if err := stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: want}); err != nil {
			t.Error(err)
			return
		}
		if got, err := stream.Recv(); err != nil || !proto.Equal(got.GetPayload(), want) {
			t.Errorf("message %d: %v, %v", n, got, err)
			return
		}
	}
	if err := stream.CloseSend(); err != nil {
		t.Error(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("at the end: %v", err)
	}
	header, err := stream.Header()
	if err != nil {
		t.Error(err)
	}
	checkMetadata(t, header, stream.Trailer())
}

// checkFailure gets a status with its details, in answer to a call and in the middle of a
// stream.
func checkFailure(ctx context.Context, t *testing.T, c grpc_testing.TestServiceClient) {
	want := &grpc_testing.EchoStatus{Code: int32(codes.Aborted), Message: "not today: ünïcode\t%"}
	check := func(err error) {
		t.Helper()
		s := status.Convert(err)
		if s.Code() != codes.Aborted || s.Message() != want.GetMessage() || len(s.Details()) != 1 || !cmp.Equal(s.Details()[0], any(want), protocmp.Transform()) {
			t.Errorf("%v, details %v", err, s.Details())
		}
	}
	_, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{ResponseStatus: want})
	check(err)
	stream, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Error(err)
		return
	}
	for _, in := range []*grpc_testing.StreamingOutputCallRequest{{Payload: payload(1)}, {ResponseStatus: want}} {
		if err := stream.Send(in); err != nil {
			t.Error(err)
		}
	}
	if _, err := stream.Recv(); err != nil {
		t.Error(err)
	}
	_, err = stream.Recv()
	check(err)
	if _, err := c.EmptyCall(ctx, new(grpc_testing.Empty)); status.Code(err) != codes.Unimplemented {
		t.Errorf("what the app does not have: %v", err)
	}
}
