package revisions

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
)

func TestChecks(t *testing.T) {
	check := func(change func(*Check)) Check {
		c := Check{
			Probe:  Probe{Kind: ProbeTCP, Port: 8080, Attempt: time.Second},
			Period: 10 * time.Second, Failures: 3, Successes: 1,
		}
		change(&c)
		return c
	}
	for container, want := range map[string][]Check{
		"":                                nil,
		"readinessProbe: {}":              nil, // Knative's default, asked at the start only
		"readinessProbe: {tcpSocket: {}}": nil,
		"startupProbe: {httpGet: {}}":     nil,
		"livenessProbe: {tcpSocket: {}}":  {check(func(c *Check) { c.Liveness = true })},
		"readinessProbe: {periodSeconds: 2, tcpSocket: {}}": {check(func(c *Check) { c.Period = 2 * time.Second })},
		"readinessProbe: {httpGet: {path: '/ready?full=1', port: 81}}": {check(func(c *Check) {
			c.Kind, c.Path, c.Port = ProbeHTTP, "/ready?full=1", 81
		})},
		"readinessProbe: {grpc: {service: app}, periodSeconds: 4, timeoutSeconds: 3, failureThreshold: 2, successThreshold: 5, initialDelaySeconds: 6}": {check(func(c *Check) {
			c.Kind, c.Service = ProbeGRPC, "app"
			c.Period, c.Attempt, c.Failures, c.Successes, c.Delay = 4*time.Second, 3*time.Second, 2, 5, 6*time.Second
		})},
		"livenessProbe: {exec: {command: [ls]}, periodSeconds: 3600, timeoutSeconds: 3600}, readinessProbe: {httpGet: {httpHeaders: [{name: a, value: b}]}}": {
			check(func(c *Check) {
				c.Liveness, c.Kind, c.Command, c.Period, c.Attempt = true, ProbeExec, []string{"ls"}, time.Hour, time.Hour
			}),
			check(func(c *Check) { c.Kind, c.Path, c.Header = ProbeHTTP, "/", http.Header{"A": {"b"}} }),
		},
	} {
		rev := revise(t, hello("{image: app, "+container+"}", "{}"))
		if diff := cmp.Diff(want, rev.Spec().Ingress().Checks); diff != "" {
			t.Errorf("%s (-want +got):\n%s", container, diff)
		}
	}
}

// A sidecar's own probes count; without any its process is all that is waited for.
func TestHealthOfSidecars(t *testing.T) {
	rev := revise(t, hello(`{image: app, ports: [{containerPort: 8081}], name: app}, {image: proxy, name: proxy},
		{image: db, name: db, startupProbe: {tcpSocket: {port: 5432}, periodSeconds: 1, failureThreshold: 30}, livenessProbe: {grpc: {port: 1}}},
		{image: cache, name: cache, readinessProbe: {httpGet: {port: 81}}}`,
		`{run.googleapis.com/container-dependencies: '{"app":["db","proxy"]}'}`))
	want := []Health{
		{Container: "db", Startup: &Probe{Port: 5432, Attempt: time.Second, Total: 30 * time.Second}, Checks: []Check{{
			Probe: Probe{Kind: ProbeGRPC, Port: 1, Attempt: time.Second}, Liveness: true, Period: 10 * time.Second, Failures: 3, Successes: 1,
		}}},
		{Container: "proxy"},
		{Container: "app", After: []string{"db", "proxy"}, Startup: &Probe{Port: 8081, Attempt: time.Second, Total: 4 * time.Minute}},
		{Container: "cache", Startup: &Probe{Kind: ProbeHTTP, Path: "/", Port: 81, Attempt: time.Second, Total: 4 * time.Minute}, Checks: []Check{{
			Probe: Probe{Kind: ProbeHTTP, Path: "/", Port: 81, Attempt: time.Second}, Period: 10 * time.Second, Failures: 3, Successes: 1,
		}}},
	}
	if diff := cmp.Diff(want, rev.Spec().Health); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := rev.Spec().StartupTime(); got != 8*time.Minute+30*time.Second {
		t.Errorf("startup time %s", got)
	}
}

func TestProbesAreChecked(t *testing.T) {
	const at = "spec.template.spec.containers[0]."
	for container, want := range map[string]string{
		"startupProbe: {tcpSocket: {}, initialDelaySeconds: 241}":                                         "expected 0 <= 241 <= 240: " + at + "startupProbe.initialDelaySeconds",
		"startupProbe: {tcpSocket: {}, periodSeconds: 241}":                                               "expected 0 <= 241 <= 240: " + at + "startupProbe.periodSeconds",
		"startupProbe: {tcpSocket: {}, periodSeconds: 240, timeoutSeconds: 241}":                          "expected 0 <= 241 <= 240: " + at + "startupProbe.timeoutSeconds",
		"startupProbe: {httpGet: {}, timeoutSeconds: 11}":                                                 "11 is longer than the period, 10: " + at + "startupProbe.timeoutSeconds",
		"startupProbe: {httpGet: {}, periodSeconds: 2, timeoutSeconds: 3}":                                "3 is longer than the period, 2: " + at + "startupProbe.timeoutSeconds",
		"startupProbe: {grpc: {}, periodSeconds: 60, failureThreshold: 5}":                                "5 periods of 60 seconds are longer than 240 seconds: " + at + "startupProbe.failureThreshold",
		"startupProbe: {grpc: {}, failureThreshold: 2147483647}":                                          "2147483647 periods of 10 seconds are longer than 240 seconds: " + at + "startupProbe.failureThreshold",
		"startupProbe: {tcpSocket: {}, periodSeconds: 81}":                                                "3 periods of 81 seconds are longer than 240 seconds: " + at + "startupProbe.failureThreshold",
		"startupProbe: {httpGet: {}, failureThreshold: -1}":                                               "-1 is below zero: " + at + "startupProbe.failureThreshold",
		"startupProbe: {httpGet: {}, successThreshold: 2}":                                                "expected 0 <= 2 <= 1: " + at + "startupProbe.successThreshold",
		"ports: [{containerPort: 1}]}, {image: side, startupProbe: {grpc: {port: 1}, periodSeconds: 300}": "expected 0 <= 300 <= 240: spec.template.spec.containers[1].startupProbe.periodSeconds",
		"livenessProbe: {httpGet: {}, periodSeconds: 3601}":                                               "expected 0 <= 3601 <= 3600: " + at + "livenessProbe.periodSeconds",
		"livenessProbe: {httpGet: {}, initialDelaySeconds: 4000}":                                         "expected 0 <= 4000 <= 3600: " + at + "livenessProbe.initialDelaySeconds",
		"livenessProbe: {httpGet: {}, initialDelaySeconds: -1}":                                           "expected 0 <= -1 <= 3600: " + at + "livenessProbe.initialDelaySeconds",
		"livenessProbe: {httpGet: {}, timeoutSeconds: 11}":                                                "11 is longer than the period, 10: " + at + "livenessProbe.timeoutSeconds",
		"livenessProbe: {httpGet: {}, failureThreshold: -1}":                                              "-1 is below zero: " + at + "livenessProbe.failureThreshold",
		"livenessProbe: {httpGet: {}, successThreshold: 2}":                                               "expected 0 <= 2 <= 1: " + at + "livenessProbe.successThreshold",
		"livenessProbe: {}": "expected exactly one, got neither: " + at + "livenessProbe",
		"readinessProbe: {httpGet: {}, periodSeconds: 301}":                                    "expected 0 <= 301 <= 300: " + at + "readinessProbe.periodSeconds",
		"readinessProbe: {httpGet: {}, periodSeconds: 2, timeoutSeconds: 3}":                   "3 is longer than the period, 2: " + at + "readinessProbe.timeoutSeconds",
		"readinessProbe: {httpGet: {}, periodSeconds: 300, timeoutSeconds: 301}":               "expected 0 <= 301 <= 300: " + at + "readinessProbe.timeoutSeconds",
		"ports: [{containerPort: 1}]}, {image: side, livenessProbe: {grpc: {}}":                "a sidecar's probe needs the number of a port: spec.template.spec.containers[1].livenessProbe.grpc.port",
		"ports: [{containerPort: 1}]}, {image: side, startupProbe: {httpGet: {port: web}}":     "a sidecar's probe needs the number of a port: spec.template.spec.containers[1].startupProbe.httpGet.port",
		"ports: [{containerPort: 1}]}, {image: side, readinessProbe: {tcpSocket: {port: web}}": "a sidecar's probe needs the number of a port: spec.template.spec.containers[1].readinessProbe.tcpSocket.port",
	} {
		_, err := Prepare(parse(t, hello("{image: app, "+container+"}", "{}")))
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: got %v; want %s", container, err, want)
		}
	}
}

// FuzzChecks gives probes any numbers: what is taken can be asked.
func FuzzChecks(f *testing.F) {
	f.Add(true, int32(0), int32(0), int32(0), int32(0), int32(0))
	f.Add(false, int32(5), int32(300), int32(300), int32(1), int32(2))
	f.Add(true, int32(-1), int32(3601), int32(1<<30), int32(-5), int32(2))
	f.Fuzz(func(t *testing.T, live bool, delay, period, timeout, failures, successes int32) {
		svc := parse(t, hello("{image: app}", "{}"))
		p := &corev1.Probe{
			InitialDelaySeconds: delay, PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures, SuccessThreshold: successes,
		}
		p.HTTPGet = new(corev1.HTTPGetAction)
		c := &svc.Spec.Template.Spec.Containers[0]
		if live {
			c.LivenessProbe = p
		} else {
			c.ReadinessProbe = p
		}
		svc, err := Prepare(svc)
		if err != nil {
			return
		}
		spec, err := newSpec(svc.Spec.Template)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range spec.Ingress().Checks {
			if c.Liveness != live || c.Delay < 0 || c.Period <= 0 || c.Attempt <= 0 || c.Attempt > c.Period || c.Failures < 1 || c.Successes < 1 || live && c.Successes > 1 {
				t.Errorf("%+v", c)
			}
		}
	})
}

// Whatever Cloud Run takes is taken: its own default, and the longest of each.
func TestStartupProbesUpToTheLimits(t *testing.T) {
	for _, container := range []string{
		"startupProbe: {tcpSocket: {port: 8080}, timeoutSeconds: 240, periodSeconds: 240, failureThreshold: 1}",
		"startupProbe: {httpGet: {}, initialDelaySeconds: 240, periodSeconds: 1, failureThreshold: 240}",
		"startupProbe: {grpc: {}, failureThreshold: 24, timeoutSeconds: 10, successThreshold: 1}",
		"startupProbe: {httpGet: {}}",
	} {
		if _, err := Prepare(parse(t, hello("{image: app, "+container+"}", "{}"))); err != nil {
			t.Errorf("%s: %v", container, err)
		}
	}
}

// FuzzStartup gives startup probes any numbers: what is taken has an end.
func FuzzStartup(f *testing.F) {
	f.Add(int32(0), int32(0), int32(0), int32(0), int32(0))
	f.Add(int32(240), int32(240), int32(240), int32(1), int32(1))
	f.Add(int32(-1), int32(241), int32(1<<30), int32(1<<30), int32(2))
	f.Fuzz(func(t *testing.T, delay, period, timeout, failures, successes int32) {
		svc := parse(t, hello("{image: app}", "{}"))
		p := &corev1.Probe{
			InitialDelaySeconds: delay, PeriodSeconds: period, TimeoutSeconds: timeout, FailureThreshold: failures, SuccessThreshold: successes,
		}
		p.HTTPGet = new(corev1.HTTPGetAction)
		svc.Spec.Template.Spec.Containers[0].StartupProbe = p
		svc, err := Prepare(svc)
		if err != nil {
			return
		}
		spec, err := newSpec(svc.Spec.Template)
		if err != nil {
			t.Fatal(err)
		}
		s := spec.Ingress().Startup
		if s.Delay < 0 || s.Delay > MaxStartupTime || s.Attempt <= 0 || s.Attempt > s.Total || s.Total <= 0 || s.Total > MaxStartupTime {
			t.Errorf("%+v", s)
		}
	})
}
