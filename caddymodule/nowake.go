package caddymodule

import (
	"cmp"
	"fmt"
	"net/http"
	"strconv"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/caddyconfig/httpcaddyfile"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp"

	"github.com/fairway-run/fairway/instancepool"
)

// provisionNoWake loads the matchers of requests that wake nothing.
func (h *Handler) provisionNoWake(ctx caddy.Context) error {
	if s := h.NoWakeStatus; s != 0 && (s < 200 || s > 599) {
		return fmt.Errorf("no_wake_status %d is not from 200 to 599", s)
	}
	if h.NoWakeRaw == nil {
		return nil
	}
	sets, err := ctx.LoadModule(h, "NoWakeRaw")
	if err != nil {
		return fmt.Errorf("loading the matchers of no_wake: %w", err)
	}
	return h.noWake.FromInterface(sets)
}

// wakesNothing tells whether a request is one of those that wake nothing.
func (h *Handler) wakesNothing(r *http.Request) (bool, error) {
	if len(h.noWake) == 0 {
		return false, nil // no matcher at all would match all requests
	}
	match, err := h.noWake.AnyMatchWithError(r)
	if err != nil {
		return false, fmt.Errorf("matching no_wake: %w", err)
	}
	return match, nil
}

// letSleep answers a request that finds no instance awake, and wakes none.
func (h *Handler) letSleep(w http.ResponseWriter, r *http.Request, service string) error {
	note(r, service, "asleep")
	header := w.Header()
	header.Set("Cache-Control", "no-store") // it may be otherwise in a moment
	status := cmp.Or(h.NoWakeStatus, http.StatusServiceUnavailable)
	if status >= 400 {
		return caddyhttp.Error(status, instancepool.ErrAsleep)
	}
	w.WriteHeader(status)
	return nil
}

// parseNoWake reads the option:
//
//	no_wake <matcher> [<status>]
//
// It may be there several times, with one status.
func (h *Handler) parseNoWake(helper httpcaddyfile.Helper) error {
	set, ok, err := helper.MatcherToken()
	if err != nil {
		return err
	}
	if !ok {
		return helper.Err("no_wake: which requests? A matcher such as @bots or /favicon.ico is missing")
	}
	if len(set) == 0 {
		return helper.Err("no_wake: '*' would let no request start an instance")
	}
	h.NoWakeRaw = append(h.NoWakeRaw, set)
	if helper.NextArg() {
		status, err := strconv.Atoi(helper.Val())
		if err != nil || status < 200 || status > 599 {
			return helper.Errf("no_wake: '%s' is not a status from 200 to 599", helper.Val())
		}
		if h.NoWakeStatus != 0 && h.NoWakeStatus != status {
			return helper.Errf("no_wake: two statuses, %d and %d; there can be one", h.NoWakeStatus, status)
		}
		h.NoWakeStatus = status
	}
	if helper.NextArg() {
		return helper.ArgErr()
	}
	return nil
}
