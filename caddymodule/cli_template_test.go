package caddymodule

import (
	"strings"
	"testing"

	"github.com/spf13/pflag"
	servingv1 "knative.dev/serving/pkg/apis/serving/v1"
	"sigs.k8s.io/yaml"
)

// edited is what flags make of a service, as YAML.
func edited(t *testing.T, before string, args ...string) (string, error) {
	t.Helper()
	flags := pflag.NewFlagSet("deploy", pflag.ContinueOnError)
	templateFlags(flags)
	if err := flags.Parse(args); err != nil {
		t.Fatal(err)
	}
	svc := new(servingv1.Service)
	if err := yaml.UnmarshalStrict([]byte(before), svc); err != nil {
		t.Fatal(err)
	}
	if err := editService(flags, svc); err != nil {
		return "", err
	}
	svc.Name = "hello"
	doc, err := document(svc)
	if err != nil {
		t.Fatal(err)
	}
	delete(doc, "apiVersion")
	delete(doc, "kind")
	b, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	return string(b), nil
}

const someEnv = `
spec: {template: {spec: {containers: [{image: x, env: [
  {name: A, value: "1"}, {name: B, value: "2"}, {name: S, valueFrom: {secretKeyRef: {name: db, key: password}}}]}]}}}`

func TestFlags(t *testing.T) {
	for _, test := range []struct {
		name   string
		before string
		args   []string
		want   string
	}{
		{"all", "{}", []string{
			"--image=x:1", "--command=/a,b", "--args=^;^c,d;e", "--port=9000", "--use-http2", "--set-env-vars=A=1,B=2", "--set-env-vars=^#^C=x,y",
			"--concurrency=7", "--cpu=0.5", "--memory=1Gi", "--timeout=10m", "--min-instances=1", "--max-instances=4", "--session-affinity",
			"--no-cpu-throttling", "--idle-timeout=90s", "--drain-timeout=1h", "--queue-depth=5", "--prepared=2", "--scaling-concurrency-target=0.8", "--scaling-cpu-target=disabled",
			"--min=2", "--max=6",
			"--startup-probe=httpGet.path=/ready,periodSeconds=2,failureThreshold=5", "--liveness-probe=grpc.service=x,grpc.port=9000", "--readiness-probe=httpGet.path=/ok,failureThreshold=2",
			"--labels=team=blue", "--description=A greeting",
		}, `metadata:
  annotations:
    run.googleapis.com/description: A greeting
    run.googleapis.com/maxScale: "6"
    run.googleapis.com/minScale: "2"
  labels:
    team: blue
  name: hello
spec:
  template:
    metadata:
      annotations:
        autoscaling.knative.dev/maxScale: "4"
        autoscaling.knative.dev/minScale: "1"
        run.fairway/drain-timeout: 1h0m0s
        run.fairway/idle-timeout: 1m30s
        run.fairway/prepared: "2"
        run.fairway/queue-depth: "5"
        run.googleapis.com/cpu-throttling: "false"
        run.googleapis.com/scaling-concurrency-target: "0.8"
        run.googleapis.com/scaling-cpu-target: disabled
        run.googleapis.com/sessionAffinity: "true"
      labels:
        team: blue
    spec:
      containerConcurrency: 7
      containers:
      - args:
        - c,d
        - e
        command:
        - /a
        - b
        env:
        - name: A
          value: "1"
        - name: B
          value: "2"
        - name: C
          value: x,y
        image: x:1
        livenessProbe:
          grpc:
            port: 9000
            service: x
        ports:
        - containerPort: 9000
          name: h2c
        readinessProbe:
          failureThreshold: 2
          httpGet:
            path: /ok
          periodSeconds: 10
          successThreshold: 2
        resources:
          limits:
            cpu: 500m
            memory: 1Gi
        startupProbe:
          failureThreshold: 5
          httpGet:
            path: /ready
          periodSeconds: 2
      timeoutSeconds: 600
`},
		{"set env", someEnv, []string{"--set-env-vars=C=3,B=4"}, "env: B=4 S=db:password C=3"},
		{"update env", someEnv, []string{"--update-env-vars=C=3,B=4", "--remove-env-vars=A"}, "env: B=4 S=db:password C=3"},
		{"clear env", someEnv, []string{"--clear-env-vars"}, "env: S=db:password"},
		{"set secrets", someEnv, []string{"--set-secrets=T=db:user"}, "env: A=1 B=2 T=db:user"},
		{"update secrets", someEnv, []string{"--update-secrets=S=db:pass"}, "env: A=1 B=2 S=db:pass"},
		{"clear secrets", someEnv, []string{"--clear-secrets"}, "env: A=1 B=2"},
		{"secret files", someEnv, []string{"--update-secrets=/etc/keys/a=tls:key,/etc/keys/b=tls:cert,/other/c=tls:key"}, `        volumeMounts:
        - mountPath: /etc/keys
          name: tls
        - mountPath: /other
          name: tls-2
      volumes:
      - name: tls
        secret:
          items:
          - key: key
            path: a
          - key: cert
            path: b
          secretName: tls
      - name: tls-2
        secret:
          items:
          - key: key
            path: c
          secretName: tls
`},
		{
			"no secret file is left", `
spec: {template: {spec: {containers: [{image: x, volumeMounts: [{name: v, mountPath: /k}]}], volumes: [{name: v, secret: {secretName: s, items: [{key: a, path: b}]}}]}}}`,
			[]string{"--remove-secrets=/k/b"},
			"spec:\n  template:\n    spec:\n      containers:\n      - image: x\n",
		},
		{
			"defaults", `
spec: {template: {metadata: {annotations: {autoscaling.knative.dev/min-scale: "3"}}, spec: {containerConcurrency: 1, containers: [{image: x, ports: [{containerPort: 90}]}]}}}`,
			[]string{"--min-instances=default", "--concurrency=default", "--port=default", "--no-use-http2"},
			"- containerPort: 8080",
		},
		{
			"a known spelling stays", `
spec: {template: {metadata: {annotations: {autoscaling.knative.dev/min-scale: "3"}}, spec: {containers: [{image: x}]}}}`,
			[]string{"--min-instances=3"},
			"autoscaling.knative.dev/min-scale: \"3\"",
		},
		{
			"scaling by hand", "{}",
			[]string{"--image=x", "--scaling=3"},
			"metadata:\n  annotations:\n    run.googleapis.com/manualInstanceCount: \"3\"\n    run.googleapis.com/scalingMode: manual\n",
		},
		{
			"scaling by itself", "metadata: {annotations: {run.googleapis.com/scalingMode: manual, run.googleapis.com/manualInstanceCount: '3', run.googleapis.com/minScale: '1'}}",
			[]string{"--image=x", "--scaling=auto", "--min=default"},
			"metadata:\n  name: hello\nspec:\n",
		},
		{"port 8080 need not be said", "{}", []string{"--image=x", "--port=8080"}, "spec:\n  template:\n    spec:\n      containers:\n      - image: x\n"},
		{
			"labels", "metadata: {labels: {a: b, c: d}}\nspec: {template: {metadata: {labels: {a: b}}, spec: {containers: [{image: x}]}}}",
			[]string{"--remove-labels=a", "--update-labels=e=f"},
			"labels:\n    c: d\n    e: f\n",
		},
		{
			"the ingress container", "spec: {template: {spec: {containers: [{name: side, image: s}, {name: app, image: a, ports: [{containerPort: 1}]}]}}}",
			[]string{"--image=b"},
			"- image: s\n        name: side\n",
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := edited(t, test.before, test.args...)
			if err != nil {
				t.Fatal(err)
			}
			if env, ok := strings.CutPrefix(test.want, "env: "); ok {
				if got := envOf(t, got); got != env {
					t.Errorf("env %s, want %s", got, env)
				}
			} else if !strings.Contains(got, test.want) {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

// envOf is the environment in words.
func envOf(t *testing.T, text string) string {
	t.Helper()
	svc := new(servingv1.Service)
	if err := yaml.Unmarshal([]byte(text), svc); err != nil {
		t.Fatal(err)
	}
	var parts []string
	for _, v := range svc.Spec.Template.Spec.Containers[0].Env {
		value := v.Value
		if v.ValueFrom != nil {
			value = v.ValueFrom.SecretKeyRef.Name + ":" + v.ValueFrom.SecretKeyRef.Key
		}
		parts = append(parts, v.Name+"="+value)
	}
	return strings.Join(parts, " ")
}

func TestFlagErrors(t *testing.T) {
	for args, want := range map[string]string{
		"--image=":                   "--image: it is empty",
		"--port=0":                   "--port",
		"--port=70000":               "--port",
		"--use-http2 --no-use-http2": "opposites",
		"--set-env-vars=A":           `--set-env-vars: "A" is not NAME=VALUE`,
		"--set-env-vars=A=1 --update-env-vars=B=1":   "exclude each other",
		"--set-env-vars=A=1 --clear-env-vars":        "exclude each other",
		"--clear-env-vars --remove-env-vars=A":       "exclude each other",
		"--update-env-vars=S=1":                      "--remove-secrets",
		"--update-secrets=A=db:x":                    "--remove-env-vars",
		"--update-secrets=T=db":                      `--update-secrets: "db" is not SECRET:KEY`,
		"--update-secrets=/file=db:x":                "a directory of its own",
		"--update-secrets=/d/a=db:x,/d/b=other:x":    "something else is mounted at /d",
		"--set-secrets=T=db:x --remove-secrets=T":    "exclude each other",
		"--env-vars-file=/does/not/exist":            "--env-vars-file",
		"--concurrency=0":                            "--concurrency",
		"--concurrency=many":                         "--concurrency",
		"--cpu=fast":                                 "--cpu",
		"--memory=-1Gi":                              "--memory",
		"--timeout=1.5s":                             "--timeout",
		"--timeout=0":                                "--timeout",
		"--min-instances=-1":                         "--min-instances",
		"--scaling=some":                             "--scaling",
		"--scaling=-1":                               "--scaling",
		"--max=0":                                    "--max",
		"--prepared=1001":                            "--prepared",
		"--scaling-concurrency-target=1":             "--scaling-concurrency-target",
		"--scaling-cpu-target=NaN":                   "--scaling-cpu-target",
		"--idle-timeout=0s":                          "--idle-timeout",
		"--drain-timeout=0s":                         "--drain-timeout",
		"--queue-depth=0":                            "--queue-depth",
		"--startup-probe=path=/":                     `--startup-probe: "path" is not a key`,
		"--startup-probe=periodSeconds=often":        "--startup-probe: periodSeconds",
		"--startup-probe=httpGet.path=/,grpc.port=1": "one of httpGet, tcpSocket and grpc",
		"--readiness-probe=successThreshold=x":       "--readiness-probe: successThreshold",
		"--labels=a":                                 "--labels",
		"--clear-labels --remove-labels=a":           "exclude each other",
	} {
		got, err := edited(t, someEnv, strings.Fields(args)...)
		if err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != exitUsage {
			t.Errorf("%s: %v, want %q\n%s", args, err, want, got)
		}
	}
}
