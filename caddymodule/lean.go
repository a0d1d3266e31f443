package caddymodule

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/net/http/httpguts"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/instancepool/http1"
)

// lean tells whether the settings of reverse_proxy leave ordinary requests as they
// are: those that concern streams alone do.
func lean(proxy *reverseproxy.Handler) bool {
	return proxy.Headers == nil && proxy.Rewrite == nil && len(proxy.HandleResponse) == 0 && len(proxy.TrustedProxies) == 0 &&
		proxy.FlushInterval == 0 && proxy.RequestBuffers == 0 && proxy.ResponseBuffers == 0 && proxy.ProxyStatusName == "" && !proxy.VerboseLogs
}

// ordinary tells whether a request needs nothing but to be sent and answered. All
// others are for reverse_proxy.
func ordinary(r *http.Request) bool {
	h := r.Header
	switch {
	case r.Method == http.MethodConnect, r.ContentLength < 0, r.ContentLength > http1.MaxBuffered, len(r.Trailer) > 0:
		return false
	case r.TLS != nil && !r.TLS.HandshakeComplete: // early data is to be marked
		return false
	case h["Upgrade"] != nil, h["Expect"] != nil, h["Incremental"] != nil:
		return false
	}
	for _, value := range h["Connection"] {
		// Other words name fields that are not to be passed on.
		if !strings.EqualFold(value, "keep-alive") && !strings.EqualFold(value, "close") {
			return false
		}
	}
	return true
}

// forward sends an ordinary request to its instance and its answer to the client:
// what reverse_proxy does without options, at less than half of the cost.
func (h *Handler) forward(w http.ResponseWriter, r *http.Request, x *exchange) error {
	instance := x.lease.Instance()
	x.own, x.sent = true, time.Now()
	m := x.request(r)
	e, err := instance.HTTP1().Send(r.Context(), &m.Request)
	m.free()
	x.latency = time.Since(x.sent)
	if c := h.log.Check(zapcore.DebugLevel, "upstream roundtrip"); c != nil {
		c.Write(zap.String("upstream", instance.Address()), zap.Duration("duration", x.latency), zap.Error(err))
	}
	if err != nil {
		return x.failed(w, r, err)
	}
	x.response = e.Response
	whole := false
	defer func() {
		e.End(whole)
		x.unboundWriting(w)
	}()
	if whole, err = x.relay(w, r, e); err != nil {
		if c := h.log.Check(zapcore.WarnLevel, "aborting with incomplete response"); c != nil {
			c.Write(zap.Error(err))
		}
		// What there is goes out, and then the client sees that it is not all.
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	return nil
}

// failed turns the reason why there is no response into an error for the client.
func (x *exchange) failed(w http.ResponseWriter, r *http.Request, err error) error {
	var dial *instancepool.DialError
	var late net.Error
	var own *http1.RequestError
	switch {
	case errors.Is(err, instancepool.ErrTimeout): // for HTTP/1's server that is the client's end
		x.timedOut()
		return caddyhttp.Error(http.StatusGatewayTimeout, instancepool.ErrTimeout)
	case r.Context().Err() != nil:
		w.WriteHeader(statusClientClosed)
		return nil
	case errors.As(err, &dial): // it may be tried elsewhere
	case errors.As(err, &late) && late.Timeout():
		x.timedOut()
		return caddyhttp.Error(http.StatusGatewayTimeout, instancepool.ErrTimeout)
	case errors.As(err, &own): // the instance has no part in it
	default:
		// Its end may not have been noticed yet: the next request must not meet it.
		x.lease.Suspect()
	}
	return caddyhttp.Error(http.StatusBadGateway, err)
}

// message is a request for an instance. Only Send needs it.
type message struct {
	http1.Request
	room [7]http1.Field
}

var messages = sync.Pool{New: func() any { return new(message) }}

// free lets another request have it.
func (m *message) free() {
	*m = message{}
	messages.Put(m)
}

// request makes the message for the instance.
func (x *exchange) request(r *http.Request) *message {
	host := cmp.Or(r.Host, x.lease.Instance().Address())
	if ascii, err := httpguts.PunycodeHostPort(host); err == nil {
		host = ascii
	}
	m := messages.Get().(*message)
	m.Request = http1.Request{
		Method: r.Method, Target: r.URL.RequestURI(), Host: http1.Host(host), Header: r.Header,
		Fields: m.room[:0], Length: r.ContentLength, Deadline: x.answerBy(),
		Interim: x,
	}
	if r.ContentLength > 0 {
		m.Body = r.Body
	}
	m.addForwarded(r, x.caller)
	if te := r.Header["Te"]; te != nil && httpguts.HeaderValuesContainsToken(te, "trailers") {
		m.add("Te", "trailers")
	}
	m.Fields = append(m.Fields, http1.Field{Name: "Via", Value: via(r.ProtoMajor, r.ProtoMinor), Add: true})
	return m
}

func (m *message) add(name, value string) {
	m.Fields = append(m.Fields, http1.Field{Name: name, Value: value})
}

// via is how Caddy calls itself in a message.
func via(major, minor int) string {
	switch {
	case major == 1 && minor == 1:
		return "1.1 Caddy"
	case major == 2 && minor == 0:
		return "2.0 Caddy"
	}
	return strconv.Itoa(major) + "." + strconv.Itoa(minor) + " Caddy"
}

// addForwarded says who asks. What a client claims itself counts only if Caddy
// trusts it as a proxy, as with reverse_proxy.
func (m *message) addForwarded(r *http.Request, caller instancepool.Handle) {
	h := r.Header
	trusted, _ := caddyhttp.GetVar(r.Context(), caddyhttp.TrustedProxyVarKey).(bool)
	ip := ""
	if r.RemoteAddr != "@" { // a Unix socket's peer has no address
		ip, _, _ = net.SplitHostPort(r.RemoteAddr)
		ip, _, _ = strings.Cut(ip, "%")
	}
	if ip == "" && (r.RemoteAddr != "@" || !trusted) {
		m.Drop = []string{"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host"}
		return
	}
	hops := ip
	prior, present := h["X-Forwarded-For"]
	switch {
	case present && prior == nil: // the config wants none
		hops = ""
	case trusted && len(prior) > 0 && (len(prior) > 1 || prior[0] != ""):
		if hops = strings.Join(prior, ", "); ip != "" {
			hops += ", " + ip
		}
	}
	if hops != "" {
		m.add("X-Forwarded-For", hops)
	}
	proto := "https"
	if r.TLS == nil {
		proto = "http"
	}
	last := func(name, own string) string {
		values, present := h[name]
		switch {
		case present && values == nil:
			return ""
		case trusted && len(values) > 0 && values[len(values)-1] != "":
			own = values[len(values)-1]
		}
		m.add(name, own)
		return own
	}
	proto = last("X-Forwarded-Proto", proto)
	host := last("X-Forwarded-Host", r.Host)
	if hops == "" {
		m.Drop = []string{"Forwarded"}
		return
	}
	m.add("Forwarded", forwarded(hops, host, proto, caller))
}

// Interim implements http1.Interim: it passes a response on before the final one.
func (x *exchange) Interim(status int, header http.Header) error {
	h := x.writer.Header()
	own := h.Clone()
	addHeader(h, header)
	x.writer.WriteHeader(status)
	clear(h)
	maps.Copy(h, own)
	return nil
}

// hop tells whether a field is about the connection that it came over.
func hop(name string) bool {
	switch name {
	case "Alt-Svc", "Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection",
		"Te", "Trailer", "Transfer-Encoding", "Upgrade":
		return true
	}
	return false
}

// addHeader adds a response's fields to those for the client, but for what
// concerns the instance's connection. It keeps from's values.
func addHeader(to, from http.Header) {
	if connection := from["Connection"]; connection != nil {
		for _, value := range connection {
			for name := range strings.SplitSeq(value, ",") {
				if name = textproto.TrimString(name); name != "" {
					from.Del(name)
				}
			}
		}
	}
	for name, values := range from {
		if hop(name) {
			continue
		}
		if have := to[name]; len(have) > 0 {
			values = append(slices.Clip(have), values...)
		}
		to[name] = values
	}
}

// relayBuffers are for bodies on their way.
var relayBuffers = sync.Pool{New: func() any {
	b := make([]byte, 32<<10)
	return &b
}}

// relay answers the client, and reports whether the response has been read to its
// end. When it returns an error, the client has a part of the response.
func (x *exchange) relay(w http.ResponseWriter, r *http.Request, e *http1.Exchange) (whole bool, err error) {
	resp := e.Response
	header := w.Header()
	delete(header, "Server")
	header["Via"] = append(header["Via"], via(resp.ProtoMajor, resp.ProtoMinor))
	addHeader(header, resp.Header)
	announced := len(resp.Trailer)
	if announced > 0 {
		names := slices.Sorted(maps.Keys(resp.Trailer))
		header["Trailer"] = append(header["Trailer"], strings.Join(names, ", "))
	}
	if resp.ContentLength < 0 && r.ProtoMajor == 1 && r.ProtoMinor == 1 {
		// Else the server would wait for the whole of what is short, to say its length.
		header["Transfer-Encoding"] = []string{"chunked"}
	}
	w.WriteHeader(resp.StatusCode)
	if resp.Body == http.NoBody {
		return true, nil
	}
	if whole, err = x.relayBody(w, r, e); err != nil || len(resp.Trailer) == 0 {
		return whole, err
	}
	// A short response is to be sent in chunks too: only those have trailers.
	_ = http.NewResponseController(w).Flush()
	for name, values := range resp.Trailer {
		if len(resp.Trailer) != announced {
			name = http.TrailerPrefix + name
		}
		for _, value := range values {
			header.Add(name, value)
		}
	}
	return whole, nil
}

// relayBody passes on what there is before it waits for more, if the response is a
// stream.
func (x *exchange) relayBody(w http.ResponseWriter, r *http.Request, e *http1.Exchange) (whole bool, err error) {
	resp := e.Response
	stream := resp.ContentLength < 0 || streams(resp.Header)
	if stream {
		x.boundWriting(w, r)
		if r.ProtoMajor == 1 && r.ProtoMinor == 0 || !e.Buffered() {
			_ = http.NewResponseController(w).Flush()
		}
	}
	rest, ok := e.Rest()
	if !ok || len(rest) > serverBuffers {
		x.boundWriting(w, r)
	}
	if ok {
		if _, err := w.Write(rest); err != nil {
			return false, fmt.Errorf("writing: %w", err)
		}
		return true, nil
	}
	spec := x.lease.Revision().Spec()
	if spec.AnswerWithin() < spec.Timeout {
		e.ReadBy(x.readBy())
	}
	buffer := relayBuffers.Get().(*[]byte)
	defer relayBuffers.Put(buffer)
	for {
		if spec.StreamIdle > 0 {
			e.ReadBy(x.readBy())
		}
		n, err := e.Read(*buffer)
		if n > 0 {
			if _, err := w.Write((*buffer)[:n]); err != nil {
				return false, fmt.Errorf("writing: %w", err)
			}
			if stream && err == nil {
				_ = http.NewResponseController(w).Flush()
			}
		}
		switch {
		case err == nil:
		case err == io.EOF: //nolint:errorlint // io.ErrUnexpectedEOF is another
			return true, nil
		case e.Late(err):
			if x.timedOut(); resp.ContentLength < 0 {
				return false, nil
			}
			fallthrough
		default:
			return false, fmt.Errorf("reading: %w", err)
		}
	}
}

// streams tells whether a response says of itself that it is a stream.
func streams(h http.Header) bool {
	if h["Incremental"] != nil && caddyhttp.IsIncremental(h) {
		return true
	}
	const events = "text/event-stream"
	kind := h["Content-Type"]
	if len(kind) == 0 || len(kind[0]) < len(events) || !strings.EqualFold(kind[0][:len(events)], events) {
		return false // in all but a few cases this is all it takes
	}
	media, _, err := mime.ParseMediaType(kind[0])
	return err == nil && media == events
}
