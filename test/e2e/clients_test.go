package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"golang.org/x/net/http2"

	"github.com/fairway-run/fairway/test/images"
)

const protocolsName = "localhost/fairway/protocols:1"

// client is a client that speaks one protocol, to services as vhost makes them.
type client struct {
	proto string // as the app would call it if it were asked in the same way
	base  string // of URLs; %s is the service
	http.Client
}

func (c *client) url(service, path string) string { return fmt.Sprintf(c.base, service) + path }

// protocolHost is a host whose site is served by every protocol there is, and a
// client for each, by name.
type protocolHost struct {
	*host
	tls     string // host and port
	roots   *x509.CertPool
	clients map[string]*client
}

// newProtocolHost makes one. The image of test/images/protocols is there.
func newProtocolHost(t *testing.T, opts ...option) *protocolHost {
	t.Helper()
	opts = append(opts, func(h *host) { h.env = append(h.env, "GODEBUG=http2xconnect=1") }) // for WebSockets over HTTP/2
	h := &protocolHost{host: newHost(t, opts...), tls: freeAddress(t)}
	h.program("protocols")
	roots := h.certify()
	h.roots = roots
	dial := func(address string) func(context.Context, string, string) (net.Conn, error) {
		return func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{Timeout: patience}).DialContext(ctx, network, address)
		}
	}
	_, port, _ := net.SplitHostPort(h.tls)
	secure := "https://%s.test:" + port
	h1 := func(address string) *http.Transport {
		tr := &http.Transport{
			DisableCompression: true, DialContext: dial(address), TLSClientConfig: &tls.Config{RootCAs: roots},
			ExpectContinueTimeout: patience, MaxResponseHeaderBytes: 4 << 20,
		}
		t.Cleanup(tr.CloseIdleConnections)
		return tr
	}
	h3 := &http3.Transport{
		DisableCompression: true, TLSClientConfig: &tls.Config{RootCAs: roots}, MaxResponseHeaderBytes: 4 << 20,
		Dial: func(ctx context.Context, _ string, config *tls.Config, settings *quic.Config) (*quic.Conn, error) {
			// Others wait for the same connection when who asked for it has left.
			return quic.DialAddr(context.WithoutCancel(ctx), h.tls, config, settings)
		},
	}
	t.Cleanup(func() { _ = h3.Close() })
	// The standard library's does not know extended CONNECT.
	h2 := func(dial func(context.Context, string, string, *tls.Config) (net.Conn, error)) http.RoundTripper {
		tr := &http2.Transport{ //nolint:staticcheck // see above
			DisableCompression: true, //nolint:staticcheck // see above
			AllowHTTP:          true, DialTLSContext: dial, TLSClientConfig: &tls.Config{RootCAs: roots}, MaxHeaderListSize: 4 << 20,
		}
		t.Cleanup(tr.CloseIdleConnections) //nolint:staticcheck // see above
		return tr
	}
	h.clients = map[string]*client{
		"h1":    {"HTTP/1.1", "http://%s.test", http.Client{Transport: h1(h.site)}},
		"h1tls": {"HTTP/1.1", secure, http.Client{Transport: h1(h.tls)}},
		"h2c": {"HTTP/2.0", "http://%s.test", http.Client{Transport: h2(func(ctx context.Context, network, address string, _ *tls.Config) (net.Conn, error) {
			return dial(h.site)(ctx, network, address)
		})}},
		"h2": {"HTTP/2.0", secure, http.Client{Transport: h2(func(ctx context.Context, network, _ string, config *tls.Config) (net.Conn, error) {
			return (&tls.Dialer{Config: config}).DialContext(ctx, network, h.tls)
		})}},
		"h3": {"HTTP/3.0", secure, http.Client{Transport: h3}},
	}
	if !full() { // these differ from the others in the encryption alone
		delete(h.clients, "h1tls")
		delete(h.clients, "h2c")
	}
	return h
}

// program imports the image of one of the programs in test/images.
func (h *host) program(name string) {
	h.t.Helper()
	h.build(images.Options{Name: "localhost/fairway/" + name + ":1", Package: "../images/" + name, User: "65532:65532"})
}

// certify makes a certificate for the services, signed by itself.
func (h *protocolHost) certify() *x509.CertPool {
	h.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	h.check(err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, DNSNames: []string{"*.test"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	h.check(err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	h.check(err)
	h.check(os.WriteFile(filepath.Join(h.dir, "cert.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	h.check(os.WriteFile(filepath.Join(h.dir, "key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	cert, err := x509.ParseCertificate(der)
	h.check(err)
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return roots
}

// everywhere is caddyfile with the site on plain and on encrypted connections.
func (h *protocolHost) everywhere(site string) string {
	_, port, _ := net.SplitHostPort(h.tls)
	plain := strings.Replace(h.caddyfile(site), "\tauto_https off\n", "\tauto_https off\n\tservers {\n\t\tprotocols h1 h2 h2c h3\n\t}\n", 1)
	return plain + fmt.Sprintf("https://:%s {\ntls %s %s\n%s\n}\n", port, filepath.Join(h.dir, "cert.pem"), filepath.Join(h.dir, "key.pem"), site)
}

// service is vhost of the protocols image.
func (h *protocolHost) service(name string, options ...string) string {
	return h.vhost(name, append([]string{"image " + protocolsName}, options...)...)
}

// dial opens a WebSocket by the client's protocol.
func (c *client) dial(t testing.TB, service, path string) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	hc := &c.Client
	if c.proto != "HTTP/1.1" {
		hc = &http.Client{Transport: connector{t, c}}
	}
	conn, _, err := websocket.Dial(ctx, c.url(service, path), &websocket.DialOptions{HTTPClient: hc, CompressionMode: websocket.CompressionContextTakeover})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetReadLimit(-1)
	t.Cleanup(func() { _ = conn.CloseNow() })
	return conn
}

// connector turns the handshake of HTTP/1.1 into that of HTTP/2 and HTTP/3: an
// extended CONNECT (RFC 8441, RFC 9220).
type connector struct {
	t testing.TB
	*client
}

func (c connector) RoundTrip(r *http.Request) (*http.Response, error) {
	body, w := io.Pipe()
	// Not the dialler's context: that ends with the handshake.
	ctx, cancel := context.WithCancel(context.Background())
	c.t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, http.MethodConnect, r.URL.String(), body)
	if err != nil {
		return nil, err
	}
	req.Header = r.Header.Clone()
	key := req.Header.Get("Sec-WebSocket-Key")
	for _, name := range []string{"Connection", "Upgrade", "Sec-WebSocket-Key"} {
		req.Header.Del(name)
	}
	if c.proto == "HTTP/3.0" {
		req.Proto = "websocket"
	} else {
		req.Header[":protocol"] = []string{"websocket"}
	}
	resp, err := c.Transport.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusOK {
		return resp, err
	}
	resp.StatusCode = http.StatusSwitchingProtocols
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	resp.Header.Set("Sec-WebSocket-Accept", base64.StdEncoding.EncodeToString(sum[:]))
	resp.Header.Set("Connection", "Upgrade")
	resp.Header.Set("Upgrade", "websocket")
	resp.Body = &tunnel{resp.Body, w, cancel}
	return resp, nil
}

// tunnel is what an extended CONNECT has made. Its end is that of both directions.
type tunnel struct {
	io.ReadCloser
	io.Writer

	cancel context.CancelFunc
}

func (t *tunnel) Close() error {
	defer t.cancel()
	return t.ReadCloser.Close()
}
