//go:build race

package instancepool_test

// crowd is how many may wait: the race detector has a limit of 8128 goroutines.
const crowd = 5_000
