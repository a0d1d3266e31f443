package caddymodule

import (
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"knative.dev/pkg/apis"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// changing are parts of tables that differ from run to run.
var changing = []struct {
	pattern *regexp.Regexp
	with    string
}{
	{regexp.MustCompile(`(hello-\d{5})-[a-z0-9]+`), "$1-xxxxx"},
	{regexp.MustCompile(`127\.0\.0\.1:\d+`), "address"},
	{regexp.MustCompile(` \d+s\b`), " 0s"},
	{regexp.MustCompile(`(\S) {2,}`), "$1 | "},
}

func steady(text string) string {
	for _, c := range changing {
		text = c.pattern.ReplaceAllString(text, c.with)
	}
	return text
}

func TestTables(t *testing.T) {
	c := startConsole(t, "\tfairway")
	c.must("deploy", "hello", "--image=app:1", "--description=A greeting")
	c.must("deploy", "hello", "--image=app:2", "--no-traffic", "--tag=next")
	c.do("deploy", "hello", "--image=missing:3")
	c.must("deploy", "other", "--image=app:1@sha256:"+strings.Repeat("1", 64))
	for _, test := range []struct{ args, want string }{
		{"services", `STATUS | SERVICE | URL | SERVING | LATEST | INSTANCES | CREATED
degraded | hello | - | hello-00001 | hello-00003 | 2 | 0s
ready | other | - | other-00001 | other-00001 | 1 | 0s
`},
		{"services hello", `degraded Service hello
A greeting
Owner: the API
Traffic:
  100% hello-00001
    0% hello-00002
       next
Latest revision: hello-00003
Latest ready revision: hello-00002
Conditions:
  failed ConfigurationsReady: ContainerMissing: Unable to fetch image "missing:3": resolving image missing:3: the image cannot be used: no image missing:3
  ready RoutesReady

STATUS | INSTANCE | REVISION | STATE | REQUESTS | MEMORY | PID | ADDRESS | SINCE | WHY
ready | hello-00001-xxxxx | hello-00001 | ready | 0 | - | 4242 | address | 0s | its revision is to take requests
ready | hello-00002-xxxxx | hello-00002 | ready | 0 | - | 4242 | address | 0s | its revision is to take requests
`},
		{"revisions hello", `STATUS | REVISION | TRAFFIC | TAGS | IMAGE | INSTANCES | CREATED | REASON
failed | hello-00003 | - | - | missing:3 | 0 | 0s | ContainerMissing: Unable to fetch image "missing:3": resolving image missing:3: the image cannot be…
ready | hello-00002 | - | next | app:2@000000000000 | 1 | 0s | -
ready | hello-00001 | 100% | - | app:1@000000000000 | 1 | 0s | -
`},
	} {
		got := ""
		for range 100 { // what has failed or drained is in sight for a moment
			if got = steady(c.must(strings.Fields(test.args)...).out); got == test.want {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
		if got != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.args, got, test.want)
		}
	}
	var revs []servingv1.Revision
	if err := json.Unmarshal([]byte(c.must("revisions", "--json").out), &revs); err != nil || len(revs) != 4 {
		t.Errorf("%v: %d revisions", err, len(revs))
	}
	var instances []instanceView
	if err := json.Unmarshal([]byte(c.must("instances", "other", "--json").out), &instances); err != nil || len(instances) != 1 || instances[0].Service != "other" {
		t.Errorf("%v: %+v", err, instances)
	}
}

func TestStage(t *testing.T) {
	svc := ksvc("hello", "app:1")
	svc.Status.LatestCreatedRevisionName = "hello-00002"
	rev := func(v revisionView) []serviceView {
		v.Revision = "hello-00002"
		return []serviceView{{Service: "hello", Revisions: []revisionView{{Revision: "hello-00001", Digest: "x"}, v}}}
	}
	for _, test := range []struct {
		views     []serviceView
		instances []instanceView
		want      string
	}{
		{nil, nil, "creating revision [hello-00002]: "},
		{rev(revisionView{}), nil, "creating revision [hello-00002]: "},
		{rev(revisionView{Pulling: &pullView{}}), nil, "pulling image app:1: "},
		{rev(revisionView{Pulling: &pullView{DoneBytes: 1234567, TotalBytes: 45_600_000}}), nil, "pulling image app:1: 1.2 MB of 45.6 MB"},
		{rev(revisionView{Digest: "sha256:1"}), []instanceView{{Revision: "hello-00001", PID: 1}}, "starting revision [hello-00002]: "},
		{rev(revisionView{Digest: "sha256:1"}), []instanceView{{Revision: "hello-00002", Instance: "hello-00002-abcde", PID: 1}}, "probing: instance hello-00002-abcde"},
	} {
		step, detail := stage(svc, test.views, test.instances)
		if got := step + ": " + detail; got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
	for n, want := range map[int64]string{0: "0 B", 999: "999 B", 1000: "1.0 kB", 12_345_678: "12.3 MB", 3_000_000_000: "3.0 GB", 5e15: "5000.0 TB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestMigrating(t *testing.T) {
	for _, test := range []struct {
		status                corev1.ConditionStatus
		reason, message, want string
	}{
		{corev1.ConditionTrue, "", "", ""},
		{corev1.ConditionUnknown, "TrafficNotMigrated", "Traffic is not yet migrated.", ""},
		{corev1.ConditionUnknown, "TrafficNotMigrated", "Traffic is not yet migrated to the latest revision.", ""},
		{corev1.ConditionUnknown, "TrafficNotMigrated", "Traffic is not yet migrated: it rests: at ease\nnow", "it rests: at ease"},
		{corev1.ConditionUnknown, "RevisionMissing", `Revision "a" is not yet ready.`, `Revision "a" is not yet ready.`},
	} {
		svc := ksvc("hello", "app:1")
		svc.Status.Conditions = append(svc.Status.Conditions, apis.Condition{
			Type: servingv1.ServiceConditionRoutesReady, Status: test.status, Reason: test.reason, Message: test.message,
		})
		if got := migrating(svc); got != test.want {
			t.Errorf("%s %q: %q, want %q", test.reason, test.message, got, test.want)
		}
		svc.Generation = svc.Status.ObservedGeneration + 1
		if got := migrating(svc); got != "" {
			t.Errorf("of another generation: %q", got)
		}
	}
	if got := migrating(ksvc("hello", "app:1")); got != "" {
		t.Errorf("of none: %q", got)
	}
}

func TestVerdict(t *testing.T) {
	set := func(configuration, route string) *servingv1.Service {
		svc := ksvc("hello", "app:1")
		svc.Generation, svc.Status.ObservedGeneration = 2, 2
		for kind, status := range map[apis.ConditionType]string{
			servingv1.ServiceConditionConfigurationsReady: configuration, servingv1.ServiceConditionRoutesReady: route,
		} {
			svc.Status.Conditions = append(svc.Status.Conditions, apis.Condition{Type: kind, Status: map[string]corev1.ConditionStatus{
				"t": "True", "f": "False", "?": "Unknown",
			}[status]})
		}
		return svc
	}
	for _, test := range []struct {
		configuration, route string
		w                    awaited
		done                 bool
		failed               apis.ConditionType
	}{
		{"t", "t", awaited{generation: 2, revision: true}, true, ""},
		{"t", "t", awaited{generation: 3, revision: true}, false, ""},
		{"?", "?", awaited{generation: 2, revision: true}, false, ""},
		{"t", "?", awaited{generation: 2, revision: true}, false, ""},
		{"f", "?", awaited{generation: 2, revision: true}, false, servingv1.ServiceConditionConfigurationsReady},
		{"f", "t", awaited{generation: 2, revision: true}, false, servingv1.ServiceConditionConfigurationsReady},
		{"t", "f", awaited{generation: 2, revision: true}, false, servingv1.ServiceConditionRoutesReady},
		{"?", "f", awaited{generation: 2, revision: true}, false, ""}, // the route may follow from it
		{"f", "t", awaited{generation: 2}, true, ""},
		{"f", "f", awaited{generation: 2}, false, servingv1.ServiceConditionRoutesReady},
	} {
		done, failed := verdict(set(test.configuration, test.route), test.w)
		if done != test.done || (failed == nil) != (test.failed == "") || failed != nil && failed.Type != test.failed {
			t.Errorf("%+v: %v, %v", test, done, failed)
		}
	}
}
