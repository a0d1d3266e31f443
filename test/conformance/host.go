package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"github.com/fairway-run/fairway/test/containerdtest"
)

const (
	// namespace is that of the tests, as they name it themselves.
	namespace = "serving-tests"
	domain    = "http://example.com"
	apiPath   = "/apis/serving.knative.dev/v1/namespaces/" + namespace + "/services"
	// How long Caddy may take to serve, and to exit with its instances.
	startPatience = 60 * time.Second
	exitPatience  = 60 * time.Second
)

// host is the machine that the tests run on: a Caddy on a private containerd.
type host struct {
	caddy     string
	resources string
	log       string
	daemon    *containerdtest.Daemon
	dir       string // of everything it has
	subnet    netip.Prefix
	site      netip.AddrPort
	admin     netip.AddrPort

	gateway *http.Server
	api     string // URL of the gateway

	cmd    *exec.Cmd
	exited chan struct{} // closed when cmd has been waited for
}

// newHost starts a containerd and imports the images.
func newHost(ctx context.Context, built *artifacts, logs string) (h *host, err error) {
	say("starting containerd and importing the images")
	h = &host{caddy: built.caddy, resources: built.resources}
	if h.log, err = filepath.Abs(filepath.Join(logs, "conformance.log")); err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(filepath.Dir(h.log), 0o755), os.WriteFile(h.log, nil, 0o644)); err != nil {
		return nil, err
	}
	if h.daemon, err = containerdtest.New(ctx); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, h.daemon.Close())
		}
	}()
	// Below the daemon's directory, so that a later run finds and removes it even
	// if this one cannot.
	h.dir = filepath.Join(h.daemon.Dir(), "conformance")
	if err := os.MkdirAll(h.dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range slices.Sorted(maps.Keys(built.archive)) {
		if err := h.daemon.Import(ctx, built.archive[name], h.containerdNamespace()); err != nil {
			return nil, err
		}
	}
	if h.subnet, err = freeSubnet(); err != nil {
		return nil, err
	}
	for _, address := range []*netip.AddrPort{&h.site, &h.admin} {
		if *address, err = freeAddress(); err != nil {
			return nil, err
		}
	}
	if h.gateway, h.api, err = serveGateway(h.admin.String(), int32(h.site.Port())); err != nil {
		return nil, err
	}
	return h, nil
}

// containerdNamespace is unique on the machine: runc and cgroups know no daemons.
func (h *host) containerdNamespace() string { return fmt.Sprintf("conformance-%d", os.Getpid()) }

func (h *host) caddyfile() string {
	return fmt.Sprintf(`{
	admin %[1]s
	auto_https off
	persist_config off
	storage file_system %[2]s/storage
	log {
		output stderr
		format json
		exclude admin.api
	}
	fairway {
		namespace %[3]s
		domain %[4]s
		runtime containerd {
			address %[5]s
			namespace %[6]s
			subnet %[7]s
			state_dir %[2]s/state
			log_dir %[2]s/logs
		}
		on_exit stop
	}
}
http://:%[8]d {
	bind 127.0.0.1
	fairway
}
`, h.admin, h.dir, namespace, domain, h.daemon.Address(), h.containerdNamespace(), h.subnet, h.site.Port())
}

func (h *host) kubeconfig() string { return filepath.Join(h.dir, "kubeconfig") }

// start starts Caddy and makes what the tests expect to exist.
func (h *host) start(ctx context.Context) error {
	say("starting Caddy (log: %s)", h.log)
	config := fmt.Sprintf(`apiVersion: v1
kind: Config
current-context: fairway
contexts: [{name: fairway, context: {cluster: fairway, user: fairway, namespace: %s}}]
clusters: [{name: fairway, cluster: {server: %q}}]
users: [{name: fairway, user: {}}]
`, namespace, h.api)
	if err := os.WriteFile(h.kubeconfig(), []byte(config), 0o600); err != nil {
		return err
	}
	if err := h.startCaddy(ctx); err != nil {
		return err
	}
	if err := h.createResources(ctx); err != nil {
		// The tests that need them will say so.
		say("making what the tests expect to exist: %v", err)
	}
	return ctx.Err()
}

// startCaddy returns when the API answers.
func (h *host) startCaddy(ctx context.Context) error {
	file := filepath.Join(h.dir, "Caddyfile")
	if err := os.WriteFile(file, []byte(h.caddyfile()), 0o600); err != nil {
		return err
	}
	log, err := os.OpenFile(h.log, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(h.caddy, "run", "--config", file, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "HOME="+h.dir, "XDG_DATA_HOME="+h.dir, "XDG_CONFIG_HOME="+h.dir)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a harness that dies leaves none
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("starting Caddy: %w", err)
	}
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	h.cmd, h.exited = cmd, exited
	for deadline := time.Now().Add(startPatience); ; {
		err := h.request(ctx, http.MethodGet, apiPath, nil)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-exited:
			return fmt.Errorf("caddy has exited: %s", cmd.ProcessState)
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the API does not answer: %w", err)
		}
	}
}

// createResources creates the Secret and the ConfigMap of the suite's manifest.
func (h *host) createResources(ctx context.Context) error {
	data, err := os.ReadFile(h.resources)
	if err != nil {
		return err
	}
	for document := range bytes.SplitSeq(data, []byte("\n---\n")) {
		var meta metav1.PartialObjectMetadata
		if err := yaml.Unmarshal(document, &meta); err != nil {
			return fmt.Errorf("reading %s: %w", h.resources, err)
		}
		resource := map[string]string{"ConfigMap": "configmaps", "Secret": "secrets"}[meta.Kind]
		if resource == "" || meta.Namespace != namespace {
			continue
		}
		object, err := yaml.YAMLToJSON(document)
		if err != nil {
			return fmt.Errorf("reading %s: %w", h.resources, err)
		}
		if err := h.request(ctx, http.MethodPost, "/api/v1/namespaces/"+namespace+"/"+resource, object); err != nil {
			return err
		}
	}
	return nil
}

// request asks the API, as the tests do.
func (h *host) request(ctx context.Context, method, path string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, h.api+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode/100 != 2 {
		return fmt.Errorf("%s %s: status %d: %s", method, path, resp.StatusCode, answer)
	}
	return nil
}

// printAddresses tells how to go on by hand.
func (h *host) printAddresses(suites []*suite, args []string) {
	say("all runs until ctrl-C")
	fmt.Printf("API         %s, KUBECONFIG=%s\n", h.api, h.kubeconfig())
	fmt.Printf("Caddy       pid %d, http://%s, admin endpoint http://%s\n", h.cmd.Process.Pid, h.site, h.admin)
	fmt.Printf("containerd  ctr --address %s --namespace %s\n", h.daemon.Address(), h.containerdNamespace())
	for i := range args {
		args[i] = strconv.Quote(args[i])
	}
	for _, s := range suites {
		fmt.Printf("tests       %s %s\n", s.binary, strings.Join(args[1:], " "))
	}
}

// complaint is what the race detector or the runtime has to say, if anything.
func (h *host) complaint() string {
	log, _ := os.ReadFile(h.log)
	for _, bad := range []string{"WARNING: DATA RACE", "\npanic: ", "fatal error: ", "POTENTIAL DEADLOCK"} {
		if bytes.Contains(log, []byte(bad)) {
			return strings.TrimSpace(bad)
		}
	}
	return ""
}

// close ends and removes all that the host has started. After a failure it shows
// the end of Caddy's log.
func (h *host) close(failed bool) error {
	say("removing everything")
	var errs []error
	if h.cmd != nil {
		died := false
		select {
		case <-h.exited:
			died = true
			errs = append(errs, fmt.Errorf("caddy has exited by itself: %s", h.cmd.ProcessState))
		default:
		}
		if died {
			// What it left on the machine, Fairway itself knows best how to remove.
			errs = append(errs, h.startCaddy(context.Background()))
		}
		errs = append(errs, h.stopCaddy())
	}
	if failed || errors.Join(errs...) != nil {
		fmt.Printf("the end of Caddy's log, %s:\n%s\n", h.log, tail(h.log, 30))
	}
	_ = h.gateway.Close()
	return errors.Join(append(errs, h.daemon.Close(), h.removeBridge())...)
}

// stopCaddy has Caddy stop its instances and exit.
func (h *host) stopCaddy() error {
	_ = h.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-h.exited:
		return nil
	case <-time.After(exitPatience):
		_ = h.cmd.Process.Signal(syscall.SIGABRT) // all goroutines into the log
		<-h.exited
		return fmt.Errorf("caddy did not exit within %s", exitPatience)
	}
}

// removeBridge removes the bridge of the instances, which Fairway keeps.
func (h *host) removeBridge() error {
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("listing interfaces: %w", err)
	}
	for _, link := range links {
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil || link.Type() != "bridge" {
			continue
		}
		if slices.ContainsFunc(addresses, func(a netlink.Addr) bool {
			ip, ok := netip.AddrFromSlice(a.IP.To4())
			return ok && h.subnet.Contains(ip)
		}) {
			if err := netlink.LinkDel(link); err != nil {
				return fmt.Errorf("removing bridge %s: %w", link.Attrs().Name, err)
			}
		}
	}
	return nil
}

// freeAddress is one of 127.0.0.1 that nothing listens on.
func freeAddress() (netip.AddrPort, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return netip.AddrPort{}, err
	}
	defer func() { _ = l.Close() }()
	return netip.ParseAddrPort(l.Addr().String())
}

// freeSubnet is a /20 in 10.64.0.0/10 that no interface has.
func freeSubnet() (netip.Prefix, error) {
	taken, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Prefix{}, fmt.Errorf("listing addresses: %w", err)
	}
	for {
		n := rand.N(1024)
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + n/16), byte(n % 16 * 16), 0}), 20)
		if !slices.ContainsFunc(taken, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Overlaps(subnet)
		}) {
			return subnet, nil
		}
	}
}

// tail is the last lines of a file, each cut to a readable length.
func tail(file string, lines int) string {
	data, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(data)), "\n")
	all = all[max(0, len(all)-lines):]
	for i := range all {
		all[i] = shorten(all[i], 500)
	}
	return strings.Join(all, "\n")
}
