package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
)

// outcome is what came of a command.
type outcome struct {
	out, msg string
	code     int
}

// cli runs "caddy fairway …" against the Caddy that runs, with a standard input.
func (h *host) cli(stdin string, args ...string) outcome {
	h.t.Helper()
	cmd := h.cliCommand(args...)
	var out, msg bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &msg
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		h.t.Fatal(err)
	}
	for _, bad := range []string{"WARNING: DATA RACE", "panic: "} {
		if strings.Contains(msg.String(), bad) {
			h.t.Errorf("%q:\n%s", args, msg.String())
		}
	}
	return outcome{out.String(), msg.String(), cmd.ProcessState.ExitCode()}
}

func (h *host) cliCommand(args ...string) *exec.Cmd {
	h.t.Helper()
	cmd := exec.Command(caddyBinary(h.t), append([]string{"fairway"}, args...)...)
	cmd.Env = append(os.Environ(), "HOME="+h.dir, "CADDY_ADMIN="+h.admin)
	return cmd
}

// wants fails the test unless the command has ended with the code and printed
// the texts.
func (o outcome) wants(t testing.TB, code int, texts ...string) outcome {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d:\n%s%s", o.code, code, o.out, o.msg)
	}
	for _, text := range texts {
		if !strings.Contains(o.out+o.msg, text) {
			t.Errorf("%q is not in:\n%s%s", text, o.out, o.msg)
		}
	}
	return o
}

// TestCommandLine does with the command line all that one does with a service
// in its life.
func TestCommandLine(t *testing.T) {
	h := newHost(t, fairwayOption("domain http://run.test"))
	one, two := h.image(1), h.image(2)
	h.cli("", "services").wants(t, 5, "cannot be reached at "+h.admin)
	h.start(h.caddyfile("@fixed host fixed.test\n" + strings.Replace(h.service("fixed"), "fairway ", "fairway @fixed ", 1) + "\nfairway"))
	revision := func(hostname string) string {
		t.Helper()
		got := h.asked(hostname, "/env?name=K_REVISION")
		if got.status != http.StatusOK {
			t.Errorf("%s: %s", hostname, got)
		}
		return strings.TrimSpace(got.body)
	}

	got := h.cli("", "deploy", "hello", "--image", one, "--set-env-vars=GREETING=hi").wants(t, 0, "Deploying service [hello]: ")
	if want := "Service [hello] revision [hello-00001] has been deployed and is serving 100 percent of traffic.\nService URL: http://hello.run.test\n"; got.out != want {
		t.Errorf("it prints %q, want %q", got.out, want)
	}
	if got := revision("hello.run.test"); got != "hello-00001" {
		t.Errorf("served by %s", got)
	}
	h.cli("", "deploy", "hello", "--image", one).wants(t, 0, "has not changed: revision [hello-00001]")

	// What fails moves nothing, and says why.
	h.cli("", "deploy", "hello", "--image", "localhost:1/nothing:1").wants(t, 1,
		"revision [hello-00002] is not ready and cannot serve traffic: ContainerMissing: Unable to fetch image \"localhost:1/nothing:1\"",
		"The traffic stays where it was: [hello-00001].")
	h.cli("", "deploy", "hello", "--image", one, "--update-env-vars=FAIL_START=exit:7").wants(t, 1,
		"revision [hello-00003] is not ready and cannot serve traffic: ExitCode7: Container failed with: probe: exiting, as FAIL_START says")
	if got := revision("hello.run.test"); got != "hello-00001" {
		t.Errorf("after failures: served by %s", got)
	}
	h.cli("", "services", "hello").wants(t, 0, "degraded Service hello", "Owner: the API", "failed ConfigurationsReady: ExitCode7: Container failed with: probe: exiting")

	// A revision without traffic has a URL; then it gets traffic, and loses it.
	h.cli("", "deploy", "hello", "--image", two, "--remove-env-vars=FAIL_START", "--no-traffic", "--tag=next").wants(t, 0,
		"revision [hello-00004] has been deployed and is serving 0 percent of traffic.",
		"The revision can be reached directly at http://next---hello.run.test")
	if a, b := revision("hello.run.test"), revision("next---hello.run.test"); a != "hello-00001" || b != "hello-00004" {
		t.Errorf("served by %s, the tag by %s", a, b)
	}
	if got := h.asked("next---hello.run.test", "/env?name=GREETING"); strings.TrimSpace(got.body) != "hi" {
		t.Errorf("the variable is lost: %s", got)
	}
	h.cli("", "traffic", "hello", "--to-revisions=hello-00004=50").wants(t, 0, " 50% hello-00001", " 50% hello-00004")
	served := make(map[string]int)
	for range 100 {
		served[revision("hello.run.test")]++
	}
	if served["hello-00001"] < 20 || served["hello-00004"] < 20 || len(served) != 2 {
		t.Errorf("served by %v", served)
	}
	h.cli("", "traffic", "hello", "--to-latest").wants(t, 0, "100% LATEST (currently hello-00004)", "next: http://next---hello.run.test")
	h.cli("", "revisions", "hello").wants(t, 0, "hello-00004  100%     next", "hello-00003  -")
	h.cli("", "rollback", "hello").wants(t, 0, "100% hello-00001", "is pinned to revision [hello-00001]")
	if got := revision("hello.run.test"); got != "hello-00001" {
		t.Errorf("rolled back: served by %s", got)
	}
	h.cli("", "instances", "hello").wants(t, 0, "hello-00001-", "requests waited")

	// What is exported is what there is.
	doc := h.cli("", "export", "hello").wants(t, 0).out
	h.cli(doc, "deploy", "-f", "-").wants(t, 0, "Service [hello] has not changed")
	var svc servingv1.Service
	h.check(json.Unmarshal([]byte(h.cli("", "services", "hello", "--json").out), &svc))
	if svc.Status.LatestCreatedRevisionName != "hello-00004" {
		t.Errorf("the import made %s", svc.Status.LatestCreatedRevisionName)
	}
	copied := strings.Replace(doc, "name: hello\n", "name: copy\n", 1)
	copied, _, _ = strings.Cut(copied, "  traffic:") // of revisions that the copy does not have
	h.cli(copied, "deploy", "-f", "-").wants(t, 0, "revision [copy-00001] has been deployed and is serving 100 percent")

	// Exit codes that scripts can use.
	for _, test := range []struct {
		code int
		args string
		want string
	}{
		{2, "deploy hello --port=http", "--port"},
		{2, "deploy hello --region=here", "--region has no meaning here"},
		{2, "nonsense", "not a command"},
		{3, "services nobody", "service [nobody] could not be found"},
		{3, "rollback hello hello-00009", "no revision [hello-00009]"},
		{4, "delete fixed", "it belongs to Caddy's config"},
		{4, "deploy fixed --image=" + two, "it belongs to Caddy's config"},
		{4, "delete --revision=hello-00001", "requests are routed to it"},
		{5, "services --address=unix/" + filepath.Join(h.dir, "nothing.sock"), "cannot be reached"},
		{6, "deploy copy --update-env-vars=FAIL_START=nolisten --wait-timeout=1s", "was not ready within 1s"},
	} {
		h.cli("", strings.Fields(test.args)...).wants(t, test.code, test.want)
	}

	h.cli("", "delete", "hello", "copy").wants(t, 0, "Deleted service [hello].\nDeleted service [copy].")
	h.cli("", "services").wants(t, 0, "fixed")
	h.cli("", "services", "hello").wants(t, 3)
	eventually(t, "the instances are gone", func() bool { return len(h.instances()) == 0 })
}

// TestCommandLineInterrupted interrupts a command that waits, and has one wait
// while Caddy's admin endpoint restarts.
func TestCommandLineInterrupted(t *testing.T) {
	h := newHost(t, fairwayOption("domain http://run.test"))
	config := h.caddyfile("fairway")
	h.start(config)
	wait := func(args ...string) (*exec.Cmd, *bytes.Buffer) {
		cmd := h.cliCommand(args...)
		var msg bytes.Buffer
		cmd.Stderr = &msg
		h.check(cmd.Start())
		return cmd, &msg
	}
	cmd, msg := wait("deploy", "hello", "--image", h.image(1), "--set-env-vars=FAIL_START=nolisten")
	eventually(t, "an instance starts", func() bool { return len(h.instancesOf("hello")) == 1 })
	h.check(cmd.Process.Signal(syscall.SIGINT))
	_ = cmd.Wait()
	outcome{msg: msg.String(), code: cmd.ProcessState.ExitCode()}.wants(t, 130, "on: see caddy fairway services hello", "Error: interrupted")
	if len(h.instancesOf("hello")) != 1 {
		t.Error("the deployment does not go on")
	}

	cmd, msg = wait("deploy", "hello", "--update-env-vars=FAIL_START=probe503:2000", "--startup-probe=httpGet.path=/healthz")
	eventually(t, "the other instance starts", func() bool { return strings.Contains(h.ask("/fairway/instances"), "hello-00002-") })
	for range 5 {
		h.check(h.reload(h.caddyfile("header X-Again yes\nfairway"), true))
		time.Sleep(100 * time.Millisecond)
	}
	_ = cmd.Wait()
	outcome{msg: msg.String(), code: cmd.ProcessState.ExitCode()}.wants(t, 0, "Deploying service [hello]: ")
	h.cli("", "delete", "hello").wants(t, 0)
}
