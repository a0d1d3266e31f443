package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/coder/websocket"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/interop/grpc_testing"
)

const (
	streamRounds = 5
	// perInstance is the largest concurrency that there is.
	perInstance = 1000
	rpcAddr     = "127.0.0.1:8981"
	rpcProxy    = "127.0.0.1:8982"
)

// streams compares the messages a second of WebSockets and of gRPC streams
// through Fairway with those through Caddy's own reverse_proxy to the same
// instance, and the memory that idle WebSockets hold.
func streams(ctx context.Context, s *settings, h *host) (err error) {
	if s.sockets, err = bounded(s.sockets); err != nil {
		return err
	}
	var g goals
	if err := talk(ctx, s, h, &g); err != nil {
		return err
	}
	if err := hold(ctx, s, h, &g); err != nil {
		return err
	}
	return g.err()
}

// ownFiles are the descriptors that Caddy has besides those of requests, at most.
const ownFiles = 200

// bounded is how many sockets there can be, up to a number. Each takes two
// descriptors of Caddy, which inherits the limit that is raised here.
func bounded(sockets int) (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	want := uint64(2*sockets + ownFiles)
	if want <= limit.Cur {
		return sockets, nil
	}
	if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: want, Max: max(want, limit.Max)}) == nil {
		return sockets, nil
	}
	limit.Cur = limit.Max // more is not allowed, not even to root
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("raising the limit of open files: %w", err)
	}
	sockets = (int(limit.Max) - ownFiles) / 2
	fmt.Printf("%d open files are allowed here: %d idle WebSockets\n", limit.Max, sockets)
	return sockets, nil
}

// talk measures messages.
func talk(ctx context.Context, s *settings, h *host, g *goals) (err error) {
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	c.servers = []string{"protocols h1 h2c"}
	ours := []string{
		site(siteAddr, service("sockets", protocolsImage, "concurrency 1000", "instances 1 1", "cpu_throttling false")),
		site(rpcAddr, service("rpc", protocolsImage, "port h2c 8080", "concurrency 1000", "instances 1 1", "cpu_throttling false")),
	}
	if err := c.load(ctx, c.config(ours...)); err != nil {
		return err
	}
	addresses, err := c.addresses(ctx, 2)
	if err != nil {
		return err
	}
	if err := c.load(ctx, c.config(append(ours,
		site(proxyAddr, "\treverse_proxy "+addresses["sockets"][0]+"\n"),
		site(rpcProxy, "\treverse_proxy h2c://"+addresses["rpc"][0]+"\n"))...)); err != nil {
		return err
	}
	length := time.Duration(s.seconds) * time.Second
	fmt.Printf("messages a second of 64 bytes, there and back, %d streams, median of %d rounds of %s in turn\n", connections, streamRounds, length)
	fmt.Printf("%-14s %12s %14s %8s\n", "", "fairway", "reverse_proxy", "ratio")
	for _, kind := range []struct {
		name        string
		ours, stock string
		open        func(ctx context.Context, address string, n int) ([]func() error, func(), error)
	}{
		{"WebSocket", siteAddr, proxyAddr, openSockets},
		{"gRPC", rpcAddr, rpcProxy, openCalls},
	} {
		var fairway, proxy []float64
		for range streamRounds {
			for _, side := range []struct {
				address string
				rates   *[]float64
			}{{kind.ours, &fairway}, {kind.stock, &proxy}} {
				rate, err := exchanged(ctx, side.address, length, kind.open)
				if err != nil {
					return fmt.Errorf("%s at %s: %w", kind.name, side.address, err)
				}
				*side.rates = append(*side.rates, rate)
			}
		}
		ratio := median(fairway) / median(proxy)
		fmt.Printf("%-14s %12.0f %14.0f %8.2f\n", kind.name, median(fairway), median(proxy), ratio)
		g.row(kind.name, fmt.Sprintf("%.2f of reverse_proxy's", ratio), ">= 1", ratio >= 1)
	}
	return nil
}

// exchanged opens streams and returns how many messages a second go there and
// back.
func exchanged(ctx context.Context, address string, length time.Duration, open func(context.Context, string, int) ([]func() error, func(), error)) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	all, closeAll, err := open(ctx, address, connections)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	var wg sync.WaitGroup
	var count atomic.Int64
	var failed atomic.Pointer[error]
	began := time.Now()
	for _, exchange := range all {
		wg.Go(func() {
			for time.Since(began) < length {
				if err := exchange(); err != nil {
					failed.CompareAndSwap(nil, &err)
					return
				}
				count.Add(1)
			}
		})
	}
	wg.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(count.Load()) / time.Since(began).Seconds(), nil
}

var message = []byte(strings.Repeat("message.", 8))

func openSockets(ctx context.Context, address string, n int) (all []func() error, closeAll func(), err error) {
	var conns []*websocket.Conn
	closeAll = func() {
		for _, conn := range conns {
			_ = conn.CloseNow()
		}
	}
	for range n {
		conn, resp, err := websocket.Dial(ctx, "ws://"+address+"/ws", nil)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		if resp.Body != nil {
			defer resp.Body.Close()
		}
		conns = append(conns, conn)
		all = append(all, func() error {
			if err := conn.Write(ctx, websocket.MessageBinary, message); err != nil {
				return err
			}
			_, _, err := conn.Read(ctx)
			return err
		})
	}
	return all, closeAll, nil
}

func openCalls(ctx context.Context, address string, n int) (all []func() error, closeAll func(), err error) {
	const perConnection = 16
	var conns []*grpc.ClientConn
	closeAll = func() {
		for _, conn := range conns {
			_ = conn.Close()
		}
	}
	request := &grpc_testing.StreamingOutputCallRequest{Payload: &grpc_testing.Payload{Body: message}}
	for i := range n {
		if i%perConnection == 0 {
			conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				closeAll()
				return nil, nil, err
			}
			conns = append(conns, conn)
		}
		stream, err := grpc_testing.NewTestServiceClient(conns[len(conns)-1]).FullDuplexCall(ctx)
		if err != nil {
			closeAll()
			return nil, nil, err
		}
		all = append(all, func() error {
			if err := stream.Send(request); err != nil {
				return err
			}
			_, err := stream.Recv()
			return err
		})
	}
	return all, closeAll, nil
}

// hold measures what idle WebSockets cost in Caddy's memory.
func hold(ctx context.Context, s *settings, h *host, g *goals) error {
	fairway, err := held(ctx, s.sockets, h, siteAddr)
	if err != nil {
		return err
	}
	proxy, err := held(ctx, s.sockets, h, proxyAddr)
	if err != nil {
		return err
	}
	fmt.Printf("memory of Caddy for each of %d idle WebSockets: %.1f kB through fairway, %.1f kB through reverse_proxy\n", s.sockets, fairway/1e3, proxy/1e3)
	g.row("an idle WebSocket", fmt.Sprintf("%.2f of reverse_proxy's", fairway/proxy), "<= 1", fairway <= proxy)
	return nil
}

// held opens WebSockets through a Caddy of their own and returns what each of them
// adds to its memory, in bytes.
func held(ctx context.Context, n int, h *host, address string) (each float64, err error) {
	c, err := h.newCaddy()
	if err != nil {
		return 0, err
	}
	defer c.close(&err)
	instances := (n + perInstance - 1) / perInstance
	ours := site(siteAddr, service("sockets", protocolsImage, fmt.Sprint("concurrency ", perInstance), fmt.Sprint("instances ", instances, " ", instances),
		"cpu_throttling false", "concurrency_target off"))
	if err := c.load(ctx, c.config(ours)); err != nil {
		return 0, err
	}
	addresses, err := c.addresses(ctx, instances)
	if err != nil {
		return 0, err
	}
	if err := c.load(ctx, c.config(ours, site(proxyAddr, "\treverse_proxy "+strings.Join(addresses["sockets"], " ")+" {\n\t\tlb_policy round_robin\n\t}\n"))); err != nil {
		return 0, err
	}
	if _, err := c.heap(ctx); err != nil { // collected
		return 0, err
	}
	before, err := residentMemory(c.pid())
	if err != nil {
		return 0, err
	}
	_, closeAll, err := openSockets(ctx, address, n)
	if err != nil {
		return 0, err
	}
	defer closeAll()
	if _, err := c.heap(ctx); err != nil {
		return 0, err
	}
	after, err := residentMemory(c.pid())
	return float64(after-before) / float64(n), err
}

// addresses waits for n instances and returns where they listen, by service.
func (c *caddy) addresses(ctx context.Context, n int) (map[string][]string, error) {
	addresses := make(map[string][]string)
	err := c.await(ctx, time.Minute, fmt.Sprintf("%d instances are ready", n), func(all []instance) bool { return in(all, "", "ready") == n })
	if err != nil {
		return nil, err
	}
	all, err := c.instances(ctx)
	if err != nil {
		return nil, err
	}
	if len(all) != n {
		return nil, errors.New("there should be " + fmt.Sprint(n) + " instances; there are " + count(all))
	}
	for _, i := range all {
		addresses[i.Service] = append(addresses[i.Service], i.Address)
	}
	return addresses, nil
}
