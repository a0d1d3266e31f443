package caddymodule

import (
	"sync"
	"time"
)

// proxied are the requests of one proxy. Those that stream may go on for a while when
// its config is no longer loaded. Caddy's proxy has that itself, but notes its timer
// where requests read it without a lock.
type proxied struct {
	mu      sync.Mutex // guards all below
	n       int
	cleanup func()      // due when none is left; nil before close and after it was called
	timer   *time.Timer // when it is due in any case
}

func (p *proxied) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.n++
}

func (p *proxied) end() {
	p.mu.Lock()
	p.n--
	over := p.n == 0 && p.timer != nil && p.timer.Stop()
	p.mu.Unlock()
	if over {
		p.clean()
	}
}

// close has cleanup called when no request is left, after delay at the latest.
func (p *proxied) close(delay time.Duration, cleanup func()) {
	p.mu.Lock()
	p.cleanup = cleanup
	idle := p.n == 0
	if !idle {
		p.timer = time.AfterFunc(delay, p.clean)
	}
	p.mu.Unlock()
	if idle {
		p.clean()
	}
}

// clean calls cleanup, once.
func (p *proxied) clean() {
	p.mu.Lock()
	cleanup := p.cleanup
	p.cleanup = nil
	p.mu.Unlock()
	if cleanup != nil {
		cleanup()
	}
}
