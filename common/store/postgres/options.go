package postgres

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Options say where the database is, and tune the backend; zero values mean the defaults.
type Options struct {
	// URL is postgres://USER:PASSWORD@HOST:PORT/DATABASE with libpq's parameters (sslmode, sslrootcert, ...; search_path
	// picks a schema). Several hosts may be given; the one that takes writes is used.
	URL string
	// PasswordFile, when not empty, holds the password, in place of the URL. It is read anew for each connection.
	PasswordFile string
	// Plane names whose state this is, such as "global". A database that holds another plane's is refused.
	Plane string
	// MaxConnections bounds the connections for writing and loading, 2 or more; one more listens. Default 4.
	MaxConnections int
	// Timeout is the deadline of each round trip, and of waiting for the turn to write. Default 5 seconds.
	Timeout time.Duration
	// StartTimeout is how long Open waits for a database that does not answer yet. Default 30 seconds.
	StartTimeout time.Duration
	// NoMigrations makes Open fail with ErrMigrationsPending rather than change the schema.
	NoMigrations bool
	// Log is told of lost connections and of settings that risk data. Nil: nothing is logged.
	Log *slog.Logger
}

func (o Options) withDefaults() Options {
	if o.MaxConnections == 0 {
		o.MaxConnections = 4
	}
	if o.Timeout == 0 {
		o.Timeout = 5 * time.Second
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 30 * time.Second
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// pageTimeout is the deadline of a page of a large reading, which may take longer than what writers wait for.
func (o Options) pageTimeout() time.Duration { return 6 * o.Timeout }

// ValidateURL says what is wrong with a URL. No error shows a password.
func ValidateURL(raw string) error {
	_, err := parseURL(raw)
	return err
}

// parseURL is pgxpool.ParseConfig without its ways to show the password.
func parseURL(raw string) (*pgxpool.Config, error) {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme != "postgres" && u.Scheme != "postgresql" {
		// What cannot be parsed cannot be masked either.
		return nil, errors.New("not a URL such as postgres://USER@HOST:5432/DATABASE?sslmode=verify-full")
	}
	c, err := pgxpool.ParseConfig(raw)
	if err != nil {
		reason := "its parameters are not understood"
		if cause := errors.Unwrap(err); cause != nil {
			reason = cause.Error()
		}
		password, _ := u.User.Password()
		for _, secret := range []string{password, u.Query().Get("password"), u.Query().Get("sslpassword")} {
			if secret != "" {
				reason = strings.ReplaceAll(reason, secret, "*****")
			}
		}
		return nil, fmt.Errorf("postgres URL of host %q: %s", u.Host, reason)
	}
	return c, nil
}

// poolConfig is how the backend connects.
func (o Options) poolConfig() (*pgxpool.Config, error) {
	c, err := parseURL(o.URL)
	if err != nil {
		return nil, err
	}
	c.MaxConns = int32(max(o.MaxConnections, 2)) //nolint:gosec // a small number of the configuration
	c.MinConns = 1
	c.PingTimeout = o.Timeout
	c.BeforeConnect = o.setPassword
	c.AfterConnect = checkConnection
	if c.ConnConfig.ConnectTimeout == 0 {
		c.ConnConfig.ConnectTimeout = o.Timeout
	}
	if c.ConnConfig.ValidateConnect == nil { // after a failover the old primary may still answer, and refuse writes
		c.ConnConfig.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsReadWrite
	}
	params := c.ConnConfig.RuntimeParams
	if params["application_name"] == "" {
		params["application_name"] = "meridian"
	}
	return c, nil
}

func (o Options) setPassword(_ context.Context, c *pgx.ConnConfig) error {
	if o.PasswordFile == "" {
		return nil
	}
	b, err := os.ReadFile(o.PasswordFile)
	if err != nil {
		return fmt.Errorf("read the password of the database: %w", err)
	}
	c.Password = strings.TrimRight(string(b), "\r\n")
	return nil
}
