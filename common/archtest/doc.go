// Package archtest holds the tests that keep the shape of the code: packages say why they exist, and the import arrows of
// docs/ARCHITECTURE.md hold: cmd → global, zone → sync → api → common; global and zone never meet.
package archtest
