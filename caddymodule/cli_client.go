package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"knative.dev/serving/pkg/apis/serving"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// requestTimeout bounds one request to the admin endpoint.
const requestTimeout = 30 * time.Second

// maxAnswer bounds what is read of one answer: ten thousand services are less.
const maxAnswer = 1 << 30

// adminClient talks to the API on a Caddy's admin endpoint.
type adminClient struct {
	address string // as the user has it
	origin  string
	unix    bool
	http    *http.Client
	warn    func(text string) // what the API warns of; nil: nobody is told

	found string // the namespace, once it is known
}

// newAdminClient makes a client for an admin address as Caddy writes it.
func newAdminClient(address string) (*adminClient, error) {
	parsed, err := caddy.ParseNetworkAddress(address)
	if err != nil {
		return nil, fmt.Errorf("%q is not an address: %w", address, err)
	}
	if parsed.PortRangeSize() > 1 {
		return nil, fmt.Errorf("%q has more than one port", address)
	}
	a := &adminClient{address: address, unix: parsed.IsUnixNetwork()}
	if !a.unix && !strings.HasPrefix(parsed.Network, "tcp") {
		return nil, fmt.Errorf("%q is not an address such as localhost:2019 or unix//run/caddy/admin.sock", address)
	}
	if a.unix {
		// The permissions of the socket may follow its path.
		parsed.Host, _, _ = strings.Cut(parsed.Host, "|")
		a.origin = "http://127.0.0.1" // Caddy does not look at it there
	} else {
		a.origin = "http://" + parsed.JoinHostPort(0)
	}
	network, target := parsed.Network, parsed.JoinHostPort(0)
	dialer := net.Dialer{Timeout: 10 * time.Second}
	a.http = &http.Client{Transport: &http.Transport{
		Proxy: nil,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, target)
		},
	}}
	return a, nil
}

func (a *adminClient) close() { a.http.CloseIdleConnections() }

// unreachableError means that nothing answers, or not Fairway.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return e.err.Error() }
func (e *unreachableError) Unwrap() error { return e.err }

func (a *adminClient) unreachable(format string, args ...any) error {
	return &exitError{exitUnreachable, &unreachableError{fmt.Errorf(format, args...)}}
}

// do sends a request with an object, or nil, and reads the answer into another,
// unless that is nil. What the API refuses is an error of Kubernetes'.
func (a *adminClient) do(ctx context.Context, method, path string, object, into any) error {
	var body io.Reader
	if object != nil {
		b, err := json.Marshal(object)
		if err != nil {
			return fmt.Errorf("encoding the request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, a.origin+path, body)
	if err != nil {
		return fmt.Errorf("making the request: %w", err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	if !a.unix {
		req.Header.Set("Origin", a.origin)
	}
	resp, err := a.http.Do(req)
	if err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return context.Canceled
		}
		if wrapped, ok := errors.AsType[*url.Error](err); ok {
			err = wrapped.Err // without the address, which it may show in another form
		}
		return a.unreachable("Caddy's admin endpoint cannot be reached at %s: %w (is Caddy running? --address and $CADDY_ADMIN say where)", a.address, err)
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	if err != nil {
		return a.unreachable("reading the answer of %s: %w", a.address, err)
	}
	if warnings, _ := utilnet.ParseWarningHeaders(resp.Header["Warning"]); a.warn != nil {
		for _, w := range warnings {
			a.warn(w.Text)
		}
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return a.refusal(resp.StatusCode, b)
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(b, into); err != nil {
		return a.unreachable("%s is not the admin endpoint of a Caddy with Fairway: %w", a.address, err)
	}
	return nil
}

// refusal makes an error of an answer that says no.
func (a *adminClient) refusal(status int, body []byte) error {
	var s metav1.Status
	if json.Unmarshal(body, &s) == nil && s.Kind == "Status" {
		s.Code = int32(status)
		return &apierrors.StatusError{ErrStatus: s}
	}
	var own struct {
		Error string `json:"error"`
	}
	text := strings.TrimSpace(string(body))
	if json.Unmarshal(body, &own) == nil && own.Error != "" {
		text = own.Error
	}
	switch status {
	case http.StatusNotFound:
		return a.unreachable("the Caddy at %s has no Fairway", a.address)
	case http.StatusForbidden, http.StatusUnauthorized:
		return a.unreachable("the Caddy at %s refuses: %s", a.address, text)
	}
	return fmt.Errorf("the Caddy at %s answers %d: %s", a.address, status, text)
}

// namespace is the one that the API has.
func (a *adminClient) namespace(ctx context.Context) (string, error) {
	if a.found == "" {
		var all corev1.NamespaceList
		if err := a.do(ctx, http.MethodGet, "/api/v1/namespaces", nil, &all); err != nil {
			return "", err
		}
		if len(all.Items) == 0 {
			return "", a.unreachable("the Caddy at %s has no namespace", a.address)
		}
		a.found = all.Items[0].Name
	}
	return a.found, nil
}

// serving sends a request for one of Knative's resources.
func (a *adminClient) serving(ctx context.Context, method, resource, name string, query url.Values, object, into any) error {
	namespace, err := a.namespace(ctx)
	if err != nil {
		return err
	}
	path := "/apis/" + servingv1.SchemeGroupVersion.String() + "/namespaces/" + url.PathEscape(namespace) + "/" + resource
	if name != "" {
		path += "/" + url.PathEscape(name)
	}
	if len(query) > 0 {
		path += "?" + query.Encode()
	}
	return a.do(ctx, method, path, object, into)
}

// service returns a service.
func (a *adminClient) service(ctx context.Context, name string) (*servingv1.Service, error) {
	svc := new(servingv1.Service)
	if err := a.serving(ctx, http.MethodGet, "services", name, nil, nil, svc); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, exitWith(exitNotFound, "service [%s] could not be found", name)
		}
		return nil, err
	}
	return svc, nil
}

// services returns all services, by name.
func (a *adminClient) services(ctx context.Context) ([]servingv1.Service, error) {
	var all servingv1.ServiceList
	err := a.serving(ctx, http.MethodGet, "services", "", nil, nil, &all)
	return all.Items, err
}

// put makes svc what is wanted, a new service unless it has a version, and returns
// what has come of that.
func (a *adminClient) put(ctx context.Context, svc *servingv1.Service) (*servingv1.Service, error) {
	method, name := http.MethodPut, svc.Name
	if svc.ResourceVersion == "" {
		method, name = http.MethodPost, ""
	}
	if err := a.serving(ctx, method, "services", name, nil, svc, nil); err != nil {
		return nil, err
	}
	return a.service(ctx, svc.Name)
}

// revision returns a revision.
func (a *adminClient) revision(ctx context.Context, name string) (*servingv1.Revision, error) {
	rev := new(servingv1.Revision)
	if err := a.serving(ctx, http.MethodGet, "revisions", name, nil, nil, rev); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, exitWith(exitNotFound, "revision [%s] could not be found", name)
		}
		return nil, err
	}
	return rev, nil
}

// revisions returns the revisions of a service, or all.
func (a *adminClient) revisions(ctx context.Context, service string) ([]servingv1.Revision, error) {
	var query url.Values
	if service != "" {
		query = url.Values{"labelSelector": {serving.ServiceLabelKey + "=" + service}}
	}
	var all servingv1.RevisionList
	err := a.serving(ctx, http.MethodGet, "revisions", "", query, nil, &all)
	return all.Items, err
}

// views returns what the services, or one of them, are doing.
func (a *adminClient) views(ctx context.Context, service string) ([]serviceView, error) {
	var all []serviceView
	err := a.do(ctx, http.MethodGet, "/fairway/services"+only(service), nil, &all)
	return all, err
}

// instances returns the instances of all services, or of one.
func (a *adminClient) instances(ctx context.Context, service string) ([]instanceView, error) {
	var all []instanceView
	err := a.do(ctx, http.MethodGet, "/fairway/instances"+only(service), nil, &all)
	return all, err
}

func only(service string) string {
	if service == "" {
		return ""
	}
	return "?" + url.Values{"service": {service}}.Encode()
}
