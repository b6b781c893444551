// Package archtest holds the tests that keep packages explained and named for what they do, and the import arrows of docs/ARCHITECTURE.md true:
// cmd → global, zone → sync → api → common; global and zone never meet.
package archtest
