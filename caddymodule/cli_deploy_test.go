package caddymodule

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

func TestDeploy(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("services").wants(t, 0, "There are no services")
	// What it shows meanwhile is TestWaiting's: this may be done before the first look.
	got := c.must("deploy", "hello", "--image", "app:1")
	if want := "Service [hello] revision [hello-00001] has been deployed and is serving 100 percent of traffic.\n"; got.out != want {
		t.Errorf("it prints %q, want %q", got.out, want)
	}
	c.must("deploy", "hello", "--image", "app:1").
		wants(t, 0, "Service [hello] has not changed: revision [hello-00001] is serving 100 percent of traffic.")
	c.must("deploy", "hello", "--ingress", "internal").
		wants(t, 0, "Service [hello] has been changed; that took no new revision: [hello-00001]")
	if st := current.Load().scaler.Registry().State("hello"); !st.Internal() {
		t.Error("--ingress internal has no effect")
	}
	if got := c.do("deploy", "hello", "--ingress", "some"); got.code == 0 || !strings.Contains(got.msg, `--ingress: "some" is not all or internal`) {
		t.Errorf("%+v", got)
	}
	c.must("deploy", "hello", "--ingress", "all")
	c.must("deploy", "hello", "--description", "A greeting").
		wants(t, 0, "Service [hello] has been changed; that took no new revision: [hello-00001]")
	// Flags change only what they name.
	c.must("deploy", "hello", "--update-env-vars", "A=1", "--concurrency=7").wants(t, 0, "[hello-00002] has been deployed and is serving 100")
	c.must("deploy", "hello", "--image", "app:2").wants(t, 0, "[hello-00003] has been deployed")
	var svc servingv1.Service
	if err := json.Unmarshal([]byte(c.must("services", "hello", "--json").out), &svc); err != nil {
		t.Fatal(err)
	}
	spec := svc.Spec.Template.Spec
	if env := spec.Containers[0].Env; len(env) != 1 || env[0].Value != "1" || *spec.ContainerConcurrency != 7 || spec.Containers[0].Image != "app:2" {
		t.Errorf("template: %+v", spec)
	}
	c.must("deploy", "hello", "--revision-suffix", "blue").wants(t, 0, "revision [hello-blue] has been deployed")
	c.must("deploy", "hello", "--image", "app:2").wants(t, 0, "has not changed: revision [hello-blue]")
	c.must("deploy", "hello", "--image", "app:3").wants(t, 0, "revision [hello-00005] has been deployed")

	c.do("deploy", "other", "--concurrency=1").wants(t, exitNotFound, "service [other] could not be found; to make it, say --image")
	c.do("deploy", "other", "--image=app:1", "--no-traffic").wants(t, exitUsage, "--no-traffic")
	c.do("deploy", "Other!", "--image=app:1").wants(t, exitUsage, "Other!")
	c.do("deploy", "hello", "--memory=1Ti", "--timeout=2h").wants(t, exitUsage, "timeoutSeconds")
	c.do("services", "other").wants(t, exitNotFound, "service [other] could not be found")
}

func TestDeployFails(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.do("deploy", "hello", "--image", "missing:1").wants(t, exitFailed,
		"revision [hello-00001] is not ready and cannot serve traffic: ContainerMissing: Unable to fetch image \"missing:1\"")
	c.must("services").wants(t, 0, "failed")
	c.must("deploy", "hello", "--image", "app:1").wants(t, 0, "[hello-00002] has been deployed")
	c.fake.fail(&instancepool.StartError{Reason: "ExitCode3", Err: errors.New("exit"), Log: "starting\npanic: no database\n"})
	got := c.do("deploy", "hello", "--image", "app:2")
	got.wants(t, exitFailed, "ContainerUnhealthy: ", "starting\n    panic: no database\n", "The traffic stays where it was: [hello-00002].")
	c.must("services").wants(t, 0, "degraded")
	c.must("services", "hello").wants(t, 0, "degraded Service hello", "Owner: the API", "Latest ready revision: hello-00002", "panic: no database")
	c.must("revisions", "hello").wants(t, 0, "hello-00003", "ContainerUnhealthy", "hello-00001")

	// The same again is another try, and then the same is the same.
	c.fake.fail(nil)
	c.must("deploy", "hello", "--image", "app:2").wants(t, 0, "[hello-00004] has been deployed and is serving 100 percent")
	c.must("deploy", "hello", "--image", "app:2").wants(t, 0, "has not changed: revision [hello-00004]")
	c.stdin = c.must("export", "hello").out
	if strings.Contains(c.stdin, "nonce") {
		t.Errorf("the nonce is exported:\n%s", c.stdin)
	}
	c.must("deploy", "-f", "-").wants(t, 0, "has not changed: revision [hello-00004]")
	if got := c.must("deploy", "hello", "--image", "app:3", "--json").out; strings.Contains(got, "nonce") {
		t.Errorf("the nonce stays:\n%s", got)
	}
}

func TestDeployWithoutTraffic(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image", "app:1")
	c.must("deploy", "hello", "--image", "app:2", "--no-traffic", "--tag", "next").wants(t, 0,
		"Service [hello] revision [hello-00002] has been deployed and is serving 0 percent of traffic.\n",
		"caddy fairway traffic hello --to-latest")
	c.must("traffic", "hello").wants(t, 0, "100% hello-00001", "0% hello-00002\n       next")
	c.must("deploy", "hello", "--image", "app:3").wants(t, 0,
		"Service [hello] revision [hello-00003] has been deployed and is serving 0 percent of traffic: the traffic is pinned to [hello-00001].\n"+
			"To send all of it to the latest revision: caddy fairway traffic hello --to-latest\n")
	c.must("traffic", "hello", "--to-tags", "next=25").wants(t, 0, " 75% hello-00001", " 25% hello-00002")
	c.must("traffic", "hello", "--to-revisions", "LATEST=20").wants(t, 0, " 60% hello-00001", " 20% hello-00002", " 20% LATEST (currently hello-00003)")
	c.must("deploy", "hello", "--image", "app:4").wants(t, 0, "[hello-00004] has been deployed and is serving 20 percent of traffic.")
	c.must("services").wants(t, 0, "hello-00001 60%, hello-00002 20%, hello-00004 20%")
	c.must("traffic", "hello", "--to-latest", "--clear-tags").wants(t, 0, "Traffic:\n  100% LATEST (currently hello-00004)\n")
	c.do("traffic", "hello", "--to-revisions", "hello-00009=1").wants(t, exitNotFound, "service [hello] has no revision [hello-00009]")
	c.do("traffic", "hello", "--to-tags", "gone=1").wants(t, exitNotFound, "no revision has the tag [gone]")
	c.do("traffic", "other", "--to-latest").wants(t, exitNotFound, "service [other] could not be found")
}

func TestDeployTag(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image", "app:1", "--tag", "one").wants(t, 0, "is serving 100 percent of traffic")
	c.must("deploy", "hello", "--image", "app:2", "--tag", "next", "--no-traffic")
	started := c.fake.started.Load()
	c.do("deploy", "hello", "--image", "missing:3", "--tag", "next").wants(t, exitFailed, "ContainerMissing")
	c.do("deploy", "hello", "--image", "missing:3", "--tag", "other").wants(t, exitFailed, "ContainerMissing")
	got := c.must("traffic", "hello")
	got.wants(t, 0, "100% hello-00001\n       one\n    0% hello-00002\n       next\n")
	if strings.Contains(got.out, "LATEST") || strings.Contains(got.out, "other") {
		t.Errorf("a tag is left:\n%s", got.out)
	}
	if n := len(c.fake.ids()); n != 2 || started != 2 {
		t.Errorf("%d instances of %d are left: what has proved itself should stay", n, started)
	}
	c.must("deploy", "hello", "--image", "app:4", "--tag", "next", "--async").wants(t, 0, "The tag [next] follows the latest ready revision")
}

// TestDeployTogether sees that no change is lost when several make one.
func TestDeployTogether(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image=app:1")
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			c.do("deploy", "hello", "--async", fmt.Sprintf("--update-env-vars=V%d=1", i)).wants(t, 0, "is being deployed")
		})
	}
	all.Wait()
	text := c.must("export", "hello").out
	for i := range 4 {
		if !strings.Contains(text, fmt.Sprintf("name: V%d", i)) {
			t.Errorf("V%d is lost:\n%s", i, text)
		}
	}
}

func TestRollback(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image", "app:1")
	c.do("rollback", "hello").wants(t, exitNotFound, "no ready revision before [hello-00001]")
	c.must("deploy", "hello", "--image", "app:2")
	c.do("deploy", "hello", "--image", "missing:3")
	c.must("deploy", "hello", "--image", "app:4")
	c.must("rollback", "hello").wants(t, 0, "100% hello-00002", "pinned to revision [hello-00002]", "traffic hello --to-latest")
	c.must("rollback", "hello").wants(t, 0, "100% hello-00001")
	c.must("rollback", "hello", "hello-00004").wants(t, 0, "100% hello-00004")
	c.do("rollback", "hello", "hello-00003").wants(t, exitFailed, "revision [hello-00003] is not ready: ContainerMissing")
	c.do("rollback", "hello", "hello-00007").wants(t, exitNotFound, "no revision [hello-00007]")
	c.must("deploy", "hello", "--image", "app:5").wants(t, 0, "0 percent of traffic: the traffic is pinned to [hello-00004]")
}

// A rollback under load is done when the requests get there, and says what it waits
// for until then.
func TestRollbackWaits(t *testing.T) {
	gate := make(chan struct{})
	var shut atomic.Bool
	c := startConsoleOf(t, "\tfairway", func(id string, rev *revisions.Revision) http.Handler {
		if shut.Load() && rev.Name == "hello-00001" {
			<-gate // the start of the instance takes so long
		}
		return hello(id, rev)
	})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	c.must("deploy", "hello", "--image=app:1")
	c.must("deploy", "hello", "--image=app:2")
	eventually(t, "the first revision is gone", func() bool {
		return !slices.ContainsFunc(c.fake.ids(), func(id string) bool { return strings.HasPrefix(id, "hello-00001-") })
	})
	shut.Store(true)
	lease, err := current.Load().scaler.Acquire(t.Context(), scaler.Request{Service: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	defer lease.Release()
	const why = "revision hello-00001 is being brought up for the load"
	c.do("rollback", "hello", "--wait-timeout=300ms").wants(t, exitTimeout,
		"Routing traffic of service [hello]: routing traffic: "+why, "service [hello] was not ready within 300ms, but waits: "+why+"; it goes on: see")
	c.must("traffic", "hello").wants(t, 0, "What is wanted is not so yet: TrafficNotMigrated: Traffic is not yet migrated: "+why)
	c.must("services", "hello").wants(t, 0, "waiting RoutesReady: TrafficNotMigrated")
	c.must("rollback", "hello", "hello-00001", "--async").wants(t, 0, "is being changed", "caddy fairway traffic hello")
	open()
	got := c.must("rollback", "hello", "hello-00001")
	got.wants(t, 0, "100% hello-00001")
	if strings.Contains(got.out, "not so yet") {
		t.Errorf("it does not wait: %s", got.out)
	}
}

const twoServices = `
apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  name: one
  namespace: some-project
  labels: {cloud.googleapis.com/location: europe-west1}
  annotations: {run.googleapis.com/ingress-status: all}
spec:
  template:
    metadata:
      annotations: {autoscaling.knative.dev/maxScale: '3'}
    spec:
      containers:
      - image: app:1
        env: [{name: A, value: '1'}]
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: two}
spec: {template: {spec: {containers: [{image: app:1}]}}}
`

func TestDeployFiles(t *testing.T) {
	c := startConsole(t, "\tfairway")
	file := filepath.Join(t.TempDir(), "services.yaml")
	if err := os.WriteFile(file, []byte(twoServices), 0o600); err != nil {
		t.Fatal(err)
	}
	c.must("deploy", "-f", file).wants(t, 0, "revision [one-00001] has been deployed", "revision [two-00001] has been deployed")
	c.must("deploy", "-f", file).wants(t, 0, "Service [one] has not changed", "Service [two] has not changed")
	for _, name := range []string{"one", "two"} {
		c.stdin = c.must("export", name).out
		for _, unwanted := range []string{"status", "uid", "resourceVersion", "generation", "namespace", "creator", "readinessProbe", "enableServiceLinks", "user-container", "null"} {
			if strings.Contains(c.stdin, unwanted) {
				t.Errorf("%s is in the export:\n%s", unwanted, c.stdin)
			}
		}
		c.must("deploy", "-f", "-").wants(t, 0, "Service ["+name+"] has not changed: revision ["+name+"-00001]")
	}
	// What a file does not say goes back to its default.
	c.must("deploy", "one", "--concurrency=5", "--update-env-vars=B=2").wants(t, 0, "[one-00002]")
	c.must("deploy", "-f", file).wants(t, 0, "revision [one-00003] has been deployed", "Service [two] has not changed")

	three := filepath.Join(t.TempDir(), "three.yaml")
	if err := os.WriteFile(three, []byte(`apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: three}
spec:
  template:
    metadata:
      annotations: {run.googleapis.com/cloudsql-instances: db}
    spec:
      containers: [{image: "app:1"}]
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := c.must("deploy", "-f", three); !strings.Contains(got.msg, "Warning: annotation run.googleapis.com/cloudsql-instances has no effect: there is nothing of the kind on one host\n") {
		t.Errorf("%+v", got)
	}
	if text := c.must("export", "one").out; strings.Contains(text, "B") || strings.Contains(text, "containerConcurrency: 5") {
		t.Errorf("it is not replaced:\n%s", text)
	}
	c.stdin = "kind: Service\napiVersion: serving.knative.dev/v1\nmetadata: {name: x}\nspec: {template: {spec: {containers: [{imagee: app:1}]}}}\n"
	c.do("deploy", "-f", "-").wants(t, exitUsage, `standard input: document 1: unknown field "spec.template.spec.containers[0].imagee"`)
	c.must("delete", "one", "two").wants(t, 0, "Deleted service [one].\nDeleted service [two].\n")
}

func TestExport(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image=app:1", "--set-secrets=/keys/a=tls:key", "--port=9000", "--startup-probe=httpGet.path=/", "--description=d")
	const want = `apiVersion: serving.knative.dev/v1
kind: Service
metadata:
  annotations:
    run.googleapis.com/description: d
  name: hello
spec:
  template:
    spec:
      containerConcurrency: 80
      containers:
      - image: app:1
        ports:
        - containerPort: 9000
        resources:
          limits:
            cpu: "1"
            memory: 512Mi
        startupProbe:
          httpGet:
            path: /
        volumeMounts:
        - mountPath: /keys
          name: tls
      timeoutSeconds: 300
      volumes:
      - name: tls
        secret:
          items:
          - key: key
            path: a
          secretName: tls
  traffic:
  - latestRevision: true
    percent: 100
`
	got := c.must("export", "hello").out
	if got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	c.stdin = got
	c.must("deploy", "-f", "-").wants(t, 0, "has not changed")
	var doc map[string]any
	if err := json.Unmarshal([]byte(c.must("export", "hello", "--json").out), &doc); err != nil || doc["kind"] != "Service" {
		t.Errorf("%v: %v", err, doc)
	}
}

// TestOwners sees that what another owner has is not touched, and is shown.
func TestOwners(t *testing.T) {
	c := startConsole(t, "\tfairway hello {\n\t\timage app:1\n\t}")
	c.do("deploy", "hello", "--image=app:2").wants(t, exitConflict, "service [hello]: it belongs to Caddy's config")
	c.do("delete", "hello").wants(t, exitConflict, "service [hello]: it belongs to Caddy's config")
	c.do("traffic", "hello", "--update-tags=a=hello-00001").wants(t, exitConflict, "it belongs to Caddy's config")
	c.must("services", "hello").wants(t, 0, "Owner: Caddy's config")
	c.must("instances", "hello").wants(t, 0, "There are no instances")
	if status, _, _ := c.get("/"); status != 200 {
		t.Fatal(status)
	}
	c.must("instances", "hello").wants(t, 0, "INSTANCE", "hello-00001-", "ready", "4242")
	settled(t, "hello")
}

func TestDelete(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image=app:1")
	c.must("deploy", "hello", "--image=app:2")
	c.do("delete", "--revision=hello-00002").wants(t, exitConflict, "revision [hello-00002]: requests are routed to it")
	c.do("delete", "--revision=hello-00007").wants(t, exitNotFound, "revision [hello-00007] could not be found")
	c.do("delete", "hello", "other").wants(t, exitNotFound, "service [other] could not be found")
	c.must("delete", "--revision=hello-00001").wants(t, 0, "Deleted revision [hello-00001].")
	c.must("delete", "hello", "--json").wants(t, 0, `"status": "Success"`)
	c.must("services", "--json").wants(t, 0, "[]")
}

// TestWaiting sees what comes of waiting that ends before the deployment does.
func TestWaiting(t *testing.T) {
	gate := make(chan struct{})
	c := startConsoleOf(t, "\tfairway", func(id string, rev *revisions.Revision) http.Handler {
		if rev.Name != "hello-00001" {
			<-gate // the start of the instance takes so long
		}
		return hello(id, rev)
	})
	open := sync.OnceFunc(func() { close(gate) })
	defer open()
	c.must("deploy", "hello", "--image=app:1")
	c.do("deploy", "hello", "--image=app:2", "--wait-timeout=300ms").wants(t, exitTimeout,
		"service [hello] was not ready within 300ms", "Deploying service [hello]: ")
	c.must("services", "hello").wants(t, 0, "waiting Service hello", "Now: ")
	c.must("deploy", "hello", "--async", "--concurrency=9").wants(t, 0, "revision [hello-00003] is being deployed")
	ctx, interrupt := context.WithCancel(t.Context())
	timer := time.AfterFunc(300*time.Millisecond, interrupt)
	defer timer.Stop()
	runCommand(ctx, "", "--address", c.address, "deploy", "hello", "--image=app:3").wants(t, exitInterrupted,
		"What was asked for goes on: see caddy fairway services hello", "Error: interrupted")
	open()
	// Its status may just have changed, and that is none of the service.
	c.must("deploy", "hello", "--image=app:3").wants(t, 0, "Service [hello] has not changed: revision [hello-00004] is serving 100 percent of traffic")
}

func TestCompletion(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image=app:1")
	c.must("deploy", "hello", "--image=app:2")
	c.must("deploy", "other", "--image=app:1")
	for _, test := range []struct {
		line []string
		want string
	}{
		{[]string{"services", ""}, "hello other"},
		{[]string{"rollback", "hello", ""}, "hello-00001 hello-00002"},
		{[]string{"delete", "hello", ""}, "other"},
		{[]string{"delete", "--revision", ""}, "hello-00001 hello-00002 other-00001"},
		{[]string{"traffic", "hello", "--to-revisions", "hello-00001=5,"}, "hello-00001=5,hello-00001= hello-00001=5,hello-00002= hello-00001=5,LATEST="},
		{[]string{"traffic", "hello", "--set-tags", "a="}, "a=hello-00001 a=hello-00002 a=LATEST"},
	} {
		line := append([]string{"__completeNoDesc", test.line[0], "--address", c.address}, test.line[1:]...)
		got := runCommand(t.Context(), "", line...)
		names, _, _ := strings.Cut(got.out, ":")
		if strings.Join(strings.Fields(names), " ") != test.want {
			t.Errorf("%q: %q, want %q", test.line, got.out, test.want)
		}
	}
}
