package caddymodule

import (
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/fairway-run/fairway/instancepool"
	"github.com/fairway-run/fairway/scaler"
)

const (
	metricsNamespace = "caddy"
	metricsSubsystem = "fairway"
)

// The collectors belong to the process, as what they count does: each config has
// a registry of its own, and they are registered in each.
var (
	requestsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "requests_total",
		Help: "Requests by outcome: admitted to an instance, or refused and why.",
	}, []string{"service", "revision", "outcome"})
	timeoutsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "request_timeouts_total",
		Help: "Admitted requests whose time was over before their response.",
	}, []string{"service", "revision"})
	queueSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "queue_seconds",
		Help:    "How long admitted requests waited for a slot.",
		Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300},
	}, []string{"service"})
	coldStartSeconds = prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "cold_start_seconds",
		Help:    "How long the phases of an instance's start took; the phase total is the whole.",
		Buckets: []float64{0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 240},
	}, []string{"service", "phase"})
	instanceEventsTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: metricsNamespace, Subsystem: metricsSubsystem, Name: "instance_events_total",
		Help: "Changes of instances' states.",
	}, []string{"service", "state"})
)

// liveCollector reads what runs at the time it is asked.
type liveCollector struct {
	instances, inFlight, queued, held *prometheus.Desc
	budget, budgetUsed, cpu, cpuUsed  *prometheus.Desc
	evictions, pending, strained      *prometheus.Desc
}

var live = liveCollector{
	instances: prometheus.NewDesc("caddy_fairway_instances", "Instances by state.",
		[]string{"service", "revision", "state"}, nil),
	inFlight: prometheus.NewDesc("caddy_fairway_requests_in_flight", "Requests in instances.",
		[]string{"service", "revision"}, nil),
	queued: prometheus.NewDesc("caddy_fairway_requests_queued", "Requests that wait for a slot.",
		[]string{"service", "revision"}, nil),
	held: prometheus.NewDesc("caddy_fairway_instances_memory_bytes", "What instances held when that was last measured.",
		[]string{"service", "revision"}, nil),
	budget: prometheus.NewDesc("caddy_fairway_memory_budget_bytes", "What all instances together may hold; 0 without a bound.", nil, nil),
	budgetUsed: prometheus.NewDesc("caddy_fairway_memory_used_bytes",
		"What all instances count with: what they hold, or their limit while they start.", nil, nil),
	cpu:       prometheus.NewDesc("caddy_fairway_cpu_budget", "The processors that the limits of all instances may add up to; 0 without a bound.", nil, nil),
	cpuUsed:   prometheus.NewDesc("caddy_fairway_cpu_used", "The processors that the limits of all instances add up to.", nil, nil),
	evictions: prometheus.NewDesc("caddy_fairway_evictions_total", "Instances stopped because others needed their room.", nil, nil),
	pending:   prometheus.NewDesc("caddy_fairway_starts_waiting_for_room", "Starts that wait for memory or CPU.", nil, nil),
	strained: prometheus.NewDesc("caddy_fairway_strained_seconds_total",
		"For how long the host's processors were found used up while instances were in use: none is started ahead of need then.", nil, nil),
}

// Describe implements prometheus.Collector.
func (c liveCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{c.instances, c.inFlight, c.queued, c.held, c.budget, c.budgetUsed, c.cpu, c.cpuUsed, c.evictions, c.pending, c.strained} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (c liveCollector) Collect(ch chan<- prometheus.Metric) {
	gauge := func(desc *prometheus.Desc, n int, labels ...string) {
		ch <- prometheus.MustNewConstMetric(desc, prometheus.GaugeValue, float64(n), labels...)
	}
	c.collectBudget(ch)
	for _, svc := range status() {
		seen := make(map[string]bool) // a revision may have two pools for a moment
		for _, rev := range svc.Revisions {
			if seen[rev.Revision.Name] {
				continue
			}
			seen[rev.Revision.Name] = true
			states := make(map[instancepool.State]int)
			held := int64(0)
			for _, i := range rev.Instances {
				states[i.State]++
				held += i.Usage.Memory
			}
			ch <- prometheus.MustNewConstMetric(c.held, prometheus.GaugeValue, float64(held), svc.Name, rev.Revision.Name)
			for state, n := range states {
				gauge(c.instances, n, svc.Name, rev.Revision.Name, state.String())
			}
			gauge(c.inFlight, rev.InFlight, svc.Name, rev.Revision.Name)
			gauge(c.queued, rev.Waiting, svc.Name, rev.Revision.Name)
		}
	}
}

// collectBudget tells how the host's memory is used.
func (c liveCollector) collectBudget(ch chan<- prometheus.Metric) {
	e := current.Load()
	if e == nil {
		return
	}
	b := e.scaler.Budget()
	ch <- prometheus.MustNewConstMetric(c.budget, prometheus.GaugeValue, float64(b.Total))
	ch <- prometheus.MustNewConstMetric(c.budgetUsed, prometheus.GaugeValue, float64(b.Used))
	ch <- prometheus.MustNewConstMetric(c.cpu, prometheus.GaugeValue, b.CPU)
	ch <- prometheus.MustNewConstMetric(c.cpuUsed, prometheus.GaugeValue, b.UsedCPU)
	ch <- prometheus.MustNewConstMetric(c.evictions, prometheus.CounterValue, float64(b.Evictions))
	ch <- prometheus.MustNewConstMetric(c.pending, prometheus.GaugeValue, float64(b.Waiting))
	ch <- prometheus.MustNewConstMetric(c.strained, prometheus.CounterValue, b.Strained.Seconds())
}

func registerMetrics(registry *prometheus.Registry) error {
	if registry == nil {
		return nil
	}
	for _, c := range []prometheus.Collector{requestsTotal, timeoutsTotal, queueSeconds, coldStartSeconds, instanceEventsTotal, live} {
		var already prometheus.AlreadyRegisteredError
		if err := registry.Register(c); err != nil && !errors.As(err, &already) {
			return fmt.Errorf("registering metrics: %w", err)
		}
	}
	return nil
}

// admission counts the requests that a revision gets. To find its series anew for each
// request costs more than to count it.
type admission struct {
	total  prometheus.Counter
	waited prometheus.Observer
}

type revisionName struct{ service, revision string }

// admissions has those whose series there are.
var (
	admissionsMu sync.RWMutex // guards admissions, and that the series are the same
	admissions   = make(map[revisionName]admission)
)

func admissionOf(of revisionName) admission {
	admissionsMu.RLock()
	a, ok := admissions[of]
	admissionsMu.RUnlock()
	if ok {
		return a
	}
	admissionsMu.Lock()
	defer admissionsMu.Unlock()
	a = admission{requestsTotal.WithLabelValues(of.service, of.revision, "admitted"), queueSeconds.WithLabelValues(of.service)}
	admissions[of] = a
	return a
}

func countAcquired(lease *instancepool.Lease) {
	rev := lease.Revision()
	a := admissionOf(revisionName{rev.Service, rev.Name})
	a.total.Inc()
	a.waited.Observe(lease.Waited.Seconds())
}

func countTimeout(lease *instancepool.Lease) {
	rev := lease.Revision()
	timeoutsTotal.WithLabelValues(rev.Service, rev.Name).Inc()
}

func countRefused(service, outcome string) {
	requestsTotal.WithLabelValues(service, "", outcome).Inc()
}

func countInstance(ev instancepool.Event) {
	instanceEventsTotal.WithLabelValues(ev.Service, ev.State.String()).Inc()
	if ev.State != instancepool.Ready || ev.Adopted || ev.Phases == nil { // not a start
		return
	}
	for phase, took := range ev.Phases {
		coldStartSeconds.WithLabelValues(ev.Service, phase).Observe(took.Seconds())
	}
	coldStartSeconds.WithLabelValues(ev.Service, "total").Observe(ev.Took.Seconds())
}

// countRevision forgets the series of a revision or a service that is gone, so that
// their number does not grow with the number of deploys.
func countRevision(ev scaler.RevisionEvent) {
	if ev.Kind != "retired" && ev.Kind != "removed" {
		return
	}
	admissionsMu.Lock()
	defer admissionsMu.Unlock()
	switch ev.Kind {
	case "retired":
		delete(admissions, revisionName{ev.Service, ev.Revision})
		of := prometheus.Labels{"service": ev.Service, "revision": ev.Revision}
		requestsTotal.DeletePartialMatch(of)
		timeoutsTotal.DeletePartialMatch(of)
	case "removed":
		maps.DeleteFunc(admissions, func(name revisionName, _ admission) bool { return name.service == ev.Service })
		of := prometheus.Labels{"service": ev.Service}
		requestsTotal.DeletePartialMatch(of)
		timeoutsTotal.DeletePartialMatch(of)
		queueSeconds.DeletePartialMatch(of)
		coldStartSeconds.DeletePartialMatch(of)
		instanceEventsTotal.DeletePartialMatch(of)
	}
}
