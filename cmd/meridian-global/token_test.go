package main

import (
	"bytes"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/token"
	"github.com/meridian-mesh/meridian/global"
)

// dataDir is a global's data directory, with a signing key in its store. The store is open.
func dataDir(t *testing.T) (string, *store.Store) {
	t.Helper()
	dir := t.TempDir()
	st, err := storage.Open(t.Context(), storage.Default(), dir, "global", store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = st.Close() })
	key, err := token.NewSigningKey()
	if err != nil {
		t.Fatal(err)
	}
	spec, err := proto.Marshal(&systemv1.Secret{Data: wrapperspb.Bytes(key)})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := st.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
		return []store.Op{store.Put(&store.Record{Key: tokens.SigningKey(tokens.Zone, "", 1), Spec: spec})}, nil
	}); err != nil {
		t.Fatal(err)
	}
	return dir, st
}

func run(t *testing.T, dir string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, err bytes.Buffer
	code = tokenCommand(t.Context(), args, []string{"MERIDIAN_DATA_DIR=" + dir}, &out, &err)
	return code, out.String(), err.String()
}

func TestATokenIsMadeFromTheStoreWhileNoGlobalRuns(t *testing.T) {
	dir, st := dataDir(t)
	snap := st.Snapshot()
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(t.TempDir(), "token")
	if code, _, stderr := run(t, dir, "zone", "--name", "zone-1", "--out", out, "--valid-for", "1h"); code != 0 {
		t.Fatalf("exit code %d: %s", code, stderr)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := tokens.NewAuthority().Verify(snap, tokens.Zone, "", strings.TrimSpace(string(raw)))
	if err != nil || claims.Zone != "zone-1" || len(claims.Scope) != 1 || claims.Scope[0] != "cp" || time.Until(claims.Expires) > time.Hour {
		t.Errorf("claims %+v, %v", claims, err)
	}
	if info, err := os.Stat(out); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestARunningGlobalIsAskedWithTheTokenOfItsDataDirectory(t *testing.T) {
	dir, _ := dataDir(t) // its store stays open, as by a running global
	if err := os.WriteFile(filepath.Join(dir, global.AdminTokenFile), []byte("admins\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	var asked map[string]any
	attempts := 0
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		attempts++
		if attempts == 1 {
			http.Error(w, "not yet", http.StatusServiceUnavailable)
			return
		}
		if r.Method != http.MethodPost || r.URL.Path != "/tokens/zone" || r.Header.Get("Authorization") != "Bearer admins" {
			t.Errorf("%s %s %v", r.Method, r.URL, r.Header)
		}
		if err := json.NewDecoder(r.Body).Decode(&asked); err != nil {
			t.Error(err)
		}
		_, _ = w.Write([]byte("the.new.token"))
	}))
	defer api.Close()
	code, stdout, stderr := run(t, dir, "zone", "--name", "zone-1", "--url", api.URL, "--wait", "10s")
	if code != 0 || stdout != "the.new.token\n" {
		t.Errorf("exit code %d, %q, %q", code, stdout, stderr)
	}
	if asked["zone"] != "zone-1" || asked["validFor"] != "87600h0m0s" {
		t.Errorf("asked for %v", asked)
	}
}

func TestTryingAgainLooksWhetherAGlobalRuns(t *testing.T) {
	dir, st := dataDir(t)
	// The one who has the store does not answer, and lets go of it.
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := st.Close(); err != nil {
			t.Error(err)
		}
		http.Error(w, "stopping", http.StatusServiceUnavailable)
	}))
	defer api.Close()
	_, port, err := net.SplitHostPort(api.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	env := []string{"MERIDIAN_DATA_DIR=" + dir, "MERIDIAN_API_HTTP_PORT=" + port}
	if code := tokenCommand(t.Context(), []string{"zone", "--name", "zone-1", "--wait", "10s"}, env, &stdout, &stderr); code != 0 || stdout.Len() == 0 {
		t.Errorf("exit code %d: %s", code, stderr.String())
	}
}

func TestTokenCommandSaysWhatIsWrong(t *testing.T) {
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, `{"title":"Access Denied"}`, http.StatusForbidden)
	}))
	defer api.Close()
	for _, tt := range []struct {
		name string
		args []string
		code int
		want string
	}{
		{"no kind", nil, 2, `only "token zone" is known`},
		{"another kind", []string{"user"}, 2, `only "token zone" is known`},
		{"no zone", []string{"zone"}, 2, "--name must be set"},
		{"a validity that is over", []string{"zone", "--name", "z", "--valid-for", "-1s"}, 2, "--valid-for"},
		{"no store", []string{"zone", "--name", "z"}, 1, "start the global once"},
		{"an address that is none", []string{"zone", "--name", "z", "--url", "global"}, 1, "--url"},
		{"a refusal", []string{"zone", "--name", "z", "--url", api.URL}, 1, "403 Forbidden"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			code, _, stderr := run(t, t.TempDir(), tt.args...)
			if code != tt.code || !strings.Contains(stderr, tt.want) {
				t.Errorf("exit code %d, want %d; %q, want %q in it", code, tt.code, stderr, tt.want)
			}
		})
	}
}
