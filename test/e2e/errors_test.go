package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestCaddyfileErrors makes a mistake in a Caddyfile: adapting and validating it
// say so in one line, with its place.
func TestCaddyfileErrors(t *testing.T) {
	h := newHost(t)
	// The mistake is in line 6 of the site.
	site := func(option string) string {
		return h.caddyfile("respond /1 a\nrespond /2 b\nrespond /3 c\nfairway hello {\n\timage localhost/fairway/probe:1\n\t" + option + "\n}")
	}
	first := 0
	for n, line := range strings.Split(site("MISTAKE"), "\n") {
		if strings.Contains(line, "MISTAKE") {
			first = n + 1
		}
	}
	for name, test := range map[string]struct {
		caddyfile string
		want      string
		line      int // 0: any
	}{
		"unknown word":     {site("colour red"), "colour", first},
		"bad number":       {site("concurrency many"), "'many' is not a whole number", first},
		"concurrency 0":    {site("concurrency 0"), "concurrency: 0 is not from 1 to 1000", first},
		"concurrency 1001": {site("concurrency 1001"), "concurrency: 1001 is not from 1 to 1000", first},
		"min above max":    {site("instances 3 2"), "the minimum 3 is above the maximum 2", first},
		"bad amount":       {site("memory much"), `memory: "much" is not an amount`, first},
		"missing image":    {h.caddyfile("fairway hello {\n\tconcurrency 5\n}"), "service hello: missing image", 0},
		"two owners": {
			h.caddyfile("fairway /a hello {\n\timage a:1\n}\nfairway /b hello {\n\timage b:1\n}"),
			"service hello is declared twice, differently: also at ", 0,
		},
		"unknown global word": {strings.Replace(site("port 8080"), "on_exit stop", "on_leave stop", 1), "unrecognized option 'on_leave'", 0},
	} {
		for _, verb := range []string{"adapt", "validate"} {
			output, err := h.command(verb, test.caddyfile).CombinedOutput()
			if err == nil {
				t.Errorf("%s: %s finds no error", name, verb)
				continue
			}
			// Where there is no terminal, Caddy tells its errors in the form of its log.
			var lines []string
			for line := range strings.Lines(string(output)) {
				var e entry
				switch {
				case json.Unmarshal([]byte(line), &e) != nil:
					lines = append(lines, line)
				case e["level"] == "error":
					lines = append(lines, strings.Split(e.text("msg"), "\n")...)
				}
			}
			if len(lines) != 1 || !strings.Contains(lines[0], test.want) {
				t.Errorf("%s: %s says %q; want one line with %q", name, verb, lines, test.want)
				continue
			}
			place := regexp.MustCompile(`Caddyfile-\d+:(\d+)`).FindStringSubmatch(lines[0])
			if place == nil || (test.line > 0 && place[1] != fmt.Sprint(test.line)) {
				t.Errorf("%s: %s names the place %q; want line %d: %s", name, verb, place, test.line, lines[0])
			}
		}
	}
}

// twin is another Caddy on the same containerd namespace and directories.
func (h *host) twin() *host {
	h.t.Helper()
	second := &host{
		t: h.t, life: h.life, daemon: h.daemon, namespace: h.namespace, dir: filepath.Join(h.dir, "twin"),
		stateDir: h.stateDir, logDir: h.logDir, subnet: h.subnet, runtime: h.runtime, exit: h.exit,
		site: freeAddress(h.t), admin: freeAddress(h.t), client: newClient(), containerd: h.containerd,
	}
	h.check(os.MkdirAll(second.dir, 0o700))
	h.t.Cleanup(func() {
		second.stop()
		second.checkLog()
		if h.t.Failed() {
			h.t.Logf("the second Caddy's log:\n%s", second.rawLog())
		}
	})
	return second
}

// TestTwoCaddys has two Caddys that would manage the same instances: the second
// one says so, and does not touch them. It takes over when the first has gone.
func TestTwoCaddys(t *testing.T) {
	h := newHost(t, onExit("keep"))
	config := func(h *host) string { return h.caddyfile(h.service("hello", tellRevision)) }
	h.start(config(h))
	if got := h.get("/"); got.status != http.StatusOK {
		t.Fatalf("%s", got)
	}
	before := h.identities()
	second := h.twin()
	second.start(config(second))
	for range 3 {
		if got := second.get("/"); got.status != http.StatusServiceUnavailable {
			t.Errorf("the second Caddy answers %s; want 503", got)
		}
	}
	want := fmt.Sprintf("another Fairway process (pid %d) manages it", h.pid())
	if s := second.serviceNamed("hello"); !strings.Contains(s.Error, want) {
		t.Errorf("the second Caddy's API says %q; want %q", s.Error, want)
	}
	said := second.logged("revision load_failed")
	if len(said) == 0 || !strings.Contains(said[0].text("error"), want) {
		t.Errorf("the second Caddy's log says %v; want %q", said, want)
	}
	second.check(second.reload(second.caddyfile("header X-Config 2\n"+second.service("hello", tellRevision)), false))
	if got := h.get("/"); got.status != http.StatusOK || got.header.Get("X-Revision") != "hello-00001" {
		t.Errorf("the first Caddy answers %s", got)
	}
	if after := h.identities(); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("instances %v; want %v", after, before)
	}
	h.assertOnly(1)

	h.stop()
	eventually(t, "the second Caddy has taken over", func() bool {
		return second.get("/").status == http.StatusOK && strings.Join(second.identities(), " ") == strings.Join(before, " ")
	})
	second.stop()
}
