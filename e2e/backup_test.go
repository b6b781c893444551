package e2e

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

// TestABackupIsRestored: an export of a global, imported into a new one, gives a global that exports the same and
// accepts the tokens that the old one issued.
func TestABackupIsRestored(t *testing.T) {
	t.Parallel()
	old, fresh := newSystem(t, bin).Global, newSystem(t, bin).Global
	old.Must("PUT", "/meshes/m", `{"type":"Mesh","name":"m","mtls":{"enabledBackend":"ca-1","backends":[{"name":"ca-1","type":"builtin"}]}}`, 201)
	old.Must("PUT", "/meshes/default/traffic-permissions/a", fmt.Sprintf(permissionBody, "a", "x"), 201)
	old.Must("DELETE", "/meshes/m/retries/retry-all-m", "", 200)
	old.Must("PUT", "/meshes/m/secrets/s", `{"type":"Secret","mesh":"m","name":"s","data":"c2VjcmV0"}`, 201)
	token := strings.TrimSpace(string(old.Must("POST", "/tokens/user", `{"name":"jane","groups":["g"],"validFor":"1h"}`, 200)))
	whoever := func(p *Plane) int {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, p.url("/meshes"), http.NoBody)
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer "+token)
		r.Host = "meridian.test" // not as a local administrator
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		return resp.StatusCode
	}
	if code := whoever(fresh); code != http.StatusUnauthorized {
		t.Errorf("a new global answers %d to the token of another one", code)
	}
	_, backup, _ := strings.Cut(string(old.Must("GET", "/export", "", 200)), "\n")

	r, err := http.NewRequestWithContext(t.Context(), http.MethodPost, fresh.url("/import"), strings.NewReader(backup))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/yaml")
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("import: %s", resp.Status)
	}
	if _, restored, _ := strings.Cut(string(fresh.Must("GET", "/export", "", 200)), "\n"); restored != backup {
		t.Errorf("the restored global exports\n%s\nwant\n%s", restored, backup)
	}
	fresh.eventually(5*time.Second, "accepting the old token", func() error {
		if code := whoever(fresh); code != http.StatusOK {
			return fmt.Errorf("%d", code)
		}
		return nil
	})
}
