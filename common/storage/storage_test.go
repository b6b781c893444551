package storage_test

import (
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
	s, err := storage.Open(t.Context(), c, dir, store.Options{})
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
		{"a type that does not exist", storage.Config{Type: "postgres"}, dir, `open postgres store: type: "postgres" is not memory or bolt`},
		{"a data directory that is a file", storage.Default(), file, "make data directory"},
		{"a file that is no database", storage.Default(), broken, "open bolt store"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, err := storage.Open(t.Context(), tt.config, tt.dir, store.Options{})
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
	if errs := (storage.Config{Type: "etcd"}).Validate(); len(errs) != 1 || errs[0].Error() != `type: "etcd" is not memory or bolt` {
		t.Errorf("problems are %v", errs)
	}
}
