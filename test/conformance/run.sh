#!/usr/bin/env bash
# Runs Knative's own conformance tests against Fairway: see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
# shellcheck source=test/lib.sh
source test/lib.sh

usage() {
	cat <<-USAGE
		usage: sudo ./test/conformance/run.sh [-run REGEXP] [-required] [-keep] [-plain] [-parallel N]

		Installs what is missing, builds Caddy with Fairway and Knative Serving's conformance
		tests (test/conformance/suite/go.mod says which version), runs these, unmodified, on
		a private containerd, and prints a table. The exit code is 0 only if no test failed and all
		of must-pass.txt passed; not-applicable.txt says what is left out, and why.

		-run REGEXP   run only these tests; '^\$' runs none
		-required     only what Knative's API specification requires (-disable-optional-api)
		-keep         leave all running after the tests, until ctrl-C, and print where it is
		-plain        build Caddy without the race detector
		-parallel N   so many tests of each suite at the same time (8)

		Caddy's log is $cache/conformance.log, what the tests said $cache/conformance-*.log.
	USAGE
}

for arg; do
	case $arg in
	-h | -help | --help) usage && exit ;;
	esac
done
is_root || die "containers need root: sudo ./test/conformance/run.sh"
find_programs
ensure_commands git:git gcc:gcc
[[ -e /usr/include/stdlib.h ]] || install_packages libc6-dev
ensure_go
ensure_runtime
CGO_ENABLED=0 go build -buildvcs=false -o "$cache/bin/conformance" ./test/conformance

# In a process group of its own, so that ctrl-C reaches the harness alone, and it
# ends what it has started in order.
set -m
"$cache/bin/conformance" -logs "$cache" "$@" &
pid=$!
trap 'kill -INT "$pid" 2>/dev/null' INT TERM
# A signal interrupts wait, not the harness.
while :; do
	status=0
	wait "$pid" || status=$?
	if ((status <= 128)) || ! kill -0 "$pid" 2>/dev/null; then
		break
	fi
done
give_back "$cache"
exit "$status"
