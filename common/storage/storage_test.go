package storage_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func open(t *testing.T, c storage.Config, dir string) *store.Store {
	t.Helper()
	s, err := storage.Open(t.Context(), c, dir, "global", store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *store.Store) {
	t.Helper()
	_, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: store.Key{Type: "Mesh", Name: "default"}, Spec: []byte("x")})}, nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestOpen(t *testing.T) {
	tests := []struct {
		name   string
		config storage.Config
		want   store.Revision // after a restart
	}{
		{"the default is kept across restarts", storage.Default(), 1},
		{"bolt is kept across restarts", storage.Config{Type: storage.Bolt}, 1},
		{"memory starts empty", storage.Config{Type: storage.Memory}, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "not", "there", "yet")
			s := open(t, tt.config, dir)
			put(t, s)
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, tt.config, dir)
			if got := s.Snapshot().Revision(); got != tt.want {
				t.Errorf("revision after a restart is %d, want %d", got, tt.want)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestOpenSaysWhatIsWrong(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	broken := t.TempDir()
	if err := os.WriteFile(filepath.Join(broken, storage.File), []byte("not a database, and longer than a page header"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		config storage.Config
		dir    string
		want   string
	}{
		{"a type that does not exist", storage.Config{Type: "etcd"}, dir, `open etcd store: type: "etcd" is not memory, bolt or postgres`},
		{"a data directory that is a file", storage.Default(), file, "make data directory"},
		{"a file that is no database", storage.Default(), broken, "open bolt store"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := storage.Open(t.Context(), tt.config, tt.dir, "global", store.Options{})
			if err == nil {
				_ = s.Close()
				t.Fatal("Open succeeded")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %q, want %q in it", err, tt.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	if errs := storage.Default().Validate(); len(errs) > 0 {
		t.Errorf("the default is refused: %v", errs)
	}
	if errs := (storage.Config{Type: "etcd"}).Validate(); len(errs) != 1 || errs[0].Error() != `type: "etcd" is not memory, bolt or postgres` {
		t.Errorf("problems are %v", errs)
	}
}

func TestValidatePostgres(t *testing.T) {
	tests := []struct {
		name   string
		change func(*storage.PostgresConfig)
		want   string // "": valid
	}{
		{"a URL", func(*storage.PostgresConfig) {}, ""},
		{"a file with the URL", func(c *storage.PostgresConfig) { c.URL, c.URLFile = "", "/run/url" }, ""},
		{"neither", func(c *storage.PostgresConfig) { c.URL = "" }, "postgres.url: must be set, or urlFile"},
		{"both", func(c *storage.PostgresConfig) { c.URLFile = "/run/url" }, "postgres.urlFile: url is set as well"},
		{"another database", func(c *storage.PostgresConfig) { c.URL = "mysql://u:hunter2@h/d" }, "postgres.url: not a URL such as"},
		{"no URL at all", func(c *storage.PostgresConfig) { c.URL = "host=h password=hunter2" }, "postgres.url: not a URL such as"},
		{"a bad escape", func(c *storage.PostgresConfig) { c.URL = "postgres://u:hunter2%zz@h/d" }, "postgres.url: not a URL such as"},
		{"a bad port", func(c *storage.PostgresConfig) { c.URL = "postgres://u:hunter2@h:port/d" }, "postgres.url: not a URL such as"},
		{
			"a TLS mode that does not exist", func(c *storage.PostgresConfig) { c.URL = "postgres://u:hunter2@h/d?sslmode=maybe" },
			`postgres.url: postgres URL of host "h": sslmode is invalid`,
		},
		{
			"a certificate that is not there", func(c *storage.PostgresConfig) {
				c.URL = "postgres://u:hunter2@h/d?sslmode=verify-full&sslrootcert=/absent"
			},
			"no such file",
		},
		{"one connection", func(c *storage.PostgresConfig) { c.MaxConnections = 1 }, "postgres.maxConnections: 1 is not 2-1000"},
		{"no time", func(c *storage.PostgresConfig) { c.Timeout = 0 }, "postgres.timeout: 0s is less than 100ms"},
		{"no time to start", func(c *storage.PostgresConfig) { c.StartTimeout = 0 }, "postgres.startTimeout: 0s is less than 1s"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := storage.Default()
			c.Type, c.Postgres.URL = storage.Postgres, "postgres://u:hunter2@h:5432/d?sslmode=require"
			tt.change(&c.Postgres)
			errs := c.Validate()
			switch {
			case tt.want == "" && len(errs) > 0:
				t.Errorf("refused: %v", errs)
			case tt.want != "" && (len(errs) != 1 || !strings.Contains(errs[0].Error(), tt.want)):
				t.Errorf("problems are %v, want %q", errs, tt.want)
			case strings.Contains(fmt.Sprint(errs), "hunter2"):
				t.Errorf("the password is shown: %v", errs)
			}
		})
	}
}
