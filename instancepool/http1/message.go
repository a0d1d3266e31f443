package http1

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/net/http/httpguts"
)

// keptMessage is the size of the largest buffer that is kept for later messages.
const keptMessage = 2 * MaxBuffered

// message is the beginning of a request as it is sent: its head, and a body of a
// known and small size.
type message struct {
	buf   []byte
	names []string // of the fields, while it is written
}

var messages = sync.Pool{New: func() any { return &message{buf: make([]byte, 0, 2<<10)} }}

func (m *message) free() {
	clear(m.names)
	m.names = m.names[:0]
	if cap(m.buf) > keptMessage {
		m.buf = nil
	}
	m.buf = m.buf[:0]
	messages.Put(m)
}

// write writes the message. Nothing that could end a line early gets in: what
// comes in here may be made of what a client has sent.
func (m *message) write(r *Request) (err error) {
	m.buf = m.buf[:0]
	defer func() {
		if err != nil {
			m.buf = m.buf[:0]
		}
	}()
	if !validTarget(r.Target) {
		return errors.New("there is a control character in the request's target")
	}
	if !httpguts.ValidHostHeader(r.Host) {
		return fmt.Errorf("%q is not a host", r.Host)
	}
	if !validMethod(r.Method) {
		return fmt.Errorf("%q is not a method", r.Method)
	}
	m.text(r.Method, " ", r.Target, " HTTP/1.1\r\nHost: ", r.Host, "\r\n")
	for name := range r.Header {
		m.names = append(m.names, name)
	}
	slices.Sort(m.names)
	for _, name := range m.names {
		if r.leavesOut(name) {
			continue
		}
		values := r.Header[name]
		if name == "User-Agent" && len(values) > 0 {
			if values = values[:1]; values[0] == "" {
				continue // it is not to be sent
			}
		}
		for _, value := range values {
			if err := m.field(name, value); err != nil {
				return err
			}
		}
	}
	for _, f := range r.Fields {
		if err := m.field(f.Name, f.Value); err != nil {
			return err
		}
	}
	return m.framing(r)
}

// framing writes how long the body is, the end of the head, and the body if it is
// to be sent with it.
func (m *message) framing(r *Request) error {
	switch {
	case r.chunked:
		m.text("Transfer-Encoding: chunked\r\n")
		if len(r.trailer) > 0 {
			m.text("Trailer: ")
			for i, name := range announced(r.trailer) {
				if i > 0 {
					m.text(",")
				}
				m.text(name)
			}
			m.text("\r\n")
		}
	case r.Length > 0, r.Method == http.MethodPost, r.Method == http.MethodPut, r.Method == http.MethodPatch:
		m.text("Content-Length: ")
		m.buf = strconv.AppendInt(m.buf, r.Length, 10)
		m.text("\r\n")
	}
	if r.close {
		m.text("Connection: close\r\n")
	}
	m.text("\r\n")
	if r.Body == nil {
		return nil
	}
	head := len(m.buf)
	m.buf = slices.Grow(m.buf, int(r.Length))[:head+int(r.Length)]
	if _, err := io.ReadFull(r.Body, m.buf[head:]); err != nil {
		return fmt.Errorf("reading the request's body: %w", err)
	}
	return nil
}

func announced(trailer http.Header) []string {
	names := make([]string, 0, len(trailer))
	for name := range trailer {
		switch name = http.CanonicalHeaderKey(name); name {
		case "Transfer-Encoding", "Trailer", "Content-Length":
		default:
			if httpguts.ValidTrailerHeader(name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

func (m *message) text(parts ...string) {
	for _, part := range parts {
		m.buf = append(m.buf, part...)
	}
}

func (m *message) field(name, value string) error {
	if !httpguts.ValidHeaderFieldName(name) {
		return fmt.Errorf("%q is not the name of a header field", name)
	}
	if !httpguts.ValidHeaderFieldValue(value) {
		return fmt.Errorf("the header field %s has a value that is not allowed", name)
	}
	m.text(name, ": ", strings.TrimFunc(value, blank), "\r\n")
	return nil
}

func blank(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\n' }

// leavesOut tells whether a field of Header is not sent.
func (r *Request) leavesOut(name string) bool {
	switch name {
	case "Host", "Content-Length", "Transfer-Encoding", "Trailer":
		return true
	case "Connection":
		return !r.forward || r.close
	case "Alt-Svc", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization", "Proxy-Connection", "Te", "Upgrade":
		return !r.forward
	}
	for i := range r.Fields {
		if f := &r.Fields[i]; !f.Add && f.Name == name {
			return true
		}
	}
	return slices.Contains(r.Drop, name)
}

func validTarget(target string) bool {
	if target == "" {
		return false
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c == 0x7f {
			return false
		}
	}
	return true
}

func validMethod(method string) bool {
	return method != "" && httpguts.ValidHeaderFieldName(method) // both are tokens
}

// hostOf returns a request's host as it is sent.
func hostOf(r *http.Request) string {
	host := r.Host
	if host == "" {
		host = r.URL.Host
	}
	if ascii, err := httpguts.PunycodeHostPort(host); err == nil {
		host = ascii
	}
	return Host(host)
}

// Host returns a host without the zone of its address, which has a meaning on one
// machine only (RFC 6874).
func Host(host string) string {
	if !strings.HasPrefix(host, "[") {
		return host
	}
	end := strings.LastIndex(host, "]")
	if zone := strings.IndexByte(host, '%'); end > 0 && zone > 0 && zone < end {
		return host[:zone] + host[end:]
	}
	return host
}
