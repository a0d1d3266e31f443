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
// - `GET /fairway/services`: the services and their revisions
// - `GET /fairway/instances`: the instances
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
	return []caddy.AdminRoute{
		{Pattern: "/fairway/services", Handler: get(func() any { return serviceViews() })},
		{Pattern: "/fairway/instances", Handler: get(func() any { return instanceViews() })},
	}
}

func get(view func() any) caddy.AdminHandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			return caddy.APIError{HTTPStatus: http.StatusMethodNotAllowed, Err: fmt.Errorf("method %s is not allowed", r.Method)}
		}
		w.Header().Set("Content-Type", "application/json")
		return json.NewEncoder(w).Encode(view())
	}
}

// status is what all engines of the process are doing. There is one, unless a
// config has changed the engine and the old one drains.
func status() []scaler.ServiceStatus {
	var all []scaler.ServiceStatus
	engines.Range(func(_, v any) bool {
		if e, ok := v.(*engine); ok {
			all = append(all, e.scaler.Status()...)
		}
		return true
	})
	return all
}

// serviceView is a service in the admin API.
type serviceView struct {
	Service string `json:"service"`
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
}

func serviceViews() []serviceView {
	all := status()
	views := make([]serviceView, 0, len(all))
	for _, s := range all {
		v := serviceView{Service: s.Name, Queue: s.Waiting, InFlight: s.InFlight, Revisions: make([]revisionView, 0, len(s.Revisions))}
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
				Revision: r.Revision.Name, State: r.Role, Image: r.Revision.Image, Digest: r.Revision.Digest(),
				Created: r.Revision.Created, Queue: r.Waiting, InFlight: r.InFlight, Instances: len(r.Instances),
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

func instanceViews() []instanceView {
	views := make([]instanceView, 0)
	for _, s := range status() {
		for _, r := range s.Revisions {
			for _, i := range r.Instances {
				views = append(views, instanceView{
					Service: s.Name, Revision: r.Revision.Name, Instance: i.ID, State: i.State.String(),
					InFlight: i.InFlight, Queue: r.Waiting, PID: i.PID, Address: i.Address, Since: i.Since,
				})
			}
		}
	}
	return views
}

var _ caddy.AdminRouter = adminAPI{}
