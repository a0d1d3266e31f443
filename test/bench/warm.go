package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fairway-run/fairway/test/images"
)

const (
	warmRounds = 5
	nginxImage = "localhost/fairway/nginx:bench"
	kamalPort  = "8979"
	kamalAddr  = "127.0.0.1:" + kamalPort

	// What Fairway's throughput should be of that of others, and its allocations of
	// Caddy's own.
	overProxy = 1.5
	overKamal = 1.3
	fewer     = 0.5
)

// nginxConfig serves one small page.
const nginxConfig = `worker_processes 1;
daemon off;
error_log stderr error;
pid /tmp/nginx.pid;
events { worker_connections 2048; }
http {
	access_log off;
	keepalive_requests 1000000;
	client_body_temp_path /tmp/body;
	proxy_temp_path /tmp/proxy;
	fastcgi_temp_path /tmp/fastcgi;
	uwsgi_temp_path /tmp/uwsgi;
	scgi_temp_path /tmp/scgi;
	server { listen 8080 backlog=2048; root /srv; default_type text/html; }
}
`

// warm compares the throughput of a ready instance, which is Debian's nginx,
// through Fairway with that of Caddy's own reverse_proxy to the same instance, in
// the same process; with kamal-proxy's, if there is one; and with nginx's own.
func warm(ctx context.Context, s *settings, h *host) (err error) {
	if err := needWrk(); err != nil {
		return err
	}
	if err := h.importNginx(ctx); err != nil {
		return err
	}
	c, err := h.newCaddy()
	if err != nil {
		return err
	}
	defer c.close(&err)
	// Never frozen: Fairway does not know of the requests of the other sides.
	ours := site(siteAddr, service("nginx", nginxImage, "concurrency 1000", "instances 1 1", "cpu_throttling false", "cpu 2"))
	if err := c.load(ctx, c.config(ours)); err != nil {
		return err
	}
	address, err := c.address(ctx)
	if err != nil {
		return err
	}
	if err := c.load(ctx, c.config(ours, site(proxyAddr, "\treverse_proxy "+address+"\n"))); err != nil {
		return err
	}
	all := []*measured{{name: "fairway", address: siteAddr, pid: c.pid()}, {name: "reverse_proxy", address: proxyAddr, pid: c.pid()}}
	if s.kamal != "" {
		pid, stop, err := startKamal(ctx, s.kamal, c.dir, address)
		if err != nil {
			return err
		}
		defer stop()
		all = append(all, &measured{name: "kamal-proxy", address: kamalAddr, pid: pid})
	}
	all = append(all, &measured{name: "nginx alone", address: address})
	length := time.Duration(s.seconds) * time.Second
	for range warmRounds {
		for _, side := range all {
			if err := side.measure(ctx, c, length); err != nil {
				return fmt.Errorf("%s: %w", side.name, err)
			}
		}
	}
	fairway := all[0]
	fmt.Printf("warm, %d connections, median of %d rounds of %s in turn, the same nginx behind all\n", connections, warmRounds, length)
	fmt.Printf("%-14s %12s %10s %10s %14s %22s %18s\n", "", "requests/s", "p50", "p99", "CPU a request", "allocations a request", "fairway over it")
	for i, side := range all {
		cpu, allocations, ratio := "", "", ""
		if side.pid != 0 {
			cpu = fmt.Sprintf("%.1fµs", median(side.cpu))
		}
		if i < 2 {
			allocations = fmt.Sprintf("%.0f", median(side.allocations))
		}
		if i > 0 {
			ratio = fmt.Sprintf("%.2f", median(fairway.rate)/median(side.rate))
		}
		fmt.Printf("%-14s %12.0f %8.0fµs %8.0fµs %14s %22s %18s\n", side.name, median(side.rate), median(side.p50), median(side.p99), cpu, allocations, ratio)
	}
	return warmGoals(all)
}

func warmGoals(all []*measured) error {
	var g goals
	fairway, proxy := all[0], all[1]
	part := median(fairway.allocations) / median(proxy.allocations)
	g.row("allocations", fmt.Sprintf("%.2f of reverse_proxy's", part), fmt.Sprintf("<= %.1f", fewer), part <= fewer)
	for _, other := range all[1:] {
		goal := map[string]float64{"reverse_proxy": overProxy, "kamal-proxy": overKamal}[other.name]
		if goal == 0 {
			continue
		}
		ratio := median(fairway.rate) / median(other.rate)
		g.row("throughput", fmt.Sprintf("%.2f of %s's", ratio, other.name), fmt.Sprintf(">= %.1f", goal), ratio >= goal)
		g.row("p50 and p99", fmt.Sprintf("%.2f and %.2f of %s's", median(fairway.p50)/median(other.p50), median(fairway.p99)/median(other.p99), other.name),
			"< 1", median(fairway.p50) < median(other.p50) && median(fairway.p99) < median(other.p99))
	}
	return g.err()
}

// importNginx makes an image of Debian's nginx.
func (h *host) importNginx(ctx context.Context) error {
	archive, err := images.Build(ctx, images.Options{
		Name: nginxImage, Debian: []string{"nginx"}, Entrypoint: []string{"nginx", "-c", "/etc/nginx/bench.conf"},
		Files: map[string][]byte{
			"/etc/nginx/bench.conf": []byte(nginxConfig),
			"/etc/passwd":           []byte("root:x:0:0::/:\nnobody:x:65534:65534::/:\n"),
			"/etc/group":            []byte("root:x:0:\nnogroup:x:65534:\n"),
			"/srv/index.html":       []byte("<!doctype html><title>Hello</title><p>" + strings.Repeat("Hello from nginx. ", 30) + "</p>\n"),
		},
	})
	if err != nil {
		return err
	}
	return h.daemon.Import(ctx, archive, namespace)
}

// startKamal starts kamal-proxy before a target.
func startKamal(ctx context.Context, program, dir, target string) (pid int, stop func(), err error) {
	dir = filepath.Join(dir, "kamal")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return 0, nil, err
	}
	env := append(os.Environ(), "XDG_RUNTIME_DIR="+dir, "XDG_CONFIG_HOME="+dir, "HOME="+dir)
	run := exec.Command(program, "run", "--http-port", kamalPort, "--https-port", "8980")
	run.Env = env
	if err := run.Start(); err != nil {
		return 0, nil, fmt.Errorf("starting kamal-proxy: %w", err)
	}
	stop = func() {
		_ = run.Process.Kill()
		_ = run.Wait()
	}
	var out []byte
	if late := poll(ctx, 200*time.Millisecond, 30*time.Second, func() bool {
		deploy := exec.CommandContext(ctx, program, "deploy", "bench", "--target", target, "--health-check-path", "/")
		deploy.Env = env
		out, err = deploy.CombinedOutput()
		return err == nil
	}); late != nil {
		stop()
		return 0, nil, errors.Join(fmt.Errorf("deploying with kamal-proxy: %w\n%s", late, out), err)
	}
	return run.Process.Pid, stop, nil
}

// address is where the only instance listens.
func (c *caddy) address(ctx context.Context) (string, error) {
	if _, err := firstByte(ctx, siteAddr); err != nil {
		return "", err
	}
	all, err := c.instances(ctx)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("one instance should run; there are %s", count(all))
	}
	return all[0].Address, nil
}

// measured is one of the sides, round by round.
type measured struct {
	name, address               string
	pid                         int // of the proxy; 0: there is none
	rate, p50, p99, allocations []float64
	cpu                         []float64 // of the proxy, in µs a request
}

func (m *measured) measure(ctx context.Context, c *caddy, length time.Duration) error {
	before, err := c.allocations(ctx)
	if err != nil {
		return err
	}
	used, err := m.used()
	if err != nil {
		return err
	}
	l, err := wrk(ctx, "http://"+m.address+"/", length)
	if err != nil {
		return err
	}
	usedLater, err := m.used()
	if err != nil {
		return err
	}
	after, err := c.allocations(ctx)
	if err != nil {
		return err
	}
	m.rate, m.p50, m.p99 = append(m.rate, l.rate), append(m.p50, l.p50), append(m.p99, l.p99)
	m.allocations = append(m.allocations, float64(after-before)/float64(l.requests))
	m.cpu = append(m.cpu, float64((usedLater-used).Microseconds())/float64(l.requests))
	return nil
}

// used is the processor time that the proxy has used.
func (m *measured) used() (time.Duration, error) {
	if m.pid == 0 {
		return 0, nil
	}
	return cpuTime(m.pid)
}
