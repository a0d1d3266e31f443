package e2e

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// inside asks an instance itself, at one of its ports: there is no way through
// Fairway to one that is not ready.
func (h *host) inside(i instance, port int, path string) string {
	h.t.Helper()
	ip, _, err := net.SplitHostPort(i.Address)
	h.check(err)
	req, err := http.NewRequestWithContext(h.life, http.MethodGet, fmt.Sprintf("http://%s:%d%s", ip, port, path), nil)
	h.check(err)
	got := h.do(req)
	if got.status != http.StatusOK {
		h.t.Errorf("%s of %s: %s", path, i.Instance, got)
	}
	return strings.TrimSpace(got.body)
}

// awaitStates waits until the instances of a service are in these states, in the
// order that they were made.
func (h *host) awaitStates(service string, want ...string) []instance {
	h.t.Helper()
	var all []instance
	eventually(h.t, fmt.Sprintf("the instances of %s are %q", service, want), func() bool {
		all = h.instancesOf(service)
		var states []string
		for _, i := range all {
			if i.State == "frozen" {
				i.State = "ready"
			}
			states = append(states, i.State)
		}
		return fmt.Sprint(states) == fmt.Sprint(want)
	})
	return all
}

func (h *host) must(service, path string) string {
	h.t.Helper()
	got := h.getFrom(h.t.Context(), service, path)
	if got.status != http.StatusOK {
		h.t.Errorf("%s%s: %s", service, path, got)
	}
	return strings.TrimSpace(got.body)
}

// id is that of the process that answers a service's request.
func (h *host) id(service string) string {
	h.t.Helper()
	var a about
	if err := json.Unmarshal([]byte(h.must(service, "/")), &a); err != nil {
		h.t.Error(err)
	}
	return a.ID
}

// TestReadinessProbes has apps whose readiness probe says when they have started:
// at another port, by path and query, and by gRPC.
func TestReadinessProbes(t *testing.T) {
	const least = 1500 * time.Millisecond
	services := map[string][]string{
		"port":  {"env HEALTH_PORT 8077", "readiness_probe http /healthz {\n\t\tport 8077\n\t}"},
		"query": {"readiness_probe http /healthz?name=ready"},
		"grpc":  {"env GRPC 1", "port h2c 8080", "readiness_probe grpc"},
	}
	h := newHost(t)
	var site strings.Builder
	for name, options := range services {
		site.WriteString(h.vhost(name, append(options, fmt.Sprintf("env FAIL_START probe503:%d", least.Milliseconds()))...))
	}
	h.start(h.caddyfile(site.String()))
	wg := crowd(t)
	for name := range services {
		wg.Go(func() {
			if got := h.getFrom(t.Context(), name, "/"); got.status != http.StatusOK || got.took < least {
				t.Errorf("%s: %s after %s; want 200 after %s", name, got, got.took, least)
			}
		})
	}
	wg.Wait()
}

// TestReadinessLoss has an instance that is not ready for a while: it goes on with
// what it has, and gets what has waited when it is ready again; or another gets it,
// where there may be another.
func TestReadinessLoss(t *testing.T) {
	h := newHost(t)
	const probe = "readiness_probe http /healthz?name=ready {\n\t\tperiod 1s\n\t\tfailure_threshold 2\n\t\tsuccess_threshold 2\n\t}"
	h.start(h.caddyfile(h.vhost("alone", "instances 0 1", probe) + h.vhost("two", "instances 0 2", probe)))
	tests := crowd(t)
	tests.Go(func() {
		first := h.id("alone")
		wg := crowd(t)
		wg.Go(func() { // in flight for longer than it takes to get unready
			if got := h.must("alone", "/sleep?ms=6000"); got != first {
				t.Errorf("alone: %s answered; it was asked of %s", got, first)
			}
		})
		h.must("alone", "/fail?name=ready")
		i := h.awaitStates("alone", "unready")[0]
		wg.Go(func() {
			if got := h.id("alone"); got != first {
				t.Errorf("alone: %s answered; there may only be %s", got, first)
			}
		})
		eventually(t, "a request waits", func() bool { return h.serviceNamed("alone").Queue == 1 })
		h.inside(i, 8080, "/mend?name=ready")
		wg.Wait()
		h.awaitStates("alone", "ready")
		if lines := h.loggedOf("alone", "instance unready"); len(lines) != 1 ||
			!strings.Contains(lines[0].text("reason"), "the readiness probe (http port 8080 /healthz?name=ready) failed 2 times in a row: answered 503") {
			t.Errorf("alone: the log says %v", lines)
		}
		if lines := h.loggedOf("alone", "instance ready"); len(lines) != 2 {
			t.Errorf("alone: it was ready %d times; want 2", len(lines))
		}
		m := h.metrics()
		for name, want := range map[string]float64{
			`caddy_fairway_requests_total{outcome="admitted",revision="alone-00001",service="alone"}`: 4, // probes are none
			`caddy_fairway_cold_start_seconds_count{phase="probe",service="alone"}`:                   1,
		} {
			if m[name] != want {
				t.Errorf("%s is %v; want %v", name, m[name], want)
			}
		}
	})
	tests.Go(func() {
		first := h.id("two")
		wg := crowd(t)
		wg.Go(func() { h.must("two", "/sleep?ms=4000") }) // a frozen one is not asked
		h.must("two", "/fail?name=ready")
		eventually(t, "it is not ready", func() bool { return len(h.loggedOf("two", "instance unready")) == 1 })
		if got := h.id("two"); got == first {
			t.Error("two: the instance that is not ready has got a request")
		}
		i := h.awaitStates("two", "unready", "ready")[0]
		h.inside(i, 8080, "/mend?name=ready")
		h.awaitStates("two", "ready", "ready")
		wg.Wait()
		if made := h.creationsOf("two"); len(made) != 2 {
			t.Errorf("two: %d containers; want 2", len(made))
		}
	})
	tests.Wait()
}

// TestLivenessFails has an instance that is killed because of its liveness probe,
// and replaced: at once as the minimum, else for the next request.
func TestLivenessFails(t *testing.T) {
	h := newHost(t)
	probe := []string{"env IGNORE_TERM 1", "liveness_probe http /healthz?name=live {\n\t\tperiod 1s\n\t\tfailure_threshold 2\n\t}"}
	h.start(h.caddyfile(h.vhost("kept", append(probe, "instances 1 1")...) + h.vhost("wanted", append(probe, "instances 0 1")...)))
	wg := crowd(t)
	for _, name := range []string{"kept", "wanted"} {
		wg.Go(func() {
			first := h.id(name)
			inFlight := crowd(t)
			inFlight.Go(func() {
				if got := h.getFrom(t.Context(), name, "/hang"); got.status != http.StatusBadGateway {
					t.Errorf("%s: what it had in flight: %s; want 502", name, got)
				}
			})
			h.must(name, "/fail?name=live")
			inFlight.Wait()
			failed := h.loggedOf(name, "instance failed")
			if len(failed) != 1 || failed[0].text("reason") != "liveness probe failed" ||
				!strings.Contains(failed[0].text("error"), "the liveness probe (http port 8080 /healthz?name=live) failed 2 times in a row: answered 503") {
				t.Errorf("%s: the log says %v", name, failed)
			}
			if name == "kept" {
				within(t, patience, "it is replaced unasked", func() bool { return len(h.loggedOf(name, "instance ready")) == 2 })
			}
			if second := h.id(name); second == first {
				t.Errorf("%s: %s still answers", name, first)
			}
			if made := h.creationsOf(name); len(made) != 2 {
				t.Errorf("%s: %d containers; want 2", name, len(made))
			}
		})
	}
	wg.Wait()
}

// TestLivenessBeginsAfterTheStart has an app that starts for longer than its
// liveness probe may fail.
func TestLivenessBeginsAfterTheStart(t *testing.T) {
	h := newHost(t)
	h.start(h.caddyfile(h.vhost("slow", "cpu_throttling false", "env FAIL_START probe503:5000", "startup_probe http /healthz",
		"liveness_probe http /healthz {\n\t\tperiod 1s\n\t\tfailure_threshold 2\n\t}")))
	first := h.id("slow")
	time.Sleep(3 * time.Second)
	if got := h.id("slow"); got != first || len(h.loggedOf("slow", "instance failed")) > 0 {
		t.Errorf("it was replaced: %v", h.loggedOf("slow", "instance failed"))
	}
}

// TestFrozenInstancesAreNotProbed compares an instance that is frozen with one that
// is never.
func TestFrozenInstancesAreNotProbed(t *testing.T) {
	h := newHost(t)
	const probe = "liveness_probe http /healthz?name=live {\n\t\tperiod 1s\n\t}"
	h.start(h.caddyfile(h.vhost("rests", probe) + h.vhost("runs", probe, "cpu_throttling false")))
	h.must("rests", "/")
	h.must("runs", "/")
	var before instance
	eventually(t, "it is frozen", func() bool {
		all := h.instancesOf("rests")
		before = all[0]
		return before.State == "frozen"
	})
	time.Sleep(5 * time.Second)
	if after := h.instancesOf("rests")[0]; after.State != "frozen" || !after.Since.Equal(before.Since) {
		t.Errorf("%+v; it was %+v", after, before)
	}
	asked := func(name string) (n int) {
		if _, err := fmt.Sscan(h.must(name, "/asked?name=live"), &n); err != nil {
			t.Error(err)
		}
		return n
	}
	if rests, runs := asked("rests"), asked("runs"); rests > 1 || runs < 3 {
		t.Errorf("it was asked %d times; the one that runs %d times", rests, runs)
	}
}

// TestProbesOfSidecars has an instance of several containers with probes of all
// kinds: it is ready when all are, and no longer than all are.
func TestProbesOfSidecars(t *testing.T) {
	const least = 2 * time.Second
	h := newHost(t, fairwayOption("domain http://run.test"))
	h.start(h.caddyfile("fairway"))
	sidecar := func(name string, port int, more string) string {
		return fmt.Sprintf(`{"name": %q, "image": %q, "env": [{"name": "PORT", "value": "%d"}, {"name": "GRPC", "value": "1"}, {"name": "FAIL_START", "value": "probe503:%d"}], %s}`,
			name, h.image(1), port, least.Milliseconds(), more)
	}
	h.apply(http.MethodPost, knative+"services", "application/json", fmt.Sprintf(
		`{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": {"template": {
			"metadata": {"annotations": {"autoscaling.knative.dev/max-scale": "1"}}, "spec": {"containers": [
			{"name": "app", "image": %q, "ports": [{"containerPort": 8080}]}, %s, %s, %s]}}}}`, h.image(1),
		sidecar("tcp", 9001, `"startupProbe": {"tcpSocket": {"port": 9001}}, "livenessProbe": {"tcpSocket": {"port": 9001}}`),
		sidecar("http", 9002, `"readinessProbe": {"httpGet": {"path": "/healthz?name=ready", "port": 9002}, "periodSeconds": 1, "failureThreshold": 2},
			"livenessProbe": {"exec": {"command": ["/app", "check", "/healthz?name=live"]}, "periodSeconds": 1, "timeoutSeconds": 1, "failureThreshold": 1}`),
		sidecar("grpc", 9003, `"startupProbe": {"grpc": {"port": 9003}}, "readinessProbe": {"grpc": {"port": 9003}}`)))
	h.awaitReady("hello", "hello-00001")
	if took := h.logged("instance ready")[0]["took_probe"]; took == nil || took.(float64) < 0.9*least.Seconds() { // two clocks, of which one was read a moment later
		t.Errorf("it was ready after %v; want %s", took, least)
	}
	if got := h.asked("hello.run.test", "/"); got.status != http.StatusOK {
		t.Errorf("%s", got)
	}
	i := h.instancesOf("hello")[0]
	held := crowd(t)
	held.Go(func() { // keeps it awake
		if got := h.asked("hello.run.test", "/sleep?ms=4000"); got.status != http.StatusOK {
			t.Errorf("what was in flight: %s", got)
		}
	})
	eventually(t, "a request is in flight", func() bool { return h.serviceNamed("hello").InFlight == 1 })
	h.inside(i, 9002, "/fail?name=ready")
	h.awaitStates("hello", "unready")
	h.inside(i, 9002, "/mend?name=ready")
	h.awaitStates("hello", "ready")
	held.Wait()

	held.Go(func() {
		if got := h.asked("hello.run.test", "/hang"); got.status != http.StatusBadGateway {
			t.Errorf("what was in flight: %s; want 502", got)
		}
	})
	eventually(t, "a request is in flight", func() bool { return h.serviceNamed("hello").InFlight == 1 })
	h.inside(i, 9002, "/fail?name=live")
	held.Wait()
	failed := h.logged("instance failed")
	if len(failed) != 1 || !strings.Contains(failed[0].text("error"), "the liveness probe of container http (exec /app check /healthz?name=live) failed once: /app exited with code 1") {
		t.Errorf("the log says %v", failed)
	}
}

// TestContainerDependencies has an app that is started when its database has
// passed its startup probe, from nothing and from what was prepared.
func TestContainerDependencies(t *testing.T) {
	const least = 1500 * time.Millisecond
	h := newHost(t, fairwayOption("domain http://run.test"))
	h.start(h.caddyfile("fairway"))
	h.apply(http.MethodPost, knative+"services", "application/json", fmt.Sprintf(
		`{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "hello"}, "spec": {"template": {
			"metadata": {"annotations": {"run.googleapis.com/container-dependencies": "{\"app\": [\"db\"]}", "run.fairway/prepared": "1"}},
			"spec": {"containerConcurrency": 1, "containers": [
				{"name": "app", "image": %q, "ports": [{"containerPort": 8080}]},
				{"name": "db", "image": %q, "env": [{"name": "PORT", "value": "9001"}, {"name": "FAIL_START", "value": "probe503:%d"}],
					"startupProbe": {"httpGet": {"path": "/healthz", "port": 9001}, "periodSeconds": 1, "failureThreshold": 60}}]}}}}`,
		h.image(1), h.image(1), least.Milliseconds()))
	h.awaitReady("hello", "hello-00001")
	wg := crowd(t)
	wg.Go(func() {
		if got := h.asked("hello.run.test", "/sleep?ms=4000"); got.status != http.StatusOK {
			t.Errorf("%s", got)
		}
	})
	eventually(t, "the first is busy, another prepared", func() bool {
		all := h.instancesOf("hello")
		return len(all) == 2 && all[0].InFlight == 1 && all[1].State == "prepared"
	})
	if got := h.asked("hello.run.test", "/"); got.status != http.StatusOK {
		t.Errorf("%s", got)
	}
	wg.Wait()
	// Each container writes one line, when it begins to listen.
	begun := make(map[string]map[string]time.Time)
	h.check(filepath.WalkDir(h.logDir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		info, statErr := d.Info()
		if err != nil || statErr != nil || len(text) == 0 {
			return statErr
		}
		container := "app"
		if strings.Contains(string(text), ":9001") {
			container = "db"
		}
		id := strings.Join(strings.Split(filepath.Base(path), "-")[:3], "-")
		id, _, _ = strings.Cut(id, ".")
		if begun[id] == nil {
			begun[id] = make(map[string]time.Time)
		}
		begun[id][container] = info.ModTime()
		return nil
	}))
	both := 0
	for id, at := range begun {
		if len(at) < 2 {
			continue // prepared
		}
		both++
		if after := at["app"].Sub(at["db"]); after < least-100*time.Millisecond {
			t.Errorf("%s: the app began %s after its database; want %s", id, after, least)
		}
	}
	if both != 2 {
		t.Errorf("%d instances of two containers; want 2: %v", both, begun)
	}
}
