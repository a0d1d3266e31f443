package revisions

import (
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// ProbeKind is how a probe asks.
type ProbeKind int

const (
	// ProbeTCP succeeds when the port accepts a connection.
	ProbeTCP ProbeKind = iota
	// ProbeHTTP succeeds when GET answers with a status from 200 to 399.
	ProbeHTTP
	// ProbeGRPC succeeds when grpc.health.v1 answers SERVING.
	ProbeGRPC
	// ProbeExec succeeds when a command inside the container exits with code 0
	// (Knative; Cloud Run has none).
	ProbeExec
)

// String is the word a Caddyfile uses for it.
func (k ProbeKind) String() string {
	return [...]string{"tcp", "http", "grpc", "exec"}[k]
}

// Probe asks an instance whether it may get requests.
// Source: Cloud Run: container health checks.
type Probe struct {
	Kind ProbeKind
	// Port is the port asked inside the instance.
	Port int
	// Path and Header are sent by an HTTP probe.
	Path   string
	Header http.Header
	// Command is what an exec probe runs.
	Command []string
	// Service is the name a gRPC probe asks for; empty means the whole server.
	Service string
	// Delay is waited before the first attempt.
	Delay time.Duration
	// Attempt bounds one attempt.
	Attempt time.Duration
	// Total bounds all attempts together, Delay not included: the probe has
	// failed when the last of its periods has passed.
	Total time.Duration
}

// startupProbe is what decides that an instance has started: the container's
// startup probe, else its readiness probe, which by default asks for a
// connection to the port.
func startupProbe(c *corev1.Container, port Port) Probe {
	p := c.StartupProbe
	if p == nil {
		p = c.ReadinessProbe
	}
	probe := Probe{Kind: ProbeTCP, Port: port.Number, Attempt: time.Second, Total: DefaultStartupTimeout}
	if p == nil {
		return probe
	}
	probe.Delay = time.Duration(p.InitialDelaySeconds) * time.Second
	// A readiness probe that fails says "not yet" for as long as it takes.
	if c.StartupProbe != nil && p.PeriodSeconds > 0 && p.FailureThreshold > 0 {
		probe.Total = time.Duration(p.PeriodSeconds) * time.Duration(p.FailureThreshold) * time.Second
	}
	if p.TimeoutSeconds > 0 {
		probe.Attempt = time.Duration(p.TimeoutSeconds) * time.Second
	}
	switch {
	case p.HTTPGet != nil:
		probe.Kind = ProbeHTTP
		probe.Path = p.HTTPGet.Path
		if probe.Path == "" {
			probe.Path = "/"
		}
		for _, h := range p.HTTPGet.HTTPHeaders {
			if probe.Header == nil {
				probe.Header = make(http.Header)
			}
			probe.Header.Add(h.Name, h.Value)
		}
		probe.Port = orPort(int(p.HTTPGet.Port.IntVal), port)
	case p.Exec != nil:
		probe.Kind, probe.Command = ProbeExec, p.Exec.Command
	case p.GRPC != nil:
		probe.Kind = ProbeGRPC
		probe.Service = deref(p.GRPC.Service, "")
		probe.Port = orPort(int(p.GRPC.Port), port)
	case p.TCPSocket != nil:
		probe.Port = orPort(int(p.TCPSocket.Port.IntVal), port)
	}
	return probe
}

func orPort(n int, port Port) int {
	if n == 0 {
		return port.Number
	}
	return n
}
