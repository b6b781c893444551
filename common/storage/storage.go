// Package storage opens the store that the configuration names. It exists so that the store's packages need not know
// of each other, nor of configuration.
package storage

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/bolt"
	"github.com/meridian-mesh/meridian/common/store/memory"
)

// The types of store.
const (
	Memory = "memory"
	Bolt   = "bolt"
)

// File is the name of the bolt file inside the data directory.
const File = "meridian.db"

// Config is the section store.
type Config struct {
	Type string `yaml:"type" env:"MERIDIAN_STORE_TYPE" doc:"where resources are kept: bolt (one file in the data directory, synced to disk before a write is answered) or memory (gone when the process ends)"`
}

// Default returns the documented defaults.
func Default() Config { return Config{Type: Bolt} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	if c.Type != Memory && c.Type != Bolt {
		return []error{fmt.Errorf("type: %q is not memory or bolt", c.Type)}
	}
	return nil
}

// Open opens the store of c. A bolt store lives in dataDir, which is made (mode 0700) when it is missing, and which one
// process at a time may have open. ctx bounds the reading of what is stored. The caller closes the store.
func Open(ctx context.Context, c Config, dataDir string, o store.Options) (*store.Store, error) {
	backend, err := c.backend(dataDir)
	if err != nil {
		return nil, fmt.Errorf("open %s store: %w", c.Type, err)
	}
	s, err := store.Open(ctx, backend, o)
	if err != nil {
		return nil, fmt.Errorf("open %s store: %w", c.Type, err)
	}
	return s, nil
}

func (c Config) backend(dataDir string) (store.Backend, error) {
	switch c.Type {
	case Memory:
		return memory.New(), nil
	case Bolt:
		if err := os.MkdirAll(dataDir, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
		return bolt.Open(filepath.Join(dataDir, File), bolt.Options{})
	default:
		return nil, fmt.Errorf("type: %q is not memory or bolt", c.Type)
	}
}
