package revisions

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/api/equality"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"
)

// parse reads a Knative service.
func parse(t testing.TB, text string) *servingv1.Service {
	t.Helper()
	svc := new(servingv1.Service)
	if err := yaml.UnmarshalStrict([]byte(text), svc); err != nil {
		t.Fatalf("%v in:\n%s", err, text)
	}
	return svc
}

// prepared reads a service that must be valid.
func prepared(t testing.TB, text string) *servingv1.Service {
	t.Helper()
	svc, err := Prepare(parse(t, text))
	if err != nil {
		t.Fatal(err)
	}
	return svc
}

// hello is a service whose template has this container and these annotations,
// both as YAML in braces.
func hello(container, annotations string) string {
	return fmt.Sprintf("{metadata: {name: hello}, spec: {template: {metadata: {annotations: %s}, spec: {containers: [%s]}}}}", annotations, container)
}

// revise returns the first revision of a service.
func revise(t testing.TB, text string) *Revision {
	t.Helper()
	rev, created, err := NewRegistry(Options{}).Apply(prepared(t, text), OwnerConfig)
	if err != nil || !created {
		t.Fatalf("Apply: created %t, %v", created, err)
	}
	return rev
}

const full = `
metadata:
  name: hello
  labels: {team: blue}
spec:
  template:
    metadata:
      name: hello-green
      labels: {tier: web}
      annotations:
        autoscaling.knative.dev/min-scale: "2"
        autoscaling.knative.dev/max-scale: "9"
        autoscaling.knative.dev/initial-scale: "3"
        run.fairway/drain-timeout: 2h
        run.fairway/idle-timeout: 90s
        run.fairway/queue-depth: "77"
    spec:
      containerConcurrency: 8
      timeoutSeconds: 20
      containers:
      - image: ghcr.io/acme/hello:1.4
        command: [/hello]
        args: [--verbose]
        env: [{name: GREETING, value: hi}]
        ports: [{name: h2c, containerPort: 9000}]
        resources: {limits: {cpu: 1500m, memory: 1Gi}}
        startupProbe:
          httpGet: {path: /up, port: 9001, httpHeaders: [{name: x-probe, value: "yes"}]}
          initialDelaySeconds: 1
          timeoutSeconds: 2
          periodSeconds: 3
          failureThreshold: 4
`

func TestDefaults(t *testing.T) {
	rev := revise(t, hello("{image: app}", "{}"))
	want := said{Name: "hello-00001", Service: "hello", Generation: 1, Spec: &Spec{
		Image: "app", Port: Port{Number: 8080}, Concurrency: 80, Timeout: 5 * time.Minute, DrainTimeout: 5 * time.Minute, MaxInstances: 100, IdleTimeout: 15 * time.Minute, QueueDepth: 10_000,
		Health: []Health{{
			Container: "user-container", Startup: &Probe{Kind: ProbeTCP, Port: 8080, Attempt: time.Second, Total: 4 * time.Minute},
		}},
		InitialScale: -1, ProgressDeadline: 10 * time.Minute,
		Scaling: Scaling{Concurrency: 48, CPU: 0.6}, Throttled: true, Prepared: -1, Memory: 512 << 20, CPU: 1,
	}}
	if diff := cmp.Diff(want, saidBy(rev), unforeseen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	limits := rev.Spec().Container().Resources.Limits
	if limits.Cpu().String() != "1" || limits.Memory().String() != "512Mi" {
		t.Errorf("limits: %v", limits)
	}
	if env := rev.Env(); !slices.Equal(env, []string{"K_SERVICE=hello", "K_REVISION=hello-00001", "K_CONFIGURATION=hello"}) {
		t.Errorf("environment: %q", env)
	}
}

// said is all of a revision but how it does.
type said struct {
	Name, Service, Hash string
	Generation          int64
	Created             time.Time
	Spec                *Spec
}

func saidBy(r *Revision) said {
	return said{r.Name, r.Service, r.Hash, r.Generation, r.Created, r.Spec()}
}

// unforeseen are what tests that write a revision down leave out.
var unforeseen = cmp.Options{cmpopts.IgnoreFields(said{}, "Hash", "Created"), cmpopts.IgnoreFields(Spec{}, "Template")}

func TestEverythingSaid(t *testing.T) {
	rev := revise(t, full)
	want := said{Name: "hello-green", Service: "hello", Generation: 1, Spec: &Spec{
		ProgressDeadline: 10 * time.Minute, Image: "ghcr.io/acme/hello:1.4", Port: Port{Number: 9000, H2C: true},
		Concurrency: 8, Timeout: 20 * time.Second, DrainTimeout: 2 * time.Hour, MinInstances: 2, MaxInstances: 9, InitialScale: 3, IdleTimeout: 90 * time.Second, QueueDepth: 77,
		Health: []Health{{Container: "user-container", Startup: &Probe{
			Kind: ProbeHTTP, Port: 9001, Path: "/up", Header: http.Header{"X-Probe": {"yes"}},
			Delay: time.Second, Attempt: 2 * time.Second, Total: 12 * time.Second,
		}}},
		Scaling: Scaling{Concurrency: 4.8, CPU: 0.6}, Throttled: true, Prepared: -1, Memory: 1 << 30, CPU: 1.5,
	}}
	if diff := cmp.Diff(want, saidBy(rev), unforeseen); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestPrepareLeavesItsArgumentAlone(t *testing.T) {
	svc := parse(t, full)
	before := svc.DeepCopy()
	if _, err := Prepare(svc); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, svc); diff != "" {
		t.Errorf("(-before +after):\n%s", diff)
	}
}

// Every mistake is reported with the name of its field.
func TestPrepareRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"no name", "{spec: {template: {spec: {containers: [{image: app}]}}}}", "metadata.name"},
		{"a name that is none", "{metadata: {name: Hello}, spec: {template: {spec: {containers: [{image: app}]}}}}", "metadata.name"},
		{"no container", "{metadata: {name: hello}}", "spec.template.spec.containers"},
		{"no image", hello("{}", "{}"), "spec.template.spec.containers[0].image"},
		{"an image that is none", hello("{image: 'no image'}", "{}"), "spec.template.spec.containers[0].image"},
		{"two containers, no port", hello("{image: app}, {image: other}", "{}"), "spec.template.spec.containers[*].ports"},
		{"a port that is none", hello("{image: app, ports: [{containerPort: 99999}]}", "{}"), "ports.containerPort"},
		{"two ports", hello("{image: app, ports: [{containerPort: 80}, {containerPort: 81}]}", "{}"), "ports"},
		{"PORT is the platform's", hello("{image: app, env: [{name: PORT, value: x}]}", "{}"), "spec.template.spec.containers[0].env[0].name"},
		{"no concurrency", "{metadata: {name: hello}, spec: {template: {spec: {containerConcurrency: 0, containers: [{image: app}]}}}}", "spec.template.spec.containerConcurrency"},
		{"too much concurrency", "{metadata: {name: hello}, spec: {template: {spec: {containerConcurrency: 1001, containers: [{image: app}]}}}}", "spec.template.spec.containerConcurrency"},
		{"too long a request", "{metadata: {name: hello}, spec: {template: {spec: {timeoutSeconds: 3601, containers: [{image: app}]}}}}", "spec.template.spec.timeoutSeconds"},
		{"less than nothing", hello("{image: app}", "{autoscaling.knative.dev/min-scale: '-1'}"), "autoscaling.knative.dev/min-scale"},
		{"a maximum below the minimum", hello("{image: app}", "{autoscaling.knative.dev/min-scale: '5', autoscaling.knative.dev/max-scale: '2'}"), "autoscaling.knative.dev/max-scale"},
		{"no number of instances", hello("{image: app}", "{autoscaling.knative.dev/initial-scale: some}"), "autoscaling.knative.dev/initial-scale"},
		{"no idle time", hello("{image: app}", "{run.fairway/idle-timeout: '15'}"), "run.fairway/idle-timeout"},
		{"an idle time below zero", hello("{image: app}", "{run.fairway/idle-timeout: -1s}"), "run.fairway/idle-timeout"},
		{"no queue", hello("{image: app}", "{run.fairway/queue-depth: '0'}"), "run.fairway/queue-depth"},
		{"throttled perhaps", hello("{image: app}", "{run.googleapis.com/cpu-throttling: perhaps}"), "run.googleapis.com/cpu-throttling"},
		{"a target of nothing", hello("{image: app}", "{run.googleapis.com/scaling-concurrency-target: '0'}"), "run.googleapis.com/scaling-concurrency-target"},
		{"a target of everything", hello("{image: app}", "{run.googleapis.com/scaling-cpu-target: '1'}"), "run.googleapis.com/scaling-cpu-target"},
		{"a target that is none", hello("{image: app}", "{run.googleapis.com/scaling-cpu-target: NaN}"), "run.googleapis.com/scaling-cpu-target"},
		{"no target at all", hello("{image: app}", "{run.googleapis.com/scaling-concurrency-target: disabled, run.googleapis.com/scaling-cpu-target: disabled}"), "not both can be disabled"},
		{"too short a window", hello("{image: app}", "{autoscaling.knative.dev/window: 1s}"), "autoscaling.knative.dev/window"},
		{"activation below two", hello("{image: app}", "{autoscaling.knative.dev/activation-scale: '1'}"), "autoscaling.knative.dev/activation-scale"},
		{"too many prepared", hello("{image: app}", "{run.fairway/prepared: '1001'}"), "run.fairway/prepared"},
		{"a service's minimum below zero", ofService("run.googleapis.com/minScale: '-1'"), "run.googleapis.com/minScale"},
		{"a service's maximum of nothing", ofService("run.googleapis.com/maxScale: '0'"), "run.googleapis.com/maxScale"},
		{"a service's minimum above its maximum", ofService("run.googleapis.com/minScale: '3', run.googleapis.com/maxScale: '2'"), "run.googleapis.com/maxScale"},
		{"a mode that is none", ofService("run.googleapis.com/scalingMode: some"), "run.googleapis.com/scalingMode"},
		{"an ingress that is none", ofService("run.googleapis.com/ingress: internal-and-cloud-load-balancing"), "run.googleapis.com/ingress"},
		{"manual without a number", ofService("run.googleapis.com/scalingMode: manual"), "run.googleapis.com/manualInstanceCount"},
		{"too long a queue", hello("{image: app}", "{run.fairway/queue-depth: '1000001'}"), "run.fairway/queue-depth"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := Prepare(parse(t, test.text))
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want it to name %s", err, test.want)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("more than one line: %q", err)
			}
		})
	}
	t.Run("all mistakes at once", func(t *testing.T) {
		_, err := Prepare(parse(t, "{metadata: {name: hello}, spec: {template: {spec: {containerConcurrency: 0, timeoutSeconds: 9999, containers: [{image: app}]}}}}"))
		for _, field := range []string{"service hello", "containerConcurrency", "timeoutSeconds"} {
			if err == nil || !strings.Contains(err.Error(), field) {
				t.Errorf("got %v, want it to name %s", err, field)
			}
		}
	})
}

// ofService is a service with annotations of its own.
func ofService(annotations string) string {
	return "{metadata: {name: hello, annotations: {" + annotations + "}}, spec: {template: {spec: {containers: [{image: app}]}}}}"
}

func TestIngress(t *testing.T) {
	for annotations, want := range map[string]bool{
		"": false, "run.googleapis.com/ingress: all": false, "run.googleapis.com/ingress: internal": true,
	} {
		g := NewRegistry(Options{})
		svc := prepared(t, ofService(annotations))
		for _, label := range []string{"", "cluster-local"} {
			if label != "" {
				svc.Labels, want = map[string]string{"networking.knative.dev/visibility": label}, true
			}
			if _, _, err := g.Apply(svc.DeepCopy(), OwnerConfig); err != nil {
				t.Fatal(err)
			}
			if got := g.State("hello").Internal(); got != want {
				t.Errorf("%s %s: internal is %t", annotations, label, got)
			}
		}
	}
}

func TestServiceBounds(t *testing.T) {
	for annotations, want := range map[string]Bounds{
		"": {},
		"run.googleapis.com/minScale: '2', run.googleapis.com/maxScale: '7'":                                                    {Min: 2, Max: 7},
		"run.googleapis.com/scalingMode: manual, run.googleapis.com/manualInstanceCount: '3'":                                   {Min: 3, Max: 3, Manual: true},
		"run.googleapis.com/scalingMode: manual, run.googleapis.com/manualInstanceCount: '0'":                                   {Manual: true},
		"run.googleapis.com/scalingMode: automatic, run.googleapis.com/manualInstanceCount: '3'":                                {},
		"run.googleapis.com/scalingMode: manual, run.googleapis.com/manualInstanceCount: '3', run.googleapis.com/minScale: '1'": {Min: 3, Max: 3, Manual: true},
	} {
		g := NewRegistry(Options{})
		if _, _, err := g.Apply(prepared(t, ofService(annotations)), OwnerConfig); err != nil {
			t.Fatal(err)
		}
		if got := g.State("hello").Bounds(); got != want {
			t.Errorf("%s: %+v, want %+v", annotations, got, want)
		}
	}
}

func TestScaling(t *testing.T) {
	const kept = 15 * time.Minute
	for annotations, want := range map[string]struct {
		Scaling
		idle time.Duration
	}{
		"run.googleapis.com/scaling-concurrency-target: '0.5'":                                                {Scaling{Concurrency: 40, CPU: 0.6}, kept},
		"run.googleapis.com/scaling-concurrency-target: disabled":                                             {Scaling{CPU: 0.6}, kept},
		"run.googleapis.com/scaling-cpu-target: disabled":                                                     {Scaling{Concurrency: 48}, kept},
		"run.googleapis.com/scaling-cpu-target: default":                                                      {Scaling{Concurrency: 48, CPU: 0.6}, kept},
		"autoscaling.knative.dev/target: '10'":                                                                {Scaling{Concurrency: 7, CPU: 0.6, Soft: 10}, kept},
		"autoscaling.knative.dev/target: '1000'":                                                              {Scaling{Concurrency: 56, CPU: 0.6}, kept},
		"autoscaling.knative.dev/target: '10', autoscaling.knative.dev/target-utilization-percentage: '50'":   {Scaling{Concurrency: 5, CPU: 0.6, Soft: 10}, kept},
		"autoscaling.knative.dev/target-utilization-percentage: '50'":                                         {Scaling{Concurrency: 40, CPU: 0.6}, kept},
		"autoscaling.knative.dev/target: '10', run.googleapis.com/scaling-concurrency-target: '0.9'":          {Scaling{Concurrency: 72, CPU: 0.6}, kept},
		"autoscaling.knative.dev/target: '10', autoscaling.knative.dev/metric: concurrency":                   {Scaling{Concurrency: 7, CPU: 0.6, Soft: 10}, kept},
		"autoscaling.knative.dev/target: '10', autoscaling.knative.dev/metric: rps":                           {Scaling{Concurrency: 48, CPU: 0.6}, kept},
		"autoscaling.knative.dev/scale-to-zero-pod-retention-period: 1h":                                      {Scaling{Concurrency: 48, CPU: 0.6}, time.Hour},
		"autoscaling.knative.dev/window: 60s":                                                                 {Scaling{Concurrency: 48, CPU: 0.6, Window: time.Minute}, 90 * time.Second},
		"autoscaling.knative.dev/window: 60s, autoscaling.knative.dev/scale-to-zero-pod-retention-period: 2m": {Scaling{Concurrency: 48, CPU: 0.6, Window: time.Minute}, 3 * time.Minute},
		"autoscaling.knative.dev/window: 60s, run.fairway/idle-timeout: 10m":                                  {Scaling{Concurrency: 48, CPU: 0.6, Window: time.Minute}, 10 * time.Minute},
		"autoscaling.knative.dev/scale-down-delay: 1h":                                                        {Scaling{Concurrency: 48, CPU: 0.6}, time.Hour},
		"autoscaling.knative.dev/window: 6s, autoscaling.knative.dev/scale-down-delay: 5m":                    {Scaling{Concurrency: 48, CPU: 0.6, Window: 5 * time.Minute}, 5 * time.Minute},
		"autoscaling.knative.dev/activation-scale: '3'":                                                       {Scaling{Concurrency: 48, CPU: 0.6, Activation: 3}, kept},
	} {
		spec := revise(t, hello("{image: app}", "{"+annotations+"}")).Spec()
		if diff := cmp.Diff(want.Scaling, spec.Scaling); diff != "" || spec.IdleTimeout != want.idle {
			t.Errorf("%s: idle timeout %s, want %s (-want +got):\n%s", annotations, spec.IdleTimeout, want.idle, diff)
		}
	}
}

func TestStartupProbe(t *testing.T) {
	probe := Probe{Kind: ProbeTCP, Port: 8080, Attempt: time.Second, Total: 4 * time.Minute}
	with := func(change func(*Probe)) Probe {
		p := probe
		change(&p)
		return p
	}
	for _, test := range []struct {
		name, container string
		want            Probe
	}{
		{"none", "", probe},
		{"port of the container", "ports: [{containerPort: 3000}]", with(func(p *Probe) { p.Port = 3000 })},
		{"tcp", "startupProbe: {tcpSocket: {port: 81}}", with(func(p *Probe) { p.Port, p.Total = 81, 30*time.Second })},
		{"http", "startupProbe: {httpGet: {}}", with(func(p *Probe) { p.Kind, p.Path, p.Total = ProbeHTTP, "/", 30*time.Second })},
		{"grpc", "startupProbe: {grpc: {service: app}}", with(func(p *Probe) { p.Kind, p.Service, p.Total = ProbeGRPC, "app", 30*time.Second })},
		{"a period alone", "startupProbe: {tcpSocket: {}, periodSeconds: 80}", probe},
		{"a threshold alone", "startupProbe: {tcpSocket: {}, failureThreshold: 24}", probe},
		{
			"times", "startupProbe: {tcpSocket: {}, initialDelaySeconds: 5, timeoutSeconds: 2, periodSeconds: 10, failureThreshold: 3}",
			with(func(p *Probe) { p.Delay, p.Attempt, p.Total = 5*time.Second, 2*time.Second, 30*time.Second }),
		},
		{
			"readiness in its place", "readinessProbe: {httpGet: {path: /ready}}",
			with(func(p *Probe) { p.Kind, p.Path = ProbeHTTP, "/ready" }),
		},
		{"readiness that fails kills nobody", "readinessProbe: {tcpSocket: {}, periodSeconds: 1, failureThreshold: 3}", probe},
		{
			"startup before readiness", "startupProbe: {tcpSocket: {port: 81}}, readinessProbe: {httpGet: {path: /ready}}",
			with(func(p *Probe) { p.Port, p.Total = 81, 30*time.Second }),
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			rev := revise(t, hello("{image: app, "+test.container+"}", "{}"))
			if diff := cmp.Diff(&test.want, rev.Spec().Ingress().Startup); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestApply(t *testing.T) {
	g := NewRegistry(Options{})
	var names []string
	apply := func(text string) (*Revision, bool) {
		t.Helper()
		rev, created, err := g.Apply(prepared(t, text), OwnerConfig)
		if err != nil {
			t.Fatal(err)
		}
		if created {
			names = append(names, rev.Name)
		}
		return rev, created
	}
	first, _ := apply(hello("{image: 'app:1'}", "{}"))
	again, created := apply(hello("{image: 'app:1'}", "{}"))
	if created || again != first {
		t.Errorf("the same template has made %s", again.Name)
	}
	again, created = apply("{metadata: {name: hello, labels: {a: b}}, spec: {template: {spec: {containers: [{image: 'app:1'}]}}, traffic: [{latestRevision: true, percent: 100, tag: x}]}}")
	if created || again != first {
		t.Errorf("a change outside the template has made %s", again.Name)
	}
	apply(hello("{image: 'app:2'}", "{}"))
	apply(hello("{image: 'app:2'}", "{run.fairway/idle-timeout: 1m}"))
	apply(hello("{image: 'app:1'}", "{}")) // back to the first: a revision of its own
	if want := []string{"hello-00001", "hello-00002", "hello-00003", "hello-00004"}; !slices.Equal(names, want) {
		t.Errorf("made %q, want %q", names, want)
	}
	svc, revs := known(g, "hello")
	if svc == nil || len(revs) != 4 || revs[0] != first {
		t.Errorf("Service() = %v, %d revisions", svc, len(revs))
	}
	if svc, revs := known(g, "other"); svc != nil || revs != nil {
		t.Errorf("an unknown service is %v, %v", svc, revs)
	}
}

// known returns the service as it was applied, and its revisions.
func known(g *Registry, name string) (*servingv1.Service, []*Revision) {
	st := g.State(name)
	if st == nil {
		return nil, nil
	}
	return st.Service, st.Revisions
}

func apply(t *testing.T, g *Registry, image string) *Revision {
	t.Helper()
	rev, _, err := g.Apply(prepared(t, hello("{image: '"+image+"'}", "{}")), OwnerConfig)
	if err != nil {
		t.Fatal(err)
	}
	return rev
}

func TestRestore(t *testing.T) {
	g := NewRegistry(Options{})
	old := prepared(t, hello("{image: 'app:1'}", "{}"))
	rev := apply(t, g, "app:1")
	apply(t, g, "app:2")
	if !g.Restore(old, rev) {
		t.Fatal("not restored")
	}
	if svc, revs := known(g, "hello"); !equality.Semantic.DeepEqual(svc.Spec, old.Spec) || len(revs) != 1 {
		t.Errorf("Service() = %v, %d revisions", svc, len(revs))
	}
	if got := apply(t, g, "app:1"); got != rev {
		t.Errorf("what was restored is not the latest: %s", got.Name)
	}
	if got := apply(t, g, "app:3"); got.Name != "hello-00003" {
		t.Errorf("generation 2 is used again, or one is left out: %s", got.Name)
	}
	other := *old
	other.Name = "other"
	if g.Restore(old, revise(t, full)) || g.Restore(&other, rev) {
		t.Error("what is not known was restored")
	}
}

func TestAdopt(t *testing.T) {
	earlier := NewRegistry(Options{})
	earlier.Reserve("hello", 6)
	seven, eight := apply(t, earlier, "app:7"), apply(t, earlier, "app:8")

	g := NewRegistry(Options{})
	g.Adopt(eight)
	g.Adopt(seven)
	if again := g.Adopt(&Revision{Service: "hello", Name: seven.Name, Generation: 7}); again != seven {
		t.Error("one revision exists twice")
	}
	if svc, revs := known(g, "hello"); svc != nil || !slices.Equal(revs, []*Revision{seven, eight}) {
		t.Errorf("Service() = %v, %v", svc, revs)
	}
	if rev, created, err := g.Apply(prepared(t, hello("{image: 'app:8'}", "{}")), OwnerConfig); rev != eight || created || err != nil {
		t.Errorf("the adopted revision is not the latest: %s, %t, %v", rev.Name, created, err)
	}
	if rev := apply(t, g, "app:9"); rev.Name != "hello-00009" {
		t.Errorf("the next is %s", rev.Name)
	}
}

func TestForgottenGenerationsAreNotUsedAgain(t *testing.T) {
	g := NewRegistry(Options{})
	apply(t, g, "app:1")
	apply(t, g, "app:2")
	g.Forget("hello")
	g.Forget("unheard-of")
	if svc, revs := known(g, "hello"); svc != nil || len(revs) > 0 {
		t.Errorf("Service() = %v, %v", svc, revs)
	}
	if rev := apply(t, g, "app:2"); rev.Name != "hello-00003" {
		t.Errorf("the next is %s", rev.Name)
	}
}

func TestReserve(t *testing.T) {
	g := NewRegistry(Options{})
	g.Reserve("hello", 4)
	g.Reserve("hello", 2)
	if rev := apply(t, g, "app:1"); rev.Name != "hello-00005" {
		t.Errorf("the next is %s", rev.Name)
	}
}

func TestDrop(t *testing.T) {
	g := NewRegistry(Options{})
	one, two := apply(t, g, "app:1"), apply(t, g, "app:2")
	g.Drop(one) // requests get to it
	if _, revs := known(g, "hello"); len(revs) != 2 {
		t.Errorf("revisions: %v", revs)
	}
	g.MarkReady(two)
	g.Drop(one)
	g.Drop(two) // is the latest
	g.Drop(revise(t, full))
	if _, revs := known(g, "hello"); !slices.Equal(revs, []*Revision{two}) {
		t.Errorf("revisions: %v", revs)
	}
}

// What an instance carries says all about its revision: after a restart it is
// the same one, and the template that made it makes no new one.
func TestJSON(t *testing.T) {
	for _, text := range []string{
		hello("{image: app}", "{}"),
		full,
		hello("{image: app, resources: {limits: {cpu: 1000m, memory: 1048576Ki}}, env: []}", "{}"),
		hello("{image: app, startupProbe: {grpc: {}}}, {image: sidecar, name: sidecar}", "{}"),
	} {
		if strings.Contains(text, "sidecar") {
			text = strings.Replace(text, "{image: app,", "{image: app, ports: [{containerPort: 8081}],", 1)
		}
		rev := revise(t, text)
		for _, digest := range []string{"", "sha256:0123"} {
			if digest != "" {
				rev.Pin(rev.Spec().Image, digest)
			}
			b, err := json.Marshal(rev)
			if err != nil {
				t.Fatal(err)
			}
			read := new(Revision)
			if err := json.Unmarshal(b, read); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(saidBy(rev), saidBy(read), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("%s\n(-written +read):\n%s", text, diff)
			}
			if read.Digest() != digest {
				t.Errorf("digest %q was read as %q", digest, read.Digest())
			}
			g := NewRegistry(Options{})
			g.Adopt(read)
			if got, created, err := g.Apply(prepared(t, text), OwnerConfig); created || got != read || err != nil {
				t.Errorf("after a restart the same template makes %s (%v)", got.Name, err)
			}
		}
	}
}

func TestJSONIsAKnativeRevision(t *testing.T) {
	rev := revise(t, full)
	rev.Pin(rev.Spec().Image, "sha256:0123")
	obj := rev.Object()
	if obj.Kind != "Revision" || obj.APIVersion != "serving.knative.dev/v1" || obj.Name != "hello-green" {
		t.Errorf("%s %s %s", obj.APIVersion, obj.Kind, obj.Name)
	}
	want := map[string]string{
		"tier": "web", "serving.knative.dev/service": "hello",
		"serving.knative.dev/configuration": "hello", "serving.knative.dev/configurationGeneration": "1",
	}
	if diff := cmp.Diff(want, obj.Labels); diff != "" {
		t.Errorf("labels (-want +got):\n%s", diff)
	}
	if s := obj.Status.ContainerStatuses; len(s) != 1 || s[0].ImageDigest != "ghcr.io/acme/hello@sha256:0123" {
		t.Errorf("container statuses: %+v", s)
	}
	obj.Spec.Containers[0].Image, obj.Annotations["x"] = "changed", "y"
	if rev.Spec().Container().Image == "changed" || rev.Spec().Template.Annotations["x"] == "y" {
		t.Error("a change of the object has changed the revision")
	}
}

func TestJSONRefuses(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"no JSON", "{", "unexpected end"},
		{"nothing", "{}", "labels"},
		{"no generation", `{"metadata":{"name":"a-1","labels":{"serving.knative.dev/service":"a"}}}`, "configurationGeneration"},
		{"a generation below one", revisionText("0", "{}"), "configurationGeneration"},
		{"no container", revisionText("1", "{}"), "no container"},
		{"no concurrency", revisionText("1", `{"containerConcurrency":0,"containers":[{"image":"app"}]}`), "containerConcurrency"},
	} {
		if err := json.Unmarshal([]byte(test.text), new(Revision)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want it to say %q", test.name, err, test.want)
		}
	}
}

// revisionText is a revision of service a as JSON.
func revisionText(generation, spec string) string {
	return fmt.Sprintf(`{"metadata":{"name":"a-1","labels":{"serving.knative.dev/service":"a","serving.knative.dev/configurationGeneration":%q}},"spec":%s}`, generation, spec)
}

func TestOnlyTheFirstDigestCounts(t *testing.T) {
	rev := revise(t, full)
	rev.Pin(rev.Spec().Image, "sha256:1")
	rev.Pin(rev.Spec().Image, "sha256:2")
	if rev.Digest() != "sha256:1" {
		t.Errorf("pinned to %s", rev.Digest())
	}
}

// Equal templates have equal hashes, however they are written.
func TestHash(t *testing.T) {
	base := revise(t, hello("{image: app}", "{}")).Hash
	for _, same := range []string{
		hello("{image: app, env: []}", "{}"),
		hello("{image: app, resources: {limits: {cpu: 1000m, memory: 524288Ki}}}", "{}"),
		"{metadata: {name: hello}, spec: {template: {metadata: {name: hello-x}, spec: {containers: [{image: app}], timeoutSeconds: 300}}}}",
	} {
		rev := revise(t, same)
		if rev.Hash != base {
			t.Errorf("another hash for %s", same)
		}
		template := *rev.Spec().Template.DeepCopy()
		template.Labels = map[string]string{"serving.knative.dev/service": "hello"} // as a Revision object has it
		if rev, err := newRevision("hello", 7, template); err != nil || rev.Hash != base {
			t.Errorf("another hash (%v) with Knative's own labels for %s", err, same)
		}
	}
	for _, other := range []string{
		hello("{image: other}", "{}"),
		hello("{image: app, env: [{name: A, value: b}]}", "{}"),
		hello("{image: app}", "{a/b: c}"),
		"{metadata: {name: hello}, spec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{image: app}]}}}}",
	} {
		if revise(t, other).Hash == base {
			t.Errorf("the same hash for %s", other)
		}
	}
}

// A record on disk or in a label may be torn or of another version: reading it
// never panics, and what was read once is written and read the same for ever.
func FuzzRevisionJSON(f *testing.F) {
	for _, text := range []string{hello("{image: app}", "{}"), full} {
		b, err := json.Marshal(revise(f, text))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte(revisionText("1", `{"containers":[{"image":"app"}]}`)))
	f.Fuzz(func(t *testing.T, b []byte) {
		first := new(Revision)
		if first.UnmarshalJSON(b) != nil {
			return
		}
		written, err := json.Marshal(first)
		if err != nil {
			t.Fatal(err)
		}
		second := new(Revision)
		if err := second.UnmarshalJSON(written); err != nil {
			t.Fatalf("%v\nin %s", err, written)
		}
		again, err := json.Marshal(second)
		if err != nil {
			t.Fatal(err)
		}
		if string(written) != string(again) {
			t.Fatalf("written first:\n%s\nand then:\n%s", written, again)
		}
		if first.Hash != second.Hash {
			t.Fatalf("another hash, of\n%s", written)
		}
	})
}
