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
	"github.com/meridian-mesh/meridian/common/store/postgres"
)

// The types of store.
const (
	Memory   = "memory"
	Bolt     = "bolt"
	Postgres = "postgres"
)

// File is the name of the bolt file inside the data directory.
const File = "meridian.db"

// Config is the section store.
type Config struct {
	Type string `yaml:"type" env:"MERIDIAN_STORE_TYPE" doc:"where resources are kept: bolt (one file in the data directory, synced to disk before a write is answered), postgres (a database) or memory (gone when the process ends)"`

	Postgres PostgresConfig `yaml:"postgres"`
}

// Default returns the documented defaults.
func Default() Config { return Config{Type: Bolt, Postgres: defaultPostgres()} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	switch c.Type {
	case Memory, Bolt:
		return nil
	case Postgres:
		return c.Postgres.validate()
	default:
		return []error{errType(c.Type)}
	}
}

func errType(typ string) error { return fmt.Errorf("type: %q is not memory, bolt or postgres", typ) }

// Open opens the store of c. A bolt store lives in dataDir, which is made (mode 0700) when it is missing, and which one
// process at a time may have open. plane names whose state it is, such as "global": a database that holds another
// plane's is refused. ctx bounds the reading of what is stored. The caller closes the store.
func Open(ctx context.Context, c Config, dataDir, plane string, o store.Options) (*store.Store, error) {
	backend, err := c.backend(ctx, dataDir, plane, o)
	if err != nil {
		return nil, fmt.Errorf("open %s store: %w", c.Type, err)
	}
	s, err := store.Open(ctx, backend, o)
	if err != nil {
		return nil, fmt.Errorf("open %s store: %w", c.Type, err)
	}
	return s, nil
}

func (c Config) backend(ctx context.Context, dataDir, plane string, o store.Options) (store.Backend, error) {
	switch c.Type {
	case Memory:
		return memory.New(), nil
	case Bolt:
		if err := os.MkdirAll(dataDir, 0o700); err != nil {
			return nil, fmt.Errorf("make data directory: %w", err)
		}
		return bolt.Open(filepath.Join(dataDir, File), bolt.Options{})
	case Postgres:
		options, err := c.Postgres.options(plane, o.Log)
		if err != nil {
			return nil, err
		}
		if o.Log != nil {
			o.Log.WarnContext(ctx, "one process at a time may serve this database: several replicas of a plane are not supported yet, "+
				"since they do not know of each other's sessions")
		}
		return postgres.Open(ctx, options)
	default:
		return nil, errType(c.Type)
	}
}
