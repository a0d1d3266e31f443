package caddymodule

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	clientv1 "knative.dev/serving/pkg/client/clientset/versioned/typed/serving/v1"
)

// cluster is a host whose API is driven by Knative's own client.
type cluster struct {
	*host
	clientv1.ServingV1Interface

	api string
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	h := startHost(t, "\tfairway", hello)
	srv := httptest.NewServer(kube{engine: current.Load})
	t.Cleanup(srv.Close)
	client, err := clientv1.NewForConfig(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{host: h, ServingV1Interface: client, api: srv.URL}
	t.Cleanup(func() { // the storage is that of all tests
		all, err := c.Services("default").List(context.Background(), metav1.ListOptions{})
		if err != nil {
			t.Error(err)
			return
		}
		for _, s := range all.Items {
			if err := c.Services("default").Delete(context.Background(), s.Name, metav1.DeleteOptions{}); err != nil {
				t.Error(err)
			}
		}
	})
	return c
}

func ksvc(name, image string) *servingv1.Service {
	svc := &servingv1.Service{ObjectMeta: metav1.ObjectMeta{Name: name}}
	svc.Spec.Template.Spec.Containers = []corev1.Container{{Image: image}}
	return svc
}

func (c *cluster) create(svc *servingv1.Service) *servingv1.Service {
	c.t.Helper()
	made, err := c.Services("default").Create(c.t.Context(), svc, metav1.CreateOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return made
}

// update changes the present service.
func (c *cluster) update(name string, change func(*servingv1.Service)) {
	c.t.Helper()
	svc := c.service(name)
	change(svc)
	if _, err := c.Services("default").Update(c.t.Context(), svc, metav1.UpdateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) service(name string) *servingv1.Service {
	c.t.Helper()
	svc, err := c.Services("default").Get(c.t.Context(), name, metav1.GetOptions{})
	if err != nil {
		c.t.Fatal(err)
	}
	return svc
}

// ready waits until the service is ready and returns it.
func (c *cluster) ready(name string) *servingv1.Service {
	c.t.Helper()
	var svc *servingv1.Service
	eventually(c.t, name+" is ready", func() bool {
		svc = c.service(name)
		return svc.IsReady()
	})
	return svc
}

// ask sends a request to a host and returns its status and the revision that
// answered.
func (c *cluster) ask(host string, header ...string) (int, string) {
	c.t.Helper()
	r, err := http.NewRequestWithContext(c.t.Context(), http.MethodGet, c.url, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	r.Host = host
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		c.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("X-Revision")
}

func (c *cluster) wantAnswer(host, revision string, header ...string) {
	c.t.Helper()
	if status, got := c.ask(host, header...); status != http.StatusOK || got != revision {
		c.t.Errorf("%s %v: %d by %q; want 200 by %s", host, header, status, got, revision)
	}
}

func TestKnativeService(t *testing.T) {
	c := startCluster(t)
	made := c.create(ksvc("hello", "app:1"))
	if made.Generation != 1 || made.UID == "" || made.ResourceVersion == "" || made.Namespace != "default" || made.CreationTimestamp.IsZero() {
		t.Errorf("made: %+v", made.ObjectMeta)
	}
	svc := c.ready("hello")
	if svc.Status.LatestCreatedRevisionName != "hello-00001" || svc.Status.LatestReadyRevisionName != "hello-00001" || svc.Status.ObservedGeneration != 1 {
		t.Errorf("status: %+v", svc.Status)
	}
	c.wantAnswer("hello.example.com", "hello-00001")
	if status, _ := c.ask("other.example.com"); status != http.StatusNotFound {
		t.Errorf("an unknown host is answered %d", status)
	}
	if status, _ := c.ask("none---hello.example.com"); status != http.StatusNotFound {
		t.Errorf("an unknown tag is answered %d", status)
	}
	for name, test := range map[string]struct {
		err  error
		want func(error) bool
	}{
		"create again": {c.try(ksvc("hello", "app:1")), apierrors.IsAlreadyExists},
		"get another":  {second(c.Services("default").Get(t.Context(), "other", metav1.GetOptions{})), apierrors.IsNotFound},
		"an old version": {second(c.Services("default").Update(t.Context(), func() *servingv1.Service {
			svc := svc.DeepCopy()
			svc.ResourceVersion = "1"
			return svc
		}(), metav1.UpdateOptions{})), apierrors.IsConflict},
		"another namespace": {second(c.Services("other").List(t.Context(), metav1.ListOptions{})), apierrors.IsNotFound},
		"two ports": {c.try(func() *servingv1.Service {
			svc := ksvc("ports", "app:1")
			svc.Spec.Template.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 1}, {ContainerPort: 2}}
			return svc
		}()), apierrors.IsBadRequest},
		"make a route":             {second(c.Routes("default").Create(t.Context(), &servingv1.Route{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, metav1.CreateOptions{})), apierrors.IsMethodNotSupported},
		"delete what is routed to": {c.Revisions("default").Delete(t.Context(), "hello-00001", metav1.DeleteOptions{}), apierrors.IsConflict},
	} {
		if !test.want(test.err) {
			t.Errorf("%s: %v", name, test.err)
		}
	}
	if err := c.Services("default").Delete(t.Context(), "hello", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	if status, _ := c.ask("hello.example.com"); status != http.StatusNotFound {
		t.Errorf("a deleted service is answered %d", status)
	}
	if list, err := c.Revisions("default").List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		t.Errorf("revisions left: %v, %v", list, err)
	}
}

func (c *cluster) try(svc *servingv1.Service) error {
	return second(c.Services("default").Create(c.t.Context(), svc, metav1.CreateOptions{}))
}

func second[T any](_ T, err error) error { return err }

func TestKnativeViews(t *testing.T) {
	c := startCluster(t)
	svc := ksvc("hello", "app:1")
	svc.Labels, svc.Annotations = map[string]string{"team": "blue"}, map[string]string{"note": "x"}
	c.create(svc)
	ready := c.ready("hello")
	config, err := c.Configurations("default").Get(t.Context(), "hello", metav1.GetOptions{})
	if err != nil || !config.IsReady() || config.Labels["team"] != "blue" || config.Annotations["note"] != "x" || config.Labels[serving.ServiceLabelKey] != "hello" {
		t.Errorf("configuration: %+v, %v", config, err)
	}
	route, err := c.Routes("default").Get(t.Context(), "hello", metav1.GetOptions{})
	if err != nil || !route.IsReady() || len(route.Status.Traffic) != 1 || route.Status.Traffic[0].RevisionName != "hello-00001" || *route.Status.Traffic[0].Percent != 100 {
		t.Errorf("route: %+v, %v", route, err)
	}
	rev, err := c.Revisions("default").Get(t.Context(), "hello-00001", metav1.GetOptions{})
	if err != nil || !rev.IsReady() || rev.Labels[serving.ConfigurationGenerationLabelKey] != "1" || rev.Labels[serving.RoutingStateLabelKey] != "active" ||
		!strings.HasPrefix(rev.Status.ContainerStatuses[0].ImageDigest, "app@sha256:") {
		t.Errorf("revision: %+v, %v", rev, err)
	}
	if owner := metav1.GetControllerOf(rev); owner == nil || owner.UID != config.UID {
		t.Errorf("the revision belongs to %v, the configuration is %s", owner, config.UID)
	}
	if owner := metav1.GetControllerOf(config); owner == nil || owner.UID != ready.UID {
		t.Errorf("the configuration belongs to %v, the service is %s", owner, ready.UID)
	}
	_, err = c.Revisions("default").Patch(t.Context(), "hello-00001", types.MergePatchType, []byte(`{"metadata": {"labels": {"x": "y"}}}`), metav1.PatchOptions{})
	if rev, getErr := c.Revisions("default").Get(t.Context(), "hello-00001", metav1.GetOptions{}); err != nil || getErr != nil || rev.Labels["x"] != "y" {
		t.Errorf("a label of a revision: %v, %v, %v", rev.Labels, err, getErr)
	}
	_, err = c.Revisions("default").Patch(t.Context(), "hello-00001", types.MergePatchType, []byte(`{"spec": {"timeoutSeconds": 7}}`), metav1.PatchOptions{})
	if err == nil || !strings.Contains(err.Error(), "Immutable fields changed") {
		t.Errorf("the spec of a revision was changed: %v", err)
	}
}

func TestKnativeTraffic(t *testing.T) {
	c := startCluster(t)
	c.create(ksvc("hello", "app:1"))
	c.ready("hello")
	percent := func(n int64) *int64 { return &n }
	c.update("hello", func(svc *servingv1.Service) {
		svc.Spec.Template.Spec.Containers[0].Image = "app:2"
		svc.Spec.Traffic = []servingv1.TrafficTarget{{RevisionName: "hello-00001", Percent: percent(100)}, {Tag: "next"}}
	})
	svc := c.ready("hello")
	c.wantAnswer("hello.example.com", "hello-00001")
	c.wantAnswer("next---hello.example.com", "hello-00002")
	c.wantAnswer("hello.example.com", "hello-00002", tagHeader, "next")
	c.wantAnswer("hello.example.com", "hello-00001", tagHeader, "unheard-of")
	if n := len(svc.Status.Traffic); n != 2 || svc.Status.Traffic[1].Tag != "next" || svc.Status.Traffic[1].RevisionName != "hello-00002" {
		t.Errorf("traffic: %+v", svc.Status.Traffic)
	}
	c.update("hello", func(svc *servingv1.Service) {
		svc.Spec.Traffic = []servingv1.TrafficTarget{{RevisionName: "hello-00001", Percent: percent(50)}, {RevisionName: "hello-00002", Percent: percent(50)}}
	})
	seen := make(map[string]int)
	for range 200 {
		_, rev := c.ask("hello.example.com")
		seen[rev]++
	}
	if seen["hello-00001"] < 50 || seen["hello-00002"] < 50 {
		t.Errorf("200 requests went to %v", seen)
	}
	// A target that is not there changes nothing, and is told.
	c.update("hello", func(svc *servingv1.Service) {
		svc.Spec.Traffic = []servingv1.TrafficTarget{{RevisionName: "hello-00009", Percent: percent(100)}}
	})
	if cond := c.service("hello").Status.GetCondition(servingv1.ServiceConditionRoutesReady); !cond.IsFalse() || cond.Reason != "RevisionMissing" {
		t.Errorf("RoutesReady: %+v", cond)
	}
	if _, rev := c.ask("hello.example.com"); rev == "" {
		t.Error("nobody answers")
	}
}

func TestKnativeFailure(t *testing.T) {
	c := startCluster(t)
	c.create(ksvc("hello", "missing:1"))
	var svc *servingv1.Service
	eventually(t, "the service has failed", func() bool { svc = c.service("hello"); return svc.IsFailed() })
	for _, kind := range []string{"ConfigurationsReady", "RoutesReady"} {
		if cond := svc.Status.GetCondition(servingv1.ServiceConditionConfigurationsReady); !cond.IsFalse() || cond.Reason == "" || cond.Message == "" {
			t.Errorf("%s: %+v", kind, cond)
		}
	}
	rev, err := c.Revisions("default").Get(t.Context(), "hello-00001", metav1.GetOptions{})
	if cond := rev.Status.GetCondition(servingv1.RevisionConditionReady); err != nil || cond.Reason != "ContainerMissing" ||
		!strings.HasPrefix(cond.Message, `Unable to fetch image "missing:1"`) {
		t.Errorf("revision: %+v, %v", cond, err)
	}
	if status, _ := c.ask("hello.example.com"); status != http.StatusServiceUnavailable {
		t.Errorf("a service without a ready revision is answered %d", status)
	}
	c.update("hello", func(svc *servingv1.Service) { svc.Spec.Template.Spec.Containers[0].Image = "app:2" })
	c.ready("hello")
	c.wantAnswer("hello.example.com", "hello-00002")
	c.update("hello", func(svc *servingv1.Service) { svc.Spec.Template.Spec.Containers[0].Image = "missing:3" })
	eventually(t, "the third revision has failed", func() bool { return c.service("hello").IsFailed() })
	c.wantAnswer("hello.example.com", "hello-00002")
}

func TestKnativeWatch(t *testing.T) {
	c := startCluster(t)
	c.create(ksvc("one", "app:1"))
	list, err := c.Services("default").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	w, err := c.Services("default").Watch(t.Context(), metav1.ListOptions{ResourceVersion: list.ResourceVersion, LabelSelector: "team=blue"})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	svc := ksvc("two", "app:1")
	svc.Labels = map[string]string{"team": "blue"}
	c.create(svc)
	next := func(want watch.EventType, is func(*servingv1.Service) bool) {
		t.Helper()
		for {
			select {
			case e := <-w.ResultChan():
				got, ok := e.Object.(*servingv1.Service)
				if !ok || got.Name != "two" {
					t.Fatalf("%s %v", e.Type, e.Object)
				}
				if e.Type == want && is(got) {
					return
				}
				if e.Type != watch.Modified {
					t.Fatalf("%s %s; want %s", e.Type, got.Name, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("no %s", want)
			}
		}
	}
	next(watch.Added, func(*servingv1.Service) bool { return true })
	next(watch.Modified, func(s *servingv1.Service) bool { return s.IsReady() })
	c.update("two", func(s *servingv1.Service) { s.Labels = nil })
	next(watch.Deleted, func(*servingv1.Service) bool { return true })
}

// firstChange is the first one of a service after a version.
func (c *cluster) firstChange(version string) watch.Event {
	c.t.Helper()
	w, err := c.Services("default").Watch(c.t.Context(), metav1.ListOptions{ResourceVersion: version})
	if err != nil {
		c.t.Fatal(err)
	}
	defer w.Stop()
	select {
	case e := <-w.ResultChan():
		return e
	case <-time.After(10 * time.Second):
		c.t.Fatalf("nothing changes after version %s", version)
		return watch.Event{}
	}
}

// A write is answered as in Kubernetes: with the status from before, and a version
// that what comes of it is seen after. kn tells by it whether anything has changed.
func TestKnativeWrite(t *testing.T) {
	c := startCluster(t)
	observed := func(svc *servingv1.Service, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("generation %d, observed %d, %d conditions", svc.Generation, svc.Status.ObservedGeneration, len(svc.Status.Conditions))
	}
	equal := func(what, got, want string) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %s; want %s", what, got, want)
		}
	}
	services := c.Services("default")
	made := c.create(ksvc("hello", "app:1"))
	equal("created", observed(made, nil), "generation 1, observed 0, 0 conditions")
	equal("then", observed(services.Get(t.Context(), "hello", metav1.GetOptions{})), "generation 1, observed 1, 3 conditions")
	// Who watches from what it reads is told of what it has just missed.
	e := c.firstChange(c.ready("hello").ResourceVersion)
	if got, ok := e.Object.(*servingv1.Service); !ok || e.Type != watch.Modified || !got.IsReady() {
		t.Errorf("missed: %s %v", e.Type, e.Object)
	}

	svc := c.service("hello")
	svc.Spec.Template.Spec.Containers[0].Image = "app:2"
	written, err := services.Update(t.Context(), svc, metav1.UpdateOptions{})
	equal("replaced", observed(written, err), "generation 2, observed 1, 3 conditions")
	e = c.firstChange(written.ResourceVersion)
	got, _ := e.Object.(*servingv1.Service)
	equal("watched", fmt.Sprint(e.Type, ": ", observed(got, nil)), "MODIFIED: generation 2, observed 2, 3 conditions")

	// Who goes on from the answer is not out of date for what has come of it.
	c.ready("hello")
	c.update("hello", func(svc *servingv1.Service) {
		svc.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/initial-scale": "0"}
	})
	c.ready("hello")
	written, err = services.Patch(t.Context(), "hello", types.MergePatchType, []byte(`{"spec":{"traffic":[{"latestRevision":true,"percent":100,"tag":"a"}]}}`), metav1.PatchOptions{})
	equal("patched", observed(written, err), "generation 4, observed 3, 3 conditions")
	written.Labels = map[string]string{"team": "blue"}
	again, err := services.Update(t.Context(), written, metav1.UpdateOptions{})
	equal("labelled", observed(again, err), "generation 4, observed 4, 3 conditions")
	if _, err := services.Update(t.Context(), written, metav1.UpdateOptions{}); !apierrors.IsConflict(err) {
		t.Errorf("an old version: %v", err)
	}
	same, err := services.Update(t.Context(), c.service("hello"), metav1.UpdateOptions{})
	equal("nothing new", observed(same, err), "generation 4, observed 4, 3 conditions")
}

func TestKnativePages(t *testing.T) {
	c := startCluster(t)
	var want []string
	for n := range 7 {
		svc := ksvc(fmt.Sprintf("s%d", n), "app:1")
		svc.Spec.Template.Annotations = map[string]string{"autoscaling.knative.dev/initial-scale": "0"}
		c.create(svc)
		want = append(want, svc.Name)
	}
	var got []string
	opts := metav1.ListOptions{Limit: 3}
	for pages := 1; ; pages++ {
		list, err := c.Services("default").List(t.Context(), opts)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range list.Items {
			got = append(got, s.Name)
		}
		if list.Continue == "" {
			if pages != 3 {
				t.Errorf("%d pages", pages)
			}
			break
		}
		opts.Continue = list.Continue
	}
	if !slices.Equal(got, want) {
		t.Errorf("listed %q", got)
	}
}

// What clients look at before they do anything.
func TestKnativeDiscovery(t *testing.T) {
	c := startCluster(t)
	for path, want := range map[string]string{
		"/version": "gitVersion", "/api": "v1", "/apis": "serving.knative.dev", "/apis/serving.knative.dev": "preferredVersion",
		"/apis/serving.knative.dev/v1": "ksvc", "/api/v1": "secrets", "/api/v1/namespaces": `"default"`, "/api/v1/namespaces/default": "Active",
		"/openapi/v3": "/openapi/v3/apis/serving.knative.dev/v1", "/openapi/v3/apis/serving.knative.dev/v1": "fieldValidation",
		"/api/v1/namespaces/default/pods": "PodList", "/api/v1/namespaces/default/services": "ServiceList",
	} {
		resp, err := http.Get(c.api + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := bufio.NewReader(resp.Body).ReadString(0)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s; want %s", path, resp.StatusCode, body, want)
		}
	}
	for _, path := range []string{"/apis/apps/v1/deployments", "/api/v1/nodes", "/apis/serving.knative.dev/v1/namespaces/default/things", "/api/v1/namespaces/other/pods"} {
		resp, err := http.Get(c.api + path)
		if err != nil {
			t.Fatal(err)
		}
		var s metav1.Status
		if err := json.NewDecoder(resp.Body).Decode(&s); err != nil || s.Kind != "Status" || s.Code != http.StatusNotFound || s.Message == "" {
			t.Errorf("%s: %+v, %v", path, s, err)
		}
		resp.Body.Close()
	}
}

// A field that is misspelt is named.
func TestKnativeStrict(t *testing.T) {
	c := startCluster(t)
	for body, want := range map[string]string{
		`{"metadata": {"name": "x"}, "spec": {"template": {"spec": {"containers": [{"imagee": "app"}]}}}}`: `unknown field "spec.template.spec.containers[0].imagee"`,
		`{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "x"}}`:                                   "not a serving.knative.dev/v1 Service",
		`{"metadata": {}}`: "name or generateName is required",
		`{`:                "decoding the object",
	} {
		resp, err := http.Post(c.api+"/apis/serving.knative.dev/v1/namespaces/default/services", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var s metav1.Status
		_ = json.NewDecoder(resp.Body).Decode(&s)
		resp.Body.Close()
		if s.Code != http.StatusBadRequest || !strings.Contains(s.Message, want) {
			t.Errorf("%s: %+v; want %s", body, s, want)
		}
	}
}
