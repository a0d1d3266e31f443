package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// fairwayOption adds a line to the fairway block of the config.
func fairwayOption(line string) option {
	return func(h *host) { h.options = append(h.options, line) }
}

const knative = "/apis/serving.knative.dev/v1/namespaces/default/"

// send sends an object to the admin endpoint and returns the status and body.
func (h *host) send(method, path, contentType, body string) (int, string, error) {
	req, err := http.NewRequestWithContext(h.life, method, "http://"+h.admin+path, strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	req.Header.Set("Content-Type", contentType)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// apply makes or changes an object by the API, which must work.
func (h *host) apply(method, path, contentType, body string) {
	h.t.Helper()
	status, answer, err := h.send(method, path, contentType, body)
	if err != nil || status >= 300 {
		h.t.Fatalf("%s %s: %d %s %v", method, path, status, answer, err)
	}
}

// ksvc is a Knative service of the probe image, in JSON; more goes into its
// container.
func (h *host) ksvc(name string, tag int, more string) string {
	if more != "" {
		more = ", " + more
	}
	return fmt.Sprintf(`{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": %q},
		"spec": {"template": {"spec": {"containers": [{"image": %q%s}]}}}}`, name, h.image(tag), more)
}

// state is what the API says of a service; nil when it is not there.
func (h *host) state(name string) *servingv1.Service {
	h.t.Helper()
	status, body, err := h.send(http.MethodGet, knative+"services/"+name, "", "")
	h.check(err)
	if status == http.StatusNotFound {
		return nil
	}
	svc := new(servingv1.Service)
	h.check(json.Unmarshal([]byte(body), svc))
	return svc
}

func (h *host) awaitReady(name, revision string) {
	h.t.Helper()
	within(h.t, time.Minute, name+" is ready with "+revision, func() bool {
		svc := h.state(name)
		return svc != nil && svc.IsReady() && svc.Status.LatestReadyRevisionName == revision
	})
}

// asked is a request to a host below the domain.
func (h *host) asked(hostname, path string) response {
	req, err := http.NewRequestWithContext(h.life, http.MethodGet, h.url(path), nil)
	h.check(err)
	req.Host = hostname
	return h.do(req)
}

// TestKnativeAPI deploys, moves traffic, rolls back and deletes by Knative's API,
// across restarts of Caddy, with instances running and without.
func TestKnativeAPI(t *testing.T) {
	h := newHost(t, onExit("keep"), fairwayOption("domain http://run.test"))
	config := h.caddyfile("fairway")
	h.start(config)
	h.apply(http.MethodPost, knative+"services", "application/json", h.ksvc("hello", 1, ""))
	h.awaitReady("hello", "hello-00001")
	revision := func(hostname string) string {
		t.Helper()
		got := h.asked(hostname, "/env?name=K_REVISION")
		if got.status != http.StatusOK {
			t.Errorf("%s: %s", hostname, got)
		}
		return strings.TrimSpace(got.body)
	}
	if got := revision("hello.run.test"); got != "hello-00001" {
		t.Errorf("served by %s", got)
	}
	before := h.instancesOf("hello")
	h.stop()
	h.start(config)
	if got := revision("hello.run.test"); got != "hello-00001" {
		t.Errorf("after a restart: served by %s", got)
	}
	if after := h.instancesOf("hello"); len(after) != 1 || len(before) != 1 || after[0].PID != before[0].PID {
		t.Errorf("instances %+v; before %+v", after, before)
	}
	merge := func(patch string) {
		t.Helper()
		h.apply(http.MethodPatch, knative+"services/hello", "application/merge-patch+json", patch)
	}
	merge(fmt.Sprintf(`{"spec": {"template": {"spec": {"containers": [{"image": %q}]}}, "traffic": [{"revisionName": "hello-00001", "percent": 100}, {"tag": "next", "latestRevision": true, "percent": 0}]}}`, h.image(2)))
	h.awaitReady("hello", "hello-00002")
	if a, b := revision("hello.run.test"), revision("next---hello.run.test"); a != "hello-00001" || b != "hello-00002" {
		t.Errorf("served by %s, the tag by %s", a, b)
	}
	h.kill()
	h.start(config)
	if a, b := revision("hello.run.test"), revision("next---hello.run.test"); a != "hello-00001" || b != "hello-00002" {
		t.Errorf("after a crash: served by %s, the tag by %s", a, b)
	}
	merge(`{"spec": {"traffic": [{"latestRevision": true, "percent": 100}]}}`)
	eventually(t, "the latest revision has the traffic", func() bool { return revision("hello.run.test") == "hello-00002" })
	if got := h.asked("none.run.test", "/"); got.status != http.StatusNotFound {
		t.Errorf("an unknown host: %s", got)
	}
	h.apply(http.MethodDelete, knative+"services/hello", "", "")
	if got := h.asked("hello.run.test", "/"); got.status != http.StatusNotFound {
		t.Errorf("a deleted service: %s", got)
	}
	h.assertOnly(0)
	h.stop()
	h.start(config)
	if svc := h.state("hello"); svc != nil {
		t.Errorf("after a restart the deleted service is there: %+v", svc.ObjectMeta)
	}
}

// TestDeployFailures has revisions that cannot start; the reason is the one that
// Knative has for it.
func TestDeployFailures(t *testing.T) {
	h := newHost(t, fairwayOption("domain http://run.test"))
	h.start(h.caddyfile("fairway"))
	for name, test := range map[string]struct{ container, reason, message string }{
		"noimage": {`"image": "localhost/fairway/none:1"`, "ContainerMissing", "Unable to fetch image"},
		"exits":   {fmt.Sprintf(`"image": %q, "env": [{"name": "FAIL_START", "value": "exit:7"}]`, h.image(1)), "ExitCode7", "Container failed with: probe: exiting, as FAIL_START says"},
	} {
		body := fmt.Sprintf(`{"metadata": {"name": %q}, "spec": {"template": {"spec": {"containers": [{%s}]}}}}`, name, test.container)
		h.apply(http.MethodPost, knative+"services", "application/json", body)
		within(t, time.Minute, name+" has failed", func() bool { return h.state(name).IsFailed() })
		status, answer, err := h.send(http.MethodGet, knative+"revisions/"+name+"-00001", "", "")
		h.check(err)
		var rev servingv1.Revision
		h.check(json.Unmarshal([]byte(answer), &rev))
		cond := rev.Status.GetCondition(servingv1.RevisionConditionReady)
		if status != http.StatusOK || cond.Reason != test.reason || !strings.Contains(cond.Message, test.message) {
			t.Errorf("%s: %+v; want %s, %s", name, cond, test.reason, test.message)
		}
		if got := h.asked(name+".run.test", "/"); got.status != http.StatusServiceUnavailable {
			t.Errorf("%s: %s", name, got)
		}
	}
	h.assertOnly(0)
}

// TestKilledWhileDeploying kills Caddy at any moment of deploys, deletes and
// moves of traffic that come from everywhere: what is there afterwards is what
// one of them has left, and nothing else.
func TestKilledWhileDeploying(t *testing.T) {
	h := newHost(t, onExit("keep"), fairwayOption("domain http://run.test"))
	config := h.caddyfile("fairway")
	images := []string{h.image(1), h.image(2)}
	for round := range loops(4, 40) {
		h.start(config)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for client := range 3 {
			wg.Go(func() {
				for ctx.Err() == nil {
					switch rand.N(6) {
					case 0:
						_, _, _ = h.send(http.MethodPost, knative+"services", "application/json", h.ksvcOf("hello", images[0]))
					case 1:
						if client == 0 {
							_, _, _ = h.send(http.MethodDelete, knative+"services/hello", "", "")
						}
					case 2:
						_, _, _ = h.send(http.MethodPatch, knative+"services/hello", "application/merge-patch+json",
							`{"spec": {"traffic": [{"latestRevision": true, "percent": 100}]}}`)
					default:
						_, _, _ = h.send(http.MethodPatch, knative+"services/hello", "application/merge-patch+json",
							fmt.Sprintf(`{"spec": {"template": {"spec": {"containers": [{"image": %q, "env": [{"name": "N", "value": "%d"}]}]}}}}`, images[rand.N(2)], rand.N(100)))
					}
					time.Sleep(rand.N(100 * time.Millisecond))
				}
			})
		}
		time.Sleep(300*time.Millisecond + rand.N(700*time.Millisecond))
		h.kill()
		cancel()
		wg.Wait()
		h.start(config)
		if problems := h.ask("/fairway/problems"); strings.TrimSpace(problems) != "[]" {
			t.Fatalf("round %d: %s", round, problems)
		}
		svc := h.state("hello")
		if svc == nil {
			h.apply(http.MethodPost, knative+"services", "application/json", h.ksvcOf("hello", images[0]))
		}
		within(t, time.Minute, fmt.Sprintf("round %d: the service is ready", round), func() bool { return h.state("hello").IsReady() })
		svc = h.state("hello")
		if got := h.asked("hello.run.test", "/env?name=K_REVISION"); got.status != http.StatusOK || strings.TrimSpace(got.body) != svc.Status.LatestReadyRevisionName {
			t.Fatalf("round %d: %s; want %s", round, got, svc.Status.LatestReadyRevisionName)
		}
		h.stop()
	}
	h.start(config)
	h.apply(http.MethodDelete, knative+"services/hello", "", "")
	h.assertOnly(0)
	eventually(t, "no record is left", func() bool {
		files, err := filepath.Glob(filepath.Join(h.dir, "storage", "fairway", "*", "*"))
		h.check(err)
		// Caddy's storage writes to such names first, and leaves them when it is killed.
		return !slices.ContainsFunc(files, func(file string) bool { return strings.Trim(filepath.Base(file), "0123456789") != "" })
	})
}

func (h *host) ksvcOf(name, image string) string {
	return fmt.Sprintf(`{"metadata": {"name": %q}, "spec": {"template": {"spec": {"containers": [{"image": %q}]}}}}`, name, image)
}

// TestServicesDirectory deploys what is in a watched directory.
func TestServicesDirectory(t *testing.T) {
	dir := t.TempDir()
	h := newHost(t, onExit("keep"), fairwayOption("domain http://run.test"), fairwayOption("services_dir "+dir))
	config := h.caddyfile("fairway")
	h.start(config)
	write := func(name string, services ...string) {
		t.Helper()
		h.check(os.WriteFile(filepath.Join(dir, "."+name), []byte(strings.Join(services, "\n---\n")), 0o600))
		h.check(os.Rename(filepath.Join(dir, "."+name), filepath.Join(dir, name)))
	}
	write("one.yaml", h.ksvc("hello", 1, ""))
	eventually(t, "the service is there", func() bool { return h.state("hello") != nil })
	h.awaitReady("hello", "hello-00001")
	if status, answer, err := h.send(http.MethodDelete, knative+"services/hello", "", ""); err != nil || status != http.StatusConflict || !strings.Contains(answer, dir) {
		t.Errorf("deleted behind the file's back: %d %s %v", status, answer, err)
	}
	write("one.yaml", h.ksvc("hello", 2, ""), h.ksvc("other", 1, ""))
	h.awaitReady("hello", "hello-00002")
	h.awaitReady("other", "other-00001")
	h.check(os.WriteFile(filepath.Join(dir, "one.yaml"), []byte("spec: ["), 0o600))
	eventually(t, "the bad file is shown", func() bool { return strings.Contains(h.ask("/fairway/problems"), "one.yaml") })
	if got := h.asked("hello.run.test", "/"); got.status != http.StatusOK {
		t.Errorf("with a bad file: %s", got)
	}
	// It is still bad after a restart: nothing is lost.
	h.stop()
	h.start(config)
	eventually(t, "the bad file is shown", func() bool { return strings.Contains(h.ask("/fairway/problems"), "one.yaml") })
	for _, name := range []string{"hello", "other"} {
		if got := h.asked(name+".run.test", "/"); got.status != http.StatusOK {
			t.Errorf("%s, with a bad file after a restart: %s", name, got)
		}
	}
	write("one.yaml", h.ksvc("other", 1, ""))
	eventually(t, "the service is gone", func() bool { return h.state("hello") == nil })
	h.check(os.Remove(filepath.Join(dir, "one.yaml")))
	eventually(t, "all are gone", func() bool { return h.state("other") == nil })
	h.assertOnly(0)
}

// TestQuarantine damages the record of one service: the others are there.
func TestQuarantine(t *testing.T) {
	h := newHost(t, fairwayOption("domain http://run.test"))
	config := h.caddyfile("fairway")
	h.start(config)
	for _, name := range []string{"one", "two", "three"} {
		h.apply(http.MethodPost, knative+"services", "application/json", h.ksvc(name, 1, ""))
		h.awaitReady(name, name+"-00001")
	}
	h.stop()
	record := func(name string) string { return filepath.Join(h.dir, "storage", "fairway", "services", name+".json") }
	b, err := os.ReadFile(record("one"))
	h.check(err)
	h.check(os.WriteFile(record("one"), b[:len(b)/2], 0o600)) // torn
	b, err = os.ReadFile(record("two"))
	h.check(err)
	h.check(os.WriteFile(record("two"), bytes.Replace(b, []byte(`"version":2`), []byte(`"version":99`), 1), 0o600))
	h.start(config)
	if got := h.asked("three.run.test", "/"); got.status != http.StatusOK {
		t.Errorf("%s", got)
	}
	problems := h.ask("/fairway/problems")
	for _, want := range []string{"services/one.json", "damaged", "services/two.json", "version 99"} {
		if !strings.Contains(problems, want) {
			t.Errorf("problems: %s; want %s", problems, want)
		}
	}
	kept, err := filepath.Glob(filepath.Join(h.dir, "storage", "fairway", "quarantine", "services", "*"))
	h.check(err)
	if len(kept) != 2 || !slices.IsSorted(kept) {
		t.Errorf("kept: %q", kept)
	}
	// Their revisions' names are not used again.
	h.apply(http.MethodPost, knative+"services", "application/json", h.ksvc("one", 2, ""))
	h.awaitReady("one", "one-00002")
}
