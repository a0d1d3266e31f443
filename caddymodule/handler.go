package caddymodule

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptrace"
	"strconv"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/http1"
	"github.com/fairway-run/fairway/scaler"
)

func init() {
	caddy.RegisterModule(new(Handler))
}

const (
	// dialAttempts is how many instances are tried for a request of which nothing
	// was sent yet.
	dialAttempts = 3
	// tagHeader names a traffic tag (Knative: tag header based routing).
	tagHeader = "Knative-Serving-Tag"
	// statusClientClosed is what the access log shows for a client that left
	// (nginx: 499).
	statusClientClosed = 499
	// defaultStreamCloseDelay is how long streams and WebSockets of a config that
	// is no longer loaded may go on: closing them at each reload is what users
	// complain about most.
	defaultStreamCloseDelay = time.Hour
)

// Handler sends requests to the instances of a service, starting them as needed.
// A request waits until an instance has a free slot, in the order of arrival.
//
// It sets these placeholders, and access-log fields of the same names:
//
// Placeholder | Description
// ------------|------------
// `{http.fairway.service}` | The service
// `{http.fairway.revision}` | The revision that answered
// `{http.fairway.instance}` | The instance that answered
// `{http.fairway.queue_duration}` | How long the request waited for a slot
// `{http.fairway.caller}` | The instance on this host that sent it, if one did
// `{http.fairway.cold_start}` | `true` when it waited for an instance to start
type Handler struct {
	// The name of the service. Default: the one that the request's host means,
	// `<service>.<domain>` or `<tag>---<service>.<domain>`.
	Service string `json:"service,omitempty"`
	// What the service is, unless it is declared elsewhere.
	Definition *Service `json:"definition,omitempty"`
	// Settings of the `reverse_proxy` handler that sends the request, except those
	// that choose or check upstreams.
	ProxyRaw json.RawMessage `json:"proxy,omitempty"`

	// Requests that start no instance, thaw none and keep none from being stopped, such
	// as those of monitors and bots. An instance that is awake answers them.
	NoWakeRaw caddyhttp.RawMatcherSets `json:"no_wake,omitempty" caddy:"namespace=http.matchers"`
	// The status of the answer to such a request when no instance is awake. Default:
	// `503`.
	NoWakeStatus int `json:"no_wake_status,omitempty"`

	// How many bytes the body of a request may have; larger ones get 413. Default: any
	// number.
	MaxRequestBody int64 `json:"max_request_body,omitempty"`

	// A page for browsers while an instance starts. Requests of others, and those that
	// no browser shows as a page, wait. Default: browsers wait too.
	WaitingPage *WaitingPage `json:"waiting_page,omitempty"`

	noWake caddyhttp.MatcherSets
	app    *App
	log    *zap.Logger
	proxy  *reverseproxy.Handler
	lean   bool // proxy has nothing to do for ordinary requests

	proxied     proxied // by proxy
	streamDelay time.Duration
}

// CaddyModule tells Caddy what the handler is.
func (*Handler) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "http.handlers.fairway", New: func() caddy.Module { return new(Handler) }}
}

// Provision sets up the handler.
func (h *Handler) Provision(ctx caddy.Context) error {
	if h.Service == "" && h.Definition != nil {
		return errors.New("the service has no name")
	}
	h.log = ctx.Logger()
	app, err := ctx.App("fairway")
	if err != nil {
		return fmt.Errorf("loading the fairway app: %w", err)
	}
	h.app = app.(*App)
	if h.Definition != nil {
		if err := h.app.declare(h.Service, h.Definition); err != nil {
			return err
		}
	}
	if h.Service != "" {
		h.app.refer(h.Service)
	}
	if h.MaxRequestBody < 0 {
		return fmt.Errorf("max_request_body %d is below zero", h.MaxRequestBody)
	}
	if err := h.provisionNoWake(ctx); err != nil {
		return err
	}
	if h.WaitingPage != nil {
		if err := h.WaitingPage.provision(); err != nil {
			return err
		}
	}
	return h.provisionProxy(ctx)
}

// provisionProxy sets up Caddy's own proxy to send each request to the instance
// of its lease, over that instance's own connections.
func (h *Handler) provisionProxy(ctx caddy.Context) error {
	proxy := new(reverseproxy.Handler)
	if h.ProxyRaw != nil {
		if err := caddy.StrictUnmarshalJSON(h.ProxyRaw, proxy); err != nil {
			return fmt.Errorf("decoding proxy: %w", err)
		}
	}
	for name, set := range map[string]bool{
		"upstreams":         proxy.Upstreams != nil,
		"dynamic_upstreams": proxy.DynamicUpstreamsRaw != nil,
		"transport":         proxy.TransportRaw != nil,
		"load_balancing":    proxy.LoadBalancing != nil,
		"health_checks":     proxy.HealthChecks != nil,
		"circuit_breaker":   proxy.CBRaw != nil,
	} {
		if set {
			return fmt.Errorf("proxy: %s has no place here: fairway itself knows the instances of a service", name)
		}
	}
	h.streamDelay = time.Duration(cmp.Or(proxy.StreamCloseDelay, caddy.Duration(defaultStreamCloseDelay)))
	proxy.StreamCloseDelay = 0 // proxied does that
	h.lean = lean(proxy)
	proxy.Transport = leasedTransport{relays: len(proxy.HandleResponse) == 0}
	proxy.DynamicUpstreams = leasedUpstream{}
	if err := proxy.Provision(ctx); err != nil {
		return fmt.Errorf("provisioning the proxy: %w", err)
	}
	h.proxy = proxy // only now: Caddy's own Cleanup needs it to be provisioned
	return nil
}

// Cleanup ends what the proxy holds, but lets streams go on for a while.
func (h *Handler) Cleanup() error {
	if h.proxy == nil {
		return nil
	}
	h.proxied.close(h.streamDelay, func() {
		if err := h.proxy.Cleanup(); err != nil {
			h.log.Error("closing streams", zap.Error(err))
		}
	})
	return nil
}

// ServeHTTP waits for a lease and sends the request to its instance.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler) error {
	x := &exchange{began: time.Now(), body: r.Body, writer: w}
	settleLength(r)
	if err := h.limitBody(w, r); err != nil {
		return err
	}
	want := scaler.Request{Service: h.Service, Arrived: x.began}
	x.caller, want.Inside = h.app.engine.caller(r)
	if h.Service == "" {
		var err error
		want.Service, want.Tag, err = h.app.serviceOf(r.Context(), r.Host, want.Inside)
		switch {
		case errors.Is(err, errUnknownHost):
			note(r, "", "unknown") // any host may be asked for: there is to be no series of each
			return caddyhttp.Error(http.StatusNotFound, err)
		case err != nil:
			return h.refuse(w, r, x, "", err)
		}
	}
	if want.Tag == "" {
		want.Tag, want.AnyTag = r.Header.Get(tagHeader), true
	}
	want.Revision, want.Instance = affinityOf(r)
	var err error
	if want.NoWake, err = h.wakesNothing(r); err != nil {
		return err
	}
	want.Brief = h.brief(r)
	for attempt := 1; ; attempt++ {
		lease, err := h.app.acquire(r.Context(), want)
		if errors.Is(err, instancepool.ErrAsleep) {
			return h.letSleep(w, r, want.Service)
		}
		if errors.Is(err, instancepool.ErrStarting) {
			return h.showWaiting(w, r, want.Service, err)
		}
		if err != nil {
			return h.refuse(w, r, x, want.Service, err)
		}
		if lease.Revision().Spec().Affinity && lease.Instance().ID() != want.Instance {
			setAffinity(w, r, lease)
		}
		err = h.send(w, r, next, x, lease)
		var dial *instancepool.DialError
		if !errors.As(err, &dial) || r.Context().Err() != nil {
			return err
		}
		lease.Suspect()
		if attempt == dialAttempts || !h.whole(r, x) {
			return err
		}
	}
}

// whole tells whether a request of which nothing was sent still has its body: the proxy
// may have read it, to send it in one piece.
func (h *Handler) whole(r *http.Request, x *exchange) bool {
	return h.proxy.RequestBuffers == 0 || r.Body == nil || r.Body == http.NoBody || x.small != nil
}

// send proxies one request under a lease and gives the slot back when the
// response, a stream or an upgraded connection is over, however it ends.
func (h *Handler) send(w http.ResponseWriter, r *http.Request, next caddyhttp.Handler, x *exchange, lease *instancepool.Lease) error {
	defer lease.Release()
	x.take(r, lease)
	countAcquired(lease)
	if err := x.readSmall(w, r); err != nil {
		return x.failed(w, r, err)
	}
	if h.lean && lease.Instance().HTTP1() != nil && ordinary(r) {
		return h.forward(w, r, x)
	}
	h.proxied.begin()
	defer h.proxied.end()
	defer func() { // also when it panics, as it does for a part of a response
		x.sending.end(w)
		x.unboundWriting(w)
	}()
	return h.proxy.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), exchangeKey{}, x)), next)
}

// refuse turns the reason why there is no lease into a response, with the
// statuses of Cloud Run.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, x *exchange, service string, err error) error {
	status, outcome := http.StatusServiceUnavailable, "unavailable"
	var start *instancepool.StartError
	switch {
	case r.Context().Err() != nil:
		status, outcome = statusClientClosed, "client_gone"
	case errors.Is(err, instancepool.ErrQueueFull):
		status, outcome = http.StatusTooManyRequests, "queue_full"
		w.Header().Set("Retry-After", "1")
	case errors.Is(err, instancepool.ErrNoInstance):
		status, outcome = http.StatusTooManyRequests, "no_instance"
		w.Header().Set("Retry-After", "1")
	case errors.Is(err, scaler.ErrDisabled):
		outcome = "disabled"
	case errors.Is(err, scaler.ErrRemoved):
		outcome = "removed"
	case errors.Is(err, instancepool.ErrTimeout):
		status, outcome = http.StatusGatewayTimeout, "timeout"
	case errors.Is(err, scaler.ErrInternal):
		status, outcome = http.StatusNotFound, "internal"
	case errors.Is(err, scaler.ErrUnknownService), errors.Is(err, scaler.ErrUnknownTag):
		status, outcome = http.StatusNotFound, "unknown"
	case errors.Is(err, scaler.ErrNotReady):
		outcome = "not_ready"
		w.Header().Set("Retry-After", "1")
	case errors.As(err, &start):
		if outcome = "start_failed"; errors.Is(err, instancepool.ErrNoRoom) {
			outcome = "no_room"
		}
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(math.Ceil(start.RetryAfter.Seconds())))))
	}
	if errors.Is(err, scaler.ErrRemoved) || errors.Is(err, scaler.ErrUnknownService) {
		countRefused("", outcome) // a service that is not there is to have no series
	} else {
		countRefused(service, outcome)
	}
	logRefused(r, x, service, outcome)
	return caddyhttp.Error(status, err)
}

// note counts a request that reaches no instance, and tells the access log why.
func note(r *http.Request, service, outcome string) {
	countRefused(service, outcome)
	logRefused(r, nil, service, outcome)
}

// logRefused tells the access log why there is no lease, and for how long one was
// waited for unless x is nil. If x had one before, it has told the rest.
func logRefused(r *http.Request, x *exchange, service, outcome string) {
	extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields)
	if !ok {
		return
	}
	extra.Set(zap.String("fairway_outcome", outcome))
	if x != nil && x.lease != nil {
		return
	}
	extra.Set(zap.String("fairway_service", service))
	if x != nil {
		extra.Set(zap.Duration("fairway_queue_duration", time.Since(x.began)))
	}
}

// leasedUpstream tells the proxy where the request's instance is.
type leasedUpstream struct{}

// GetUpstreams implements reverseproxy.UpstreamSource.
func (leasedUpstream) GetUpstreams(r *http.Request) ([]*reverseproxy.Upstream, error) {
	x, err := exchangeOf(r)
	if err != nil {
		return nil, err
	}
	return []*reverseproxy.Upstream{{Dial: x.lease.Instance().Address()}}, nil
}

// leasedTransport sends a request over the connections of its own instance.
type leasedTransport struct {
	relays bool // the response is the instance's own, and nobody else's
}

// RoundTrip implements http.RoundTripper. It bounds the response as the revision
// wants, unless that switches protocols.
func (t leasedTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	x, err := exchangeOf(r)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	x.sent = time.Now()
	timer := time.AfterFunc(time.Until(x.answerBy()), func() { cancel(instancepool.ErrTimeout) })
	r.URL.Scheme = "http"
	r.URL.Host = x.lease.Instance().Address()
	// The transport itself tries some requests again when a connection breaks
	// under them, over a new one: if that cannot be made, the request has been
	// sent all the same, and must not end a second instance.
	sent := false
	gotConn := func(httptrace.GotConnInfo) { sent = true }
	if trace := httptrace.ContextClientTrace(ctx); trace != nil && trace.GotConn == nil {
		// The proxy has made one for this request. To put another on top of it
		// would cost more than all else that Fairway does for a request.
		trace.GotConn = gotConn
	} else {
		ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: gotConn})
	}
	r = r.WithContext(ctx)
	// The headers are those that the proxy has made for this attempt.
	setForwarded(r.Header, x.caller)
	if r.Header["Upgrade"] != nil && r.ContentLength < 0 && len(r.TransferEncoding) == 0 {
		// A WebSocket over HTTP/2 or HTTP/3, which the proxy has made one of HTTP/1: what
		// follows is no body, though its length is as unknown as the client's.
		r.Body, r.ContentLength = http.NoBody, 0
	}
	body := bodyOf(r, x.body)
	x.sending = body
	resp, err := x.lease.Instance().RoundTrip(r)
	if err == nil {
		if resp.StatusCode != http.StatusSwitchingProtocols {
			body.part(x.writer)
		}
		unbound(r, resp)
		if resp.StatusCode == http.StatusSwitchingProtocols {
			timer.Stop() // the context ends with the request's own
		} else {
			resp.Body = &boundedBody{ReadCloser: resp.Body, x: x, r: r, cancel: cancel, timer: timer, stream: resp.ContentLength < 0}
			timer.Reset(time.Until(x.readBy()))
			if t.relays && (resp.ContentLength < 0 || resp.ContentLength > serverBuffers) {
				x.boundWriting(x.writer, r)
			}
		}
		return resp, nil
	}
	timer.Stop()
	var own *http1.RequestError
	if sent && ctx.Err() == nil && !errors.As(err, &own) {
		// Its end may not have been noticed yet: the next request must not meet it.
		x.lease.Suspect()
	}
	var dial *instancepool.DialError
	switch {
	case errors.Is(context.Cause(ctx), instancepool.ErrTimeout):
		x.timedOut()
		err = caddyhttp.Error(http.StatusGatewayTimeout, instancepool.ErrTimeout)
	case sent && errors.As(err, &dial):
		err = fmt.Errorf("instance %s broke while it had the request: %w", dial.Instance, dial.Err)
	}
	cancel(nil)
	return nil, err
}

// boundedBody is a response's body that ends when its time is over.
type boundedBody struct {
	io.ReadCloser
	x      *exchange
	r      *http.Request
	cancel context.CancelCauseFunc
	timer  *time.Timer
	stream bool // its length was not said
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.x.pauses() {
		b.timer.Reset(time.Until(b.x.readBy()))
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && errors.Is(context.Cause(b.r.Context()), instancepool.ErrTimeout) {
		b.x.timedOut()
		if b.stream {
			err = io.EOF
		}
	}
	return n, err
}

// Close implements io.Closer.
func (b *boundedBody) Close() error {
	b.x.sending.end(b.x.writer) // an HTTP/2 connection waits for that
	err := b.ReadCloser.Close()
	b.timer.Stop()
	b.cancel(nil)
	return err
}

var (
	_ caddy.Provisioner           = (*Handler)(nil)
	_ caddy.CleanerUpper          = (*Handler)(nil)
	_ caddyhttp.MiddlewareHandler = (*Handler)(nil)
	_ reverseproxy.UpstreamSource = leasedUpstream{}
	_ http.RoundTripper           = leasedTransport{}
)
