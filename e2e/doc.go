// Package e2e drives the real programs: it starts control planes as processes, or as containers where a Docker engine
// answers, talks to them over their sockets, and stops them the ways the world does. It holds only tests and imports
// nothing of the planes.
package e2e
