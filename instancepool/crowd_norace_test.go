//go:build !race

package instancepool_test

// crowd is how many may wait: as many as by default.
const crowd = 10_000
