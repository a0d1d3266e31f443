package caddymodule

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestProxied(t *testing.T) {
	for name, test := range map[string]struct {
		last time.Duration // when the last request ends; 0: before the close
		want time.Duration
	}{
		"none":       {0, 0},
		"one":        {time.Minute, time.Minute},
		"a long one": {3 * time.Hour, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var p proxied
				began, calls := time.Now(), make(chan time.Duration, 10)
				p.begin()
				p.begin()
				p.end()
				if test.last == 0 {
					p.end()
				}
				p.close(time.Hour, func() { calls <- time.Since(began) })
				if test.last > 0 {
					time.Sleep(test.last)
					p.end()
				}
				time.Sleep(5 * time.Hour)
				if n := len(calls); n != 1 {
					t.Fatalf("%d calls", n)
				}
				if got := <-calls; got != test.want {
					t.Errorf("after %s; want %s", got, test.want)
				}
			})
		})
	}
}
