package caddymodule

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"strings"
	"time"

	jsonpatch "github.com/evanphx/json-patch/v5"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	utilrand "k8s.io/apimachinery/pkg/util/rand"
	"k8s.io/apimachinery/pkg/version"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	kjson "sigs.k8s.io/json"

	"github.com/fairway-run/fairway/revisions"
	"github.com/fairway-run/fairway/scaler"
)

// maxObject bounds what a client may send.
const maxObject = 3 << 20

// kube serves the part of Kubernetes' API that drives Knative Serving, on
// Caddy's admin endpoint, from the registry of the engine in use.
// Source: Knative Serving API v1; Kubernetes API conventions.
type kube struct {
	engine func() *engine
}

// kubeRequest is one request for objects.
type kubeRequest struct {
	*http.Request

	w        http.ResponseWriter
	engine   *engine
	registry *revisions.Registry
	// resource, name and sub are those of the path; name is empty for all.
	resource, name, sub string
}

// ServeHTTP answers one request. Errors are Kubernetes' Status objects.
func (k kube) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := k.serve(w, r); err != nil {
		var status apierrors.APIStatus
		if !errors.As(err, &status) {
			status = apierrors.NewInternalError(err)
		}
		writeStatus(w, status.Status())
	}
}

func writeStatus(w http.ResponseWriter, s metav1.Status) {
	s.Kind, s.APIVersion = "Status", "v1"
	if d := s.Details; d != nil && d.RetryAfterSeconds > 0 {
		w.Header().Set("Retry-After", fmt.Sprint(d.RetryAfterSeconds))
	}
	writeJSON(w, int(s.Code), s)
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(v) // the client may have left
}

func (k kube) serve(w http.ResponseWriter, r *http.Request) error {
	path := strings.Trim(r.URL.Path, "/")
	doc := discovery(path)
	if doc == nil {
		doc = openAPI(path)
	}
	if doc != nil {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			return methodNotAllowed(r.Method, path)
		}
		writeJSON(w, http.StatusOK, doc)
		return nil
	}
	q := kubeRequest{Request: r, w: w, engine: k.engine()}
	parts := strings.Split(path, "/")
	core := false
	switch {
	case len(parts) > 3 && parts[0] == "apis" && parts[1] == servingv1.SchemeGroupVersion.Group && parts[2] == "v1":
		parts = parts[3:]
	case len(parts) > 2 && parts[0] == "api" && parts[1] == "v1":
		parts, core = parts[2:], true
	default:
		return notFound(r.URL.Path)
	}
	if q.engine == nil {
		return apierrors.NewServiceUnavailable("the config has no fairway app")
	}
	q.registry = q.engine.scaler.Registry()
	if parts[0] == "namespaces" {
		if len(parts) < 3 {
			return q.namespaces(parts[1:])
		}
		if ns := q.engine.namespace(); parts[1] != ns {
			return apierrors.NewGenericServerResponse(http.StatusNotFound, r.Method, schema.GroupResource{Resource: "namespaces"}, parts[1],
				fmt.Sprintf("namespaces %q not found: this Fairway has the namespace %q", parts[1], ns), 0, true)
		}
		parts = parts[2:]
	} else if r.Method != http.MethodGet || len(parts) > 1 {
		return notFound(r.URL.Path)
	}
	if len(parts) > 3 {
		return notFound(r.URL.Path)
	}
	q.resource = parts[0]
	if len(parts) > 1 {
		q.name = parts[1]
	}
	if len(parts) > 2 {
		q.sub = parts[2]
	}
	if core {
		return q.core()
	}
	return q.serving()
}

func notFound(path string) error {
	e := apierrors.NewGenericServerResponse(http.StatusNotFound, "", schema.GroupResource{}, "", "", 0, true)
	e.ErrStatus.Message = fmt.Sprintf("the server could not find the requested resource: %s", path)
	return e
}

func methodNotAllowed(method, what string) error {
	e := apierrors.NewMethodNotSupported(schema.GroupResource{Resource: what}, method)
	return e
}

// namespaces shows the one namespace that there is.
func (q kubeRequest) namespaces(parts []string) error {
	if q.Method != http.MethodGet {
		return methodNotAllowed(q.Method, "namespaces")
	}
	ns := corev1.Namespace{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Namespace"}}
	ns.Name = q.engine.namespace()
	ns.Status.Phase = corev1.NamespaceActive
	q.resource = "namespaces"
	if len(parts) > 0 {
		q.name = parts[0]
	}
	return coreList(q, "Namespace", namespacePrinter, []corev1.Namespace{ns})
}

// serving answers for Knative's own resources.
func (q kubeRequest) serving() error {
	kind, ok := servingKinds[q.resource]
	if !ok || (q.sub != "" && q.sub != "status") {
		return notFound(q.URL.Path)
	}
	if q.name == "" {
		switch q.Method {
		case http.MethodGet:
			return q.list(kind)
		case http.MethodPost:
			if q.resource == "services" {
				return q.create()
			}
		}
		return q.viewOnly(kind)
	}
	switch q.Method {
	case http.MethodGet:
		f, err := q.form(kind.printer)
		if err != nil {
			return err
		}
		obj, err := q.object(kind, q.name)
		if err != nil {
			return err
		}
		if st := q.registry.State(q.name); q.resource == "services" && st != nil && st.Service != nil && st.Service.ResourceVersion == obj.GetResourceVersion() {
			obj.SetResourceVersion(st.ReadVersion(time.Now()))
		}
		writeJSON(q.w, http.StatusOK, f.object(obj))
		return nil
	case http.MethodPut, http.MethodPatch:
		if q.sub == "" && (q.resource == "services" || q.resource == "revisions") {
			return q.replace(kind)
		}
	case http.MethodDelete:
		if q.sub == "" && (q.resource == "services" || q.resource == "revisions") {
			return q.remove()
		}
	}
	return q.viewOnly(kind)
}

// viewOnly refuses to change what is only a view of a service.
func (q kubeRequest) viewOnly(kind servingKind) error {
	e := apierrors.NewMethodNotSupported(schema.GroupResource{Group: servingv1.SchemeGroupVersion.Group, Resource: q.resource}, q.Method)
	if kind.view {
		e.ErrStatus.Message += ": it follows its service, change that"
	}
	return e
}

// servingKind is a resource of Knative's.
type servingKind struct {
	kind string
	// view is set when clients cannot make or change it.
	view bool
	// object returns the objects of a service.
	object  func(*revisions.State) apiObject
	printer *printer
}

var servingKinds = map[string]servingKind{
	"services": {kind: "Service", printer: servicePrinter, object: func(st *revisions.State) apiObject { return st.ServiceObject() }},
	"configurations": {kind: "Configuration", printer: configurationPrinter, view: true, object: func(st *revisions.State) apiObject {
		return st.ConfigurationObject()
	}},
	"routes":    {kind: "Route", printer: routePrinter, view: true, object: func(st *revisions.State) apiObject { return st.RouteObject() }},
	"revisions": {kind: "Revision", printer: revisionPrinter, view: true},
}

// object returns one object.
func (q kubeRequest) object(kind servingKind, name string) (apiObject, error) {
	if kind.object == nil {
		rev := q.registry.Revision(name)
		if rev != nil {
			if st := q.registry.Settled(rev.Service); st != nil && st.Service != nil && st.Revision(name) == rev {
				return q.revision(st, rev), nil
			}
		}
	} else if st := q.registry.Settled(name); st != nil && st.Service != nil {
		return q.of(kind, st), nil
	}
	return nil, apierrors.NewNotFound(schema.GroupResource{Group: servingv1.SchemeGroupVersion.Group, Resource: q.resource}, name)
}

// of returns a service's object of a kind.
func (q kubeRequest) of(kind servingKind, st *revisions.State) apiObject {
	obj := kind.object(st)
	obj.SetNamespace(q.engine.namespace())
	return obj
}

// revision returns the object of a revision, with what is known of its
// instances. Source: Knative Serving API, "Revision".
func (q kubeRequest) revision(st *revisions.State, rev *revisions.Revision) apiObject {
	obj := st.RevisionObject(rev)
	obj.Namespace = q.engine.namespace()
	status, _ := q.engine.scaler.ServiceStatus(rev.Service)
	markActive(obj, status)
	return obj
}

func markActive(obj *servingv1.Revision, status scaler.ServiceStatus) {
	n := int32(0)
	for _, r := range status.Revisions {
		if r.Revision.Name == obj.Name {
			n += int32(r.Made())
		}
	}
	obj.Status.ActualReplicas, obj.Status.DesiredReplicas = &n, &n
	if n > 0 {
		obj.Status.MarkActiveTrue()
		return
	}
	obj.Status.MarkActiveFalse("NoTraffic", "The target is not receiving traffic.")
}

// create makes a service.
func (q kubeRequest) create() error {
	b, err := q.body()
	if err != nil {
		return err
	}
	svc := new(servingv1.Service)
	if err := q.decode(b, svc, "Service"); err != nil {
		return err
	}
	if svc.Name == "" && svc.GenerateName != "" {
		svc.Name = svc.GenerateName + utilrand.String(5)
	}
	if svc.Name == "" {
		return apierrors.NewBadRequest("name or generateName is required")
	}
	q.warn(svc)
	if q.dryRun() {
		prepared, err := revisions.Prepare(svc)
		if err != nil {
			return apierrors.NewBadRequest("validation failed: " + err.Error())
		}
		prepared.Namespace = q.engine.namespace()
		writeJSON(q.w, http.StatusCreated, prepared)
		return nil
	}
	st, err := q.registry.Create(svc, revisions.OwnerAPI)
	if err != nil {
		return err
	}
	writeJSON(q.w, http.StatusCreated, q.written(st, nil))
	return nil
}

// warn tells the client, which shows it, what of a service has no effect.
// Source: Kubernetes API: warnings.
func (q kubeRequest) warn(svc *servingv1.Service) {
	q.w.Header().Del("Warning") // of an attempt before
	for _, text := range revisions.Warnings(svc) {
		if header, err := utilnet.NewWarningHeader(299, "fairway", text); err == nil {
			q.w.Header().Add("Warning", header)
		}
	}
}

func (q kubeRequest) dryRun() bool { return q.URL.Query().Has("dryRun") }

// replace changes a service, or the metadata of a revision, as a whole or by a
// patch.
func (q kubeRequest) replace(kind servingKind) error {
	b, err := q.body()
	if err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		obj, err := q.object(kind, q.name)
		if err != nil {
			return err
		}
		whole := b
		if q.Method == http.MethodPatch {
			if whole, err = q.patch(obj, b); err != nil {
				return err
			}
		}
		changed, err := q.put(kind, obj, whole)
		// A patch is meant for whatever the object is by now.
		if apierrors.IsConflict(err) && q.Method == http.MethodPatch && !patchesVersion(b) && attempt < 10 {
			continue
		}
		if err != nil {
			return err
		}
		writeJSON(q.w, http.StatusOK, changed)
		return nil
	}
}

// patchesVersion reports whether a patch itself says which version it is for.
func patchesVersion(b []byte) bool { return bytes.Contains(b, []byte("resourceVersion")) }

// put replaces before, or what it has become, by what b says.
func (q kubeRequest) put(kind servingKind, before metav1.Object, b []byte) (metav1.Object, error) {
	if kind.object == nil {
		rev := new(servingv1.Revision)
		if err := q.decode(b, rev, "Revision"); err != nil {
			return nil, err
		}
		st, known, err := q.registry.UpdateRevision(rev)
		if err != nil {
			return nil, err
		}
		return q.revision(st, known), nil
	}
	svc := new(servingv1.Service)
	if err := q.decode(b, svc, "Service"); err != nil {
		return nil, err
	}
	q.warn(svc)
	if q.dryRun() {
		prepared, err := revisions.Prepare(svc)
		if err != nil {
			return nil, apierrors.NewBadRequest("validation failed: " + err.Error())
		}
		return prepared, nil
	}
	st, err := q.registry.Update(svc, revisions.OwnerAPI)
	if err != nil {
		return nil, err
	}
	was, _ := before.(*servingv1.Service)
	return q.written(st, was), nil
}

// written is the answer to a write of a service.
func (q kubeRequest) written(st *revisions.State, before *servingv1.Service) *servingv1.Service {
	obj := st.Written(before)
	obj.Namespace = q.engine.namespace()
	return obj
}

// patch applies a patch to an object. Source: Kubernetes API, "Patches".
func (q kubeRequest) patch(obj metav1.Object, b []byte) ([]byte, error) {
	before, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("encoding %s: %w", q.name, err)
	}
	var after []byte
	switch t, _, _ := mime.ParseMediaType(q.Header.Get("Content-Type")); t {
	case "application/merge-patch+json":
		after, err = jsonpatch.MergePatch(before, b)
	case "application/json-patch+json":
		var p jsonpatch.Patch
		if p, err = jsonpatch.DecodePatch(b); err == nil {
			after, err = p.Apply(before)
		}
	default:
		e := apierrors.NewGenericServerResponse(http.StatusUnsupportedMediaType, "patch", schema.GroupResource{}, "", "", 0, false)
		e.ErrStatus.Message = fmt.Sprintf("the patch type %q is not supported: it is application/merge-patch+json or application/json-patch+json", t)
		return nil, e
	}
	if err != nil {
		return nil, apierrors.NewBadRequest("the patch cannot be applied: " + err.Error())
	}
	return after, nil
}

// remove deletes a service or a revision.
func (q kubeRequest) remove() error {
	var opts metav1.DeleteOptions
	if b, err := q.body(); err != nil {
		return err
	} else if len(bytes.TrimSpace(b)) > 0 && !bytes.HasPrefix(b, protobufMagic) {
		if err := json.Unmarshal(b, &opts); err != nil {
			return apierrors.NewBadRequest("decoding the options: " + err.Error())
		}
	}
	var err error
	var uid types.UID
	if q.resource == "services" {
		var last *revisions.State
		if last, err = q.registry.Delete(q.name, revisions.OwnerAPI, opts.Preconditions); err == nil {
			uid = last.Service.UID
		}
	} else {
		_, err = q.registry.DeleteRevision(q.name)
	}
	if err != nil {
		return err
	}
	s := metav1.Status{Status: metav1.StatusSuccess, Code: http.StatusOK, Details: &metav1.StatusDetails{
		Name: q.name, UID: uid, Group: servingv1.SchemeGroupVersion.Group, Kind: q.resource,
	}}
	writeStatus(q.w, s)
	return nil
}

// body reads what the client sent.
func (q kubeRequest) body() ([]byte, error) {
	b, err := io.ReadAll(http.MaxBytesReader(q.w, q.Body, maxObject))
	if large, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("the object is larger than %d bytes", large.Limit))
	}
	if err != nil {
		return nil, apierrors.NewBadRequest("reading the object: " + err.Error())
	}
	return b, nil
}

// decode reads an object of a kind, refusing fields that it does not have: what
// is misspelt must not be lost silently.
func (q kubeRequest) decode(b []byte, obj metav1.Object, kind string) error {
	strict, err := kjson.UnmarshalStrict(b, obj)
	if err != nil {
		return apierrors.NewBadRequest("decoding the object: " + err.Error())
	}
	if len(strict) > 0 && q.URL.Query().Get("fieldValidation") != metav1.FieldValidationIgnore {
		return apierrors.NewBadRequest("strict decoding error: " + errors.Join(strict...).Error())
	}
	var t metav1.TypeMeta
	_ = json.Unmarshal(b, &t)
	if t.Kind != "" && t.Kind != kind || t.APIVersion != "" && t.APIVersion != servingv1.SchemeGroupVersion.String() {
		return apierrors.NewBadRequest(fmt.Sprintf("the object is a %s %s, not a %s %s", t.APIVersion, t.Kind, servingv1.SchemeGroupVersion, kind))
	}
	if ns := obj.GetNamespace(); ns != "" && ns != q.engine.namespace() {
		return apierrors.NewBadRequest(fmt.Sprintf("the namespace of the object (%s) is not that of the request (%s)", ns, q.engine.namespace()))
	}
	if q.name != "" && obj.GetName() != q.name {
		return apierrors.NewBadRequest(fmt.Sprintf("the name of the object (%s) does not match the name on the URL (%s)", obj.GetName(), q.name))
	}
	return nil
}

// selector reads a label selector and a field selector, which can only name one
// object.
func (q kubeRequest) selector() (labels.Selector, string, error) {
	values := q.URL.Query()
	sel, err := labels.Parse(values.Get("labelSelector"))
	if err != nil {
		return nil, "", apierrors.NewBadRequest("labelSelector: " + err.Error())
	}
	field := values.Get("fieldSelector")
	name, ok := strings.CutPrefix(field, "metadata.name=")
	if field != "" && !ok {
		return nil, "", apierrors.NewBadRequest(fmt.Sprintf("fieldSelector: %q is not supported: it can be metadata.name=…", field))
	}
	return sel, strings.TrimPrefix(name, "="), nil
}

// discovery tells clients what there is. It returns nil for other paths.
func discovery(path string) any {
	group := metav1.APIGroup{Name: servingv1.SchemeGroupVersion.Group}
	group.Versions = []metav1.GroupVersionForDiscovery{{GroupVersion: servingv1.SchemeGroupVersion.String(), Version: "v1"}}
	group.PreferredVersion = group.Versions[0]
	all := metav1.Verbs{"create", "delete", "get", "list", "patch", "update", "watch"}
	view := metav1.Verbs{"get", "list", "watch"}
	categories := []string{"all", "knative", "serving"}
	switch path {
	case "version":
		return version.Info{Major: "1", Minor: "35", GitVersion: "v1.35.0+fairway", Platform: "linux"}
	case "api":
		return metav1.APIVersions{TypeMeta: metav1.TypeMeta{Kind: "APIVersions"}, Versions: []string{"v1"}}
	case "apis":
		return metav1.APIGroupList{TypeMeta: metav1.TypeMeta{Kind: "APIGroupList", APIVersion: "v1"}, Groups: []metav1.APIGroup{group}}
	case "apis/" + group.Name:
		group.TypeMeta = metav1.TypeMeta{Kind: "APIGroup", APIVersion: "v1"}
		return group
	case "apis/" + group.Versions[0].GroupVersion:
		return metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"}, GroupVersion: group.Versions[0].GroupVersion,
			APIResources: []metav1.APIResource{
				{Name: "services", SingularName: "service", Namespaced: true, Kind: "Service", Verbs: all, ShortNames: []string{"kservice", "ksvc"}, Categories: categories},
				{Name: "configurations", SingularName: "configuration", Namespaced: true, Kind: "Configuration", Verbs: view, ShortNames: []string{"config", "cfg"}, Categories: categories},
				{Name: "routes", SingularName: "route", Namespaced: true, Kind: "Route", Verbs: view, ShortNames: []string{"rt"}, Categories: categories},
				{Name: "revisions", SingularName: "revision", Namespaced: true, Kind: "Revision", Verbs: metav1.Verbs{"delete", "get", "list", "patch", "update", "watch"}, ShortNames: []string{"rev"}, Categories: categories},
			},
		}
	case "api/v1":
		return metav1.APIResourceList{
			TypeMeta: metav1.TypeMeta{Kind: "APIResourceList"}, GroupVersion: "v1",
			APIResources: []metav1.APIResource{
				{Name: "namespaces", SingularName: "namespace", Kind: "Namespace", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"ns"}},
				{Name: "secrets", SingularName: "secret", Namespaced: true, Kind: "Secret", Verbs: metav1.Verbs{"create", "delete", "get", "list", "patch", "update"}},
				{Name: "configmaps", SingularName: "configmap", Namespaced: true, Kind: "ConfigMap", Verbs: metav1.Verbs{"create", "delete", "get", "list", "patch", "update"}, ShortNames: []string{"cm"}},
				{Name: "pods", SingularName: "pod", Namespaced: true, Kind: "Pod", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"po"}, Categories: []string{"all"}},
				{Name: "services", SingularName: "service", Namespaced: true, Kind: "Service", Verbs: metav1.Verbs{"get", "list"}, ShortNames: []string{"svc"}, Categories: []string{"all"}},
			},
		}
	}
	return nil
}
