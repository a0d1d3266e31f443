// Command caddy is Caddy with its standard modules and Fairway: what xcaddy
// builds, as a package of this module, so that the end-to-end tests can build it
// with the race detector.
package main

import (
	caddycmd "github.com/caddyserver/caddy/v2/cmd"
	_ "github.com/caddyserver/caddy/v2/modules/standard"

	_ "github.com/fairway-run/fairway/caddymodule"
)

func main() {
	caddycmd.Main()
}
