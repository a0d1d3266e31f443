package caddymodule

import (
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"github.com/fairway-run/fairway/instancepool"
)

type exchangeKey struct{}

// exchange is one request under its lease. When an instance could not be dialled,
// the same exchange goes on with another lease.
type exchange struct {
	began  time.Time
	body   io.Closer // of the request
	writer http.ResponseWriter
	// sending is the body as the instance gets it; nil unless the proxy sends it.
	sending *requestBody
	small   *smallBody          // the body, if it is one
	caller  instancepool.Handle // the instance that sent it; nil: somebody else
	lease   *instancepool.Lease
	waited  time.Duration // for all of its leases
	cold    bool          // for any of them

	sent     time.Time // when its instance got it
	latency  time.Duration
	response *http.Response // of forward; nil until there is one
	// late is set when the request's time was over before its response: what has begun
	// without saying how long it would be ends as if that were all (Knative).
	late bool
	own  bool // forward has sent it, and not reverse_proxy

	writing bool      // there is a deadline for that
	written time.Time // the server's own; zero if it has none
}

func exchangeOf(r *http.Request) (*exchange, error) {
	x, ok := r.Context().Value(exchangeKey{}).(*exchange)
	if !ok {
		return nil, errors.New("the request has no lease")
	}
	return x, nil
}

// take goes on under a lease and makes it visible to the rest of the config and
// to the access log.
func (x *exchange) take(r *http.Request, lease *instancepool.Lease) {
	first := x.lease == nil
	x.lease = lease
	x.waited += lease.Waited
	x.cold = x.cold || lease.Cold
	if repl, ok := r.Context().Value(caddy.ReplacerCtxKey).(*caddy.Replacer); ok && first {
		repl.Map(x.placeholder)
	}
	if extra, ok := r.Context().Value(caddyhttp.ExtraLogFieldsCtxKey).(*caddyhttp.ExtraLogFields); ok && first {
		extra.Set(zap.Inline(x))
	}
}

// MarshalLogObject implements zapcore.ObjectMarshaler: it adds to the access log
// how the request went.
func (x *exchange) MarshalLogObject(to zapcore.ObjectEncoder) error {
	rev := x.lease.Revision()
	to.AddString("fairway_service", rev.Service)
	to.AddString("fairway_revision", rev.Name)
	to.AddString("fairway_instance", x.lease.Instance().ID())
	to.AddDuration("fairway_queue_duration", x.waited)
	to.AddBool("fairway_cold_start", x.cold)
	if x.caller != nil {
		to.AddString("fairway_caller", x.caller.ID())
	}
	if x.late {
		to.AddString("fairway_outcome", "timeout")
	}
	return nil
}

// timedOut notes that the request's time was over before its response.
func (x *exchange) timedOut() {
	if !x.late {
		x.late = true
		countTimeout(x.lease)
	}
}

// answerBy is until when the response must have begun.
func (x *exchange) answerBy() time.Time {
	spec := x.lease.Revision().Spec()
	by := x.began.Add(spec.AnswerWithin())
	if spec.StreamIdle > 0 {
		if idle := x.sent.Add(spec.StreamIdle); idle.Before(by) {
			return idle
		}
	}
	return by
}

// readBy is until when something more of the response must have come.
func (x *exchange) readBy() time.Time {
	spec := x.lease.Revision().Spec()
	by := x.began.Add(spec.Timeout)
	if spec.StreamIdle > 0 {
		if idle := time.Now().Add(spec.StreamIdle); idle.Before(by) {
			return idle
		}
	}
	return by
}

// pauses tells whether readBy moves on with each part of the response.
func (x *exchange) pauses() bool { return x.lease.Revision().Spec().StreamIdle > 0 }

func (x *exchange) placeholder(key string) (any, bool) {
	if name, ok := strings.CutPrefix(key, "http.reverse_proxy."); ok && x.own {
		return x.proxyPlaceholder(name)
	}
	switch key {
	case "http.fairway.service":
		return x.lease.Revision().Service, true
	case "http.fairway.revision":
		return x.lease.Revision().Name, true
	case "http.fairway.instance":
		return x.lease.Instance().ID(), true
	case "http.fairway.caller":
		if x.caller == nil {
			return "", true
		}
		return x.caller.ID(), true
	case "http.fairway.queue_duration":
		return x.waited, true
	case "http.fairway.cold_start":
		return x.cold, true
	}
	return nil, false
}

// proxyPlaceholder is what reverse_proxy sets, for a request that it has not seen.
func (x *exchange) proxyPlaceholder(name string) (any, bool) {
	address := x.lease.Instance().Address()
	switch name {
	case "upstream.address":
		return "tcp/" + address, true
	case "upstream.hostport":
		return address, true
	case "upstream.host", "upstream.port":
		host, port, _ := net.SplitHostPort(address)
		if name == "upstream.host" {
			return host, true
		}
		return port, true
	case "duration", "upstream.duration":
		return time.Since(x.sent), true
	case "duration_ms", "upstream.duration_ms":
		return time.Since(x.sent).Seconds() * 1e3, true
	case "retries":
		return 0, true
	}
	if x.response == nil {
		return nil, false
	}
	switch name {
	case "upstream.latency":
		return x.latency, true
	case "upstream.latency_ms":
		return x.latency.Seconds() * 1e3, true
	case "status_code":
		return x.response.StatusCode, true
	case "status_text":
		return x.response.Status, true
	}
	if field, ok := strings.CutPrefix(name, "header."); ok {
		values, ok := x.response.Header[http.CanonicalHeaderKey(field)]
		return strings.Join(values, ","), ok
	}
	return nil, false
}
