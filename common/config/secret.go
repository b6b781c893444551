package config

import (
	"fmt"
	"log/slog"
)

// masked stands for every secret, so that not even its length is shown.
const masked = "*****"

// Secret is a string that no log, error or rendering shows: whatever formats or marshals it gets "*****", or nothing
// when it is empty. Convert it with string(s) where the value itself is needed.
type Secret string

// String implements [fmt.Stringer].
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return masked
}

// Format implements [fmt.Formatter], because verbs that String does not cover would print the value.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte(s.String())) }

// LogValue implements [slog.LogValuer].
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText implements [encoding.TextMarshaler]; JSON uses it too.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML implements the interface of the YAML package.
func (s Secret) MarshalYAML() (any, error) { return s.String(), nil }
