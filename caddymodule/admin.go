package caddymodule

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	"github.com/caddyserver/caddy/v2"

	"github.com/fairway-run/fairway/scaler"
)

func init() {
	caddy.RegisterModule(adminAPI{})
}

// adminAPI shows what runs, on Caddy's admin endpoint:
//
// - `GET /fairway/services`: the services and their revisions; `?service=` asks
// for one
// - `GET /fairway/instances`: the instances; `?service=` asks for those of one
// - `GET /fairway/host`: the memory that instances share
// - `GET /fairway/problems`: files of services and records that cannot be read
// - `/apis/serving.knative.dev/v1/…`: Knative Serving's own API, which makes and
// changes services, and `/api/v1/…`, the little of Kubernetes that belongs to it
//
// It reads the process-wide engine: after a reload that failed, the app of the
// failed config would know nothing.
type adminAPI struct{}

// CaddyModule tells Caddy what the API is.
func (adminAPI) CaddyModule() caddy.ModuleInfo {
	return caddy.ModuleInfo{ID: "admin.api.fairway", New: func() caddy.Module { return adminAPI{} }}
}

// Routes implements caddy.AdminRouter.
func (adminAPI) Routes() []caddy.AdminRoute {
	api := kube{engine: current.Load}
	knative := caddy.AdminHandlerFunc(func(w http.ResponseWriter, r *http.Request) error {
		api.ServeHTTP(w, r)
		return nil
	})
	return []caddy.AdminRoute{
		{Pattern: "/apis", Handler: knative},
		{Pattern: "/apis/", Handler: knative},
		{Pattern: "/api", Handler: knative},
		{Pattern: "/api/", Handler: knative},
		{Pattern: "/version", Handler: knative},
		{Pattern: "/openapi/", Handler: knative},
		{Pattern: "/fairway/services", Handler: get(func(names []string) any { return serviceViews(names...) })},
		{Pattern: "/fairway/instances", Handler: get(func(names []string) any { return instanceViews(names...) })},
		{Pattern: "/fairway/host", Handler: get(func([]string) any { return hostViewNow() })},
		{Pattern: "/fairway/problems", Handler: get(func([]string) any { return problemViews() })},
	}
}

// get answers with a view of the services that the query names, or of all.
func get(view func(names []string) any) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("method %s is not allowed", r.Method)}
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(view(r.URL.Query()["service"]))
	}
}

// status is what all engines of the process are doing with the named services,
// or with all. There is one, unless a config has changed the engine and the old
// one drains.
func status(names ...string) []scaler.ServiceStatus {
	var all []scaler.ServiceStatus
	engines.Range(func(_, v any) bool {
		e, ok := v.(*engine)
		switch {
		case !ok:
		case len(names) == 0:
			all = append(all, e.scaler.Status()...)
		default:
			for _, name := range names {
				if s, ok := e.scaler.ServiceStatus(name); ok {
					all = append(all, s)
				}
			}
		}
		return true
	})
	return all
}

// serviceView is a service in the admin API.
type serviceView struct {
	Service string `json:"service"`
	// Owner says who decides what the service is.
	Owner string `json:"owner,omitempty"`
	// Serving gets new requests. Latest was asked for last; the two differ while
	// it is on trial or when it has failed.
	Serving string `json:"serving,omitempty"`
	Latest  string `json:"latest,omitempty"`
	// Error is why the latest revision cannot start.
	Error     string         `json:"error,omitempty"`
	Queue     int            `json:"queue"`
	InFlight  int            `json:"in_flight"`
	Revisions []revisionView `json:"revisions"`
}

type revisionView struct {
	Revision string `json:"revision"`
	// State is serving, next, failed or draining.
	State     string    `json:"state"`
	Image     string    `json:"image"`
	Digest    string    `json:"digest,omitempty"`
	Created   time.Time `json:"created"`
	Queue     int       `json:"queue"`
	InFlight  int       `json:"in_flight"`
	Instances int       `json:"instances"`
	// Pulling tells how far the pull of the image has come.
	Pulling *pullView `json:"pulling,omitempty"`
}

type pullView struct {
	DoneBytes  int64 `json:"done_bytes"`
	TotalBytes int64 `json:"total_bytes"`
}

// instanceView is an instance in the admin API.
type instanceView struct {
	Service  string `json:"service"`
	Revision string `json:"revision"`
	Instance string `json:"instance"`
	State    string `json:"state"`
	InFlight int    `json:"in_flight"`
	// Queue is that of the revision, whose instances share it.
	Queue   int       `json:"queue"`
	PID     int       `json:"pid,omitempty"`
	Address string    `json:"address,omitempty"`
	Since   time.Time `json:"since"`
	// Why says why the instance was started.
	Why string `json:"why,omitempty"`
	// MemoryBytes is what it held when that was last measured.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`
}

func serviceViews(names ...string) []serviceView {
	all := status(names...)
	views := make([]serviceView, 0, len(all))
	for _, s := range all {
		v := serviceView{Service: s.Name, Queue: s.Waiting, InFlight: s.InFlight, Revisions: make([]revisionView, 0, len(s.Revisions))}
		if e := current.Load(); e != nil {
			if st := e.scaler.Registry().State(s.Name); st != nil && st.Service != nil {
				v.Owner = st.Owner.String()
			}
		}
		if s.Serving != nil {
			v.Serving = s.Serving.Name
		}
		if s.Latest != nil {
			v.Latest = s.Latest.Name
		}
		if s.Failure != nil {
			v.Error = s.Failure.Error()
		}
		for _, r := range s.Revisions {
			rv := revisionView{
				Revision: r.Revision.Name, State: r.Role, Image: r.Revision.Spec().Image, Digest: r.Revision.Digest(),
				Created: r.Revision.Created, Queue: r.Waiting, InFlight: r.InFlight, Instances: r.Made(),
			}
			if r.Pulling != nil {
				rv.Pulling = &pullView{DoneBytes: r.Pulling.Done, TotalBytes: r.Pulling.Total}
			}
			v.Revisions = append(v.Revisions, rv)
		}
		views = append(views, v)
	}
	return views
}

// hostView is the host in the admin API.
type hostView struct {
	// BudgetBytes is what all instances together may hold, 0 without a bound; of
	// that UsedBytes is taken.
	BudgetBytes int64 `json:"budget_bytes"`
	UsedBytes   int64 `json:"used_bytes"`
	// BudgetCPU is how many processors the limits of all instances may add up to, 0
	// without a bound; UsedCPU is what they do.
	BudgetCPU float64 `json:"budget_cpu"`
	UsedCPU   float64 `json:"used_cpu"`
	// Evictions counts the instances that were stopped because others needed their
	// room, Waiting the starts that wait for some.
	Evictions int `json:"evictions"`
	Waiting   int `json:"waiting"`
	// StrainedSeconds is for how long the host's processors were found used up while
	// instances were in use.
	StrainedSeconds float64 `json:"strained_seconds"`
}

func hostViewNow() hostView {
	e := current.Load()
	if e == nil {
		return hostView{}
	}
	b := e.scaler.Budget()
	return hostView{BudgetBytes: b.Total, UsedBytes: b.Used, BudgetCPU: b.CPU, UsedCPU: b.UsedCPU, Evictions: b.Evictions, Waiting: b.Waiting, StrainedSeconds: b.Strained.Seconds()}
}

func problemViews() []problem {
	if e := current.Load(); e != nil {
		return e.problems()
	}
	return make([]problem, 0)
}

func instanceViews(names ...string) []instanceView {
	views := make([]instanceView, 0)
	for _, s := range status(names...) {
		for _, r := range s.Revisions {
			for _, i := range r.Instances {
				views = append(views, instanceView{
					Service: s.Name, Revision: r.Revision.Name, Instance: i.ID, State: i.State.String(),
					InFlight: i.InFlight, Queue: r.Waiting, PID: i.PID, Address: i.Address, Since: i.Since,
					Why: i.Why, MemoryBytes: i.Usage.Memory,
				})
			}
		}
	}
	return views
}

var _ caddy.AdminRouter = adminAPI{}
