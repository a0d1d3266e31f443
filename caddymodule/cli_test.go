package caddymodule

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"github.com/fairway-run/fairway/revisions"
)

// console is a host whose user types commands.
type console struct {
	*host

	address string
	stdin   string
}

// startConsole starts a Caddy with a fake engine, and its admin endpoint.
func startConsole(t *testing.T, site string) *console { return startConsoleOf(t, site, hello) }

// startConsoleOf is startConsole with instances that do something.
func startConsoleOf(t *testing.T, site string, handler func(string, *revisions.Revision) http.Handler) *console {
	t.Helper()
	h := startHost(t, site, handler)
	mux := http.NewServeMux()
	for _, route := range (adminAPI{}).Routes() {
		mux.HandleFunc(route.Pattern, func(w http.ResponseWriter, r *http.Request) {
			if err := route.Handler.ServeHTTP(w, r); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
			}
		})
	}
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	c := &console{host: h, address: srv.Listener.Addr().String()}
	t.Cleanup(func() { // the storage is that of all tests
		client, err := newAdminClient(c.address)
		if err != nil {
			t.Fatal(err)
		}
		defer client.close()
		all, err := client.services(context.Background())
		if err != nil {
			t.Error(err)
		}
		for _, svc := range all {
			_ = client.serving(context.Background(), http.MethodDelete, "services", svc.Name, nil, nil, nil)
		}
	})
	return c
}

// outcome is what came of a command.
type outcome struct {
	out, msg string
	code     int
}

// do runs "caddy fairway …" in this process.
func (c *console) do(args ...string) outcome {
	c.t.Helper()
	return runCommand(c.t.Context(), c.stdin, append([]string{"--address", c.address}, args...)...)
}

// must is do for a command that succeeds.
func (c *console) must(args ...string) outcome {
	c.t.Helper()
	got := c.do(args...)
	if got.code != 0 {
		c.t.Fatalf("%q exits with %d:\n%s%s", args, got.code, got.out, got.msg)
	}
	return got
}

func runCommand(ctx context.Context, stdin string, args ...string) outcome {
	var out, msg bytes.Buffer
	code := runCommandOn(ctx, strings.NewReader(stdin), &out, &msg, args...)
	return outcome{out: out.String(), msg: msg.String(), code: code}
}

// runCommandOn runs a command on streams and returns its exit code.
func runCommandOn(ctx context.Context, in io.Reader, out, msg io.Writer, args ...string) (code int) {
	root := &cobra.Command{Use: "caddy", SilenceUsage: true}
	cmd := &cobra.Command{Use: "fairway <command>"}
	buildCommand(cmd)
	root.AddCommand(cmd)
	root.SetOut(out)
	root.SetErr(msg)
	root.SetIn(in)
	line := append([]string{"fairway"}, args...)
	if len(args) > 0 && args[0] == cobra.ShellCompNoDescRequestCmd {
		line = append([]string{args[0], "fairway"}, args[1:]...)
	}
	root.SetArgs(line)
	if err := root.ExecuteContext(ctx); err != nil {
		code = exitFailed
		fmt.Sscanf(err.Error(), "exiting with status %d", &code)
	}
	return code
}

// wants fails the test unless the texts are in what the command printed.
func (o outcome) wants(t *testing.T, code int, texts ...string) {
	t.Helper()
	if o.code != code {
		t.Errorf("exit code %d, want %d:\n%s%s", o.code, code, o.out, o.msg)
	}
	for _, text := range texts {
		if !strings.Contains(o.out+o.msg, text) {
			t.Errorf("%q is not in:\n%s%s", text, o.out, o.msg)
		}
	}
}

func TestUsageErrors(t *testing.T) {
	file := filepath.Join(t.TempDir(), "service.yaml")
	if err := os.WriteFile(file, []byte("kind: Pod\napiVersion: v1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		args string
		want string
	}{
		{"nonsense", `"nonsense" is not a command of caddy fairway`},
		{"service", "is it services"},
		{"deploy", "which service?"},
		{"deploy a b --image x", "one service, not 2"},
		{"deploy a --nonsense", "unknown flag: --nonsense"},
		{"deploy a --image x --region here", "--region has no meaning here"},
		{"deploy a --image x --service-account me", "--service-account has no meaning here"},
		{"deploy a --wait-timeout 0s --image x", "--wait-timeout"},
		{"deploy a -f " + file, "exclude each other"},
		{"deploy --image x -f " + file, "--image and --filename exclude each other"},
		{"deploy -f " + file, "service.yaml: document 1"},
		{"deploy -f /does/not/exist", "no such file"},
		{"traffic", "which service?"},
		{"traffic a --to-latest --to-revisions b=1", "--to-latest and --to-revisions exclude each other"},
		{"traffic a --to-revisions b", "NAME=VALUE"},
		{"traffic a --to-revisions b=101", "not a percentage"},
		{"traffic a --set-tags a=b --clear-tags", "exclude each other"},
		{"rollback", "a service is needed"},
		{"delete", "which service?"},
		{"delete a --revision b", "exclude each other"},
		{"export", "which service?"},
		{"services --address http://nonsense", "--address"},
	} {
		t.Run(test.args, func(t *testing.T) {
			got := runCommand(t.Context(), "", append([]string{"--address", "127.0.0.1:1"}, strings.Fields(test.args)...)...)
			got.wants(t, exitUsage, test.want)
			if lines := strings.Count(got.msg, "\n"); lines != 1 || got.out != "" {
				t.Errorf("it is not one line:\n%s%s", got.out, got.msg)
			}
		})
	}
}

func TestUnreachable(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	l.Close()
	runCommand(t.Context(), "", "services", "--address", nobody).wants(t, exitUnreachable, "cannot be reached at "+nobody)
	socket := filepath.Join(t.TempDir(), "admin.sock")
	runCommand(t.Context(), "", "services", "--address", "unix/"+socket).wants(t, exitUnreachable, "cannot be reached at unix/"+socket)

	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	runCommand(t.Context(), "", "services", "--address", other.Listener.Addr().String()).wants(t, exitUnreachable, "has no Fairway")
	if got := runCommand(t.Context(), "", cobra.ShellCompNoDescRequestCmd, "services", "--address", nobody, ""); got.code != 0 || got.out != ":4\n" {
		t.Errorf("completion says %+v", got)
	}
}

func TestUnixSocket(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Origin") != "" {
			t.Error("an Origin is sent")
		}
		if strings.HasSuffix(r.URL.Path, "/namespaces") {
			io.WriteString(w, `{"items":[{"metadata":{"name":"mine"}}]}`)
			return
		}
		if want := "/apis/serving.knative.dev/v1/namespaces/mine/services"; r.URL.Path != want {
			t.Errorf("path %s, want %s", r.URL.Path, want)
		}
		io.WriteString(w, `{"items":[]}`)
	})}
	go srv.Serve(l)
	defer srv.Close()
	if got := runCommand(t.Context(), "", "services", "--json", "--address", "unix/"+socket+"|0220"); got.code != 0 || got.out != "[]\n" {
		t.Errorf("%+v", got)
	}
}

// TestHelp sees that each command says what it does, with an example.
func TestHelp(t *testing.T) {
	got := runCommand(t.Context(), "")
	got.wants(t, 0, "Exit codes:", "deploy", "services", "revisions", "instances", "traffic", "rollback", "delete", "export", "--address")
	cmd := &cobra.Command{Use: "fairway"}
	buildCommand(cmd)
	for _, sub := range cmd.Commands() {
		if sub.Short == "" || sub.Long == "" || !strings.Contains(sub.Example, "caddy fairway "+sub.Name()) {
			t.Errorf("%s is not explained", sub.Name())
		}
		for line := range strings.Lines(sub.Long) {
			if len([]rune(line)) > 81 {
				t.Errorf("%s: a long line: %s", sub.Name(), line)
			}
		}
	}
}
