package main

import (
	"bytes"
	"context"
	"errors"
	"strconv"
)

// heap is what Caddy's heap holds after a collection, in bytes.
func (c *caddy) heap(ctx context.Context) (int64, error) {
	// Twice: what a pool has unused goes with the second collection.
	if _, err := admin(ctx, "/debug/pprof/heap?gc=1"); err != nil {
		return 0, err
	}
	text, err := admin(ctx, "/debug/pprof/heap?gc=1&debug=1")
	if err != nil {
		return 0, err
	}
	for line := range bytes.Lines(text) {
		if value, ok := bytes.CutPrefix(line, []byte("# HeapAlloc = ")); ok {
			return strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
		}
	}
	return 0, errors.New("the profile of Caddy's heap does not say how large it is")
}
