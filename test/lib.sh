# Shared by xcaddy.sh and test/run.sh: what both need on the machine, and the
# tools they build. To be sourced by bash, from the repository's root.
# shellcheck shell=bash

cache=.cache

say() { printf '==> %s\n' "$*"; }

die() {
	printf 'error: %s\n' "$*" >&2
	exit 1
}

is_root() { [[ $EUID -eq 0 ]]; }

has() { command -v "$1" >/dev/null 2>&1; }

# find_programs puts the usual places into PATH, which sudo and minimal
# environments leave out, and gives Go the home it needs.
find_programs() {
	PATH=$PATH:/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
	if [[ -z ${HOME:-} ]]; then
		HOME=$(getent passwd "$EUID" | cut -d: -f6)
	fi
	export PATH HOME="${HOME:-/tmp}"
	mkdir -p "$cache/bin" || die "cannot write to $PWD/$cache: make it yours (sudo chown -R \$USER $cache)"
	[[ -w $cache/bin ]] || die "cannot write to $PWD/$cache: make it yours (sudo chown -R \$USER $cache)"
}

# give_back gives what root made under sudo to the user who owns the clone.
give_back() {
	if is_root && [[ -n ${SUDO_UID:-} ]]; then
		chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$@"
	fi
}

# install_packages installs packages of a Debian-like system.
install_packages() {
	(($# > 0)) || return 0
	has apt-get || die "missing: $*. Install them with this system's package manager and run this again"
	is_root || die "missing: $*. Run this with sudo, or: sudo apt-get install $*"
	say "installing $*"
	export DEBIAN_FRONTEND=noninteractive
	if ! apt-get install -y --no-install-recommends "$@" >"$cache/apt.log" 2>&1 </dev/null; then
		if ! apt-get update >"$cache/apt.log" 2>&1 </dev/null ||
			! apt-get install -y --no-install-recommends "$@" >>"$cache/apt.log" 2>&1 </dev/null; then
			tail -n 5 "$cache/apt.log" >&2
			die "apt-get could not install $*: see $cache/apt.log"
		fi
	fi
}

# ensure_commands installs the packages of absent programs, given as
# program:package.
ensure_commands() {
	local pair missing=()
	for pair; do
		has "${pair%%:*}" || missing+=("${pair#*:}")
	done
	install_packages "${missing[@]}"
}

# ensure_runtime installs what runs containers. A containerd that came another
# way, with Docker for example, is taken as it is.
ensure_runtime() {
	ensure_commands containerd:containerd ctr:containerd runc:runc iptables:iptables
	if [[ ! -x /opt/cni/bin/bridge && ! -x /usr/lib/cni/bridge ]]; then
		install_packages containernetworking-plugins
	fi
}

# ensure_go makes "go" work for this module. From 1.21 on, Go fetches the
# version that go.mod asks for.
ensure_go() {
	has go || install_go
	go version >/dev/null 2>&1 && return
	# Some distributions set GOTOOLCHAIN=local.
	export GOTOOLCHAIN=auto
	go version >/dev/null 2>&1 ||
		die "$(go_needed) is needed and could not be fetched: install it from https://go.dev/dl and run this again"
}

install_go() {
	has apt-cache || die "$(go_needed) is missing: install it from https://go.dev/dl and run this again"
	local version
	version=$(apt-cache policy golang-go | awk '/Candidate:/ { sub(/^[0-9]+:/, "", $2); print $2 }')
	if [[ -z $version || $version == "(none)" ]] && is_root; then
		apt-get update >"$cache/apt.log" 2>&1 </dev/null || true
		version=$(apt-cache policy golang-go | awk '/Candidate:/ { sub(/^[0-9]+:/, "", $2); print $2 }')
	fi
	if [[ -z $version || $version == "(none)" ]] || dpkg --compare-versions "$version" lt 1.21; then
		die "$(go_needed) is missing and this system's package is too old (${version:-none}): install it from https://go.dev/dl and run this again"
	fi
	install_packages golang-go
}

go_needed() { awk '$1 == "go" { print "Go " $2 }' go.mod; }

# build_tool builds the command that tools/<name>/go.mod names and prints where
# it is. Go's own cache makes this quick when nothing changed.
build_tool() {
	local name=$1 package
	package=$(awk '$1 == "tool" { print $2 }' "tools/$name/go.mod")
	local out=$PWD/$cache/bin/${package##*/}
	[[ -x $out ]] || say "building ${package##*/} (once)" >&2
	(cd "tools/$name" && CGO_ENABLED=0 go build -buildvcs=false -o "$out" "$package") ||
		die "building ${package##*/} failed: see the lines above"
	printf '%s\n' "$out"
}

# containerd_answers tells whether a containerd serves on a socket.
containerd_answers() {
	[[ -S $1 ]] && ctr --address "$1" --connect-timeout 2s version >/dev/null 2>&1
}
