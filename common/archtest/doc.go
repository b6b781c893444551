// Package archtest holds the test that keeps the import arrows of docs/ARCHITECTURE.md true:
// cmd → global, zone → sync → api → common; global and zone never meet.
package archtest
