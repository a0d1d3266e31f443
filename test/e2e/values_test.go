package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestSecrets gives a service secrets as variables and as files. They are on
// the host where only root can read them, and in no record, log or answer.
func TestSecrets(t *testing.T) {
	const password, later = "correct-horse", "battery-staple"
	h := newHost(t, onExit("keep"), fairwayOption("domain http://run.test"))
	config := h.caddyfile("fairway")
	h.start(config)
	secret := func(method, path, value string) {
		h.apply(method, "/api/v1/namespaces/default/secrets"+path, "application/json",
			fmt.Sprintf(`{"metadata": {"name": "db"}, "stringData": {"password": %q}}`, value))
	}
	container := `"env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}, {"name": "URL", "value": "db://$(PASSWORD)"}],
		"volumeMounts": [{"name": "db", "mountPath": "/secrets/db"}]`
	svc := strings.Replace(h.ksvc("hello", 1, container), `"containers"`, `"volumes": [{"name": "db", "secret": {"secretName": "db"}}], "containers"`, 1)
	svc = strings.Replace(svc, `"spec": {"containers"`, `"spec": {"timeoutSeconds": 60, "containers"`, 1)

	// Without the secret the revision fails, and the reason names it.
	h.apply(http.MethodPost, knative+"services", "application/json", svc)
	within(t, time.Minute, "the service has failed", func() bool { return h.state("hello").IsFailed() })
	if cond := h.state("hello").Status.GetCondition("ConfigurationsReady"); !strings.Contains(cond.GetMessage(), "db") || !strings.Contains(cond.GetMessage(), "secret") {
		t.Errorf("condition: %+v", cond)
	}
	secret(http.MethodPost, "", password)
	h.apply(http.MethodPatch, knative+"services/hello", "application/merge-patch+json", `{"spec": {"template": {"metadata": {"labels": {"try": "2"}}}}}`)
	h.awaitReady("hello", "hello-00002")
	read := func() {
		t.Helper()
		for path, want := range map[string]string{"/env?name=PASSWORD": password, "/env?name=URL": "db://" + password, "/file?path=/secrets/db/password": password} {
			if got := h.asked("hello.run.test", path); got.status != http.StatusOK || strings.TrimSpace(got.body) != want {
				t.Errorf("%s: %s; want %s", path, got, want)
			}
		}
	}
	read()
	// What runs keeps what it was started with; what starts later gets the new one.
	secret(http.MethodPut, "/db", later)
	read()
	if _, answer, err := h.send(http.MethodGet, "/api/v1/namespaces/default/secrets/db", "", ""); err != nil || strings.Contains(answer, later) || !strings.Contains(answer, "password") {
		t.Errorf("the API says %s, %v", answer, err)
	}
	info, err := os.Stat(filepath.Join(h.stateDir, "secrets", "db"))
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the secret's directory: %v, %v", info, err)
	}
	h.stop()
	out, err := exec.Command("grep", "-rlE", password+"|"+later, filepath.Join(h.dir, "storage"), h.logFile(), h.logDir).CombinedOutput()
	if len(out) > 0 {
		t.Errorf("found in %s (%v)", out, err)
	}
	h.start(config)
}
