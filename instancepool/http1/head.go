package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"net/textproto"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"
)

// response is a response in one piece.
type response struct {
	http.Response
	sized  sizedBody
	values [8]string // of its fields, if that is enough
}

// field is a header field.
type field struct{ name, value string }

// readPlain reads the head of a response as http.ReadResponse does, at half of the
// cost, if it is plain: all of it has come, there is but one way to read it, and the
// body's length is known. Else it returns nil and leaves what there is.
//
// Nothing of the response is used again: it may be kept for longer than the exchange.
func readPlain(br *bufio.Reader, req *http.Request) *http.Response {
	head, _ := br.Peek(br.Buffered())
	end := bytes.Index(head, []byte("\r\n\r\n"))
	if end < 0 {
		return nil
	}
	text := string(head[:end+len("\r\n")]) // names and values are parts of it
	line, text, ok := cutLine(text)
	status := statusOf(line)
	if !ok || status == 0 {
		return nil
	}
	var room [16]field
	fields, length := room[:0], int64(-1)
	for text != "" {
		var f field
		if f, text, ok = cutField(text); !ok {
			return nil
		}
		switch f.name {
		case "Content-Length":
			n, err := strconv.ParseUint(f.value, 10, 63)
			if err != nil || length >= 0 {
				return nil
			}
			length = int64(n) //nolint:gosec // it has 63 bits
		case "Connection":
			if !strings.EqualFold(f.value, "keep-alive") {
				return nil
			}
		case "Pragma", "Trailer", "Transfer-Encoding": // http.ReadResponse makes something of them
			return nil
		}
		fields = append(fields, f)
	}
	bare := req.Method == http.MethodHead
	if !bare && (status == http.StatusNoContent || status == http.StatusNotModified) {
		bare, length = true, 0
	}
	if length < 0 && !bare {
		return nil
	}
	r := &response{Response: http.Response{
		Status: line[len("HTTP/1.1 "):], StatusCode: status, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: make(http.Header, len(fields)), Body: http.NoBody, ContentLength: length, Request: req,
	}}
	r.setHeader(fields)
	if !bare && length > 0 {
		r.sized = sizedBody{br: br, left: length}
		r.Body = &r.sized
	}
	_, _ = br.Discard(end + len("\r\n\r\n"))
	return &r.Response
}

// cutLine cuts the first line off a text.
func cutLine(text string) (line, rest string, ok bool) {
	end := strings.IndexByte(text, '\n')
	if end < 1 || text[end-1] != '\r' {
		return "", "", false
	}
	return text[:end-1], text[end+1:], true
}

// cutField cuts a field that has a line for itself off a text.
func cutField(text string) (f field, rest string, ok bool) {
	line, rest, ok := cutLine(text)
	if !ok {
		return f, "", false
	}
	name, value, ok := strings.Cut(line, ":")
	if name = canonical(name); !ok || name == "" || !httpguts.ValidHeaderFieldValue(value) {
		return f, "", false
	}
	return field{name, textproto.TrimString(value)}, rest, true
}

// canonical is http.CanonicalHeaderKey, but returns "" for what is not a name.
func canonical(name string) string {
	good, upper := true, true // the next letter is to be upper case
	for i := range len(name) {
		c := name[i]
		switch {
		case 'a' <= c && c <= 'z':
			good = good && !upper
		case 'A' <= c && c <= 'Z':
			good = good && upper
		case c != '-' && !httpguts.IsTokenRune(rune(c)):
			return ""
		}
		upper = c == '-'
	}
	if good {
		return name
	}
	return http.CanonicalHeaderKey(name)
}

// statusOf returns the status of a final response, or 0 if the line is another.
func statusOf(line string) int {
	const version, code = "HTTP/1.1 ", "200"
	text, ok := strings.CutPrefix(line, version)
	if !ok || len(text) < len(code) || len(text) > len(code) && text[len(code)] != ' ' || !httpguts.ValidHeaderFieldValue(text) {
		return 0
	}
	status := 0
	for _, c := range []byte(text[:len(code)]) {
		if c < '0' || c > '9' {
			return 0
		}
		status = 10*status + int(c-'0')
	}
	if status < 200 || status > 599 {
		return 0
	}
	return status
}

func (r *response) setHeader(fields []field) {
	values := r.values[:]
	if len(fields) > len(values) {
		values = make([]string, len(fields))
	}
	for i, f := range fields {
		if have := r.Header[f.name]; have != nil {
			r.Header[f.name] = append(have, f.value)
			continue
		}
		values[i] = f.value
		r.Header[f.name] = values[i : i+1 : i+1] // append must not get at the next one
	}
}

// sizedBody is a body whose length is known.
type sizedBody struct {
	br   *bufio.Reader // nil after Close
	left int64
}

func (b *sizedBody) Read(p []byte) (int, error) {
	switch {
	case b.br == nil:
		return 0, http.ErrBodyReadAfterClose
	case b.left == 0:
		return 0, io.EOF
	case int64(len(p)) > b.left:
		p = p[:b.left]
	}
	n, err := b.br.Read(p)
	b.left -= int64(n)
	switch {
	case b.left == 0 && err == nil:
		err = io.EOF
	case b.left > 0 && err == io.EOF: //nolint:errorlint // readers return it as it is
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// rest returns what is left, if all of it has come. It is valid until br is read again.
func (b *sizedBody) rest() ([]byte, bool) {
	if b.br == nil || b.left > int64(b.br.Buffered()) {
		return nil, false
	}
	p, _ := b.br.Peek(int(b.left))
	_, _ = b.br.Discard(len(p))
	b.left = 0
	return p, true
}

// Close implements io.Closer.
func (b *sizedBody) Close() error {
	b.br = nil
	return nil
}
