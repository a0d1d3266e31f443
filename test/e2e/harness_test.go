// Package e2e tests Fairway from end to end: a real Caddy, built with the race
// detector, on a real private containerd.
//
// A test makes a host, starts Caddy on it and asks it for things:
//
//	h := newHost(t)
//	h.start(h.caddyfile(h.service("hello", "concurrency 1")))
//	if got := h.get("/"); got.status != 200 { … }
//
// A host has its own containerd namespace, directories, subnet and ports, so
// that tests do not meet. When a test ends, all that it started is ended, and
// it fails if anything is left on the machine, or if Caddy has reported a data
// race or a panic. Caddy's log is shown when a test fails.
package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	apievents "github.com/containerd/containerd/api/events"
	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/typeurl/v2"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"

	"github.com/fairway-run/fairway/test/containerdtest"
	"github.com/fairway-run/fairway/test/images"
)

const (
	// patience is how long eventually waits: far more than anything takes.
	patience = 20 * time.Second
	// exitPatience is how long Caddy may take to exit when asked to.
	exitPatience = 30 * time.Second
	probeName    = "localhost/fairway/probe:"
)

func TestMain(m *testing.M) { os.Exit(containerdtest.Main(m)) }

// full tells whether the long tests are wanted: FAIRWAY_FULL=1.
func full() bool { return os.Getenv("FAIRWAY_FULL") == "1" }

// loops is how often a test repeats what it does: short by default, long with
// FAIRWAY_FULL=1.
func loops(short, long int) int {
	if full() {
		return long
	}
	return short
}

// eventually waits until is returns true, and fails the test if it does not
// within patience.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	within(t, patience, what, is)
}

// within is eventually with another limit.
func within(t testing.TB, limit time.Duration, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(10 * time.Millisecond) {
		if is() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, what)
		}
	}
}

// crowd is a group of goroutines that a test waits for even when it fails.
// Their requests should end with t.Context.
func crowd(t testing.TB) *sync.WaitGroup {
	wg := new(sync.WaitGroup)
	t.Cleanup(wg.Wait)
	return wg
}

// option changes a host before it is made.
type option func(*host)

// ownContainerd gives the host a containerd of its own, which the test may kill
// and restart: host.daemon.
func ownContainerd() option { return func(h *host) { h.daemon = containerdtest.Start(h.t) } }

// onExit sets what becomes of the instances when Caddy exits: keep, or stop,
// which is the default here (Fairway's own is keep).
func onExit(what string) option { return func(h *host) { h.exit = what } }

// runtimeOption adds or replaces a line in the block of the containerd runtime, such as
// "network host".
func runtimeOption(name, value string) option {
	return func(h *host) { h.runtime[name] = value }
}

// host is a machine to run Fairway on: at most one Caddy process at a time, on
// a containerd.
type host struct {
	t         testing.TB
	life      context.Context // ends with the test, before its clean-up
	daemon    *containerdtest.Daemon
	namespace string // containerd's
	dir       string // of everything it has
	stateDir  string // Fairway's
	logDir    string // of the instances' output
	subnet    string
	site      string // host and port of the site
	admin     string // host and port of the admin endpoint
	runtime   map[string]string
	exit      string
	options   []string // more lines of the fairway block
	env       []string // more of Caddy's environment
	client    *http.Client
	foreign   []string // containers that the test itself made

	containerd *containerd.Client
	mu         sync.Mutex
	created    []string // by containerd's own account

	// The Caddy that runs, or ran last.
	cmd    *exec.Cmd
	exited chan struct{} // closed when it has been waited for
}

var hostCount atomic.Int64

// newHost makes a host on the shared containerd. The probe image is there under
// the tag 1; other tags come with host.image.
func newHost(t testing.TB, opts ...option) *host {
	t.Helper()
	if reason := containerdtest.Missing(); reason != "" {
		t.Skip(reason)
	}
	h := &host{t: t, life: t.Context(), exit: "stop", runtime: make(map[string]string)}
	// The name is unique on the machine: runc and cgroups know no daemons.
	h.namespace = fmt.Sprintf("e2e-%d-%d", os.Getpid(), hostCount.Add(1))
	for _, o := range opts {
		o(h)
	}
	if h.daemon == nil {
		h.daemon = containerdtest.Shared(t)
	}
	// Below the daemon's directory, so that it is found and removed even if this
	// process cannot.
	h.dir = filepath.Join(h.daemon.Dir(), h.namespace)
	h.stateDir, h.logDir = filepath.Join(h.dir, "state"), filepath.Join(h.dir, "logs")
	h.check(os.MkdirAll(h.dir, 0o700))
	h.subnet = freeSubnet(t)
	h.site, h.admin = freeAddress(t), freeAddress(t)
	for name, value := range map[string]string{
		"address": h.daemon.Address(), "namespace": h.namespace, "subnet": h.subnet,
		"state_dir": h.stateDir, "log_dir": h.logDir,
	} {
		if _, set := h.runtime[name]; !set {
			h.runtime[name] = value
		}
	}
	h.client = newClient()
	var err error
	h.containerd, err = containerd.New(h.daemon.Address())
	h.check(err)
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() {
		h.close()
		cancel()
		_ = h.containerd.Close()
	})
	h.watchCreations(ctx)
	h.image(1)
	return h
}

// run runs a subtest on the host; no two at the same time.
func (h *host) run(name string, f func(t *testing.T)) {
	outer, ok := h.t.(*testing.T)
	if !ok {
		h.t.Fatal("only tests have subtests")
	}
	outer.Run(name, func(t *testing.T) {
		h.t = t
		defer func() { h.t = outer }()
		f(t)
	})
}

// scanPast asks an instance past Caddy, which does not thaw it then, and reads its answer.
func (h *host) scanPast(i instance, path string, answer any) {
	h.t.Helper()
	ctx, cancel := context.WithTimeout(h.ctx(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+i.Address+path, nil)
	h.check(err)
	resp, err := h.client.Do(req)
	h.check(err)
	defer resp.Body.Close()
	_, err = fmt.Fscan(resp.Body, answer)
	h.check(err)
}

// newClient is a client without proxies whose requests do not wait for each
// other. It follows no redirects and takes bodies as they are.
func newClient() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			Proxy: nil, DisableCompression: true, MaxIdleConnsPerHost: 2000,
			DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// freeAddress is one of 127.0.0.1 that nothing listens on.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// freeSubnet is a /20 in 10.64.0.0/10 that no interface has.
func freeSubnet(t testing.TB) string {
	t.Helper()
	taken, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for {
		n := rand.N(1024)
		subnet := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(64 + n/16), byte(n % 16 * 16), 0}), 20)
		if !slices.ContainsFunc(taken, func(a net.Addr) bool {
			p, err := netip.ParsePrefix(a.String())
			return err == nil && p.Overlaps(subnet)
		}) {
			return subnet.String()
		}
	}
}

// image imports the probe image under a tag, once, and returns its name. Tags
// differ in a label, and so in their digests.
func (h *host) image(tag int) string {
	h.t.Helper()
	name := probeName + strconv.Itoa(tag)
	if _, err := h.containerd.ImageService().Get(h.ctx(), name); err == nil {
		return name
	}
	h.build(images.Options{
		Name: name, Package: "../images/probe", User: "65532:65532", Labels: map[string]string{"tag": strconv.Itoa(tag)},
	})
	return name
}

// build makes an image and imports it.
func (h *host) build(o images.Options) {
	h.t.Helper()
	archive, err := images.Build(context.Background(), o)
	h.check(err)
	h.check(h.daemon.Import(context.Background(), archive, h.namespace))
}

// service is the directive that declares and serves a service of the probe
// image, with more options, one a line.
func (h *host) service(name string, options ...string) string {
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "image ") }) {
		options = slices.Concat([]string{"image " + probeName + "1"}, options)
	}
	return "fairway " + name + " {\n\t" + strings.Join(options, "\n\t") + "\n}"
}

// vhost is service for one of several in a site: it gets the requests for the
// host <name>.test, which host.getFrom sends.
func (h *host) vhost(name string, options ...string) string {
	directive := h.service(name, options...)
	return fmt.Sprintf("@%s host %s.test\n%s\n", name, name, strings.Replace(directive, "fairway ", "fairway @"+name+" ", 1))
}

// caddyfile is a config for this host with one site, which has these directives.
func (h *host) caddyfile(site string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "{\n\tadmin %s\n\tauto_https off\n\tpersist_config off\n\tstorage file_system %s\n", h.admin, filepath.Join(h.dir, "storage"))
	b.WriteString("\tlog {\n\t\toutput stderr\n\t\tformat json\n\t\tlevel INFO\n\t}\n")
	b.WriteString("\tfairway {\n\t\truntime containerd {\n")
	for name, value := range h.runtime {
		fmt.Fprintf(&b, "\t\t\t%s %s\n", name, value)
	}
	b.WriteString("\t\t}\n")
	for _, line := range h.options {
		b.WriteString("\t\t" + line + "\n")
	}
	fmt.Fprintf(&b, "\t\ton_exit %s\n\t}\n}\n", h.exit)
	_, port, _ := net.SplitHostPort(h.site)
	fmt.Fprintf(&b, "http://:%s {\n%s\n}\n", port, site)
	return b.String()
}

// start starts Caddy and returns when it serves.
func (h *host) start(caddyfile string) {
	h.t.Helper()
	if h.running() {
		h.t.Fatal("Caddy runs already")
	}
	log, err := os.OpenFile(h.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	h.check(err)
	defer func() { _ = log.Close() }()
	cmd := h.command("run", caddyfile)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test process that dies leaves none
	h.check(cmd.Start())
	exited := make(chan struct{})
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	h.cmd, h.exited = cmd, exited
	eventually(h.t, "Caddy serves", func() bool {
		if !h.running() {
			h.t.Fatalf("Caddy has exited: %s", cmd.ProcessState)
		}
		for _, address := range []string{h.site, h.admin} {
			conn, err := net.Dial("tcp", address)
			if err != nil {
				return false
			}
			_ = conn.Close()
		}
		// The admin endpoint serves before the config is loaded.
		resp, err := h.client.Get("http://" + h.admin + "/config/apps")
		if err != nil {
			return false
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		return err == nil && resp.StatusCode == http.StatusOK && bytes.Contains(body, []byte(`"http"`))
	})
}

// command is Caddy with a config.
func (h *host) command(verb, caddyfile string) *exec.Cmd {
	h.t.Helper()
	file := filepath.Join(h.dir, fmt.Sprintf("Caddyfile-%d", rand.Uint64()))
	h.check(os.WriteFile(file, []byte(caddyfile), 0o600))
	cmd := exec.Command(caddyBinary(h.t), verb, "--config", file, "--adapter", "caddyfile")
	cmd.Env = append(os.Environ(), "HOME="+h.dir, "XDG_DATA_HOME="+h.dir, "XDG_CONFIG_HOME="+h.dir)
	cmd.Env = append(cmd.Env, h.env...)
	return cmd
}

// validate is "caddy validate".
func (h *host) validate(caddyfile string) error {
	h.t.Helper()
	output, err := h.command("validate", caddyfile).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%w: %s", err, output)
	}
	return nil
}

// reload loads another config into the Caddy that runs. An equal one changes
// nothing unless it is forced.
func (h *host) reload(caddyfile string, force bool) error {
	err := h.reloadOnce(caddyfile, force)
	if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
		// The admin endpoint restarts at each reload, and with it goes what the kernel
		// has queued at its old listener.
		return h.reloadOnce(caddyfile, force)
	}
	return err
}

func (h *host) reloadOnce(caddyfile string, force bool) error {
	req, err := http.NewRequest(http.MethodPost, "http://"+h.admin+"/load", strings.NewReader(caddyfile))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "text/caddyfile")
	if force {
		req.Header.Set("Cache-Control", "must-revalidate")
	}
	// A connection of its own: the admin endpoint restarts at each reload.
	req.Close = true
	got := h.do(req)
	h.client.CloseIdleConnections() // to the old config's server
	switch {
	case got.err != nil:
		return got.err
	case got.status != http.StatusOK:
		return fmt.Errorf("status %d: %s", got.status, got.body)
	}
	return nil
}

// running tells whether Caddy has been started and has not exited.
func (h *host) running() bool {
	if h.cmd == nil {
		return false
	}
	select {
	case <-h.exited:
		return false
	default:
		return true
	}
}

// pid is that of Caddy.
func (h *host) pid() int { return h.cmd.Process.Pid }

// kill ends Caddy as a crash would.
func (h *host) kill() {
	h.t.Helper()
	if h.running() {
		h.check(h.cmd.Process.Kill())
		<-h.exited
	}
	h.client.CloseIdleConnections()
}

// stop asks Caddy to exit and returns its exit code.
func (h *host) stop() int {
	h.t.Helper()
	if h.cmd == nil {
		return 0
	}
	if h.running() {
		h.check(h.cmd.Process.Signal(syscall.SIGTERM))
		select {
		case <-h.exited:
		case <-time.After(exitPatience):
			_ = h.cmd.Process.Signal(syscall.SIGABRT) // all goroutines into the log
			<-h.exited
			h.t.Errorf("Caddy did not exit within %s", exitPatience)
		}
	}
	h.client.CloseIdleConnections()
	return h.cmd.ProcessState.ExitCode()
}

// close ends all that the host has started, however the test went.
func (h *host) close() {
	if h.running() {
		if h.t.Failed() {
			h.dumpState()
		}
		h.stop()
	}
	for _, id := range h.foreign {
		h.removeForeign(id)
	}
	if h.exit == "keep" || len(h.containers()) > 0 {
		h.takeDown()
	}
	if h.cmd != nil && !h.t.Failed() {
		h.assertNothingLeft()
	}
	h.checkLog()
	if h.t.Failed() {
		h.t.Logf("Caddy's log:\n%s", tail(h.rawLog(), 200_000))
	}
	h.removeRest()
}

// takeDown has Fairway itself remove what an earlier Caddy left running.
func (h *host) takeDown() {
	if h.cmd == nil || h.running() {
		return
	}
	h.exit = "stop"
	// Without their records the services are unknown, and their instances stopped.
	h.check(os.RemoveAll(filepath.Join(h.dir, "storage", "fairway")))
	h.options = nil
	h.start(h.caddyfile("respond ok"))
	limit := time.Now().Add(patience)
	// The end of an instance is logged when nothing of it is left.
	for (len(h.containers()) > 0 || h.discarding() > 0) && time.Now().Before(limit) {
		time.Sleep(20 * time.Millisecond)
	}
	h.stop()
}

// discarding is how many instances of unknown services are being stopped.
func (h *host) discarding() int {
	n := 0
	for _, e := range h.log() {
		switch {
		case e["reason"] != "its service is not configured any more":
		case e["msg"] == "instance draining":
			n++
		default:
			n--
		}
	}
	return n
}

// checkLog fails the test when the race detector or the runtime has complained.
func (h *host) checkLog() {
	h.t.Helper()
	log := h.rawLog()
	for _, bad := range []string{"WARNING: DATA RACE", "\npanic: ", "fatal error: ", "POTENTIAL DEADLOCK"} {
		if i := strings.Index(log, bad); i >= 0 {
			h.t.Errorf("Caddy's log has %q:\n%s", strings.TrimSpace(bad), tail(log[i:min(len(log), i+8000)], 8000))
		}
	}
}

func (h *host) dumpState() {
	for _, path := range []string{"/fairway/services", "/fairway/instances"} {
		h.t.Logf("%s: %s", path, h.ask(path))
	}
}

func (h *host) logFile() string { return filepath.Join(h.dir, "caddy.log") }

func (h *host) rawLog() string {
	data, err := os.ReadFile(h.logFile())
	if err != nil {
		return ""
	}
	return string(data)
}

// entry is a line of Caddy's log. Numbers are float64.
type entry map[string]any

// text is a field as text, "" when it is not there.
func (e entry) text(field string) string {
	if e[field] == nil {
		return ""
	}
	return fmt.Sprint(e[field])
}

// at is when the line was logged.
func (e entry) at() time.Time {
	seconds, _ := e["ts"].(float64)
	return time.UnixMicro(int64(seconds * 1e6))
}

// log is what Caddy has logged so far, since the host was made.
func (h *host) log() []entry {
	var all []entry
	for line := range strings.Lines(h.rawLog()) {
		var e entry
		if json.Unmarshal([]byte(line), &e) == nil {
			all = append(all, e)
		}
	}
	return all
}

// logged returns the lines with that message, such as "instance ready".
func (h *host) logged(msg string) []entry {
	return slices.DeleteFunc(h.log(), func(e entry) bool { return e["msg"] != msg })
}

// response is what came of a request. status is 0 when err is set.
type response struct {
	status int
	body   string
	header http.Header
	took   time.Duration
	err    error
}

func (r response) String() string {
	if r.err != nil {
		return r.err.Error()
	}
	return fmt.Sprintf("%d %q", r.status, tail(r.body, 500))
}

// url is that of a path on the site.
func (h *host) url(path string) string { return "http://" + h.site + path }

// get asks the site for a path. It may be called from any goroutine.
func (h *host) get(path string) response { return h.getWith(h.life, path) }

// getWith is get by a client that leaves when ctx ends.
func (h *host) getWith(ctx context.Context, path string) response {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url(path), nil)
	if err != nil {
		return response{err: err}
	}
	return h.do(req)
}

// getFrom is getWith for a service that vhost made.
func (h *host) getFrom(ctx context.Context, service, path string) response {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url(path), nil)
	if err != nil {
		return response{err: err}
	}
	req.Host = service + ".test"
	return h.do(req)
}

// open sends a request and returns its response when it begins. The test must
// close the body.
func (h *host) open(ctx context.Context, service, path string) *http.Response {
	h.t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, h.url(path), nil)
	h.check(err)
	req.Host = service + ".test"
	resp, err := h.client.Do(req)
	h.check(err)
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		h.t.Fatalf("%s: %d %q", path, resp.StatusCode, body)
	}
	return resp
}

// do sends a request and reads the whole response.
func (h *host) do(req *http.Request) response {
	began := time.Now()
	resp, err := h.client.Do(req)
	if err != nil {
		return response{err: err, took: time.Since(began)}
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return response{err: fmt.Errorf("reading the body: %w", err), took: time.Since(began)}
	}
	return response{status: resp.StatusCode, body: string(body), header: resp.Header, took: time.Since(began)}
}

// ask returns what the admin endpoint answers.
func (h *host) ask(path string) string {
	req, err := http.NewRequest(http.MethodGet, "http://"+h.admin+path, nil)
	if err != nil {
		return ""
	}
	req.Close = true
	got := h.do(req)
	if got.err != nil || got.status != http.StatusOK {
		h.t.Errorf("admin %s: %s", path, got)
		return ""
	}
	return got.body
}

// instance is an instance as the admin API tells it.
type instance struct {
	Service  string    `json:"service"`
	Revision string    `json:"revision"`
	Instance string    `json:"instance"`
	State    string    `json:"state"`
	InFlight int       `json:"in_flight"`
	Queue    int       `json:"queue"`
	PID      int       `json:"pid"`
	Address  string    `json:"address"`
	Since    time.Time `json:"since"`
}

// up reports whether it takes requests, or will when it is thawed for one.
func (i instance) up() bool { return i.State == "ready" || i.State == "frozen" }

// instances are those of the admin API.
func (h *host) instances() []instance {
	var all []instance
	h.decode("/fairway/instances", &all)
	return all
}

// service as the admin API tells it.
type service struct {
	Service   string     `json:"service"`
	Serving   string     `json:"serving"`
	Latest    string     `json:"latest"`
	Error     string     `json:"error"`
	Queue     int        `json:"queue"`
	InFlight  int        `json:"in_flight"`
	Revisions []revision `json:"revisions"`
}

type revision struct {
	Revision  string    `json:"revision"`
	State     string    `json:"state"`
	Image     string    `json:"image"`
	Digest    string    `json:"digest"`
	Created   time.Time `json:"created"`
	Queue     int       `json:"queue"`
	InFlight  int       `json:"in_flight"`
	Instances int       `json:"instances"`
}

// services are those of the admin API.
func (h *host) services() []service {
	var all []service
	h.decode("/fairway/services", &all)
	return all
}

// serviceNamed is one of services; its name is "" when there is none.
func (h *host) serviceNamed(name string) service {
	for _, s := range h.services() {
		if s.Service == name {
			return s
		}
	}
	return service{}
}

// instancesOf are the instances of one service.
func (h *host) instancesOf(name string) []instance {
	return slices.DeleteFunc(h.instances(), func(i instance) bool { return i.Service != name })
}

// creationsOf are the creations of one service.
func (h *host) creationsOf(name string) []string {
	return slices.DeleteFunc(h.creations(), func(id string) bool { return !strings.HasPrefix(id, name+"-0") })
}

// loggedOf are the lines with that message of one service.
func (h *host) loggedOf(service, msg string) []entry {
	return slices.DeleteFunc(h.logged(msg), func(e entry) bool { return e["service"] != service })
}

// goroutines is how many Caddy has.
func (h *host) goroutines() int {
	var n int
	if _, err := fmt.Sscanf(h.ask("/debug/pprof/goroutine?debug=1"), "goroutine profile: total %d", &n); err != nil {
		h.t.Errorf("counting goroutines: %v", err)
	}
	return n
}

func (h *host) decode(path string, v any) {
	if body := h.ask(path); body != "" {
		if err := json.Unmarshal([]byte(body), v); err != nil {
			h.t.Errorf("admin %s: %v in %s", path, err, body)
		}
	}
}

// metrics are the series of the admin endpoint, as they are written:
// `caddy_fairway_instances{revision="…",…}` → 1.
func (h *host) metrics() map[string]float64 {
	all := make(map[string]float64)
	for line := range strings.Lines(h.ask("/metrics")) {
		series, value, ok := cutLast(strings.TrimSpace(line), " ")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		if n, err := strconv.ParseFloat(value, 64); err == nil {
			all[series] = n
		}
	}
	return all
}

func cutLast(s, sep string) (before, after string, ok bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

// ctx is for containerd's client, in the host's namespace.
func (h *host) ctx() context.Context {
	return namespaces.WithNamespace(context.Background(), h.namespace)
}

// containers are the IDs of the containers in the host's namespace, without
// those that the test itself made.
func (h *host) containers() []string {
	ctx, cancel := context.WithTimeout(h.ctx(), patience)
	defer cancel()
	all, err := h.containerd.ContainerService().List(ctx)
	if err != nil {
		h.t.Errorf("listing containers: %v", err)
	}
	var ids []string
	for _, c := range all {
		if !slices.Contains(h.foreign, c.ID) {
			ids = append(ids, c.ID)
		}
	}
	return ids
}

// watchCreations notes the containers that containerd makes.
func (h *host) watchCreations(ctx context.Context) {
	ch, errs := h.containerd.EventService().Subscribe(ctx,
		fmt.Sprintf(`topic=="/containers/create",namespace==%q`, h.namespace))
	go func() {
		for {
			select {
			case e := <-ch:
				v, err := typeurl.UnmarshalAny(e.Event)
				if c, ok := v.(*apievents.ContainerCreate); ok && err == nil {
					h.mu.Lock()
					h.created = append(h.created, c.ID)
					h.mu.Unlock()
				}
			case <-errs:
				return
			}
		}
	}()
}

// creations are the IDs of all containers that were made in the host's
// namespace so far, by containerd's own account.
func (h *host) creations() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.created)
}

// assertNothingLeft fails the test unless all of the instances is gone from
// containerd and from the machine. What Fairway keeps ready while it runs, such
// as network namespaces, is only looked for when Caddy does not run.
func (h *host) assertNothingLeft() {
	h.t.Helper()
	var left []string
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		if left = h.leftovers(); len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			h.t.Errorf("left behind:\n%s", strings.Join(left, "\n"))
			return
		}
	}
}

func (h *host) leftovers() []string {
	var left []string
	add := func(kind string, names []string, err error) {
		if err != nil {
			left = append(left, kind+": "+err.Error())
		}
		for _, name := range names {
			if !slices.ContainsFunc(h.foreign, func(id string) bool { return strings.Contains(name, id) }) {
				left = append(left, kind+" "+name)
			}
		}
	}
	ctx, cancel := context.WithTimeout(h.ctx(), patience)
	defer cancel()
	add("container", h.containers(), nil)
	names, err := h.tasks(ctx)
	add("task", names, err)
	names, err = h.snapshots(ctx)
	add("snapshot", names, err)
	leases, err := h.containerd.LeasesService().List(ctx)
	names = nil
	for _, l := range leases {
		names = append(names, l.ID)
	}
	add("lease", names, err)
	names, err = h.shims()
	add("shim", names, err)
	if !h.running() {
		names, err = h.rules()
		add("table of rules", names, err)
		names, err = h.records()
		add("CNI record", names, err)
		names, err = h.mounts()
		add("mount", names, err)
		names, err = h.reservations()
		add("address", names, err)
	}
	return left
}

func (h *host) tasks(ctx context.Context) ([]string, error) {
	dirs, err := filepath.Glob(filepath.Join(h.daemon.Dir(), "state", "io.containerd.runtime.v2.task", h.namespace, "*"))
	var tasks []string
	for _, dir := range dirs {
		// containerd hides a directory before it removes it, and forgets it when it
		// is killed in between.
		if name := filepath.Base(dir); !strings.HasPrefix(name, ".") {
			tasks = append(tasks, name)
		}
	}
	return tasks, err
}

// snapshots are those that are not layers of images.
func (h *host) snapshots(ctx context.Context) ([]string, error) {
	var names []string
	err := h.containerd.SnapshotService("").Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		if info.Kind != snapshots.KindCommitted {
			names = append(names, info.Name)
		}
		return nil
	})
	return names, err
}

// shims are the command lines of the shims of the host's namespace.
func (h *host) shims() ([]string, error) {
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	var all []string
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
		if strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") && slices.Contains(args, h.namespace) {
			all = append(all, strings.Join(args, " "))
		}
	}
	return all, err
}

// mounts are those below the host's directory: of network namespaces.
func (h *host) mounts() ([]string, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	var points []string
	for lines := bufio.NewScanner(bytes.NewReader(data)); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 4 && strings.HasPrefix(fields[4], h.dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, err
}

// reservations are the addresses that are given away, each a file named after it.
func (h *host) reservations() ([]string, error) {
	var all []string
	err := filepath.WalkDir(h.stateDir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if _, notAddress := netip.ParseAddr(d.Name()); notAddress == nil {
			all = append(all, path)
		}
		return err
	})
	return all, err
}

// tables are the kernel's tables with rules about the host's subnet.
func (h *host) tables() ([]*nftables.Table, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, err
	}
	all, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("listing tables of rules: %w", err)
	}
	subnet := netip.MustParsePrefix(h.subnet).Addr().AsSlice()
	return slices.DeleteFunc(all, func(table *nftables.Table) bool {
		rules, err := c.GetRules(table, &nftables.Chain{Name: "postrouting"})
		return err != nil || !slices.ContainsFunc(rules, func(rule *nftables.Rule) bool {
			return slices.ContainsFunc(rule.Exprs, func(e expr.Any) bool {
				cmp, ok := e.(*expr.Cmp)
				return ok && bytes.Equal(cmp.Data, subnet)
			})
		})
	}), nil
}

func (h *host) rules() ([]string, error) {
	var names []string
	all, err := h.tables()
	for _, table := range all {
		names = append(names, table.Name)
	}
	return names, err
}

// removeRules removes the tables, as a restart of the machine does.
func (h *host) removeRules() {
	h.t.Helper()
	all, err := h.tables()
	h.check(err)
	c, err := nftables.New()
	h.check(err)
	for _, table := range all {
		c.DelTable(table)
	}
	h.check(c.Flush())
}

// records are the files in which CNI's library notes the networks of the host.
func (h *host) records() ([]string, error) {
	files, err := filepath.Glob("/var/lib/cni/results/fairway-*")
	return slices.DeleteFunc(files, func(file string) bool {
		data, err := os.ReadFile(file)
		return err != nil || !bytes.Contains(data, []byte(h.stateDir+"/"))
	}), err
}

// removeForeign removes a container that the test made itself.
func (h *host) removeForeign(id string) {
	ctx, cancel := context.WithTimeout(h.ctx(), patience)
	defer cancel()
	c, err := h.containerd.LoadContainer(ctx, id)
	if err != nil {
		return
	}
	if task, err := c.Task(ctx, nil); err == nil {
		_, _ = task.Delete(ctx, containerd.WithProcessKill)
	}
	_ = c.Delete(ctx, containerd.WithSnapshotCleanup)
}

// removeRest removes the bridge, which Fairway keeps, and what a failed test
// may have left; the daemon's end sees to the rest.
func (h *host) removeRest() {
	if h.t.Failed() {
		for _, id := range h.containers() {
			h.removeForeign(id)
		}
		records, _ := h.records()
		for _, file := range records {
			id := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(file), "fairway-"), "-eth0")
			_ = os.Remove(file)
			_ = os.Remove(filepath.Join(filepath.Dir(file), "cni-loopback-"+id+"-lo"))
		}
		h.removeRules()
	}
	links, err := netlink.LinkList()
	if err != nil {
		h.t.Errorf("listing interfaces: %v", err)
	}
	subnet := netip.MustParsePrefix(h.subnet)
	for _, link := range links {
		addresses, err := netlink.AddrList(link, netlink.FAMILY_V4)
		if err != nil || link.Type() != "bridge" {
			continue
		}
		if slices.ContainsFunc(addresses, func(a netlink.Addr) bool {
			ip, ok := netip.AddrFromSlice(a.IP.To4())
			return ok && subnet.Contains(ip)
		}) {
			if err := netlink.LinkDel(link); err != nil {
				h.t.Errorf("removing bridge %s: %v", link.Attrs().Name, err)
			}
		}
	}
}

func (h *host) check(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

// caddyBinary is test/caddy, built with the race detector.
func caddyBinary(t testing.TB) string {
	t.Helper()
	builtCaddy.Lock()
	defer builtCaddy.Unlock()
	if builtCaddy.path != "" {
		return builtCaddy.path
	}
	// A copy, removed with the daemon: others may build another meanwhile.
	path := filepath.Join(containerdtest.Shared(t).Dir(), "caddy")
	if err := buildCaddy(path); err != nil {
		t.Fatal(err)
	}
	builtCaddy.path = path
	return path
}

var builtCaddy struct {
	sync.Mutex

	path string
}

// buildCaddy builds Caddy in the cache, where Go finds it when nothing has
// changed, and copies it.
func buildCaddy(to string) error {
	base, err := os.UserCacheDir()
	if err != nil {
		base = filepath.Join(os.TempDir(), fmt.Sprintf("cache-%d", os.Getuid()))
	}
	dir := filepath.Join(base, "fairway", "e2e")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the cache directory: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("opening the lock: %w", err)
	}
	defer func() { _ = lock.Close() }()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("locking: %w", err)
	}
	out := filepath.Join(dir, "caddy")
	cmd := exec.Command("go", "build", "-race", "-buildvcs=false", "-tags", "nobadger,nomysql,nopgx", "-o", out, "../caddy")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")
	if output, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("building Caddy: %w\n%s", err, output)
	}
	program, err := os.ReadFile(out)
	if err != nil {
		return fmt.Errorf("reading Caddy: %w", err)
	}
	return os.WriteFile(to, program, 0o700)
}

// tail is the end of s, of at most n bytes.
func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}
