package caddymodule

import (
	"os"
	"testing"

	"github.com/caddyserver/caddy/v2"
)

// TestMain keeps the records of tests away from the user's own.
func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fairway-storage-")
	if err != nil {
		panic(err)
	}
	caddy.DefaultStorage.Path = dir
	status := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(status)
}
