package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

const goingAway = int(websocket.StatusGoingAway)

// soakUser is a user of a service.
type soakUser struct {
	*soak

	rng     *rand.Rand
	service string
	names   []string // of clients
	rpc     *grpc.ClientConn
}

func newUser(s *soak, rng *rand.Rand, service string) *soakUser {
	return &soakUser{soak: s, rng: rng, service: service, names: []string{"h1", "h2", "h3"}}
}

func (u *soakUser) leave() {
	if u.rpc != nil {
		_ = u.rpc.Close()
	}
}

// do does a request of f's kind, and notes in f what is wrong with the answer.
func (u *soakUser) do(ctx context.Context, f *failure) {
	c := u.clients[u.names[u.rng.IntN(len(u.names))]]
	plain := func(method, path string, body []byte, check func(*http.Response, string) bool) {
		var r io.Reader
		if body != nil {
			r = struct{ io.Reader }{bytes.NewReader(body)} // of unknown length
		}
		req, err := http.NewRequestWithContext(ctx, method, c.url(u.service, path), r)
		if err != nil {
			f.err = err
			return
		}
		if f.kind == "post" {
			req.ContentLength = int64(len(body))
		}
		if f.kind == "expect" {
			req.Header.Set("Expect", "100-continue")
		}
		u.exchange(f, c, req, check)
	}
	body := make([]byte, u.rng.IntN(1+u.rng.IntN(100_000)))
	for i := range body {
		body[i] = byte(u.rng.Uint32())
	}
	sum := fmt.Sprintf("%x %d", sha256.Sum256(body), len(body))
	switch f.kind {
	case "get":
		plain(http.MethodGet, "/env?name=K_SERVICE", nil, func(_ *http.Response, got string) bool { return got == u.service })
	case "head":
		plain(http.MethodHead, "/download?bytes=1234", nil, func(r *http.Response, got string) bool { return got == "" && r.ContentLength == 1234 })
	case "file head":
		plain(http.MethodHead, "/file", nil, func(r *http.Response, got string) bool { return got == "" && r.ContentLength == 1<<20 })
	case "download":
		plain(http.MethodGet, "/download?bytes=100000&ms=100", nil, func(_ *http.Response, got string) bool { return len(got) == 100_000 })
	case "post", "upload", "expect":
		plain(http.MethodPost, "/upload", body, func(_ *http.Response, got string) bool { return strings.HasPrefix(got, sum) })
	case "exclusive":
		plain(http.MethodGet, fmt.Sprintf("/exclusive?ms=%d", u.rng.IntN(100)), nil, func(_ *http.Response, got string) bool { return len(got) == 13 })
	case "events":
		want := u.rng.IntN(50)
		plain(http.MethodGet, fmt.Sprintf("/stream?ms=%d&every=20", 20*want+20), nil, func(_ *http.Response, got string) bool {
			n := strings.Count(got, "data: ")
			return n >= 1 && n <= want+1 && strings.HasSuffix(got, fmt.Sprintf("data: %d\n\n", n-1))
		})
	case "leave":
		u.abandon(ctx, f, c)
	case "websocket":
		u.talk(ctx, f, c)
	default:
		u.call(ctx, f)
	}
}

func (u *soakUser) exchange(f *failure, c *client, req *http.Request, check func(*http.Response, string) bool) {
	f.kind += " by " + c.proto
	req.Header.Set("X-Soak", f.id)
	resp, err := c.Do(req)
	if err != nil {
		f.err = err
		return
	}
	defer func() { _ = resp.Body.Close() }()
	got, err := io.ReadAll(resp.Body)
	switch {
	case resp.StatusCode != http.StatusOK:
		f.status, f.err = resp.StatusCode, fmt.Errorf("status %d, body %.200q; want 200", resp.StatusCode, got)
	case err != nil:
		f.err = fmt.Errorf("reading the body after %d bytes: %w", len(got), err)
	case !check(resp, string(got)):
		f.status, f.err = resp.StatusCode, fmt.Errorf("not the answer: length %d, body %.200q", resp.ContentLength, got)
	}
}

// abandon begins a request and leaves before its end, or in the middle of its body.
func (u *soakUser) abandon(ctx context.Context, f *failure, c *client) {
	f.kind += " by " + c.proto
	ctx, cancel := context.WithTimeout(ctx, time.Duration(u.rng.IntN(60))*time.Millisecond)
	defer cancel()
	body, w := io.Pipe()
	// Some transports wait for their reader of the body.
	defer context.AfterFunc(ctx, func() { _ = w.CloseWithError(context.Cause(ctx)) })()
	defer func() { _ = w.Close() }()
	method, path := http.MethodPost, "/upload"
	if u.rng.IntN(2) == 0 {
		method, path = http.MethodGet, "/stream?ms=5000&every=10"
		if u.service == "rpc" {
			path = "/file"
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url(u.service, path), nil)
	if err != nil {
		f.err = err
		return
	}
	if method == http.MethodPost {
		req.Body = body
		go func() { _, _ = w.Write(make([]byte, 10_000)) }()
	}
	req.Header.Set("X-Soak", f.id)
	resp, err := c.Do(req)
	if err != nil {
		if ctx.Err() == nil {
			f.err = err
		}
		return
	}
	defer func() { _ = resp.Body.Close() }()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil && ctx.Err() == nil {
		f.err = err
	}
	if resp.StatusCode != http.StatusOK {
		f.status, f.err = resp.StatusCode, fmt.Errorf("status %d; want 200", resp.StatusCode)
	}
}

// talk opens a WebSocket, has messages sent back for a while, and closes it.
func (u *soakUser) talk(ctx context.Context, f *failure, c *client) {
	f.kind += " by " + c.proto
	hc := &c.Client
	if c.proto != "HTTP/1.1" {
		hc = &http.Client{Transport: connector{u.t, c}}
	}
	conn, resp, err := websocket.Dial(ctx, c.url(u.service, "/ws"), &websocket.DialOptions{HTTPClient: hc, HTTPHeader: http.Header{"X-Soak": {f.id}}})
	if err != nil {
		f.err = err
		if resp != nil {
			f.status = resp.StatusCode
		}
		return
	}
	defer func() { _ = conn.CloseNow() }()
	until := time.Now().Add(time.Duration(u.rng.IntN(2500)) * time.Millisecond)
	for time.Now().Before(until) {
		want := bytes.Repeat([]byte{byte(u.rng.Uint32())}, u.rng.IntN(5000))
		wrote := conn.Write(ctx, websocket.MessageBinary, want)
		_, got, err := conn.Read(ctx)
		if err != nil {
			f.close = int(websocket.CloseStatus(err))
			f.err = fmt.Errorf("a message: %w", errors.Join(wrote, err))
			return
		}
		if !bytes.Equal(got, want) {
			f.status, f.err = http.StatusOK, fmt.Errorf("%d bytes came back for %d", len(got), len(want))
			return
		}
		time.Sleep(time.Duration(u.rng.IntN(200)) * time.Millisecond)
	}
	if err := conn.Close(websocket.StatusNormalClosure, ""); err != nil {
		f.close = int(websocket.CloseStatus(err))
		f.err = fmt.Errorf("closing: %w", err)
	}
}

// call makes a call of gRPC.
func (u *soakUser) call(ctx context.Context, f *failure) {
	if u.rpc == nil {
		conn, err := grpc.NewClient("passthrough:///"+u.tls, grpc.WithAuthority(u.service+".test"),
			grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: u.roots, ServerName: u.service + ".test"})))
		if err != nil {
			f.err = err
			return
		}
		u.rpc = conn
	}
	// A connection that Caddy's end has broken is made again.
	ctx = metadata.AppendToOutgoingContext(ctx, "x-soak", f.id)
	c := grpc_testing.NewTestServiceClient(u.rpc)
	want := payload(u.rng.IntN(50_000))
	switch f.kind {
	case "unary":
		got, err := c.UnaryCall(ctx, &grpc_testing.SimpleRequest{Payload: want}, grpc.WaitForReady(true))
		if f.err = err; err == nil && !proto.Equal(got.GetPayload(), want) {
			f.err = fmt.Errorf("%d bytes came back for %d", len(got.GetPayload().GetBody()), len(want.GetBody()))
		}
	case "client stream":
		stream, err := c.StreamingInputCall(ctx, grpc.WaitForReady(true))
		for range 5 {
			if err == nil {
				err = stream.Send(&grpc_testing.StreamingInputCallRequest{Payload: want})
			}
		}
		if err != nil && !errors.Is(err, io.EOF) {
			f.err = err
			return
		}
		got, err := stream.CloseAndRecv()
		if f.err = err; err == nil && int(got.GetAggregatedPayloadSize()) != 5*len(want.GetBody()) {
			f.err = fmt.Errorf("%d bytes arrived; want 5 times %d", got.GetAggregatedPayloadSize(), len(want.GetBody()))
		}
	case "server stream":
		in := new(grpc_testing.StreamingOutputCallRequest)
		for n := range 10 {
			in.ResponseParameters = append(in.ResponseParameters, &grpc_testing.ResponseParameters{Size: int32(1000 * n)})
		}
		stream, err := c.StreamingOutputCall(ctx, in, grpc.WaitForReady(true))
		n := 0
		for ; err == nil; n++ {
			_, err = stream.Recv()
		}
		if !errors.Is(err, io.EOF) || n != 11 {
			f.err = fmt.Errorf("%d messages: %w", n-1, err)
		}
	case "both streams":
		stream, err := c.FullDuplexCall(ctx, grpc.WaitForReady(true))
		if err != nil {
			f.err = err
			return
		}
		for range 1 + u.rng.IntN(10) {
			sent := stream.Send(&grpc_testing.StreamingOutputCallRequest{Payload: want})
			got, err := stream.Recv()
			if err != nil {
				f.err = errors.Join(sent, err)
				return
			}
			if !proto.Equal(got.GetPayload(), want) {
				f.err = errors.New("another message came back")
				return
			}
			time.Sleep(time.Duration(u.rng.IntN(50)) * time.Millisecond)
		}
		_ = stream.CloseSend()
		if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
			f.err = fmt.Errorf("at the end: %w", err)
		}
	default:
		f.err = errors.New("no such kind of request")
	}
}
