// Package test holds the end-to-end tests, and what keeps the house in order.
package test

import (
	"cmp"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fairway-run/fairway"

// listed is what go list tells of a package.
type listed struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
	Deps         []string
}

// rule says what a package, its tests included, may import.
type rule struct {
	// dir is the package; "dir/" stands for it and all below.
	dir string
	// fairway is what it may import of this module; nil for anything.
	fairway []string
	// others is what it may import of Caddy and containerd.
	others []string
}

// rules name every package; the first that fits counts.
var rules = []rule{
	{dir: "test/", others: []string{caddy, containerd}},
	{dir: "caddymodule/", fairway: []string{"caddymodule/", "scaler/", "instancepool/", "revisions/", "test/"}, others: []string{caddy}},
	{dir: "scaler/", fairway: []string{"scaler/", "instancepool", "instancepool/pooltest", "revisions/"}},
	{dir: "instancepool/containerd/", fairway: []string{"instancepool/", "revisions/", "test/"}, others: []string{containerd}},
	{dir: "instancepool/http1", fairway: []string{}},
	{dir: "instancepool/", fairway: []string{"instancepool", "instancepool/http1", "instancepool/pooltest", "revisions/"}},
	{dir: "revisions/", fairway: []string{"revisions/"}},
}

const (
	caddy      = "github.com/caddyserver/"
	containerd = "github.com/containerd/"
)

// TestImports holds the packages to the direction caddymodule → scaler →
// instancepool → revisions, with Caddy at one end and containerd at the other.
func TestImports(t *testing.T) {
	for _, pkg := range list(t) {
		dir := strings.TrimPrefix(strings.TrimPrefix(pkg.ImportPath, module), "/")
		i := slices.IndexFunc(rules, func(r rule) bool { return within(dir, r.dir) })
		if i < 0 {
			t.Errorf("%s has no rule: say in test/imports_test.go and .golangci.yml what it may import", pkg.ImportPath)
			continue
		}
		for _, imported := range slices.Concat(pkg.Imports, pkg.TestImports, pkg.XTestImports) {
			if allowed := rules[i].forbids(imported); allowed != "" {
				t.Errorf("%s imports %s; %s", dir, imported, allowed)
			}
		}
	}
}

// forbids says what is allowed instead, or nothing when imported is.
func (r rule) forbids(imported string) string {
	if inner, ok := strings.CutPrefix(imported, module+"/"); ok {
		if r.fairway == nil || slices.ContainsFunc(r.fairway, func(d string) bool { return within(inner, d) }) {
			return ""
		}
		return "of Fairway it may import only " + cmp.Or(strings.Join(r.fairway, ", "), "itself")
	}
	for _, other := range []string{caddy, containerd} {
		if strings.HasPrefix(imported, other) && !slices.Contains(r.others, other) {
			return "it must not import anything of " + other
		}
	}
	return ""
}

// TestDependencies finds what comes in by a detour, through another package.
func TestDependencies(t *testing.T) {
	forbidden := map[string][]string{
		"revisions":    {caddy, containerd, module + "/"},
		"instancepool": {caddy, containerd, module + "/scaler", module + "/caddymodule"},
		"scaler":       {caddy, containerd, module + "/caddymodule"},
	}
	for _, pkg := range list(t) {
		dir := strings.TrimPrefix(pkg.ImportPath, module+"/")
		for _, prefix := range forbidden[dir] {
			// The first is enough; the others come with it.
			i := slices.IndexFunc(pkg.Deps, func(dep string) bool { return strings.HasPrefix(dep, prefix) })
			if i >= 0 {
				t.Errorf("%s depends on %s; see: go mod why %[2]s", dir, pkg.Deps[i])
			}
		}
	}
}

// within tells whether dir is what pattern says: itself or, if pattern ends in
// "/", it and all below.
func within(dir, pattern string) bool {
	base, below := strings.CutSuffix(pattern, "/")
	return dir == base || below && strings.HasPrefix(dir, pattern)
}

// list lists all packages of the module.
func list(t *testing.T) []listed {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports,Deps", module+"/...")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var pkgs []listed
	decoder := json.NewDecoder(strings.NewReader(string(out)))
	for {
		var pkg listed
		if err := decoder.Decode(&pkg); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		pkgs = append(pkgs, pkg)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no packages")
	}
	return pkgs
}
