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

// Probe asks a container how it is.
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
	// Delay is waited before the first attempt, from the process's start on.
	Delay time.Duration
	// Attempt bounds one attempt.
	Attempt time.Duration
	// Total bounds all attempts of a startup probe together, Delay not included: it
	// has failed when the last of its periods has passed.
	Total time.Duration
}

// startupProbe is what decides that a container has started: its startup probe,
// else its readiness probe. That of the container that gets the requests asks by
// default for a connection to the port; a sidecar's is nil then.
func startupProbe(c *corev1.Container, port Port, ingress bool) *Probe {
	p := c.StartupProbe
	if p == nil {
		p = c.ReadinessProbe
	}
	if p == nil && !ingress {
		return nil
	}
	probe := &Probe{Kind: ProbeTCP, Port: port.Number, Attempt: time.Second, Total: DefaultStartupTimeout}
	if p == nil {
		return probe
	}
	probe.read(p, port)
	// A readiness probe that fails says "not yet" for as long as it takes.
	if c.StartupProbe != nil {
		probe.Total = seconds(periodOf(p)) * time.Duration(failuresOf(p))
	}
	return probe
}

// read reads how is asked, and the times of one attempt.
func (probe *Probe) read(p *corev1.Probe, port Port) {
	probe.Delay = seconds(p.InitialDelaySeconds)
	if p.TimeoutSeconds > 0 {
		probe.Attempt = seconds(p.TimeoutSeconds)
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
}

func orPort(n int, port Port) int {
	if n == 0 {
		return port.Number
	}
	return n
}
