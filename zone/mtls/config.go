package mtls

import (
	"fmt"
	"slices"
)

// The kinds of keys that proxies can have.
const (
	ECDSAP256 = "ecdsa-p256"
	RSA2048   = "rsa-2048"
)

var keyTypes = [...]string{ECDSAP256, RSA2048}

// Config is the section mtls of a zone's configuration.
type Config struct {
	KeyType string `yaml:"keyType" env:"MERIDIAN_MTLS_KEY_TYPE" doc:"keys of the proxies' certificates: ecdsa-p256, or rsa-2048, which takes far longer to make"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config { return Config{KeyType: ECDSAP256} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	if !slices.Contains(keyTypes[:], c.KeyType) {
		return []error{fmt.Errorf("keyType: %q is not one of %v", c.KeyType, keyTypes)}
	}
	return nil
}
