package caddymodule

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/caddyfile"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	_ "github.com/caddyserver/caddy/v2/modules/caddyhttp/standard" // fairway has its place among these directives
	"github.com/google/go-cmp/cmp"
)

// adapt returns a Caddyfile as indented JSON.
func adapt(t testing.TB, text string) (string, error) {
	t.Helper()
	adapter := caddyfile.Adapter{ServerType: httpcaddyfile.ServerType{}}
	b, _, err := adapter.Adapt([]byte(text), map[string]any{"filename": "Caddyfile"})
	if err != nil {
		return "", err
	}
	var v any
	if err := json.Unmarshal(b, &v); err != nil {
		t.Fatal(err)
	}
	b, err = json.MarshalIndent(v, "", "\t")
	return string(b), err
}

// TestAdapt compares each testdata/*.caddyfiletest: a Caddyfile, a line of
// dashes, and the JSON it stands for.
func TestAdapt(t *testing.T) {
	files, err := filepath.Glob("testdata/*.caddyfiletest")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".caddyfiletest"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			input, want, ok := strings.Cut(string(b), "\n----------\n")
			if !ok {
				t.Fatal("no line of ten dashes")
			}
			got, err := adapt(t, input)
			if err != nil {
				t.Fatal(err)
			}
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, []byte(input+"\n----------\n"+got+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(strings.TrimSpace(want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestCaddyfileErrors(t *testing.T) {
	// The option under test is on line 4.
	const site = ":8080 {\n\tfairway hello {\n\t\timage localhost/hello:1\n\t\t%s\n\t}\n}\n"
	for _, test := range []struct{ option, want string }{
		{"colour red", "unrecognized subdirective colour"},
		{"concurrency 0", "concurrency: 0 is not from 1 to 1000"},
		{"concurrency 1001", "concurrency: 1001 is not from 1 to 1000"},
		{"concurrency many", "concurrency: 'many' is not a whole number"},
		{"concurrency", "wrong argument count"},
		{"concurrency 1 2", "wrong argument count"},
		{"instances 2 1", "instances: the minimum 2 is above the maximum 1"},
		{"instances 2", "instances takes a minimum and a maximum"},
		{"instances 0 0", "instances: 0 is not from 1 to 1000000"},
		{"instances -1 1", "instances: -1 is not from 0"},
		{"image other:1", "duplicate option 'image'"},
		{"port 0", "port: 0 is not from 1 to 65535"},
		{"port h3 80", "port takes a number, or h2c and a number"},
		{"env A", "env takes a name and a value"},
		{"env PORT 1", `"PORT" is a reserved environment variable`},
		{"timeout 2h", "timeout 2h0m0s is not in whole seconds up to 1h0m0s"},
		{"timeout 1.5s", "timeout 1.5s is not in whole seconds"},
		{"response_start_timeout 301s", "response_start_timeout 5m1s is not in whole seconds up to 5m0s"},
		{"timeout 10s\n response_idle_timeout 11s", "response_idle_timeout 11s is not in whole seconds up to 10s"},
		{"response_idle_timeout 1ms", "response_idle_timeout 1ms is not in whole seconds"},
		{"timeout soon", "timeout: 'soon' is not a duration above zero"},
		{"idle_timeout 0s", "idle_timeout: '0s' is not a duration above zero"},
		{"cpu fast", "cpu: \"fast\" is not an amount"},
		{"memory 5B", "memory: \"5B\" is not an amount"},
		{"memory -1Gi", "memory: \"-1Gi\" is not an amount"},
		{"drain_timeout 0s", "drain_timeout: '0s' is not a duration above zero"},
		{"queue_depth 0", "queue_depth: 0 is not from 1"},
		{"prepared 1001", "prepared: 1001 is not from 0 to 1000"},
		{"cpu_throttling perhaps", "cpu_throttling: 'perhaps' is not true or false"},
		{"concurrency_target 0", "concurrency_target \"0\" is not a number from 0.1 to 0.95, or off"},
		{"cpu_target all", "cpu_target \"all\" is not a number from 0.1 to 0.95, or off"},
		{"concurrency_target off\ncpu_target off", "not both can be disabled"},
		{"window 1s", "window 1s is not from 6s to 1h0m0s"},
		{"startup_probe exec ls", "startup_probe is tcp, http or grpc, not 'exec'"},
		{"startup_probe tcp /x", "wrong argument count"},
		{"startup_probe", "wrong argument count"},
		{"liveness_probe exec ls", "liveness_probe is tcp, http or grpc, not 'exec'"},
		{"liveness_probe http {\nperiod 2h\n}", "liveness_probe: period 2h0m0s is longer than 1h0m0s"},
		{"liveness_probe http {\ninitial_delay 2h\n}", "liveness_probe: initial_delay 2h0m0s is longer than 1h0m0s"},
		{"liveness_probe http {\ntimeout 11s\n}", "liveness_probe: timeout 11s is longer than the period, 10s"},
		{"liveness_probe http {\ntimeout 1.5s\n}", "liveness_probe: timeout 1.5s is not in whole seconds"},
		{"liveness_probe http {\nsuccess_threshold 2\n}", "liveness_probe: success_threshold 2: only a readiness_probe has one"},
		{"startup_probe http {\nsuccess_threshold 2\n}", "startup_probe: success_threshold 2: only a readiness_probe has one"},
		{"startup_probe http {\ninitial_delay 241s\n}", "startup_probe: initial_delay 4m1s is longer than 4m0s"},
		{"startup_probe http {\nperiod 241s\n}", "startup_probe: period 4m1s is longer than 4m0s"},
		{"startup_probe http {\nperiod 2s\ntimeout 3s\n}", "startup_probe: timeout 3s is longer than the period, 2s"},
		{"startup_probe http {\nperiod 60s\nfailure_threshold 5\n}", "startup_probe: failure_threshold 5 with a period of 1m0s is longer than 4m0s"},
		{"startup_probe http {\nfailure_threshold 25\n}", "startup_probe: failure_threshold 25 with a period of 10s is longer than 4m0s"},
		{"readiness_probe", "wrong argument count"},
		{"readiness_probe http {\nperiod 301s\n}", "readiness_probe: period 5m1s is longer than 5m0s"},
		{"readiness_probe http {\nsuccess_threshold 0\n}", "success_threshold: 0 is not from 1 to 10000"},
		{"readiness_probe http {\nspeed 1\n}", "unrecognized readiness_probe option 'speed'"},
		{"readiness_probe tcp\nreadiness_probe tcp", "duplicate option 'readiness_probe'"},
		{"lb_policy first", "'lb_policy' has no place here"},
		{"to localhost:1", "'to' has no place here"},
		{"flush_interval never", "bad duration value 'never'"},
	} {
		t.Run(test.option, func(t *testing.T) {
			_, err := adapt(t, fmt.Sprintf(site, test.option))
			wantError(t, err, test.want)
			if err != nil && !strings.Contains(err.Error(), "Caddyfile:") {
				t.Errorf("the error names no place: %v", err)
			}
		})
	}
	t.Run("the line is named", func(t *testing.T) {
		_, err := adapt(t, fmt.Sprintf(site, "concurrency 0"))
		wantError(t, err, "Caddyfile:4")
	})
	for name, test := range map[string]struct{ text, want string }{
		"missing image":      {":8080 {\n\tfairway hello {\n\t\tport 80\n\t}\n}\n", "service hello: missing image"},
		"no name":            {":8080 {\n\tfairway {\n\t\timage app\n\t}\n}\n", "what is declared here needs a name"},
		"bad domain":         {"{\n\tfairway {\n\t\tdomain ftp://x\n\t}\n}\n", "the scheme is http or https"},
		"bad namespace":      {"{\n\tfairway {\n\t\tnamespace A_B\n\t}\n}\n", "'A_B' cannot be a namespace"},
		"bad name":           {":8080 {\n\tfairway Hello_1\n}\n", "'Hello_1' cannot be a service's name"},
		"two names":          {":8080 {\n\tfairway a b\n}\n", "wrong argument count"},
		"two owners":         {":8080 {\n\tfairway a {\n\t\timage app:1\n\t}\n}\n:8081 {\n\tfairway a {\n\t\timage app:2\n\t}\n}\n", "service a is declared twice, differently: also at Caddyfile:"},
		"probe option":       {":8080 {\n\tfairway a {\n\t\timage app:1\n\t\tstartup_probe http / {\n\t\t\tspeed 1\n\t\t}\n\t}\n}\n", "Caddyfile:5"},
		"global twice":       {"{\n\tfairway {\n\t}\n\tfairway\n}\n", "the fairway option is given twice"},
		"global option":      {"{\n\tfairway {\n\t\tcolour red\n\t}\n}\n", "unrecognized option 'colour', at Caddyfile:3"},
		"global memory":      {"{\n\tfairway {\n\t\tmemory all\n\t}\n}\n", "memory: \"all\" is not an amount such as 1, 500m, 512MiB or 1Gi, 75% or off, at Caddyfile:3"},
		"global part":        {"{\n\tfairway {\n\t\tmemory 120%\n\t}\n}\n", "\"120%\" is not a part from 0% to 100%, at Caddyfile:3"},
		"global prepared":    {"{\n\tfairway {\n\t\tprepared -1\n\t}\n}\n", "prepared: '-1' is not a number from 0 to 1000, at Caddyfile:3"},
		"global cpu":         {"{\n\tfairway {\n\t\tcpu 0%\n\t}\n}\n", "cpu: \"0%\" is not a number of processors above 0"},
		"global cpu twice":   {"{\n\tfairway {\n\t\tcpu 2\n\t\tcpu off\n\t}\n}\n", "duplicate option 'cpu'"},
		"global on_exit":     {"{\n\tfairway {\n\t\ton_exit run\n\t}\n}\n", "on_exit is keep or stop, not 'run', at Caddyfile:3"},
		"unknown runtime":    {"{\n\tfairway {\n\t\truntime podman\n\t}\n}\n", "fairway.runtimes.podman"},
		"runtime twice":      {"{\n\tfairway {\n\t\truntime fake\n\t\truntime fake\n\t}\n}\n", "duplicate option 'runtime'"},
		"not one image word": {":8080 {\n\tfairway a {\n\t\timage app:1 app:2\n\t}\n}\n", "Caddyfile:3"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := adapt(t, test.text)
			wantError(t, err, test.want)
			if err != nil && strings.Contains(strings.TrimSpace(err.Error()), "\n") {
				t.Errorf("the error has several lines: %q", err)
			}
		})
	}
}

func wantError(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error; want %q", want)
	}
	if !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not contain %q", err, want)
	}
}

func TestSameDeclarationTwice(t *testing.T) {
	_, err := adapt(t, "(app) {\n\tfairway a {\n\t\timage app:1\n\t}\n}\n:8080 {\n\timport app\n}\n:8081 {\n\timport app\n}\n")
	if err != nil {
		t.Errorf("a snippet imported twice: %v", err)
	}
}

func TestParseQuantity(t *testing.T) {
	for text, want := range map[string]int64{
		"512MiB": 512 << 20, "512Mi": 512 << 20, "1Gi": 1 << 30, "1GB": 1e9, "2KB": 2000, "1K": 1000, "3": 3, "64KiB": 64 << 10,
	} {
		q, err := parseQuantity(text)
		if err != nil || q.Value() != want {
			t.Errorf("parseQuantity(%q) = %d, %v; want %d", text, q.Value(), err, want)
		}
	}
	for _, text := range []string{"", "B", "5B", "0", "-1", "Mi", "MiB", "1 Gi", "1XB"} {
		if q, err := parseQuantity(text); err == nil {
			t.Errorf("parseQuantity(%q) = %v; want an error", text, &q)
		}
	}
}

// FuzzCaddyfile looks for a text that makes the parser panic, and checks that
// what it takes is a service that Knative's validation takes.
func FuzzCaddyfile(f *testing.F) {
	for _, option := range []string{
		"image app:1", "image app:1\n\t\tconcurrency 80\n\t\tinstances 0 10", "image app\n\t\tstartup_probe http / {\n\t\t\tperiod 1s\n\t\t}",
		"image app\n\t\tport h2c 8080\n\t\tenv A \"b c\"", "header_up X {http.fairway.revision}", "image app\n\t\tmemory 1e3MiB",
		"image app\n\t\tstartup_probe grpc a.B {\n\t\t\tport 0x1\n\t\t}", "image app\n\t\tliveness_probe tcp\n\t\treadiness_probe http /a {\n\t\t\tsuccess_threshold 2\n\t\t}", "image app\n\t\thandle_response {\n\t\t\trespond 1\n\t\t}", "image \"\"", "}\n{",
	} {
		f.Add(option)
	}
	f.Fuzz(func(t *testing.T, options string) { takeOrRefuse(t, options) })
}

// takeOrRefuse adapts a site with the given options, and reports an error for
// options that are taken but make no valid service.
func takeOrRefuse(t testing.TB, options string) (taken bool) {
	t.Helper()
	js, err := adapt(t, ":8080 {\n\tfairway hello {\n\t\t"+options+"\n\t}\n}\n")
	if err != nil {
		return false
	}
	for _, handler := range handlers(t, []byte(js)) {
		if handler.Definition == nil {
			continue
		}
		if err := handler.Definition.validate(handler.Service); err != nil {
			t.Errorf("accepted, but %v: %s", err, options)
		}
		taken = true
	}
	return taken
}

// TestRandomOptions throws well-formed and broken options at the parser: many
// more in a second than the fuzzer, which carries all of Caddy with it.
func TestRandomOptions(t *testing.T) {
	names := []string{
		"image", "command", "args", "port", "env", "concurrency", "instances", "initial_scale", "idle_timeout",
		"timeout", "response_start_timeout", "response_idle_timeout", "drain_timeout", "queue_depth", "cpu", "memory", "startup_probe", "liveness_probe", "readiness_probe", "success_threshold", "header_up", "flush_interval", "period", "header",
		"initial_delay", "failure_threshold", "prepared", "cpu_throttling", "concurrency_target", "cpu_target", "window", "to", "transport", "colour",
	}
	words := []string{
		"app:1", "localhost/app", "8080", "0", "1", "-1", "80", "1001", "99999999999999999999", "1e3", "0x10", "h2c", "http1",
		"tcp", "http", "grpc", "/healthz", "1s", "0s", "2h", "1.5s", "15m", "512MiB", "1Gi", "500m", "KEY", "value", "\"a b\"",
		"\"\"", "{env.HOME}", "{", "}", "{\n", "\n}", "@x", "ünïcode", "`", "\\", "\x00",
	}
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	took, rounds := 0, 3000
	if os.Getenv("FAIRWAY_FULL") != "" {
		rounds = 100_000
	}
	for range rounds {
		var b strings.Builder
		if random.IntN(4) > 0 {
			b.WriteString("image app:1")
		}
		for range random.IntN(5) {
			b.WriteString("\n\t\t" + names[random.IntN(len(names))])
			for range random.IntN(4) {
				b.WriteString(" " + words[random.IntN(len(words))])
			}
		}
		if takeOrRefuse(t, b.String()) {
			took++
		}
	}
	if took < 20 {
		t.Errorf("only %d of them were good: the test tries too little", took)
	}
}

// handlers returns all handlers of ours in a JSON config.
func handlers(t testing.TB, js []byte) []*Handler {
	t.Helper()
	var found []*Handler
	var object map[string]json.RawMessage
	var list []json.RawMessage
	switch {
	case json.Unmarshal(js, &list) == nil:
		for _, v := range list {
			found = append(found, handlers(t, v)...)
		}
	case json.Unmarshal(js, &object) == nil:
		if string(object["handler"]) == `"fairway"` {
			delete(object, "handler")
			b, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			h := new(Handler)
			if err := caddy.StrictUnmarshalJSON(b, h); err != nil {
				t.Errorf("its own JSON cannot be read: %v", err)
			}
			found = append(found, h)
		}
		for _, v := range object {
			found = append(found, handlers(t, v)...)
		}
	}
	return found
}
