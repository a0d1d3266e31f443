package revisions

import (
	"context"
	"sync"
	"time"

	"knative.dev/serving/pkg/apis/config"
	autoscalerconfig "knative.dev/serving/pkg/autoscaler/config"
)

// Defaults of a service that says nothing else; Cloud Run's where it has one.
const (
	// DefaultPort is what PORT says (Cloud Run: container contract).
	DefaultPort = 8080
	// DefaultConcurrency is how many requests one instance gets at the same time
	// (Cloud Run: maximum concurrent requests per instance).
	DefaultConcurrency = 80
	// MaxConcurrency is the most that can be configured.
	MaxConcurrency = 1000
	// DefaultMaxInstances bounds what one revision may start.
	DefaultMaxInstances = 100
	// DefaultTimeout and MaxTimeout bound a request (Cloud Run: request timeout).
	DefaultTimeout = 5 * time.Minute
	MaxTimeout     = time.Hour
	// DefaultIdleTimeout is how long an unused instance is kept (Cloud Run: 15 minutes).
	DefaultIdleTimeout = 15 * time.Minute
	// DefaultQueueDepth is how many requests of a revision may wait for a slot;
	// Knative's activator has the same bound.
	DefaultQueueDepth = 10_000
	// MaxQueueDepth keeps a typing error from taking the host's memory.
	MaxQueueDepth = 1_000_000
	// DefaultStartupTimeout is how long an instance may take to listen (Cloud Run: 4 minutes).
	DefaultStartupTimeout = 4 * time.Minute
	// DefaultProgressDeadline bounds what a new revision may take to become ready,
	// the pull of its image included (Knative: progress-deadline).
	DefaultProgressDeadline = 10 * time.Minute
	// DefaultTarget is the part of an instance's slots, and of its CPU, from whose use
	// on another instance is started ahead of need (Cloud Run: scaling targets).
	DefaultTarget = 0.6
	// MaxPrepared keeps a typing error from taking the host's memory.
	MaxPrepared = 1000
	// DefaultCPU and DefaultMemory limit one instance (Cloud Run: CPU and memory limits).
	DefaultCPU    = "1"
	DefaultMemory = "512Mi"
)

// AffinityAnnotation is Cloud Run's, on a revision template: "true" or "false".
const AffinityAnnotation = "run.googleapis.com/sessionAffinity"

// DependenciesAnnotation is Cloud Run's, on a revision template: which containers
// are started before others, such as {"app":["proxy","cache"]}. Source: Cloud Run:
// container start order.
const DependenciesAnnotation = "run.googleapis.com/container-dependencies"

// Annotations of Fairway's own, on a revision template.
const (
	// IdleTimeoutAnnotation is a Go duration, such as "15m".
	IdleTimeoutAnnotation = "run.fairway/idle-timeout"
	// DrainTimeoutAnnotation is a Go duration, such as "1h".
	DrainTimeoutAnnotation = "run.fairway/drain-timeout"
	// QueueDepthAnnotation is a number of requests.
	QueueDepthAnnotation = "run.fairway/queue-depth"
	// PreparedAnnotation is a number of instances.
	PreparedAnnotation = "run.fairway/prepared"
)

// knativeConfig is what an operator of Knative would write into its config maps
// to get Cloud Run's defaults and limits.
var knativeConfig = sync.OnceValue(func() *config.Config {
	defaults, err := config.NewDefaultsConfigFromMap(map[string]string{
		"revision-timeout-seconds":     "300",
		"max-revision-timeout-seconds": "3600",
		// Cloud Run bounds a request as a whole.
		"revision-response-start-timeout-seconds": "0",
		"container-concurrency":                   "80",
		"container-concurrency-max-limit":         "1000",
		"allow-container-concurrency-zero":        "false",
		"revision-cpu-limit":                      DefaultCPU,
		"revision-memory-limit":                   DefaultMemory,
	})
	if err != nil {
		panic("revisions: constant Knative defaults: " + err.Error())
	}
	// Beside what Knative has by default: volumes of the kind emptyDir, and several
	// containers, with probes of their own. What instances cannot have stays off, and is refused.
	features, err := config.NewFeaturesConfigFromMap(map[string]string{
		config.FeaturePodSpecSecurityContext:       "enabled",
		"multi-container-probing":                  "enabled",
		config.FeatureContainerSpecAddCapabilities: "enabled", // of those that instances have
	})
	if err != nil {
		panic("revisions: constant Knative features: " + err.Error())
	}
	scaler, err := autoscalerconfig.NewConfigFromMap(map[string]string{"allow-zero-initial-scale": "true"})
	if err != nil {
		panic("revisions: constant Knative autoscaler settings: " + err.Error())
	}
	return &config.Config{Defaults: defaults, Features: features, Autoscaler: scaler}
})

func withKnativeConfig(ctx context.Context) context.Context {
	return config.ToContext(ctx, knativeConfig())
}
