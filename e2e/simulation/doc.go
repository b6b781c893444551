// Package simulation runs a global and its zones in one process, joined by in-memory connections under a simulated
// clock, so that hours of reconnects, time-outs and crashes take milliseconds and repeat exactly. It is the one place
// where the two planes meet; it holds only tests.
package simulation
