//go:build race

package main

// raceFlags builds the tested program with the race detector as well.
var raceFlags = []string{"-race"}
