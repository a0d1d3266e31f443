package e2e

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/oci"
)

// TestObserve finds what happened in placeholders, the access log, the log and
// the metrics.
func TestObserve(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(`
		log {
			output stderr
			format json
		}
		header >X-Service {http.fairway.service}
		header >X-Revision {http.fairway.revision}
		header >X-Instance {http.fairway.instance}
		header >X-Queue {http.fairway.queue_duration}
		header >X-Cold {http.fairway.cold_start}
	` + h.service("hello", "concurrency 1", "instances 0 1")))
	first, second := h.get("/first"), h.get("/env?name=PORT")
	if first.status != http.StatusNotFound || second.status != http.StatusOK {
		t.Fatalf("%s, %s", first, second)
	}
	id := h.instances()[0].Instance
	for n, got := range []response{first, second} {
		waited, err := time.ParseDuration(got.header.Get("X-Queue"))
		cold := n == 0
		if got.header.Get("X-Service") != "hello" || got.header.Get("X-Revision") != "hello-00001" || got.header.Get("X-Instance") != id ||
			got.header.Get("X-Cold") != fmt.Sprint(cold) || err != nil || cold && waited == 0 || waited > got.took {
			t.Errorf("placeholders of response %d: %v", n, got.header)
		}
	}

	release := h.hold("hello")
	wg := crowd(t)
	wg.Go(func() { h.get("/") })
	h.awaitQueue("hello", 1)
	metrics := h.metrics()
	for series, want := range map[string]float64{
		`caddy_fairway_instances{revision="hello-00001",service="hello",state="ready"}`:           1,
		`caddy_fairway_requests_in_flight{revision="hello-00001",service="hello"}`:                1,
		`caddy_fairway_requests_queued{revision="hello-00001",service="hello"}`:                   1,
		`caddy_fairway_requests_total{outcome="admitted",revision="hello-00001",service="hello"}`: 3,
		`caddy_fairway_queue_seconds_count{service="hello"}`:                                      3,
		`caddy_fairway_cold_start_seconds_count{phase="total",service="hello"}`:                   1,
		`caddy_fairway_cold_start_seconds_count{phase="probe",service="hello"}`:                   1,
		`caddy_fairway_instance_events_total{service="hello",state="ready"}`:                      1,
	} {
		if got, ok := metrics[series]; !ok || got != want {
			t.Errorf("metric %s is %v (%t); want %v", series, got, ok, want)
		}
	}
	if t.Failed() {
		for series, value := range metrics {
			if strings.HasPrefix(series, "caddy_fairway") {
				t.Log(series, value)
			}
		}
	}
	release()
	wg.Wait()

	var access []entry
	eventually(t, "the requests are in the access log", func() bool {
		access = h.logged("handled request")
		return len(access) >= 4
	})
	for n, e := range access[:2] {
		_, isNumber := e["fairway_queue_duration"].(float64)
		if e["fairway_service"] != "hello" || e["fairway_revision"] != "hello-00001" || e["fairway_instance"] != id ||
			e["fairway_cold_start"] != (n == 0) || !isNumber {
			t.Errorf("access log of request %d: %v", n, e)
		}
	}
	for _, msg := range []string{"revision created", "instance starting", "instance ready"} {
		lines := h.loggedOf("hello", msg)
		if len(lines) != 1 || lines[0]["revision"] != "hello-00001" || !strings.HasSuffix(lines[0].text("logger"), "fairway") {
			t.Errorf("log lines %q: %v", msg, lines)
		}
	}
}

// TestMemoryLimit has an app use more memory than it may: that request fails,
// the next one is served, and the log says why.
func TestMemoryLimit(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.service("hello", "memory 64MiB", "cpu 0.5")))
	before := h.about("hello").ID
	if got := h.get("/oom"); got.status != http.StatusBadGateway {
		t.Errorf("the request that used up the memory: %s; want 502", got)
	}
	after := h.about("hello").ID
	if before == after {
		t.Error("the same process served both")
	}
	failed := h.loggedOf("hello", "instance failed")
	if len(failed) != 1 || !strings.Contains(failed[0].text("error"), "exceeded its memory limit") || !strings.Contains(failed[0].text("error"), "probe: holding") {
		t.Errorf("the log: %v; what the app wrote: %s", failed, h.output())
	}
}

// TestCrashOnce has requests end the instance that they are sent to over a
// connection that has been used before. None of them is sent to another.
func TestCrashOnce(t *testing.T) {
	h := newHost(t)
	var site strings.Builder
	name := func(n int) string { return fmt.Sprintf("poor%d", n) }
	n := loops(8, 100)
	for n := range n {
		// So that few are left to be stopped when Caddy exits, which has little time.
		site.WriteString(h.vhost(name(n), "idle_timeout 2s"))
	}
	h.start(h.caddyfile(site.String()))
	for n := range n {
		h.about(name(n))
		if got := h.getFrom(t.Context(), name(n), "/crash"); got.status != http.StatusBadGateway {
			t.Errorf("%s: %s; want 502", name(n), got)
		}
		eventually(t, "the crash is logged", func() bool { return len(h.loggedOf(name(n), "instance failed")) > 0 })
		if got := h.getFrom(t.Context(), name(n), "/"); got.status != http.StatusOK {
			t.Errorf("%s: the next request: %s", name(n), got)
		}
		if made := h.creationsOf(name(n)); len(made) != 2 {
			t.Errorf("%s: %d containers made; want 2: one request has ended more than one", name(n), len(made))
		}
	}
}

// TestHostNetwork has instances in the host's network, each on a port of its own.
func TestHostNetwork(t *testing.T) {
	h := newHost(t, runtimeOption("network", "host"))
	h.start(h.caddyfile(h.service("hello", "concurrency 1", "cpu_throttling false"))) // each is asked past Caddy
	wg := crowd(t)
	for range 3 {
		wg.Go(func() {
			if got := h.get("/sleep?ms=1500"); got.status != http.StatusOK {
				t.Errorf("%s", got)
			}
		})
	}
	eventually(t, "three are in flight", func() bool { return h.serviceNamed("hello").InFlight == 3 })
	wg.Wait()
	ports := make(map[string]bool)
	for _, i := range h.instances() {
		_, port, err := net.SplitHostPort(i.Address)
		if err != nil || ports[port] {
			t.Errorf("address %s: %v", i.Address, err)
		}
		ports[port] = true
		var told string
		h.scanPast(i, "/env?name=PORT", &told)
		if told != port {
			t.Errorf("the app was told port %s and listens on %s", told, port)
		}
	}
	if len(ports) != 3 {
		t.Errorf("%d instances; want 3", len(ports))
	}
}

// TestForeign has containers in the same namespace that are none of Fairway's:
// one that runs and one that does not. Nothing happens to them.
func TestForeign(t *testing.T) {
	h := newHost(t)
	pid := h.makeForeign("foreign-running", true)
	h.makeForeign("foreign-idle", false)
	check := func(when string) {
		t.Helper()
		for _, id := range h.foreign {
			if _, err := h.containerd.LoadContainer(h.ctx(), id); err != nil {
				t.Fatalf("%s: container %s: %v", when, id, err)
			}
			if _, err := h.containerd.SnapshotService("").Stat(h.ctx(), id); err != nil {
				t.Errorf("%s: snapshot %s: %v", when, id, err)
			}
		}
		c, err := h.containerd.LoadContainer(h.ctx(), "foreign-running")
		h.check(err)
		task, err := c.Task(h.ctx(), nil)
		h.check(err)
		status, err := task.Status(h.ctx())
		if err != nil || status.Status != containerd.Running || task.Pid() != pid {
			t.Errorf("%s: pid %d, %s, %v; want %d, running", when, task.Pid(), status.Status, err, pid)
		}
	}
	config := h.caddyfile(h.service("hello"))
	h.start(config)
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	if all := h.instances(); len(all) != 1 {
		t.Errorf("instances: %+v; want one", all)
	}
	check("while serving")
	h.kill()
	h.start(config)
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("after the crash: %s", got)
	}
	check("after Caddy's crash")
	h.check(h.reload(h.caddyfile("respond gone"), false))
	eventually(t, "the service is gone", func() bool { return len(h.containers()) == 0 })
	check("after the service's end")
	h.stop()
	check("after Caddy's exit")
	h.assertNothingLeft()
}

// makeForeign makes a container without Fairway, and returns its pid when it
// is to run.
func (h *host) makeForeign(id string, run bool) uint32 {
	h.t.Helper()
	h.foreign = append(h.foreign, id)
	image, err := h.containerd.GetImage(h.ctx(), h.image(1))
	h.check(err)
	c, err := h.containerd.NewContainer(h.ctx(), id, containerd.WithNewSnapshot(id, image),
		containerd.WithNewSpec(oci.WithImageConfig(image), oci.WithEnv([]string{"FAIL_START=nolisten"})))
	h.check(err)
	if !run {
		return 0
	}
	task, err := c.NewTask(h.ctx(), cio.NullIO)
	h.check(err)
	h.check(task.Start(h.ctx()))
	return task.Pid()
}
