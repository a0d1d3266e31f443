package caddymodule

import (
	"net/http"
	"strings"
	"testing"

	"github.com/fairway-run/fairway/revisions"
)

// Each client comes back to its own instance, and to its own revision.
func TestSessionAffinity(t *testing.T) {
	c := startCluster(t)
	svc := ksvc("hello", "app:1")
	svc.Spec.Template.Annotations = map[string]string{revisions.AffinityAnnotation: "true", "autoscaling.knative.dev/min-scale": "3"}
	c.create(svc)
	c.ready("hello")
	var ids []string
	eventually(t, "three instances", func() bool { ids = c.fake.ids(); return len(ids) == 3 })
	ask := func(cookie string) (instance, set string) {
		t.Helper()
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		r.Host = "hello.example.com"
		if cookie != "" {
			r.AddCookie(&http.Cookie{Name: affinityCookie, Value: cookie})
		}
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		for _, k := range resp.Cookies() {
			set = k.Value
		}
		return resp.Header.Get("X-Instance"), set
	}
	for range 3 {
		for _, id := range ids {
			if got, set := ask("hello-00001:" + id); got != id || set != "" {
				t.Errorf("the client of %s got %s, and the cookie %q", id, got, set)
			}
		}
	}
	for _, cookie := range []string{"", "hello-00001:gone", "hello-00009:gone", "nonsense", strings.Repeat("x", 100)} {
		if got, set := ask(cookie); got == "" || set != "hello-00001:"+got {
			t.Errorf("the cookie %q: served by %q, told to come back to %q", cookie, got, set)
		}
	}
}
