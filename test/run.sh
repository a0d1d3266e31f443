#!/usr/bin/env bash
# Runs every check and test: see --help.
# The checks are called by name, through step.
# shellcheck disable=SC2317
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=test/lib.sh
source test/lib.sh

packages=(caddymodule instancepool revisions scaler test)
modules=(fairway http.handlers.fairway admin.api.fairway fairway.runtimes.containerd tls.permission.fairway)
summary=()
failed=0

usage() {
	cat <<-USAGE
		usage: sudo ./test/run.sh [--full]

		Installs what is missing, then: gofmt, go vet, golangci-lint, ./xcaddy.sh build,
		unit tests, end-to-end tests, Knative's conformance tests. --full adds fuzzing and the long tests. Without root it runs
		what needs none and names the rest. The last lines say what passed; the exit
		code is 0 only if all did.
	USAGE
}

main() {
	case ${1:-} in
	--full) export FAIRWAY_FULL=1 ;;
	"") ;;
	-h | --help) usage && exit ;;
	*) usage >&2 && exit 2 ;;
	esac
	prepare
	step gofmt check_gofmt
	step "go vet" go vet ./...
	step golangci-lint lint
	step "xcaddy.sh build" check_build
	local unit
	mapfile -t unit < <(go list ./... | grep -vE '/test(/|$)')
	((${#unit[@]} > 0)) || die "go list finds no packages: see the lines above"
	go_test unit "${unit[@]}"
	[[ -z ${FAIRWAY_FULL:-} ]] || step "fuzzing" fuzz
	go_test e2e -count=1 -timeout 60m -p 1 ./test/...
	is_root && step "Knative's conformance tests" ./test/conformance/run.sh
	give_back "$cache"
	report
}

prepare() {
	find_programs
	# The race detector needs a C compiler.
	ensure_commands git:git gcc:gcc
	[[ -e /usr/include/stdlib.h ]] || install_packages libc6-dev
	ensure_go
	if is_root; then
		ensure_runtime
	else
		skip "tests with containers: they need root (sudo ./test/run.sh)"
	fi
	[[ -n ${FAIRWAY_FULL:-} ]] || say "the long tests are left out; --full runs them too"
}

skip() { summary+=("skipped	$*"); }

# step runs one check, goes on if it fails, and notes how it ended.
step() {
	local name=$1
	shift
	say "$name"
	if "$@"; then
		summary+=("ok  	$name")
	else
		summary+=("FAIL	$name")
		failed=1
	fi
}

check_gofmt() {
	local files
	files=$(gofmt -l "${packages[@]}") || return 1
	[[ -z $files ]] && return
	printf 'not formatted (gofmt -w mends it):\n%s\n' "$files"
	return 1
}

lint() {
	local linter
	linter=$(build_tool lint) || return 1
	GOLANGCI_LINT_CACHE=$PWD/$cache/golangci-lint "$linter" run ./...
}

# check_build builds as users do and asks Caddy whether all modules are in.
check_build() {
	./xcaddy.sh build || return 1
	local have module status=0
	have=$(./caddy list-modules) || return 1
	for module in "${modules[@]}"; do
		grep -qxF "$module" <<<"$have" && continue
		echo "./caddy list-modules lacks $module"
		status=1
	done
	return "$status"
}

# fuzz gives each fuzz target a minute; the build for it takes longer than that.
fuzz() {
	local time=60s file target status=0
	while IFS=: read -r file target; do
		CGO_ENABLED=1 go test -race -run '^$' -fuzz "^$target\$" -fuzztime "$time" "./$(dirname "$file")" || status=1
	done < <(grep -roE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' "${packages[@]}" | sed 's/func //')
	return "$status"
}

# go_test runs go test with the race detector. It shows how each test ended
# and why tests were skipped, and all output of a package that failed.
go_test() {
	local name=$1 log=$PWD/$cache/$1.log
	shift
	say "$name tests (all output: $log)"
	CGO_ENABLED=1 go test -race -v "$@" 2>&1 | tee "$log" | awk -f test/show.awk || failed=1
	local line
	while IFS= read -r line; do
		summary+=("$line")
	done < <(awk -f test/summary.awk "$log")
}

report() {
	say "summary"
	printf '%s\n' "${summary[@]}"
	if ((failed)); then
		echo FAIL
	fi
	exit "$failed"
}

main "$@"
