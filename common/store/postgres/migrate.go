package postgres

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

var (
	// ErrMigrationsPending reports a schema that is older than the program and may not be changed by it.
	ErrMigrationsPending = errors.New("the database needs migrations, which this plane may not run by itself: run `migrate`, or allow it " +
		"(MERIDIAN_STORE_POSTGRES_AUTO_MIGRATE=true)")
	// ErrSchema reports a schema that this program cannot work with.
	ErrSchema = errors.New("unknown database schema")
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// migration is one step of the schema. Compatible is the oldest schema version whose programs may go on working after it: during
// a rolling upgrade replicas of two versions share the database. A file named 0003_leases.compatible-2.sql says 2;
// without that a migration shuts out every older program.
type migration struct {
	version, compatible int
	name, sql           string
}

func migrations(files fs.FS) ([]migration, error) {
	entries, err := fs.ReadDir(files, "migrations")
	if err != nil {
		return nil, err
	}
	var all []migration
	for i, e := range entries { // sorted by name
		number, name, _ := strings.Cut(strings.TrimSuffix(e.Name(), ".sql"), "_")
		version, err := strconv.Atoi(number)
		if err != nil || version != i+1 {
			return nil, fmt.Errorf("migration %s is not number %d", e.Name(), i+1)
		}
		m := migration{version: version, compatible: version, name: name}
		if name, oldest, ok := strings.Cut(name, ".compatible-"); ok {
			if m.compatible, err = strconv.Atoi(oldest); err != nil {
				return nil, fmt.Errorf("migration %s: %w", e.Name(), err)
			}
			m.name = name
		}
		sql, err := fs.ReadFile(files, "migrations/"+e.Name())
		if err != nil {
			return nil, err
		}
		m.sql = string(sql)
		all = append(all, m)
	}
	return all, nil
}

// migrationLock is the class of the advisory lock that one migrating program holds; the other half is the schema's hash.
const migrationLock = 1296388169

// migrate brings the schema up to the newest of steps, or checks that this program can work with it. It returns the
// names of the steps it applied.
func migrate(ctx context.Context, c *pgx.Conn, steps []migration, allowed bool) (applied []string, err error) {
	err = pgx.BeginFunc(ctx, c, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "SELECT pg_advisory_xact_lock($1, hashtext(coalesce(current_schema(), '')))", migrationLock); err != nil {
			return fmt.Errorf("wait for another migration: %w", err)
		}
		version, compatible, err := schemaVersion(ctx, tx)
		if err != nil {
			return err
		}
		newest := steps[len(steps)-1].version
		switch {
		case version == newest:
			return nil
		case version > newest:
			return checkCompatible(version, compatible, newest)
		case !allowed:
			return fmt.Errorf("%w: it has version %d, this program needs %d", ErrMigrationsPending, version, newest)
		}
		if version == 0 {
			if _, err := tx.Exec(ctx, createVersions); err != nil {
				return fmt.Errorf("make the table of migrations: %w", err)
			}
		} else if _, err := tx.Exec(ctx, selectHead+" FOR UPDATE"); err != nil { // between the turns of those that run
			return fmt.Errorf("wait for the replicas' turns to end: %w", err)
		}
		for _, m := range steps[version:] {
			if _, err := tx.Exec(ctx, m.sql); err != nil {
				return fmt.Errorf("migration %d (%s): %w", m.version, m.name, err)
			}
			if _, err := tx.Exec(ctx, "INSERT INTO meridian_schema (version, compatible, name) VALUES ($1, $2, $3)",
				m.version, m.compatible, m.name); err != nil {
				return fmt.Errorf("note migration %d (%s): %w", m.version, m.name, err)
			}
			applied = append(applied, fmt.Sprintf("%d (%s)", m.version, m.name))
		}
		return nil
	})
	return applied, err
}

// checkCompatible refuses a schema of a version that needs a program that knows more than this one.
func checkCompatible(version, compatible, known int) error {
	if compatible > known {
		return fmt.Errorf("%w: it has version %d, which needs a program that knows version %d; this one knows %d",
			ErrSchema, version, compatible, known)
	}
	return nil
}

const createVersions = `CREATE TABLE meridian_schema (
	version int PRIMARY KEY, compatible int NOT NULL, name text NOT NULL, applied timestamptz NOT NULL DEFAULT now())`

// schemaVersion returns the version of the schema, 0 for an empty one, and the oldest version whose programs may use it.
func schemaVersion(ctx context.Context, tx pgx.Tx) (version, compatible int, err error) {
	var exists bool
	if err := tx.QueryRow(ctx, "SELECT to_regclass('meridian_schema') IS NOT NULL").Scan(&exists); err != nil {
		return 0, 0, fmt.Errorf("look for the schema: %w", err)
	}
	if !exists {
		return 0, 0, nil
	}
	err = tx.QueryRow(ctx, "SELECT max(version), max(compatible) FROM meridian_schema").Scan(&version, &compatible)
	if err != nil {
		return 0, 0, fmt.Errorf("read the version of the schema: %w", err)
	}
	return version, compatible, nil
}
