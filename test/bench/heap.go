package main

import (
	"bytes"
	"context"
	"fmt"
	"strconv"
)

// heap is what Caddy's heap holds after a collection, in bytes.
func (c *caddy) heap(ctx context.Context) (int64, error) {
	// Twice: what a pool has unused goes with the second collection.
	if _, err := admin(ctx, "/debug/pprof/heap?gc=1"); err != nil {
		return 0, err
	}
	return memStat(ctx, "/debug/pprof/heap?gc=1&debug=1", "HeapAlloc")
}

// allocations is how often Caddy has allocated memory since its start.
func (c *caddy) allocations(ctx context.Context) (int64, error) {
	return memStat(ctx, "/debug/pprof/allocs?debug=1", "Mallocs")
}

// memStat reads a field of Go's runtime.MemStats from a profile.
func memStat(ctx context.Context, path, name string) (int64, error) {
	text, err := admin(ctx, path)
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("# "+name+" = ")); ok {
			return strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	return 0, fmt.Errorf("a profile of Caddy's memory does not tell %s", name)
}
