#!/usr/bin/env bash
# Builds Caddy with Fairway, and runs it with an example: see --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=test/lib.sh
source test/lib.sh

caddy_version=v2.11.9
module=github.com/fairway-run/fairway
image=localhost/fairway/hello:1
namespace=fairway
host_socket=/run/containerd/containerd.sock
private_state=/run/fairway
private_root=/var/lib/fairway/containerd
private_socket=$private_state/containerd.sock
private_pid=$private_state/containerd.pid

usage() {
	cat <<-USAGE
		usage: ./xcaddy.sh build     build ./caddy, Caddy $caddy_version with Fairway
		       sudo ./xcaddy.sh run  install what is missing, build, and run Caddyfile.example

		run starts a containerd of its own, below $private_state and
		$private_root, only if none answers on
		$host_socket. It ends with Caddy, and the instances
		with it; instances in the host's own containerd stay. The environment
		variable FAIRWAY_CONTAINERD names another socket.
	USAGE
}

main() {
	case ${1:-} in
	build) build ;;
	run) run ;;
	-h | --help | help) usage ;;
	*)
		usage >&2
		exit 2
		;;
	esac
}

build() {
	find_programs
	ensure_commands git:git
	ensure_go
	build_caddy
	give_back "$cache"
}

run() {
	is_root || die "run needs root, for containers and their networks: sudo ./xcaddy.sh run"
	find_programs
	ensure_runtime
	build
	ensure_containerd
	import_example
	give_back "$cache"
	# Go offers WebSockets over HTTP/2 only then.
	export GODEBUG=http2xconnect=1${GODEBUG:+,$GODEBUG}
	say "when Caddy runs, try: curl http://localhost:8080/"
	if [[ $FAIRWAY_CONTAINERD == "$private_socket" ]]; then
		run_caddy_with_containerd
	else
		exec ./caddy run --config Caddyfile.example
	fi
}

# build_caddy builds ./caddy unless it was built from these very sources.
build_caddy() {
	local sum
	sum=$(sources_sum)
	if [[ -x caddy && $(cat "$cache/caddy.sum" 2>/dev/null) == "$sum" ]]; then
		say "./caddy is up to date"
		return
	fi
	local xcaddy
	xcaddy=$(build_tool xcaddy)
	say "building ./caddy (takes minutes the first time)"
	if ! run_xcaddy "$xcaddy" >"$cache/xcaddy.log" 2>&1; then
		grep -vE '^(go: (downloading|added|upgraded)|[0-9/: ]+\[INFO\])' "$cache/xcaddy.log" | tail -n 20 >&2
		die "xcaddy could not build Caddy: see the lines above, or all of $cache/xcaddy.log"
	fi
	mv -f "$cache/caddy" caddy
	printf '%s\n' "$sum" >"$cache/caddy.sum"
	give_back caddy
}

# sources_sum is one sum over all that ./caddy is made of.
sources_sum() {
	{
		echo "$caddy_version $(go version) ${XCADDY_GO_BUILD_FLAGS:-} ${CGO_ENABLED:-}"
		find go.mod go.sum caddymodule scaler instancepool revisions -type f ! -name '*_test.go' -print0 |
			LC_ALL=C sort -z | xargs -0 sha256sum
	} | sha256sum
}

# run_xcaddy builds with this working copy in place of the published module.
# Go still asks where the module is published, and gives up if the answer is an
# error; so an empty repository answers for it, without the network.
run_xcaddy() {
	local standin=$PWD/$cache/standin n=${GIT_CONFIG_COUNT:-0}
	rm -rf "$standin"
	git init -q "$standin"
	git -C "$standin" -c user.name=fairway -c user.email=fairway@localhost -c commit.gpgsign=false \
		commit -q --no-verify --allow-empty -m "Stand in for the published module"
	env GOPRIVATE="$module${GOPRIVATE:+,$GOPRIVATE}" GIT_CONFIG_COUNT=$((n + 1)) \
		"GIT_CONFIG_KEY_$n=url.file://$standin.insteadOf" "GIT_CONFIG_VALUE_$n=https://$module" \
		"$1" build "$caddy_version" --output "$cache/caddy" --with "$module/caddymodule" --replace "$module=."
}

# ensure_containerd finds a containerd that answers, or starts a private one,
# and exports its socket as FAIRWAY_CONTAINERD.
ensure_containerd() {
	if [[ -n ${FAIRWAY_CONTAINERD:-} ]]; then
		containerd_answers "$FAIRWAY_CONTAINERD" ||
			die "no containerd answers on $FAIRWAY_CONTAINERD: start it, or unset FAIRWAY_CONTAINERD"
		return
	fi
	export FAIRWAY_CONTAINERD=$host_socket
	containerd_answers "$host_socket" && return
	FAIRWAY_CONTAINERD=$private_socket
	mkdir -p "$private_state" "$private_root"
	# Held until this script ends, however it ends; Caddy and containerd close it.
	exec 9>"$private_state/run.lock"
	flock -n 9 || die "another ./xcaddy.sh run is active: stop it first"
	if ! containerd_answers "$private_socket"; then
		start_containerd
	fi
	trap stop_containerd EXIT
}

start_containerd() {
	say "no containerd answers on $host_socket: starting a private one"
	# Version 2 is what containerd 1.6, 1.7 and 2 read.
	cat >"$private_state/containerd.toml" <<-CONFIG
		version = 2
		root = "$private_root"
		state = "$private_state/containerd"
		disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
		[grpc]
		  address = "$private_socket"
		[plugins."io.containerd.internal.v1.opt"]
		  path = "$private_root/opt"
	CONFIG
	local log=$private_state/containerd.log
	# In a session of its own: Ctrl-C is for Caddy, which needs it until its end.
	setsid containerd --config "$private_state/containerd.toml" >"$log" 2>&1 </dev/null 9>&- &
	echo $! >"$private_pid"
	local tries
	for ((tries = 0; tries < 150; tries++)); do
		containerd_answers "$private_socket" && return
		kill -0 "$(<"$private_pid")" 2>/dev/null || break
		sleep 0.2
	done
	stop_containerd
	tail -n 3 "$log" >&2
	die "the private containerd does not answer: see $log"
}

# stop_containerd stops the instances, which nobody could reach any more, and
# the private containerd. Images and snapshots stay for the next run.
stop_containerd() {
	local id pid
	if containerd_answers "$private_socket"; then
		for id in $(private_ctr containers list --quiet); do
			private_ctr tasks delete --force "$id" >/dev/null 2>&1 || true
			private_ctr containers delete "$id" >/dev/null 2>&1 || true
		done
	fi
	pid=$(cat "$private_pid" 2>/dev/null) || return 0
	rm -f "$private_pid"
	is_containerd "$pid" && kill "$pid"
	while is_containerd "$pid"; do
		sleep 0.1
	done
}

# is_containerd tells whether a process runs and is a containerd: the number may
# be another's since it was written down.
is_containerd() {
	[[ $(cat "/proc/$1/comm" 2>/dev/null) == containerd ]] &&
		! grep -q '^State:.*Z' "/proc/$1/status" 2>/dev/null
}

private_ctr() { ctr --address "$private_socket" --namespace "$namespace" "$@"; }

# import_example builds the example app's image and imports it, unless
# containerd has it already.
import_example() {
	local built digest archive
	built=$(go run -buildvcs=false ./test/images/cmd/mkimage -name "$image" -user 65532:65532 -expose 8080/tcp ./test/images/hello) ||
		die "the example app could not be built: see the lines above"
	read -r digest archive <<<"$built"
	local ctr=(ctr --address "$FAIRWAY_CONTAINERD" --namespace "$namespace")
	if "${ctr[@]}" images list "name==$image" | grep -q "$digest"; then
		say "$image is up to date"
		return
	fi
	say "importing $image"
	"${ctr[@]}" images import "$archive" >"$cache/import.log" 2>&1 ||
		die "containerd could not import $archive: $(tail -n 1 "$cache/import.log")"
}

# run_caddy_with_containerd runs Caddy in the foreground, so to speak: Ctrl-C
# reaches this script, which passes it on once and waits, because the private
# containerd must end after Caddy.
run_caddy_with_containerd() {
	local caddy status=0
	setsid ./caddy run --config Caddyfile.example 9>&- &
	caddy=$!
	trap 'kill -TERM "$caddy" 2>/dev/null' INT TERM HUP
	wait "$caddy" || status=$?
	# A signal ends wait before Caddy.
	while kill -0 "$caddy" 2>/dev/null; do
		status=0
		wait "$caddy" || status=$?
	done
	exit "$status"
}

main "$@"
