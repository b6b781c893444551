package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/common/cluster"
)

func keygen(t *testing.T, args ...string) (code int, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = keygenCommand(t.Context(), args, nil, &out, &err)
	return code, err.String()
}

func TestKeygenMakesAKeyOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "keys", "cluster")
	read := func() string {
		t.Helper()
		if code, stderr := keygen(t, "--out", file); code != 0 {
			t.Fatalf("exit code %d: %s", code, stderr)
		}
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	key := read()
	if read() != key {
		t.Error("a second run made another key")
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if read() == key {
		t.Error("the same key was made twice")
	}
	// What it is for takes it.
	c, err := cluster.New(cluster.Options{
		Config: cluster.Config{BindAddress: "127.0.0.1", BindPort: 0, KeyFile: file}, Name: "a", Plane: func() string { return "plane" },
	})
	if err != nil {
		t.Fatalf("membership with the key: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}

func TestKeygenSaysWhatIsWrong(t *testing.T) {
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no file", nil, 2, "--out must be set"},
		{"an unknown flag", []string{"--bits", "4"}, 2, "-bits"},
		{"a word", []string{"--out", "x", "y"}, 2, `"y" is not a flag`},
		{"a place where nothing can be", []string{"--out", "/dev/null/key"}, 1, "/dev/null/key"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if code, stderr := keygen(t, tt.args...); code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, want %d; %q, want %q in it", code, tt.code, stderr, tt.want)
			}
		})
	}
}
