package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

const (
	// adminAddr is where the measured Caddy's admin endpoint is.
	adminAddr = "127.0.0.1:2977"
	sitePort  = "8977"
	siteAddr  = "127.0.0.1:" + sitePort
	proxyAddr = "127.0.0.1:8978"
)

// caddy is a Caddy with a registry of its own. Only one of a host runs at a time:
// they share their addresses, and the state directory that knows the instances'.
type caddy struct {
	host *host
	dir  string
	// global are lines of the global option, besides those that every bench needs.
	global []string
	// servers are lines of the global option of that name.
	servers []string
	cmd     *exec.Cmd  // nil while it does not run
	ended   chan error // gets what cmd.Wait returns
	log     *os.File
}

// newCaddy returns one that load starts.
func (h *host) newCaddy() (*caddy, error) {
	// Below the daemon's directory, with which it is removed; what a killed bench
	// leaves, mounts too, is removed by the next one.
	dir, err := os.MkdirTemp(h.daemon.Dir(), "bench-")
	if err != nil {
		return nil, err
	}
	c := &caddy{host: h, dir: dir}
	return c, os.Mkdir(c.services(), 0o700)
}

// services is a directory for global's services_dir.
func (c *caddy) services() string { return filepath.Join(c.dir, "services") }

func (c *caddy) logFile() string { return filepath.Join(c.dir, "caddy.log") }

func (c *caddy) pid() int { return c.cmd.Process.Pid }

// config is a Caddyfile with these sites.
func (c *caddy) config(sites ...string) string {
	return fmt.Sprintf(`{
	admin %s
	auto_https off
	log {
		level ERROR
	}
	servers {
		%s
	}
	fairway {
		runtime containerd {
			address   %s
			namespace %s
			subnet    %s
			state_dir %s
		}
		on_exit stop
		%s
	}
}
%s`, adminAddr, strings.Join(c.servers, "\n\t\t"), c.host.daemon.Address(), namespace, subnet, filepath.Join(c.host.daemon.Dir(), "fairway"),
		strings.Join(c.global, "\n\t\t"), strings.Join(sites, ""))
}

// site is a site on the loopback interface.
func site(address, body string) string {
	return fmt.Sprintf("http://%s {\n\tbind 127.0.0.1\n%s}\n", address, body)
}

// service is a directive that declares a service.
func service(name, image string, options ...string) string {
	return fmt.Sprintf("\tfairway %s {\n\t\timage %s\n\t\t%s\n\t}\n", name, image, strings.Join(options, "\n\t\t"))
}

// hosted is a service at a host of its own, of its name.
func hosted(name, image string, options ...string) string {
	return site(hostOf(name), service(name, image, options...))
}

// hostOf is the host and port of such a service.
func hostOf(name string) string { return name + ".bench:" + sitePort }

// load gives Caddy a config, and starts it if it does not run.
func (c *caddy) load(ctx context.Context, config string) error {
	if c.cmd == nil {
		return c.start(ctx, config)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+adminAddr+"/load", strings.NewReader(config))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("reloading: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("reloading: %s: %s", resp.Status, text)
	}
	return nil
}

func (c *caddy) start(ctx context.Context, config string) error {
	file := filepath.Join(c.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	log, err := os.Create(c.logFile())
	if err != nil {
		return err
	}
	cmd := exec.Command(c.host.program, "run", "--config", file)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "XDG_DATA_HOME="+c.dir, "XDG_CONFIG_HOME="+c.dir)
	if err := cmd.Start(); err != nil {
		return errors.Join(fmt.Errorf("starting %s: %w", c.host.program, err), log.Close())
	}
	c.cmd, c.log, c.ended = cmd, log, make(chan error, 1)
	go func() { c.ended <- cmd.Wait() }()
	if err := poll(ctx, 2*time.Millisecond, 30*time.Second, func() bool {
		conn, err := net.Dial("tcp", siteAddr)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil || len(c.ended) > 0
	}); err != nil {
		return errors.Join(fmt.Errorf("waiting for Caddy: %w", err), c.exit())
	}
	// It ends when an address is in use, and then somebody else has answered.
	if err := pause(ctx, 200*time.Millisecond); err != nil || len(c.ended) > 0 {
		return errors.Join(errors.New("starting Caddy"), err, c.exit())
	}
	return nil
}

// close ends Caddy and all that it runs. If the bench has failed, or this does, err
// gets what Caddy has logged.
func (c *caddy) close(err *error) {
	if c.cmd != nil {
		*err = errors.Join(*err, c.retire(), c.exit())
	}
	if text, _ := os.ReadFile(c.logFile()); *err != nil && len(text) > 0 {
		*err = fmt.Errorf("%w\nCaddy's log:\n%s", *err, text)
	}
}

// retire ends all instances. On its exit Caddy would have only a few seconds for
// that, which are too few for many of them.
func (c *caddy) retire() error {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	files, err := filepath.Glob(filepath.Join(c.services(), "*"))
	if err != nil {
		return err
	}
	for _, file := range files {
		err = errors.Join(err, os.Remove(file))
	}
	err = errors.Join(err, c.load(ctx, c.config()))
	if err != nil {
		return err
	}
	return c.await(ctx, 3*time.Minute, "all instances are gone", nothing)
}

func (c *caddy) exit() error {
	_ = c.cmd.Process.Signal(syscall.SIGTERM)
	err := <-c.ended
	c.cmd = nil
	return errors.Join(err, c.log.Close())
}

// instance is what the admin API shows of one.
type instance struct {
	Service  string `json:"service"`
	Instance string `json:"instance"`
	State    string `json:"state"`
	Address  string `json:"address"`
}

// instances are all there are.
func (c *caddy) instances(ctx context.Context) ([]instance, error) {
	var all []instance
	return all, getJSON(ctx, "/fairway/instances", &all)
}

// await waits until the instances are as they should be.
func (c *caddy) await(ctx context.Context, patience time.Duration, what string, is func([]instance) bool) error {
	var all []instance
	var err error
	if timeout := poll(ctx, 10*time.Millisecond, patience, func() bool {
		all, err = c.instances(ctx)
		return err == nil && is(all)
	}); timeout != nil {
		return errors.Join(fmt.Errorf("waiting until %s: %w; there are %s", what, timeout, count(all)), err)
	}
	return nil
}

func nothing(all []instance) bool { return len(all) == 0 }

// in counts the instances of a service, or of all if its name is empty, that
// have the state.
func in(all []instance, service, state string) int {
	n := 0
	for _, i := range all {
		if (service == "" || i.Service == service) && i.State == state {
			n++
		}
	}
	return n
}

// count says how many instances there are by state.
func count(all []instance) string {
	states := make(map[string]int)
	for _, i := range all {
		states[i.State]++
	}
	return fmt.Sprintf("%d instances, %v", len(all), states)
}

// getJSON asks the admin API.
func getJSON(ctx context.Context, path string, to any) error {
	text, err := admin(ctx, path)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, to); err != nil {
		return fmt.Errorf("GET %s: %w", path, err)
	}
	return nil
}

// admin returns what the admin endpoint answers.
func admin(ctx context.Context, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+adminAddr+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("GET %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("GET %s: %s: %s", path, resp.Status, text)
	}
	return text, nil
}

// poll asks every so often until the condition is true.
func poll(ctx context.Context, every, patience time.Duration, is func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(every)
	defer tick.Stop()
	for !is() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// rest lets the background work of the start before end, such as Fairway's
// making of the next network, so that neither side pays for the other's.
func rest(ctx context.Context) error { return pause(ctx, 500*time.Millisecond) }
