package postgres_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/postgres"
	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// open opens a backend that the test closes, or returns why it cannot be.
func open(t *testing.T, o postgres.Options) (*postgres.Backend, error) {
	t.Helper()
	b, err := postgres.Open(t.Context(), o)
	if err == nil {
		t.Cleanup(func() { _ = b.Close() })
	}
	return b, err
}

func TestAPoolerIsRefused(t *testing.T) {
	d := database(t)
	p := server.NewProxy(t)
	// A pooler gives its clients process numbers of its own: message K, 12 bytes, process, key.
	p.Edit(func(b []byte) []byte {
		if i := bytes.Index(b, []byte{'K', 0, 0, 0, 12}); i >= 0 && len(b) >= i+9 {
			b = bytes.Clone(b)
			b[i+8]++
		}
		return b
	})
	if _, err := open(t, postgres.Options{URL: d.Through(p)}); !errors.Is(err, postgres.ErrPooler) {
		t.Errorf("error %v", err)
	}
}

func TestMigrationsThatAPlaneMayNotRun(t *testing.T) {
	d := database(t)
	o := postgres.Options{URL: d.URL(), NoMigrations: true}
	_, err := open(t, o)
	if !errors.Is(err, postgres.ErrMigrationsPending) || !strings.Contains(err.Error(), "version 0, this program needs") {
		t.Fatalf("error %v", err)
	}
	applied, err := postgres.Migrate(t.Context(), o)
	if err != nil || len(applied) == 0 {
		t.Fatalf("applied %v, %v", applied, err)
	}
	if applied, err = postgres.Migrate(t.Context(), o); err != nil || len(applied) != 0 {
		t.Fatalf("applied again: %v, %v", applied, err)
	}
	if _, err := open(t, o); err != nil {
		t.Fatal(err)
	}
}

func TestASchemaOfALaterVersion(t *testing.T) {
	later := func(compatible string) string {
		return "INSERT INTO meridian_schema (version, compatible, name) SELECT max(version) + 1, " + compatible + ", 'later' FROM meridian_schema"
	}
	t.Run("that is marked compatible is accepted", func(t *testing.T) {
		d := database(t)
		s := openURL(t, d.URL(), postgres.Options{})
		mustPut(t, s, "a", "1")
		d.Exec(t, later("max(version)")+"; ALTER TABLE meridian_entries ADD COLUMN later text; ALTER TABLE meridian_head ADD COLUMN later int DEFAULT 0")
		mustPut(t, s, "b", "1")
		mustPut(t, openURL(t, d.URL(), postgres.Options{}), "c", "1")
	})
	t.Run("that is not is refused", func(t *testing.T) {
		d := database(t)
		running := openURL(t, d.URL(), postgres.Options{})
		mustPut(t, running, "a", "1")
		d.Exec(t, later("max(version) + 1"))
		_, err := open(t, postgres.Options{URL: d.URL()})
		if !errors.Is(err, postgres.ErrSchema) || !strings.Contains(err.Error(), "it has version 2, which needs a program that knows version 2; this one knows 1") {
			t.Errorf("error %v", err)
		}
		// Nor does a program write that was there before.
		_, err = running.Update(t.Context(), put("b", "1"))
		if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, postgres.ErrSchema) {
			t.Errorf("a program that runs: error %v", err)
		}
		if _, ok := running.Snapshot().Get(store.Key{Type: "T", Mesh: "m", Name: "a"}); !ok {
			t.Error("and it has forgotten what it knew")
		}
	})
}

func TestTheStateOfAnotherPlaneIsRefused(t *testing.T) {
	d := database(t)
	for range 2 {
		if _, err := open(t, postgres.Options{URL: d.URL(), Plane: "global"}); err != nil {
			t.Fatal(err)
		}
	}
	_, err := open(t, postgres.Options{URL: d.URL(), Plane: "zone east"})
	if !errors.Is(err, postgres.ErrSchema) || !strings.Contains(err.Error(), "state of global, not of zone east") {
		t.Errorf("error %v", err)
	}
}

// A role that may only use the tables is enough for a plane that runs no migrations.
func TestARoleWithoutRightsToTheSchema(t *testing.T) {
	d := database(t)
	if _, err := postgres.Migrate(t.Context(), postgres.Options{URL: d.URL()}); err != nil {
		t.Fatal(err)
	}
	role := "role_" + d.Schema()
	d.Exec(t, "CREATE ROLE "+role+" LOGIN; GRANT USAGE ON SCHEMA "+d.Schema()+" TO "+role+
		"; GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA "+d.Schema()+" TO "+role)
	s := openURL(t, strings.Replace(d.URL(), "postgres@", role+"@", 1), postgres.Options{NoMigrations: true})
	mustPut(t, s, "a", "1")
	if _, err := s.Acquire(t.Context(), "leader", "a", time.Minute); err != nil {
		t.Error(err)
	}
	_, err := open(t, postgres.Options{URL: strings.Replace(d.URL(), "postgres@", "absent@", 1)})
	if err == nil || !strings.Contains(err.Error(), "absent") {
		t.Errorf("a role that does not exist: %v", err)
	}
}

// The password comes from the file, anew for each connection, and is shown nowhere.
func TestThePasswordComesFromAFile(t *testing.T) {
	s := pgtest.Start(t, "fsync=off")
	s.Exec(t, "CREATE ROLE meridian LOGIN PASSWORD 'first-secret' CREATEROLE; CREATE SCHEMA AUTHORIZATION meridian")
	s.RequirePassword(t, "meridian")
	file := filepath.Join(t.TempDir(), "password")
	if err := os.WriteFile(file, []byte("wrong-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	u, err := url.Parse(s.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("meridian", "url-secret")
	o := postgres.Options{URL: u.String(), PasswordFile: file, Log: slog.New(slog.NewTextHandler(&log, nil))}
	_, err = open(t, o)
	if err == nil || !strings.Contains(err.Error(), "password authentication failed") {
		t.Fatalf("error %v", err)
	}
	if err := os.WriteFile(file, []byte("first-secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	b, openErr := postgres.Open(t.Context(), o)
	if openErr != nil {
		t.Fatal(openErr)
	}
	if closeErr := b.Close(); closeErr != nil {
		t.Error(closeErr)
	}
	if said := err.Error() + log.String(); strings.Contains(said, "secret") {
		t.Errorf("a password is shown: %s", said)
	}
}

// The connection is as safe as the URL says.
func TestTLS(t *testing.T) {
	s := pgtest.Start(t, "fsync=off")
	ca, otherCA := s.EnableTLS(t), s.OtherCA(t)
	for _, tc := range []struct {
		params string
		want   string // "": it opens
	}{
		{"sslmode=require", ""},
		{"sslmode=verify-full&sslrootcert=" + ca, ""},
		{"sslmode=verify-full&sslrootcert=" + otherCA, "certificate signed by unknown authority"},
		{"sslmode=verify-ca&sslrootcert=" + otherCA, "certificate signed by unknown authority"},
	} {
		u := strings.Replace(s.URL(), "sslmode=disable", tc.params, 1)
		_, err := open(t, postgres.Options{URL: u, StartTimeout: time.Second})
		if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
			t.Errorf("%s: %v", tc.params, err)
		}
	}
}

func TestOpenWaitsForADatabaseThatStarts(t *testing.T) {
	s := pgtest.Start(t, "fsync=off")
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, postgres.Options{URL: s.URL(), StartTimeout: 50 * time.Millisecond}); err == nil || !strings.Contains(err.Error(), "no database within 50ms") {
		t.Errorf("error %v", err)
	}
	opened := make(chan error, 1)
	go func() {
		b, err := postgres.Open(t.Context(), postgres.Options{URL: s.URL()})
		if err == nil {
			err = b.Close()
		}
		opened <- err
	}()
	if err := s.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-opened; err != nil {
		t.Error(err)
	}
}

// A damaged row is an error that names its key; nothing is skipped.
func TestADamagedRowIsNamed(t *testing.T) {
	for name, damage := range map[string]string{
		"a value": "UPDATE meridian_entries SET value = value || '\\x00'::bytea",
		"a key":   "UPDATE meridian_entries SET key = key || '\\x78'::bytea",
	} {
		t.Run(name, func(t *testing.T) {
			d := database(t)
			b, err := postgres.Open(t.Context(), postgres.Options{URL: d.URL()})
			if err != nil {
				t.Fatal(err)
			}
			s, err := store.Open(t.Context(), b, store.Options{})
			if err != nil {
				t.Fatal(err)
			}
			mustPut(t, s, "damaged", "1")
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			d.Exec(t, damage)
			if b, err = postgres.Open(t.Context(), postgres.Options{URL: d.URL()}); err != nil {
				t.Fatal(err)
			}
			if _, err := store.Open(t.Context(), b, store.Options{}); err == nil || !strings.Contains(err.Error(), "T/m/damaged") {
				t.Errorf("error %v", err)
			}
		})
	}
}

// Without notifications others are followed all the same, by the head row.
func TestNothingDependsOnNotifications(t *testing.T) {
	d := database(t)
	p := server.NewProxy(t)
	var dropped atomic.Int64
	p.Edit(func(b []byte) []byte {
		for len(b) > 5 && b[0] == 'A' { // a notification comes by itself
			b = b[1+binary.BigEndian.Uint32(b[1:]):]
			dropped.Add(1)
		}
		return b
	})
	a, b := openURL(t, d.URL(), postgres.Options{}), openURL(t, d.Through(p), postgres.Options{})
	for i := range 3 {
		rev := mustPut(t, a, "a", strings.Repeat("x", i+1))
		for head := b.Snapshot(); head.Revision() < rev; head = b.Snapshot() {
			<-head.Next()
		}
	}
	if dropped.Load() == 0 {
		t.Error("no notification was dropped")
	}
}

// A write is the first to see that the database was restored: it is decided on the restored state.
func TestAWriteOnARestoredDatabase(t *testing.T) {
	for _, back := range []int{1, 2} {
		d := database(t)
		p := server.NewProxy(t)
		// No notification and no look at the head row: only the turn to write tells.
		s := openURL(t, d.Through(p), postgres.Options{})
		for _, spec := range []string{"1", "2", "3"} {
			mustPut(t, s, "a", spec)
		}
		d.Exec(t, fmt.Sprintf(`BEGIN; DELETE FROM meridian_commits WHERE revision > %[1]d; DELETE FROM meridian_entries;
			UPDATE meridian_head SET revision = %[1]d, commit_id = (SELECT commit_id FROM meridian_commits WHERE revision = %[1]d); COMMIT`, 3-back))
		_, err := s.Update(t.Context(), func(head *store.Snapshot) ([]store.Op, error) {
			if n := head.Count("T", ""); n != 0 {
				return nil, fmt.Errorf("the function sees %d records", n)
			}
			ops, _ := put("b", "1")(nil)
			return ops, nil
		})
		if err != nil {
			t.Errorf("%d revisions back: %v", back, err)
		}
		if err := storetest.Equal(t.Context(), openURL(t, d.URL(), postgres.Options{}), s); err != nil {
			t.Error(err)
		}
	}
}
