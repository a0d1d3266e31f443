package caddymodule

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/google/go-cmp/cmp"
	"go.uber.org/zap"
	corev1 "k8s.io/api/core/v1"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"

	"github.com/fairway-run/fairway/revisions"
)

// from asks for / of a host, from an address of the loopback network.
func (h *host) from(address, host string) (status int, body string) {
	h.t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}).DialContext,
	}}
	req, err := http.NewRequestWithContext(h.t.Context(), http.MethodGet, h.url, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	req.Host = host
	req.Header.Set("Forwarded", "for=_web-00001-zzzzz")
	req.Header.Set("X-Forwarded-For", "127.0.0.2")
	resp, err := again(func() (*http.Response, error) { return client.Do(req) })
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

func forwardedAs(string, *revisions.Revision) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Header.Get("Forwarded")) })
}

// Who asks is told by its name if it is an instance, on both ways.
func TestCaller(t *testing.T) {
	for way, more := range map[string]string{"own": "", "proxy": "trusted_proxies 192.0.2.0/24\n"} {
		t.Run(way, func(t *testing.T) {
			h := startHost(t, "header >X-Caller \"<{http.fairway.caller}>\"\nfairway hello {\n image app:1\n"+more+"}\n", forwardedAs)
			for address, want := range map[string]string{
				"127.0.0.1": "for=127.0.0.1;host=a.example.com;proto=http",
				"127.0.0.2": "for=_web-00001-abcde;host=a.example.com;proto=http",
				"127.0.0.3": "for=127.0.0.3;host=a.example.com;proto=http",
			} {
				if status, got := h.from(address, "a.example.com"); status != 200 || got != want {
					t.Errorf("from %s: %d %q; want %q", address, status, got, want)
				}
			}
		})
	}
}

// Cloud Run: ingress internal.
func TestIngress(t *testing.T) {
	h := startHost(t, "fairway hello {\n image app:1\n ingress internal\n}\n", forwardedAs)
	ask := func(address string, want int) {
		t.Helper()
		if status, _ := h.from(address, "a.example.com"); status != want {
			t.Errorf("from %s: %d; want %d", address, status, want)
		}
	}
	ask("127.0.0.1", 404)
	if n := h.fake.started.Load(); n != 0 {
		t.Errorf("%d instances were started for who must not ask", n)
	}
	ask("127.0.0.2", 200)
	ask("127.0.0.3", 200) // nobody knows which instance it is, but it is one
	ask("127.0.0.1", 404)
	if err := h.load("fairway hello {\n image app:1\n ingress all\n}\n"); err != nil {
		t.Fatal(err)
	}
	ask("127.0.0.1", 200)
	if n := h.fake.started.Load(); n != 1 {
		t.Errorf("%d instances: who may ask is not a matter of the revision", n)
	}
	if _, err := adapt(t, ":8080 {\n fairway hello {\n image app:1\n ingress some\n}\n}"); err == nil || !strings.Contains(err.Error(), `"some" is not all or internal`) {
		t.Errorf("%v", err)
	}
}

// Services have a name for instances beside that below the domain.
func TestInternalDomain(t *testing.T) {
	const sites = "http://*.internal:%s {\n bind 127.0.0.1\n fairway\n}\n"
	h := startNamed(t, "domain run.example.com", sites)
	for _, domain := range []string{"domain run.example.com", "local_names true"} {
		h.reload(domain, sites)
		for host, want := range map[string]int{"hello.internal": 200, "next---hello.internal": 404, "other.internal": 404} {
			if status, _ := h.from("127.0.0.2", host); status != want {
				t.Errorf("with %s: %s from an instance: %d; want %d", domain, host, status, want)
			}
			if status, _ := h.from("127.0.0.1", host); status != 404 {
				t.Errorf("with %s: %s from elsewhere: %d", domain, host, status)
			}
		}
	}
	h.reload("domain internal", sites) // then it is for all
	if status, _ := h.from("127.0.0.1", "hello.internal"); status != 200 {
		t.Errorf("below the domain, which it is: %d", status)
	}
}

// startNamed is startHost with global options, and more sites: "%s" in them is the
// port.
func startNamed(t *testing.T, options, sites string) *host {
	t.Helper()
	h := startHost(t, "fairway hello {\n image app:1\n}\n", forwardedAs)
	h.reload(options, sites)
	return h
}

func (h *host) reload(options, sites string) {
	h.t.Helper()
	text := strings.Replace(h.text("fairway hello {\n image app:1\n}\n"), "\tfairway {\n", "\tfairway {\n\t\t"+options+"\n", 1)
	js, err := adapt(h.t, text+strings.ReplaceAll(sites, "%s", h.port))
	if err != nil {
		h.t.Fatal(err)
	}
	if err := caddy.Load([]byte(js), true); err != nil {
		h.t.Fatal(err)
	}
	http.DefaultClient.CloseIdleConnections()
}

// Instances learn which hosts are this machine's, and of those that come.
func TestNames(t *testing.T) {
	h := startNamed(t, "domain http://run.example.com:8080", `
http://www.example.net:%s, http://192.0.2.1:%s, http://localhost:%s, http://*.internal:%s {
	@api host API.example.net
	handle @api {
		fairway api {
			image app:1
		}
	}
}
http://elsewhere.example.net:%s {
	bind 127.0.0.7
}
`)
	below := func(names ...string) (all []string) {
		for _, name := range names {
			for _, parent := range []string{"example.com", "internal", "run.example.com"} {
				all = append(all, name+"."+parent)
			}
		}
		return all
	}
	want := func(all ...[]string) {
		t.Helper()
		names := append([]string{}, slices.Concat(all...)...)
		slices.Sort(names)
		got := []string{}
		defer func() {
			if diff := cmp.Diff(names, got); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		}()
		eventually(t, "the instances know all names", func() bool {
			got = h.fake.named()
			return slices.Equal(got, names)
		})
	}
	sites := []string{"www.example.net", "api.example.net"}
	want(sites, below("api", "hello"))

	registry := current.Load().scaler.Registry()
	var svc servingv1.Service
	decode := json.NewDecoder(bytes.NewReader([]byte(`{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "later", "annotations": {"run.fairway/hosts": "later.example.org"}},
		"spec": {"template": {"spec": {"containers": [{"image": "app:2"}]}}, "traffic": [{"latestRevision": true, "percent": 100, "tag": "next"}]}}`)))
	if err := decode.Decode(&svc); err != nil {
		t.Fatal(err)
	}
	prepared, err := revisions.Prepare(&svc)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := registry.Create(prepared, revisions.OwnerAPI); err != nil {
		t.Fatal(err)
	}
	want(sites, below("api", "hello", "later", "next---later"), []string{"later.example.org"})
	if _, err := registry.Delete("later", revisions.OwnerAPI, nil); err != nil {
		t.Fatal(err)
	}
	want(sites, below("api", "hello"))
	h.reload("local_names false", "")
	want()
}

func TestReaches(t *testing.T) {
	v4, v6 := netip.MustParseAddr("10.63.0.1"), netip.MustParseAddr("fd00::1")
	for listener, want := range map[string][2]bool{
		":80":               {true, true},
		"0.0.0.0:80":        {true, false},
		"[::]:80":           {true, true},
		"10.63.0.1:80":      {true, false},
		"[fd00::1]:80":      {false, true},
		"192.0.2.1:80":      {false, false},
		"127.0.0.1:80":      {false, false},
		"unix//run/x":       {false, false},
		"fd/3":              {false, false},
		"example.com:80":    {false, false},
		"tcp/:80-90":        {true, true},
		"tcp/10.63.0.1:443": {true, false},
		"tcp/:port":         {false, false},
	} {
		if got := [2]bool{reaches(listener, v4), reaches(listener, v6)}; got != want {
			t.Errorf("%s: %v; want %v", listener, got, want)
		}
	}
}

func TestLocalNamesErrors(t *testing.T) {
	for option, want := range map[string]string{
		"local_names perhaps":                    "local_names is true or false, not 'perhaps'",
		"local_names":                            "wrong argument count",
		"local_names true\n\t\tlocal_names true": "duplicate option 'local_names'",
	} {
		_, err := adapt(t, fmt.Sprintf("{\n\tfairway {\n\t\t%s\n\t}\n}\n", option))
		wantError(t, err, want)
	}
}

// toldNames is an instancepool.Namer that notes what it is told.
type toldNames struct {
	mu    sync.Mutex
	names []string
	times int
}

func (*toldNames) Gateway() netip.Addr { return netip.MustParseAddr("10.1.0.1") }

func (n *toldNames) SetNames(all []string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.names, n.times = all, n.times+1
	return nil
}

func (n *toldNames) has(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Contains(n.names, name)
}

func (n *toldNames) count() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.times
}

// Instances need not wait for a name that comes soon after another, and are not told
// each time when thousands come.
func TestNamesAreToldSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		told := new(toldNames)
		n := &neighbours{registry: revisions.NewRegistry(revisions.Options{}), namer: told, log: zap.NewNop()}
		n.use([]string{"*.internal"})
		ctx, cancel := context.WithCancel(t.Context())
		var following sync.WaitGroup
		following.Go(func() { n.follow(ctx) })
		defer following.Wait()
		defer cancel()
		add := func(name string, within time.Duration) {
			t.Helper()
			synctest.Wait()
			svc := &servingv1.Service{}
			svc.Name = name
			svc.Spec.Template.Spec.Containers = []corev1.Container{{Image: "app:1"}}
			svc, err := revisions.Prepare(svc)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := n.registry.Apply(svc, revisions.OwnerConfig); err != nil {
				t.Fatal(err)
			}
			time.Sleep(within)
			synctest.Wait()
			if within >= 0 && !told.has(name+".internal") {
				t.Errorf("%s is not told within %s", name, within)
			}
		}
		add("one", 0)
		add("two", namesPause)
		time.Sleep(time.Minute)
		before := told.count()
		const many = 1000
		for i := range many {
			add(fmt.Sprintf("many-%d", i), -1)
			time.Sleep(namesPause)
		}
		if n := told.count() - before; n > 30 {
			t.Errorf("told %d times of %d names that came in %s", n, many, many*namesPause)
		}
		time.Sleep(3 * namesPauseMax)
		add("three", 0)
		add("four", namesPause)
	})
}
