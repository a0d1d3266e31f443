package revisions

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	duckv1 "knative.dev/pkg/apis/duck/v1"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// desk is a registry with short words for what clients of its API do. What it
// does is expected to succeed.
type desk struct {
	*Registry
	t testing.TB
}

func newDesk(t testing.TB, opts Options) *desk { return &desk{Registry: NewRegistry(opts), t: t} }

// create makes a service of the API.
func (d *desk) create(name, image string) *State {
	d.t.Helper()
	st, err := d.Create(parse(d.t, document(name, image)), OwnerAPI)
	if err != nil {
		d.t.Fatal(err)
	}
	return st
}

// change gets a service, changes it and puts it back, as kubectl edit does.
func (d *desk) change(name string, change func(*servingv1.Service)) (*State, error) {
	d.t.Helper()
	svc := d.State(name).ServiceObject()
	change(svc)
	return d.Update(svc, OwnerAPI)
}

func (d *desk) mustChange(name string, change func(*servingv1.Service)) *State {
	d.t.Helper()
	st, err := d.change(name, change)
	if err != nil {
		d.t.Fatal(err)
	}
	return st
}

// image changes the template's image and, unless it is "", the revision's name.
func image(image, revision string) func(*servingv1.Service) {
	return func(svc *servingv1.Service) {
		svc.Spec.Template.Spec.Containers[0].Image = image
		svc.Spec.Template.Name = revision
	}
}

// deploy deploys an image to hello and returns the latest revision.
func (d *desk) deploy(name string) *Revision {
	d.t.Helper()
	return d.mustChange("hello", image(name, "")).Latest()
}

// ready and failed are how the instances of a revision of that name do.
func (d *desk) ready(name string) { d.MarkReady(d.Revision(name)) }

// pin resolves the image of a revision of one container.
func (d *desk) pin(rev *Revision, digest string) {
	d.Pin(rev, map[string]string{rev.Spec().Image: digest})
}

func (d *desk) failed(name string) {
	d.MarkFailed(d.Revision(name), "ExitCode1", "Container failed with: no config")
}

// targets reads such as "hello-00001=50 latest=50 latest=0#next".
func targets(text string) []servingv1.TrafficTarget {
	var all []servingv1.TrafficTarget
	for word := range strings.FieldsSeq(text) {
		word, tag, _ := strings.Cut(word, "#")
		name, percent, _ := strings.Cut(word, "=")
		n, err := strconv.ParseInt(percent, 10, 64)
		if err != nil {
			panic(err)
		}
		latest := name == "latest"
		if latest {
			name = ""
		}
		all = append(all, servingv1.TrafficTarget{RevisionName: name, Percent: &n, LatestRevision: &latest, Tag: tag})
	}
	return all
}

// traffic changes where the requests of hello are wanted.
func (d *desk) traffic(text string) *State {
	d.t.Helper()
	return d.mustChange("hello", func(svc *servingv1.Service) { svc.Spec.Traffic = targets(text) })
}

// routes writes where requests go, in the form of targets, "*" being the latest.
func routes(st *State) string {
	var all []string
	for _, t := range st.Targets {
		s := fmt.Sprintf("%s=%d", t.Revision.Name, t.Percent)
		if t.Tag != "" {
			s += "#" + t.Tag
		}
		if t.Latest {
			s += "*"
		}
		all = append(all, s)
	}
	return strings.Join(all, " ")
}

// says writes conditions: "Ready=False:RevisionFailed RoutesReady=True".
func says(st duckv1.Conditions) string {
	var all []string
	for _, c := range st {
		s := fmt.Sprintf("%s=%s", c.Type, c.Status)
		if c.Reason != "" {
			s += ":" + c.Reason
		}
		all = append(all, s)
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

func match[T any](t testing.TB, what string, got, want T) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", what, diff)
	}
}

// refused checks what kind of error Kubernetes' clients see, and its words.
func refused(t testing.TB, what string, err error, is func(error) bool, words string) {
	t.Helper()
	if !is(err) || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: got %v, want %q", what, err, words)
	}
}

func TestRefusals(t *testing.T) {
	d := newDesk(t, Options{})
	st := d.create("hello", "app:1")
	_, err := d.Create(parse(t, document("hello", "app:2")), OwnerAPI)
	refused(t, "creating what is there", err, apierrors.IsAlreadyExists, `services.serving.knative.dev "hello" already exists`)
	_, err = d.Update(parse(t, document("other", "app:1")), OwnerAPI)
	refused(t, "updating what is not there", err, apierrors.IsNotFound, `services.serving.knative.dev "other" not found`)
	_, err = d.Delete("other", OwnerAPI, nil)
	refused(t, "deleting what is not there", err, apierrors.IsNotFound, `services.serving.knative.dev "other" not found`)
	stale := st.ServiceObject()
	_, err = d.Create(stale, OwnerAPI)
	refused(t, "creating with a version", err, apierrors.IsBadRequest, "resourceVersion should not be set")
	d.deploy("app:2")
	_, err = d.Update(stale, OwnerAPI)
	refused(t, "updating an old version", err, apierrors.IsConflict, "the object has been modified")
	_, err = d.change("hello", func(svc *servingv1.Service) { svc.UID = "another" })
	refused(t, "updating another one", err, apierrors.IsConflict, "UID in precondition: another")
	_, err = d.Delete("hello", OwnerAPI, &metav1.Preconditions{ResourceVersion: &stale.ResourceVersion})
	refused(t, "deleting an old version", err, apierrors.IsConflict, "preconditions")
	other := types.UID("another")
	_, err = d.Delete("hello", OwnerAPI, &metav1.Preconditions{UID: &other})
	refused(t, "deleting another one", err, apierrors.IsConflict, "preconditions")
	_, err = d.change("hello", func(svc *servingv1.Service) { svc.Spec.Template.Spec.Containers = nil })
	refused(t, "no container", err, apierrors.IsBadRequest, "validation failed: missing field(s): spec.template.spec.containers")
	_, err = d.change("hello", func(svc *servingv1.Service) { svc.Spec.Traffic = targets("latest=50 hello-00001=40") })
	refused(t, "90 percent", err, apierrors.IsBadRequest, "Traffic targets sum to 90, want 100")
	_, err = d.change("hello", func(svc *servingv1.Service) { svc.Annotations[serving.CreatorAnnotation] = "somebody" })
	refused(t, "another creator", err, apierrors.IsBadRequest, "annotation value is immutable: metadata.annotations.serving.knative.dev/creator")
	_, err = d.change("hello", func(svc *servingv1.Service) {
		svc.Spec.Traffic = targets("latest=100#" + strings.Repeat("a", 57))
	})
	refused(t, "a tag that makes too long a host", err, apierrors.IsBadRequest, "longer than 63 characters")
	if got := d.State("hello"); got.Service.Generation != 2 || len(got.Revisions) != 2 {
		t.Errorf("what was refused has changed something: %v", got.Service)
	}
}

// One service has one owner.
func TestServicesHaveOneOwner(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	apply(t, newDesk(t, Options{}).Registry, "app:1") // another registry has nothing to do with it
	_, _, err := d.Apply(prepared(t, document("hello", "app:2")), OwnerConfig)
	refused(t, "the config", err, apierrors.IsConflict, "it belongs to the API")
	_, err = d.Delete("hello", OwnerConfig, nil)
	refused(t, "the config", err, apierrors.IsConflict, "it belongs to the API")
	d.Forget("hello")
	if !d.Known("hello") {
		t.Fatal("the config has forgotten a service of the API")
	}
	if _, err := d.Delete("hello", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	directory := OwnerDirectory("/etc/fairway/services")
	if _, _, err := d.Apply(prepared(t, document("hello", "app:2")), directory); err != nil {
		t.Fatal(err)
	}
	_, err = d.change("hello", image("app:3", ""))
	refused(t, "the API", err, apierrors.IsConflict, "it belongs to the files in /etc/fairway/services")
	_, _, err = d.Apply(prepared(t, document("hello", "app:2")), OwnerConfig)
	refused(t, "the config", err, apierrors.IsConflict, "it belongs to the files")
	_, err = d.Delete("hello", directory, nil)
	if err != nil || d.State("hello") != nil {
		t.Errorf("got %v", err)
	}
	apply(t, d.Registry, "app:4")
	_, err = d.change("hello", image("app:5", ""))
	refused(t, "the API", err, apierrors.IsConflict, "it belongs to Caddy's config")
}

// What only asks leaves nothing behind.
// TestOneCopyOfWhatIsWanted has the states of a service, its revision and its
// owner share what none of them may change.
func TestOneCopyOfWhatIsWanted(t *testing.T) {
	d := newDesk(t, Options{})
	svc, err := Prepare(parse(t, document("hello", "app:1")))
	if err != nil {
		t.Fatal(err)
	}
	rev, _, err := d.Apply(svc, OwnerDirectory("/services"))
	if err != nil {
		t.Fatal(err)
	}
	before := d.State("hello")
	d.MarkReady(rev)
	st := d.State("hello")
	for what, c := range map[string]*corev1.Container{
		"before": &before.Service.Spec.Template.Spec.Containers[0],
		"after":  &st.Service.Spec.Template.Spec.Containers[0],
		"rev":    rev.Spec().Container(),
	} {
		if c != &svc.Spec.Template.Spec.Containers[0] {
			t.Errorf("%s has a copy of its own", what)
		}
	}
	if before == st || before.Service == st.Service || before.Service.IsReady() || !st.Service.IsReady() {
		t.Error("the state before has changed")
	}
	// A client's own object is its own.
	mine := parse(t, document("mine", "app:1"))
	if mine, err = Prepare(mine); err != nil {
		t.Fatal(err)
	}
	made, err := d.Create(mine, OwnerAPI)
	if err != nil {
		t.Fatal(err)
	}
	if &made.Service.Spec.Template.Spec.Containers[0] == &mine.Spec.Template.Spec.Containers[0] {
		t.Error("what a client has sent is kept")
	}
}

func TestUnknownNamesTakeNoMemory(t *testing.T) {
	d := newDesk(t, Options{})
	for n := range 10 {
		name := fmt.Sprint("probe-", n)
		_, _ = d.Delete(name, OwnerAPI, nil)
		_, _ = d.Update(parse(t, document(name, "app:1")), OwnerAPI)
		d.Forget(name)
		_ = d.State(name)
	}
	match(t, "records", len(d.services), 0)
}

// Source: Knative Serving API: metadata.generation counts changes of the spec.
func TestGenerations(t *testing.T) {
	d := newDesk(t, Options{})
	st := d.create("hello", "app:1")
	uid, created := st.Service.UID, st.Service.CreationTimestamp
	if uid == "" || created.IsZero() || st.Service.ResourceVersion == "" {
		t.Errorf("the service has no identity: %v", st.Service.ObjectMeta)
	}
	step := func(what string, change func(*servingv1.Service), service, configuration, route int64, latest string) {
		t.Helper()
		before := d.State("hello").Service.ResourceVersion
		st := d.mustChange("hello", change)
		got := []int64{
			st.Service.Generation, st.Service.Status.ObservedGeneration,
			st.ConfigurationObject().Generation, st.Configuration.ObservedGeneration,
			st.RouteObject().Generation, st.Route.ObservedGeneration,
		}
		match(t, what+": generations", got, []int64{service, service, configuration, configuration, route, route})
		match(t, what+": latest", st.Latest().Name, latest)
		if st.Service.UID != uid || st.Service.CreationTimestamp != created {
			t.Errorf("%s: it is another service", what)
		}
		if newer := st.Service.ResourceVersion > before; newer != (what != "nothing") {
			t.Errorf("%s: version %s after %s", what, st.Service.ResourceVersion, before)
		}
	}
	step("nothing", func(*servingv1.Service) {}, 1, 1, 1, "hello-00001")
	step("a label", func(svc *servingv1.Service) { svc.Labels = map[string]string{"a": "b"} }, 1, 1, 1, "hello-00001")
	step("an annotation", func(svc *servingv1.Service) { svc.Annotations["a"] = "b" }, 1, 1, 1, "hello-00001")
	step("the template", image("app:2", ""), 2, 2, 1, "hello-00002")
	step("the traffic", func(svc *servingv1.Service) { svc.Spec.Traffic = targets("latest=100#t") }, 3, 2, 2, "hello-00002")
	step("both", func(svc *servingv1.Service) {
		image("app:3", "")(svc)
		svc.Spec.Traffic = nil
	}, 4, 3, 3, "hello-00003")
	step("a label of the template", func(svc *servingv1.Service) {
		svc.Spec.Template.Labels = map[string]string{"client.knative.dev/nonce": "x"}
	}, 5, 4, 3, "hello-00004")
	step("nothing", func(*servingv1.Service) {}, 5, 4, 3, "hello-00004")
	match(t, "revisions", d.RevisionNames(), []string{"hello-00001", "hello-00002", "hello-00003", "hello-00004"})
}

// Status and identity are the registry's, whatever a client writes there.
func TestClientsCannotForge(t *testing.T) {
	d := newDesk(t, Options{})
	svc := parse(t, document("hello", "app:1"))
	svc.UID, svc.Generation = "forged", 77
	svc.Status.ObservedGeneration = 77
	svc.Status.MarkRevisionNameTaken("x")
	st, err := d.Create(svc, OwnerAPI)
	if err != nil {
		t.Fatal(err)
	}
	if st.Service.UID == "forged" || st.Service.Generation != 1 || st.Service.Status.ObservedGeneration != 1 ||
		strings.Contains(says(st.Service.Status.Conditions), "Taken") {
		t.Errorf("got %v", st.Service)
	}
	st = d.mustChange("hello", func(svc *servingv1.Service) {
		svc.Generation = 77
		svc.Labels = map[string]string{"x": "y"}
		svc.Status = servingv1.ServiceStatus{}
	})
	if st.Service.Generation != 1 || len(st.Service.Status.Conditions) == 0 {
		t.Errorf("got %v", st.Service)
	}
}

// Each step of a first deploy, and of one that fails while another serves.
// Source: Knative Serving's conditions.
func TestConditions(t *testing.T) {
	d := newDesk(t, Options{Domain: Domain{Host: "run.example.com", Scheme: "https"}})
	expect := func(when, revision, configuration, route, service, goes string) {
		t.Helper()
		st := d.State("hello")
		match(t, when+": revision", says(d.Revision(st.Latest().Name).Object().Status.Conditions), revision)
		match(t, when+": configuration", says(st.Configuration.Conditions), configuration)
		match(t, when+": route", says(st.Route.Conditions), route)
		match(t, when+": service", says(st.Service.Status.Conditions), service)
		match(t, when+": routes", routes(st), goes)
	}
	const allReady = "AllTrafficAssigned=True CertificateProvisioned=True IngressReady=True Ready=True"
	d.create("hello", "app:1")
	expect("created",
		"ContainerHealthy=Unknown:ResolvingDigests Ready=Unknown:ResolvingDigests ResourcesAvailable=Unknown:Deploying",
		"Ready=Unknown:ResolvingDigests",
		"AllTrafficAssigned=Unknown:RevisionMissing CertificateProvisioned=True IngressReady=Unknown:IngressNotConfigured Ready=Unknown:RevisionMissing",
		"ConfigurationsReady=Unknown:ResolvingDigests Ready=Unknown:RevisionMissing RoutesReady=Unknown:RevisionMissing", "")

	d.pin(d.Revision("hello-00001"), "sha256:1")
	expect("its image is there",
		"ContainerHealthy=Unknown:Deploying Ready=Unknown:Deploying ResourcesAvailable=Unknown:Deploying",
		"Ready=Unknown:Deploying",
		"AllTrafficAssigned=Unknown:RevisionMissing CertificateProvisioned=True IngressReady=Unknown:IngressNotConfigured Ready=Unknown:RevisionMissing",
		"ConfigurationsReady=Unknown:Deploying Ready=Unknown:RevisionMissing RoutesReady=Unknown:RevisionMissing", "")

	d.failed("hello-00001")
	expect("the first has failed",
		"ContainerHealthy=False:ExitCode1 Ready=False:ExitCode1 ResourcesAvailable=True",
		"Ready=False:RevisionFailed",
		"AllTrafficAssigned=False:RevisionMissing CertificateProvisioned=True IngressReady=Unknown:IngressNotConfigured Ready=False:RevisionMissing",
		"ConfigurationsReady=False:RevisionFailed Ready=False:RevisionMissing RoutesReady=False:RevisionMissing", "")
	match(t, "words", d.State("hello").Configuration.GetCondition(servingv1.ConfigurationConditionReady).GetMessage(),
		`Revision "hello-00001" failed with message: Container failed with: no config.`)
	match(t, "words", d.State("hello").Route.GetCondition(servingv1.RouteConditionReady).GetMessage(),
		`Configuration "hello" does not have any ready Revision.`)

	d.deploy("app:2")
	d.ready("hello-00002")
	expect("ready",
		"ContainerHealthy=True Ready=True ResourcesAvailable=True", "Ready=True", allReady,
		"ConfigurationsReady=True Ready=True RoutesReady=True", "hello-00002=100*")
	st := d.State("hello")
	match(t, "latest", []string{st.Configuration.LatestCreatedRevisionName, st.Configuration.LatestReadyRevisionName, st.Service.Status.LatestReadyRevisionName},
		[]string{"hello-00002", "hello-00002", "hello-00002"})
	match(t, "URL", st.Service.Status.URL.String(), "https://hello.run.example.com")
	match(t, "address", st.Service.Status.Address.URL.String(), "https://hello.run.example.com")

	d.deploy("app:3")
	expect("the next is on trial",
		"ContainerHealthy=Unknown:ResolvingDigests Ready=Unknown:ResolvingDigests ResourcesAvailable=Unknown:Deploying",
		"Ready=Unknown:ResolvingDigests", allReady,
		"ConfigurationsReady=Unknown:ResolvingDigests Ready=Unknown:ResolvingDigests RoutesReady=True", "hello-00002=100*")

	d.failed("hello-00003")
	expect("the next has failed",
		"ContainerHealthy=False:ExitCode1 Ready=False:ExitCode1 ResourcesAvailable=True",
		"Ready=False:RevisionFailed", allReady,
		"ConfigurationsReady=False:RevisionFailed Ready=False:RevisionFailed RoutesReady=True", "hello-00002=100*")
	match(t, "latest", []string{d.State("hello").Configuration.LatestCreatedRevisionName, d.State("hello").Configuration.LatestReadyRevisionName},
		[]string{"hello-00003", "hello-00002"})

	d.deploy("app:4")
	d.MarkFailed(d.Revision("hello-00004"), servingv1.ReasonProgressDeadlineExceeded, "too slow")
	expect("one is too slow",
		"ContainerHealthy=Unknown:ResolvingDigests Ready=False:ProgressDeadlineExceeded ResourcesAvailable=False:ProgressDeadlineExceeded",
		"Ready=False:RevisionFailed", allReady,
		"ConfigurationsReady=False:RevisionFailed Ready=False:RevisionFailed RoutesReady=True", "hello-00002=100*")

	d.traffic("hello-00009=100")
	st = d.State("hello")
	match(t, "traffic to nobody", says(st.Route.Conditions),
		"AllTrafficAssigned=False:RevisionMissing CertificateProvisioned=True IngressReady=True Ready=False:RevisionMissing")
	match(t, "words", st.Route.GetCondition(servingv1.RouteConditionReady).GetMessage(), `Revision "hello-00009" referenced in traffic not found.`)
	match(t, "routes", routes(st), "hello-00002=100*")
	d.traffic("hello-00004=100")
	match(t, "traffic to what has failed", says(d.State("hello").Route.Conditions),
		"AllTrafficAssigned=False:RevisionMissing CertificateProvisioned=True IngressReady=True Ready=False:RevisionMissing")
	match(t, "routes", routes(d.State("hello")), "hello-00002=100*")
	d.deploy("app:5")
	d.traffic("hello-00005=100")
	match(t, "traffic to what is not ready", says(d.State("hello").Route.Conditions),
		"AllTrafficAssigned=Unknown:RevisionMissing CertificateProvisioned=True IngressReady=True Ready=Unknown:RevisionMissing")
	match(t, "pending", slices.Equal(d.State("hello").Pending(), []*Revision{d.Revision("hello-00005")}), true)
	d.ready("hello-00005")
	expect("all is well",
		"ContainerHealthy=True Ready=True ResourcesAvailable=True", "Ready=True", allReady,
		"ConfigurationsReady=True Ready=True RoutesReady=True", "hello-00005=100")
}

// A revision that has been ready stays ready: what fails then may be the host.
// One that failed and works after all is ready.
func TestReadyIsForEver(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.failed("hello-00001")
	d.ready("hello-00001")
	version := d.Version()
	d.failed("hello-00001")
	d.ready("hello-00001")
	match(t, "readiness", d.Revision("hello-00001").Readiness(), ReadinessTrue)
	match(t, "versions since", d.Version(), version)
	d.MarkReady(revise(t, full)) // of another registry
	match(t, "versions since", d.Version(), version)
}

// Source: Knative Serving, findAndSetLatestReadyRevision.
func TestTheLatestReadyRevisionNeverGetsOlder(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	for n := 2; n <= 5; n++ {
		d.deploy(fmt.Sprint("app:", n))
	}
	for _, step := range []struct{ ready, goes string }{
		{"hello-00002", "hello-00002=100*"},
		{"hello-00001", "hello-00002=100*"}, // late
		{"hello-00004", "hello-00004=100*"}, // not the latest, but newer
		{"hello-00003", "hello-00004=100*"},
		{"hello-00005", "hello-00005=100*"},
	} {
		d.ready(step.ready)
		match(t, "after "+step.ready, routes(d.State("hello")), step.goes)
	}
}

func TestTraffic(t *testing.T) {
	d := newDesk(t, Options{Domain: Domain{Host: "localhost:8080", Scheme: "http"}})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.deploy("app:2")
	d.ready("hello-00002")
	made := len(d.RevisionNames())
	for _, text := range []string{
		"hello-00001=10 hello-00002=90", // a split
		"hello-00001=100 latest=0#next", // all of it elsewhere, and a tag
		"hello-00001=50 hello-00001=50#stable",
		"latest=100",
	} {
		want := strings.ReplaceAll(text, "latest=100", "hello-00002=100*")
		match(t, text, routes(d.traffic(text)), strings.ReplaceAll(want, "latest=0#next", "hello-00002=0#next*"))
	}
	// Rollback: pinned, so that a deploy moves nothing; latest, so that it does.
	d.traffic("hello-00001=100")
	d.deploy("app:3")
	d.ready("hello-00003")
	match(t, "a deploy while pinned", routes(d.State("hello")), "hello-00001=100")
	match(t, "back to the latest", routes(d.traffic("latest=100")), "hello-00003=100*")
	match(t, "revisions made by it", len(d.RevisionNames()), made+1)

	st := d.traffic("hello-00001=30#old latest=70 latest=0#next")
	var got []string
	for _, target := range st.Service.Status.Traffic {
		got = append(got, fmt.Sprintf("%s %d %t %s", target.RevisionName, *target.Percent, *target.LatestRevision, target.URL))
	}
	match(t, "status", got, []string{
		"hello-00001 30 false http://old---hello.localhost:8080",
		"hello-00003 70 true http://hello.localhost:8080",
		"hello-00003 0 true http://next---hello.localhost:8080",
	})
	var names []string
	for _, target := range st.RouteObject().Spec.Traffic {
		names = append(names, target.RevisionName+"|"+target.ConfigurationName)
	}
	match(t, "the route's spec", names, []string{"hello-00001|", "|hello", "|hello"})
}

// What cannot be had as a whole is not begun: all targets stay.
func TestTrafficMovesAsAWhole(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.deploy("app:2")
	d.traffic("hello-00001=50 hello-00002=50")
	match(t, "routes", routes(d.State("hello")), "hello-00001=100*")
	d.ready("hello-00002")
	match(t, "routes", routes(d.State("hello")), "hello-00001=50 hello-00002=50")
	d.deploy("app:3")
	d.traffic("hello-00002=50 hello-00003=50")
	d.traffic("hello-00002=100") // given up
	d.ready("hello-00003")
	match(t, "routes", routes(d.State("hello")), "hello-00002=100")
}

func TestNamesOfOnesOwn(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	blue := d.mustChange("hello", image("app:2", "hello-blue")).Latest()
	match(t, "name", blue.Name, "hello-blue")
	match(t, "generation", blue.Generation, 2)
	d.ready("hello-blue")
	_, err := d.change("hello", image("app:3", "hello-blue"))
	refused(t, "another template, the same name", err, apierrors.IsBadRequest, "Saw the following changes without a name change (-old +new): spec.template.metadata.name")
	_, err = d.change("hello", image("app:3", "blue"))
	refused(t, "without the prefix", err, apierrors.IsBadRequest, `"blue" must have prefix "hello-": spec.template.metadata.name`)

	green := d.mustChange("hello", image("app:3", "hello-green")).Latest()
	d.ready("hello-green")
	match(t, "routes", routes(d.State("hello")), "hello-green=100*")
	// Back by name: what it says is that revision, so it is that revision.
	st := d.mustChange("hello", image("app:2", "hello-blue"))
	if st.Latest() != blue || len(st.Revisions) != 3 {
		t.Errorf("latest is %s of %d", st.Latest().Name, len(st.Revisions))
	}
	match(t, "routes", routes(st), "hello-blue=100*")
	match(t, "generation", st.ConfigurationObject().Generation, 4)
	d.MarkReady(green)
	match(t, "routes", routes(d.State("hello")), "hello-blue=100*")

	// The name is one of another template.
	st = d.mustChange("hello", image("app:4", "hello-green"))
	if st.Latest() != nil || len(st.Revisions) != 3 {
		t.Errorf("latest is %v of %d", st.Latest(), len(st.Revisions))
	}
	match(t, "service", says(st.Service.Status.Conditions),
		"ConfigurationsReady=False:RevisionFailed Ready=False:RevisionNameTaken RoutesReady=False:RevisionNameTaken")
	match(t, "routes", routes(st), "hello-blue=100*")
	// Which ends with another name, or none, whatever template that has.
	st = d.mustChange("hello", image("app:2", ""))
	match(t, "latest", st.Latest().Name, "hello-00006")
	match(t, "generation", st.ConfigurationObject().Generation, 6)
	d.ready("hello-00006")
	match(t, "service", says(d.State("hello").Service.Status.Conditions), "ConfigurationsReady=True Ready=True RoutesReady=True")
}

// The names of revisions are unique among all services.
func TestNamesAreUniqueAmongServices(t *testing.T) {
	d := newDesk(t, Options{})
	st := d.create("hello", "app:1")
	// hello-world wants a name that hello can give as well.
	taken := d.mustChange("hello", image("app:2", "hello-world-blue")).Latest()
	d.create("hello-world", "app:1")
	other := d.mustChange("hello-world", image("app:2", "hello-world-blue"))
	match(t, "service", says(other.Service.Status.Conditions),
		"ConfigurationsReady=False:RevisionFailed Ready=False:RevisionNameTaken RoutesReady=False:RevisionNameTaken")
	if d.Revision("hello-world-blue") != taken {
		t.Error("it was taken away")
	}
	// One that nobody has chosen makes room.
	d.mustChange("hello", image("app:3", "hello-world-00003"))
	other = d.mustChange("hello-world", image("app:4", ""))
	match(t, "latest", other.Latest().Name, "hello-world-00004")
	// A deleted service gives its names back.
	if _, err := d.Delete("hello", OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	other = d.mustChange("hello-world", image("app:2", "hello-world-blue"))
	if other.Latest() == nil || other.Latest() == taken {
		t.Errorf("latest is %v", other.Latest())
	}
	if again := d.create("hello", "app:1"); again.Service.UID == st.Service.UID || again.Latest().Name != "hello-00004" {
		t.Errorf("%s is what was deleted, or may be taken for it", again.Latest().Name)
	}
}

// Labels and annotations of a service are those of its views, not of its
// revisions; a template's are its revision's.
// Source: Knative's conformance tests.
func TestMetadataOfViews(t *testing.T) {
	d := newDesk(t, Options{})
	svc := parse(t, document("hello", "app:1"))
	svc.Labels, svc.Annotations = map[string]string{"team": "blue"}, map[string]string{"note": "x"}
	svc.Spec.Template.Labels, svc.Spec.Template.Annotations = map[string]string{"tier": "web"}, map[string]string{"why": "y"}
	if _, err := d.Create(svc, OwnerAPI); err != nil {
		t.Fatal(err)
	}
	d.ready("hello-00001")
	st := d.State("hello")
	configuration, route, rev := st.ConfigurationObject(), st.RouteObject(), st.RevisionObject(st.Latest())
	for _, m := range []metav1.ObjectMeta{configuration.ObjectMeta, route.ObjectMeta} {
		match(t, "label", []string{m.Labels["team"], m.Labels[serving.ServiceLabelKey]}, []string{"blue", "hello"})
		match(t, "annotation", m.Annotations["note"], "x")
		match(t, "owner", []string{m.OwnerReferences[0].Kind, string(m.OwnerReferences[0].UID)}, []string{"Service", string(st.Service.UID)})
		if m.Name != "hello" || m.UID == st.Service.UID || m.ResourceVersion == "" {
			t.Errorf("got %v", m)
		}
	}
	if configuration.UID == route.UID {
		t.Error("two objects have one uid")
	}
	match(t, "label of the revision", maps.Clone(rev.Labels), map[string]string{
		"tier": "web", serving.ServiceLabelKey: "hello", serving.ConfigurationLabelKey: "hello",
		serving.ConfigurationGenerationLabelKey: "1", serving.RoutingStateLabelKey: "active",
		serving.ServiceUIDLabelKey: string(st.Service.UID), serving.ConfigurationUIDLabelKey: string(configuration.UID),
	})
	match(t, "annotation of the revision", []string{rev.Annotations["why"], rev.Annotations["note"], rev.Annotations[serving.RoutesAnnotationKey]}, []string{"y", "", "hello"})
	match(t, "owner of the revision", rev.OwnerReferences[0].UID, configuration.UID)
	if rev.ResourceVersion == "" || rev.Annotations[serving.RoutingStateModifiedAnnotationKey] == "" {
		t.Errorf("got %v", rev.ObjectMeta)
	}
	// What is handed out is a copy.
	configuration.Labels["team"], rev.Labels["tier"], st.ServiceObject().Labels["team"] = "red", "red", "red"
	configuration.Spec.Template.Spec.Containers[0].Image = "red"
	rev.Spec.Containers[0].Image = "red"
	st = d.State("hello")
	if st.ServiceObject().Labels["team"] != "blue" || st.ConfigurationObject().Spec.Template.Spec.Containers[0].Image != "app:1" ||
		st.RevisionObject(st.Latest()).Labels["tier"] != "web" || st.Latest().Spec().Container().Image != "app:1" {
		t.Error("what was handed out is not a copy")
	}

	st = d.mustChange("hello", func(svc *servingv1.Service) { svc.Labels, svc.Annotations["note"] = nil, "z" })
	match(t, "label that is gone", st.ConfigurationObject().Labels["team"], "")
	match(t, "changed annotation", st.RouteObject().Annotations["note"], "z")
	match(t, "label that was there once", st.PlaceholderLabels["team"], "blue")
	match(t, "revisions", len(st.Revisions), 1)
}

func TestRoutingState(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	state := func(name string) string {
		return d.State("hello").RevisionObject(d.Revision(name)).Labels[serving.RoutingStateLabelKey]
	}
	match(t, "created", state("hello-00001"), "pending")
	d.ready("hello-00001")
	match(t, "ready", state("hello-00001"), "active")
	d.deploy("app:2")
	d.ready("hello-00002")
	match(t, "replaced", state("hello-00001"), "reserve")
	d.traffic("latest=100 hello-00001=0#old")
	match(t, "by tag only", state("hello-00001"), "active")
}

// All of a revision that may change is its metadata.
func TestUpdateRevision(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	rev := d.Revision("hello-00001")
	hash := rev.Hash
	get := func() *servingv1.Revision { return d.State("hello").RevisionObject(rev) }
	update := func(change func(*servingv1.Revision)) error {
		obj := get()
		change(obj)
		_, _, err := d.UpdateRevision(obj)
		return err
	}
	stale := get()
	version := d.Version()
	if err := update(func(*servingv1.Revision) {}); err != nil || d.Version() != version {
		t.Errorf("nothing: %v, version %d after %d", err, d.Version(), version)
	}
	if err := update(func(r *servingv1.Revision) { r.Labels["a"], r.Annotations["b"] = "1", "2" }); err != nil {
		t.Fatal(err)
	}
	obj := get()
	match(t, "changed", []string{obj.Labels["a"], obj.Annotations["b"], obj.Labels[serving.RoutingStateLabelKey]}, []string{"1", "2", "active"})
	if obj.ResourceVersion <= stale.ResourceVersion || obj.Generation != 1 {
		t.Errorf("version %s after %s, generation %d", obj.ResourceVersion, stale.ResourceVersion, obj.Generation)
	}
	// It is the same revision still: to its instances, and by its name.
	b, err := rev.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	carried := new(Revision)
	if err := carried.UnmarshalJSON(b); err != nil || carried.Hash != hash || rev.Hash != hash {
		t.Errorf("an instance carries another revision: %v", err)
	}
	if err := update(func(r *servingv1.Revision) { delete(r.Labels, "a"); delete(r.Annotations, "b") }); err != nil {
		t.Fatal(err)
	}
	obj = get()
	match(t, "removed", []string{obj.Labels["a"], obj.Annotations["b"]}, []string{"", ""})

	_, _, err = d.UpdateRevision(stale)
	refused(t, "an old version", err, apierrors.IsConflict, "the object has been modified")
	refused(t, "another one", update(func(r *servingv1.Revision) { r.UID = "another" }), apierrors.IsConflict, "UID in precondition")
	refused(t, "its spec", update(func(r *servingv1.Revision) { r.Spec.Containers[0].Image = "app:2" }), apierrors.IsBadRequest, "Immutable fields changed (-old +new): spec")
	stale.Name = "hello-00009"
	_, _, err = d.UpdateRevision(stale)
	refused(t, "what is not there", err, apierrors.IsNotFound, `revisions.serving.knative.dev "hello-00009" not found`)

	// Of what the registry says itself nothing sticks.
	d.deploy("app:2")
	if err := update(func(r *servingv1.Revision) { r.Labels["c"] = "d" }); err != nil {
		t.Fatal(err)
	}
	d.ready("hello-00002")
	obj = get()
	match(t, "not routed any more", []string{obj.Annotations[serving.RoutesAnnotationKey], obj.Labels[serving.RoutingStateLabelKey]}, []string{"", "reserve"})
}

func TestDeleteRevision(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.deploy("app:2")
	d.ready("hello-00002")
	d.deploy("app:3")
	d.traffic("hello-00002=100 hello-00001=0#old")
	for name, words := range map[string]string{
		"hello-00001": "requests are routed to it", "hello-00002": "requests are routed to it", "hello-00003": "it is the latest revision of service hello",
	} {
		_, err := d.DeleteRevision(name)
		refused(t, name, err, apierrors.IsConflict, words)
	}
	_, err := d.DeleteRevision("hello-00009")
	refused(t, "what is not there", err, apierrors.IsNotFound, `revisions.serving.knative.dev "hello-00009" not found`)
	d.traffic("hello-00002=100")
	if _, err := d.DeleteRevision("hello-00001"); err != nil {
		t.Fatal(err)
	}
	match(t, "revisions", d.RevisionNames(), []string{"hello-00002", "hello-00003"})
	_, err = d.DeleteRevision("hello-00001")
	refused(t, "twice", err, apierrors.IsNotFound, "not found")

	// The latest ready one may go; then an older one is it.
	d.traffic("hello-00002=100")
	d.deploy("app:4")
	d.ready("hello-00004")
	d.deploy("app:5")
	if _, err := d.DeleteRevision("hello-00004"); err != nil {
		t.Fatal(err)
	}
	match(t, "the latest ready", d.State("hello").Configuration.LatestReadyRevisionName, "hello-00002")
}

func TestDelete(t *testing.T) {
	var told []string
	d := newDesk(t, Options{Changed: func(name string) { told = append(told, name) }})
	d.create("hello", "app:1")
	d.ready("hello-00001")
	d.deploy("app:2")
	before := d.State("hello")
	told = nil
	last, err := d.Delete("hello", OwnerAPI, &metav1.Preconditions{UID: &before.Service.UID, ResourceVersion: &before.Service.ResourceVersion})
	if err != nil || last != before {
		t.Errorf("got %v, %v", last, err)
	}
	if d.State("hello") != nil || d.Known("hello") || len(d.Names()) > 0 || len(d.RevisionNames()) > 0 || d.Revision("hello-00001") != nil {
		t.Error("something is left")
	}
	match(t, "told", told, []string{"hello"})
	d.MarkReady(before.Latest()) // too late
	if d.State("hello") != nil {
		t.Error("it is back")
	}
	_, err = d.DeleteRevision("hello-00001")
	refused(t, "its revision", err, apierrors.IsNotFound, "not found")
}

func TestCreatedAndChangedAreTold(t *testing.T) {
	var told []string
	d := newDesk(t, Options{
		Created: func(r *Revision) { told = append(told, "created "+r.Name) },
		Changed: func(name string) { told = append(told, "changed "+name) },
	})
	d.create("hello", "app:1")
	d.mustChange("hello", func(*servingv1.Service) {})
	d.ready("hello-00001")
	d.ready("hello-00001")
	d.deploy("app:2")
	match(t, "told", told, []string{"created hello-00001", "changed hello", "changed hello", "created hello-00002", "changed hello"})
}

// A digest is pinned once. It is shown in the revision's status.
func TestPin(t *testing.T) {
	d := newDesk(t, Options{})
	d.create("hello", "ghcr.io/acme/app:1")
	rev := d.Revision("hello-00001")
	d.pin(rev, "sha256:1")
	d.pin(rev, "sha256:2")
	match(t, "digest", rev.Digest(), "sha256:1")
	match(t, "status", rev.Object().Status.ContainerStatuses[0].ImageDigest, "ghcr.io/acme/app@sha256:1")
	d.ready("hello-00001")
	match(t, "conditions", says(rev.Object().Status.Conditions), "ContainerHealthy=True Ready=True ResourcesAvailable=True")
}

// What has failed and is declared again, by those who can say it no other way,
// is tried again.
func TestRetry(t *testing.T) {
	for _, test := range []struct {
		owner Owner
		want  Readiness
	}{{OwnerAPI, ReadinessFalse}, {OwnerConfig, ReadinessUnknown}, {OwnerDirectory("x"), ReadinessUnknown}} {
		g := NewRegistry(Options{})
		rev, _, err := g.Apply(prepared(t, document("hello", "app:1")), test.owner)
		if err != nil {
			t.Fatal(err)
		}
		g.MarkFailed(rev, "ExitCode1", "it ended")
		again, created, err := g.Apply(prepared(t, document("hello", "app:1")), test.owner)
		if again != rev || created || err != nil || rev.Readiness() != test.want {
			t.Errorf("%s: %v, %t, %v, %v", test.owner, again, created, err, rev.Readiness())
		}
		if pending := len(g.State("hello").Pending()) > 0; test.owner != OwnerConfig && pending != (test.want == ReadinessUnknown) {
			t.Errorf("%s: pending %t", test.owner, pending)
		}
	}
}

// What Caddy's config declares serves before it has proved itself while nothing
// is there that could be protected; what the API makes does not.
func TestWhoHasToProveItself(t *testing.T) {
	g := NewRegistry(Options{})
	apply(t, g, "app:1")
	match(t, "the first of the config", routes(g.State("hello")), "hello-00001=100*")
	apply(t, g, "app:2")
	match(t, "it may only just be starting", routes(g.State("hello")), "hello-00001=100*")
	g.MarkFailed(g.Revision("hello-00001"), "ExitCode1", "it ended")
	match(t, "it has failed", routes(g.State("hello")), "hello-00002=100*")
	g.MarkReady(g.Revision("hello-00002"))
	apply(t, g, "app:3")
	match(t, "something works", routes(g.State("hello")), "hello-00002=100*")

	d := newDesk(t, Options{})
	d.create("hello", "app:1")
	match(t, "the first of the API", routes(d.State("hello")), "")
	match(t, "pending", slices.Equal(d.State("hello").Pending(), d.State("hello").Revisions), true)
}

func TestSetDomain(t *testing.T) {
	d := newDesk(t, Options{})
	st := d.create("hello", "app:1")
	if st.Service.Status.URL != nil {
		t.Errorf("URL %s without a domain", st.Service.Status.URL)
	}
	d.SetDomain(Domain{Host: "run.example.com", Scheme: "https"})
	match(t, "URL", d.State("hello").Service.Status.URL.String(), "https://hello.run.example.com")
	version := d.Version()
	d.SetDomain(Domain{Host: "run.example.com", Scheme: "https"})
	match(t, "versions since", d.Version(), version)
}

// F35: deploys, deletes, traffic changes, failures and declarations of one
// service from all sides at the same time. Whatever is seen is consistent, and in
// the end nothing is there that nobody wants.
func TestMayhem(t *testing.T) {
	store := newMemory()
	d := newDesk(t, Options{})
	if err := d.Open(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	watcher, err := d.Watch(d.Version())
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 60
	var all sync.WaitGroup
	config := prepared(t, document("hello", "config:1"))
	do := func(f func(n int, r *rand.Rand)) {
		seed := rand.Uint64()
		all.Go(func() {
			r := rand.New(rand.NewPCG(seed, 0))
			for n := range rounds {
				f(n, r)
				if st := d.State("hello"); st != nil {
					if err := consistent(st); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	unexpected := func(err error) {
		if err != nil && !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err) && !apierrors.IsBadRequest(err) {
			t.Error(err)
		}
	}
	for side := range 2 {
		do(func(n int, _ *rand.Rand) {
			_, err := d.Create(parse(t, document("hello", fmt.Sprintf("app:%d-%d", side, n))), OwnerAPI)
			unexpected(err)
		})
		do(func(n int, r *rand.Rand) {
			if st := d.State("hello"); st != nil && st.Service != nil {
				name := ""
				if r.IntN(2) == 0 {
					name = fmt.Sprintf("hello-own-%d", r.IntN(4))
				}
				svc := st.ServiceObject()
				image(fmt.Sprintf("app:%d-%d", side, n), name)(svc)
				if r.IntN(2) == 0 {
					svc.ResourceVersion = ""
				}
				_, err := d.Update(svc, OwnerAPI)
				unexpected(err)
			}
		})
	}
	do(func(_ int, r *rand.Rand) {
		if st := d.State("hello"); st != nil && st.Service != nil && len(st.Revisions) > 0 {
			svc := st.ServiceObject()
			svc.Spec.Traffic = targets(fmt.Sprintf("%s=30 latest=70", st.Revisions[r.IntN(len(st.Revisions))].Name))
			_, err := d.Update(svc, OwnerAPI)
			unexpected(err)
		}
	})
	do(func(_ int, r *rand.Rand) {
		for _, rev := range d.State("hello").revisions() {
			switch r.IntN(4) {
			case 0:
				d.MarkReady(rev)
			case 1:
				d.MarkFailed(rev, "ExitCode1", "it ended")
			case 2:
				d.pin(rev, "sha256:1")
			case 3:
				_, err := d.DeleteRevision(rev.Name)
				unexpected(err)
			}
		}
	})
	do(func(n int, _ *rand.Rand) {
		if n%6 == 0 {
			_, err := d.Delete("hello", OwnerAPI, nil)
			unexpected(err)
		}
	})
	do(func(n int, _ *rand.Rand) {
		_, _, err := d.Apply(config, OwnerConfig)
		unexpected(err)
		if n%2 == 0 {
			d.Forget("hello")
		}
	})
	all.Wait()

	st := d.State("hello")
	var want []string
	for _, rev := range st.revisions() {
		want = append(want, rev.Name)
	}
	slices.Sort(want)
	match(t, "names that are taken", d.RevisionNames(), append([]string{}, want...))
	// Those who watched have seen the same.
	seen := make(map[string]bool)
	if d.changes.n > watchLog {
		t.Fatalf("%d changes: more than are remembered", d.changes.n)
	}
	changes, err := watcher.Next(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range changes {
		name := "service"
		if c.Revision != nil {
			name = string(c.Revision.uid)
		}
		if c.Kind == Added && seen[name] || c.Kind != Added && !seen[name] {
			t.Fatalf("%s of %s, which is known: %t", c.Kind, name, seen[name])
		}
		seen[name] = c.Kind != Deleted
	}
	for _, rev := range st.revisions() {
		if !seen[string(rev.uid)] {
			t.Errorf("%s is there, and nobody was told", rev.Name)
		}
	}

	if err := d.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := newDesk(t, Options{})
	if err := again.Open(t.Context(), store); err != nil {
		t.Fatal(err)
	}
	match(t, "what was kept", snapshot(again.Registry), snapshot(d.Registry))
	store.checkAgainst(t, again.Registry)
	if err := again.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (s *State) revisions() []*Revision {
	if s == nil {
		return nil
	}
	return s.Revisions
}

// consistent says what is wrong with a state, whenever it is looked at.
func consistent(st *State) error {
	sum, before := 0, int64(0)
	for _, t := range st.Targets {
		sum += t.Percent
		if !slices.Contains(st.Revisions, t.Revision) {
			return fmt.Errorf("requests go to %s, which is gone", t.Revision.Name)
		}
	}
	if sum != 0 && sum != 100 {
		return fmt.Errorf("%d percent of the requests: %s", sum, routes(st))
	}
	for _, r := range st.Revisions {
		if r.Generation <= before {
			return fmt.Errorf("generation %d after %d", r.Generation, before)
		}
		before = r.Generation
	}
	switch {
	case st.Service == nil && len(st.Targets) > 0:
		return errors.New("requests of a service that nobody wants go somewhere")
	case st.Service != nil && st.Service.Status.ObservedGeneration != st.Service.Generation:
		return errors.New("the status is an old one")
	case st.Service != nil && st.latest != "" && st.Latest() == nil:
		return fmt.Errorf("the latest revision %s is gone", st.latest)
	}
	return nil
}

// snapshot is all that a registry says of services and revisions, for comparison.
func snapshot(g *Registry) map[string]string {
	all := make(map[string]string)
	for _, name := range g.Names() {
		st := g.State(name)
		svc := st.ServiceObject()
		var traffic []string
		for _, t := range svc.Spec.Traffic {
			traffic = append(traffic, fmt.Sprintf("%s=%d#%s", t.RevisionName, deref(t.Percent, -1), t.Tag))
		}
		all[name] = fmt.Sprint(st.Owner, svc.UID, svc.Generation, svc.Labels, svc.Annotations, traffic, svc.CreationTimestamp.UTC(),
			st.generation, st.routeGeneration, st.latest, routes(st),
			says(svc.Status.Conditions), says(st.Configuration.Conditions), says(st.Route.Conditions),
			st.Configuration.LatestReadyRevisionName, st.Configuration.LatestCreatedRevisionName)
	}
	for _, name := range g.RevisionNames() {
		rev := g.Revision(name)
		m := rev.meta.Load()
		all[name] = fmt.Sprint(rev.Service, rev.Generation, rev.uid, rev.Hash, rev.Digest(), rev.Created.UTC().Format(time.RFC3339),
			m.labels, m.annotations, m.routed.UTC().Truncate(time.Second), says(m.status.Conditions))
	}
	return all
}
