package caddymodule

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"strconv"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

// list answers with all objects of a kind, or with a page of them, or watches
// them. It writes as it goes: ten thousand services need no memory at once.
func (q kubeRequest) list(kind servingKind) error {
	sel, only, err := q.selector()
	if err != nil {
		return err
	}
	f, err := q.form(kind.printer)
	if err != nil {
		return err
	}
	if q.watches() {
		return q.watch(f, kind, sel, only)
	}
	values := q.URL.Query()
	limit, err := number(values.Get("limit"))
	if err != nil {
		return apierrors.NewBadRequest("limit: " + err.Error())
	}
	after, err := base64.RawURLEncoding.DecodeString(values.Get("continue"))
	if err != nil {
		return apierrors.NewBadRequest("continue: it is not what a list has returned")
	}
	names := q.names(kind)
	version := q.registry.Version() // before the objects: a watch from here misses nothing
	at := sort.SearchStrings(names, string(after))
	if at < len(names) && len(after) > 0 && names[at] == string(after) {
		at++
	}
	list := f.list(q.w, servingv1.SchemeGroupVersion.String(), kind.kind)
	n, last := 0, ""
	for ; at < len(names) && (limit == 0 || n < limit); at++ {
		obj, err := q.object(kind, names[at])
		if err != nil || !matches(obj, sel, only) {
			continue // deleted meanwhile, or not meant
		}
		if err := list.add(obj); err != nil {
			return nil //nolint:nilerr // the client has left
		}
		n, last = n+1, names[at]
	}
	meta := metav1.ListMeta{ResourceVersion: strconv.FormatUint(version, 10)}
	if at < len(names) {
		meta.Continue = base64.RawURLEncoding.EncodeToString([]byte(last))
		if sel.Empty() && only == "" {
			rest := int64(len(names) - at)
			meta.RemainingItemCount = &rest
		}
	}
	list.end(meta)
	return nil
}

func number(text string) (int, error) {
	if text == "" {
		return 0, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a number", text)
	}
	return n, nil
}

func (q kubeRequest) names(kind servingKind) []string {
	if kind.object == nil {
		return q.registry.RevisionNames()
	}
	return q.registry.Names()
}

func matches(obj metav1.Object, sel labels.Selector, only string) bool {
	return (only == "" || obj.GetName() == only) && sel.Matches(labels.Set(obj.GetLabels()))
}

// watchEvent is one line of a watch.
type watchEvent struct {
	Type   string `json:"type"`
	Object any    `json:"object"`
}

// watch streams changes as they happen. Source: Kubernetes API, "Efficient
// detection of changes".
func (q kubeRequest) watch(f *form, kind servingKind, sel labels.Selector, only string) error {
	values := q.URL.Query()
	if initial, _ := strconv.ParseBool(values.Get("sendInitialEvents")); initial {
		return apierrors.NewBadRequest("sendInitialEvents is not supported: list, then watch")
	}
	since, err := strconv.ParseUint("0"+values.Get("resourceVersion"), 10, 64)
	if err != nil {
		return apierrors.NewBadRequest(fmt.Sprintf("resourceVersion: %q is not a version", values.Get("resourceVersion")))
	}
	timeout, err := number(values.Get("timeoutSeconds"))
	if err != nil {
		return apierrors.NewBadRequest("timeoutSeconds: " + err.Error())
	}
	// The admin endpoint bounds the reading of a request; this one goes on.
	control := http.NewResponseController(q.w)
	_ = control.SetReadDeadline(time.Time{})
	ctx := q.Context()
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(timeout)*time.Second)
		defer cancel()
	}
	now := since
	if since == 0 {
		now = q.registry.Version()
	}
	w, err := q.registry.Watch(now)
	if err != nil {
		return apierrors.NewResourceExpired(fmt.Sprintf("too old resource version: %d (%d)", since, q.registry.Version()))
	}
	q.w.Header().Set("Content-Type", "application/json")
	q.w.WriteHeader(http.StatusOK)
	enc := json.NewEncoder(q.w)
	shown := make(map[string]bool) // which objects this client has; what is not in it may be either way
	if since == 0 {
		for _, name := range q.names(kind) {
			if obj, err := q.object(kind, name); err == nil && matches(obj, sel, only) {
				shown[name] = true
				if enc.Encode(watchEvent{string(revisions.Added), f.object(obj)}) != nil {
					return nil
				}
			}
		}
	}
	_ = control.Flush()
	for {
		changes, err := w.Next(ctx)
		switch {
		case errors.Is(err, revisions.ErrExpired):
			s := apierrors.NewResourceExpired("too many changes since").Status()
			s.Kind, s.APIVersion = "Status", "v1"
			_ = enc.Encode(watchEvent{"ERROR", s})
			return nil
		case err != nil:
			return nil //nolint:nilerr // the client has left, or its time is over
		}
		for _, e := range q.events(f, kind, changes, sel, only, shown) {
			if enc.Encode(e) != nil {
				return nil
			}
		}
		_ = control.Flush()
	}
}

// events turns changes into what a watch of one kind shows of them.
func (q kubeRequest) events(f *form, kind servingKind, changes []revisions.Change, sel labels.Selector, only string, shown map[string]bool) []watchEvent {
	var all []watchEvent
	for _, c := range changes {
		var obj apiObject
		switch {
		case kind.object == nil && c.Revision != nil:
			obj = q.revision(c.State, c.Revision)
		case kind.object != nil && c.Revision == nil:
			obj = q.of(kind, c.State)
		default:
			continue
		}
		what, name := c.Kind, obj.GetName()
		if only != "" && name != only {
			continue
		}
		seen, known := shown[name]
		if !known && c.Before != nil && kind.object != nil {
			seen = matches(q.of(kind, c.Before), sel, only)
		}
		switch match := matches(obj, sel, only); {
		case !match && !seen:
			continue
		case !match:
			what = revisions.Deleted // for this client
		case what == revisions.Modified && !seen && !sel.Empty():
			what = revisions.Added
		}
		shown[name] = what != revisions.Deleted
		all = append(all, watchEvent{string(what), f.object(obj)})
	}
	return all
}
