// Package instance names the running process.
package instance

import (
	"crypto/rand"
	"encoding/hex"
	"os"
)

// Hostname returns the host's name, "localhost" where it has none.
func Hostname() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "localhost"
	}
	return name
}

// NewID returns a name for this process as Kuma forms it: the host's name and four random hexadecimal digits.
func NewID() string {
	var b [2]byte
	_, _ = rand.Read(b[:]) // never fails
	return Hostname() + "-" + hex.EncodeToString(b[:])
}
