package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/store/postgres"
)

// PostgresConfig is the section store.postgres.
type PostgresConfig struct {
	URL          config.Secret `yaml:"url" env:"MERIDIAN_STORE_POSTGRES_URL" doc:"where the database is, as postgres://USER:PASSWORD@HOST:5432/DATABASE?sslmode=verify-full&sslrootcert=FILE, with the parameters that libpq knows; search_path names a schema; several hosts may be given, and the one that takes writes is used"`
	URLFile      string        `yaml:"urlFile" env:"MERIDIAN_STORE_POSTGRES_URL_FILE" doc:"file that holds that URL, in place of url"`
	PasswordFile string        `yaml:"passwordFile" env:"MERIDIAN_STORE_POSTGRES_PASSWORD_FILE" doc:"file that holds the password, in place of the one in the URL; read anew for each connection, so that replacing it rotates the password"`

	MaxConnections int           `yaml:"maxConnections" env:"MERIDIAN_STORE_POSTGRES_MAX_CONNECTIONS" doc:"most connections for writing and reading, 2 or more; one more listens for what other replicas write"`
	Timeout        time.Duration `yaml:"timeout" env:"MERIDIAN_STORE_POSTGRES_TIMEOUT" doc:"deadline of each exchange with the database, 100ms or more; a write is refused after twice this at the latest"`
	StartTimeout   time.Duration `yaml:"startTimeout" env:"MERIDIAN_STORE_POSTGRES_START_TIMEOUT" doc:"how long a plane that starts waits for a database that does not answer, 1s or more"`
	AutoMigrate    bool          `yaml:"autoMigrate" env:"MERIDIAN_STORE_POSTGRES_AUTO_MIGRATE" doc:"bring the tables up to date at the start; false refuses to start while that is needed, and leaves it to the command migrate"`
}

func defaultPostgres() PostgresConfig {
	return PostgresConfig{MaxConnections: 4, Timeout: 5 * time.Second, StartTimeout: 30 * time.Second, AutoMigrate: true}
}

func (c PostgresConfig) validate() []error {
	var errs []error
	switch {
	case c.URL == "" && c.URLFile == "":
		errs = append(errs, errors.New("postgres.url: must be set, or urlFile"))
	case c.URL != "" && c.URLFile != "":
		errs = append(errs, errors.New("postgres.urlFile: url is set as well"))
	case c.URL != "":
		if err := postgres.ValidateURL(string(c.URL)); err != nil {
			errs = append(errs, fmt.Errorf("postgres.url: %w", err))
		}
	}
	if c.MaxConnections < 2 || c.MaxConnections > 1000 {
		errs = append(errs, fmt.Errorf("postgres.maxConnections: %d is not 2-1000", c.MaxConnections))
	}
	if c.Timeout < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("postgres.timeout: %s is less than 100ms", c.Timeout))
	}
	if c.StartTimeout < time.Second {
		errs = append(errs, fmt.Errorf("postgres.startTimeout: %s is less than 1s", c.StartTimeout))
	}
	return errs
}

// options reads what the files of c hold.
func (c PostgresConfig) options(plane string, log *slog.Logger) (postgres.Options, error) {
	url := string(c.URL)
	if c.URLFile != "" {
		b, err := os.ReadFile(c.URLFile)
		if err != nil {
			return postgres.Options{}, fmt.Errorf("postgres.urlFile: %w", err)
		}
		url = strings.TrimSpace(string(b))
	}
	return postgres.Options{
		URL: url, PasswordFile: c.PasswordFile, Plane: plane, Log: log,
		MaxConnections: c.MaxConnections, Timeout: c.Timeout, StartTimeout: c.StartTimeout, NoMigrations: !c.AutoMigrate,
	}, nil
}

// ErrNoMigrations reports a store that has no tables to bring up to date.
var ErrNoMigrations = errors.New("only a store of type postgres has migrations")

// Migrate brings the tables of c up to date and returns the names of the migrations that it ran.
func Migrate(ctx context.Context, c Config) ([]string, error) {
	if c.Type != Postgres {
		return nil, fmt.Errorf("%w: the type is %s", ErrNoMigrations, c.Type)
	}
	o, err := c.Postgres.options("", nil)
	if err != nil {
		return nil, err
	}
	return postgres.Migrate(ctx, o)
}
