package caddymodule

import (
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/fairway-run/fairway/instancepool"
)

const (
	// affinityCookie says which instance a client had.
	affinityCookie = "fairway_affinity"
	// affinityAge is how long a client is told to keep it (Cloud Run: 30 days).
	affinityAge = 30 * 24 * time.Hour
)

// affinityOf returns the revision and the instance that a client had before, or
// nothing. They are only a wish: what is not there, or not for this client's
// service, does not count.
// Source: Cloud Run: session affinity.
func affinityOf(r *http.Request) (revision, instance string) {
	c, err := r.Cookie(affinityCookie)
	if err != nil {
		return "", ""
	}
	revision, instance, _ = strings.Cut(c.Value, ":")
	return revision, instance
}

// setAffinity asks the client to come back to this instance.
func setAffinity(w http.ResponseWriter, r *http.Request, lease *instancepool.Lease) {
	// One of an earlier attempt names an instance that could not be dialled.
	cookies := slices.DeleteFunc(w.Header()["Set-Cookie"], func(c string) bool { return strings.HasPrefix(c, affinityCookie+"=") })
	w.Header()["Set-Cookie"] = cookies
	http.SetCookie(w, &http.Cookie{ //nolint:gosec // as secure as the request
		Name: affinityCookie, Value: lease.Revision().Name + ":" + lease.Instance().ID(), Path: "/", MaxAge: int(affinityAge / time.Second),
		Secure: r.TLS != nil, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
}
