package e2e

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tokenID reads the id (jti) of a token without looking at its signature.
func tokenID(t *testing.T, file string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	part := strings.Split(strings.TrimSpace(string(raw)), ".")
	if len(part) != 3 {
		t.Fatalf("%s holds no token", file)
	}
	payload, err := base64.RawURLEncoding.DecodeString(part[1])
	if err != nil {
		t.Fatal(err)
	}
	var claims struct {
		ID string `json:"jti"`
	}
	if err := json.Unmarshal(payload, &claims); err != nil || claims.ID == "" {
		t.Fatalf("token without id: %v, %s", err, payload)
	}
	return claims.ID
}

// logs waits until the plane has logged a line with all of the texts.
func (p *Plane) logs(within time.Duration, texts ...string) {
	p.t.Helper()
	p.eventually(within, fmt.Sprintf("logged %q", texts), func() error {
		log, err := os.ReadFile(p.logFile())
		if err != nil {
			return err
		}
	lines:
		for line := range strings.Lines(string(log)) {
			for _, text := range texts {
				if !strings.Contains(line, text) {
					continue lines
				}
			}
			return nil
		}
		return fmt.Errorf("no such line")
	})
}

func TestAZoneThatCannotProveWhoItIsIsRefused(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin, "zone-1")
	dir := t.TempDir()
	file := func(name string) string { return filepath.Join(dir, name) }
	s.Global.mint("zone-3", file("other-zone"))
	s.Global.mint("zone-2", file("expired"), "--valid-for", "1s")
	expires := time.Now().Add(time.Second)
	s.Global.mint("zone-2", file("wrong"))
	raw, err := os.ReadFile(file("wrong"))
	if err != nil {
		t.Fatal(err)
	}
	half := len(raw) / 2
	tampered := append(append(append([]byte{}, raw[:half]...), raw[half]^1), raw[half+1:]...)
	if err := os.WriteFile(file("wrong"), tampered, 0o600); err != nil {
		t.Fatal(err)
	}
	ingress := s.Global.Must(http.MethodPost, "/tokens/zone", `{"zone":"zone-2","scope":["ingress"]}`, 200)
	if err := os.WriteFile(file("ingress"), ingress, 0o600); err != nil {
		t.Fatal(err)
	}
	user := s.Global.Must(http.MethodPost, "/tokens/user", `{"name":"zone-2","groups":["mesh-system:admin"],"validFor":"1h"}`, 200)
	if err := os.WriteFile(file("user"), user, 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Until(expires))
	for _, tt := range []struct{ name, token, global, zone string }{
		{"without a token", "", "no zone token was presented", "set MERIDIAN_ZONE_TOKEN_FILE"},
		{"with a token that was changed", "wrong", "zone token", "look at the token"},
		{"with an expired token", "expired", "token is expired", "look at the token"},
		{"with the token of another zone", "other-zone", `the zone token is for zone \"zone-3\"`, "look at the token"},
		{"with a token of another scope", "ingress", `not the scope \"cp\"`, "look at the token"},
		{"with a user's token", "user", "zone token", "look at the token"},
		{"with a file that is not there", "absent", "", "read the zone token"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			z := newPlane(t, bin, "zone", "zone-2")
			z.env = append(z.env, "MERIDIAN_ZONE_NAME=zone-2",
				fmt.Sprintf("MERIDIAN_ZONE_GLOBAL_ADDRESS=grpcs://localhost:%d", s.Global.KDS),
				"MERIDIAN_ZONE_KDS_CA_FILE="+filepath.Join(s.Global.Dir, "trust", "kds-ca.crt"))
			if tt.token != "" {
				z.env = append(z.env, "MERIDIAN_ZONE_TOKEN_FILE="+file(tt.token))
			}
			z.Start()
			z.logs(10*time.Second, "the global refuses this zone", tt.zone)
			if tt.global != "" {
				s.Global.logs(10*time.Second, "could not prove to be the zone", "zone=zone-2", tt.global)
			}
			if code, body, err := s.Global.Call(http.MethodGet, "/zones/zone-2", ""); err != nil || code != 404 {
				t.Errorf("a refused zone is known: %d %s %v", code, body, err)
			}
			if code, _, err := z.Call(http.MethodGet, "/meshes/default", ""); err != nil || code != 404 {
				t.Errorf("a refused zone received resources: %d %v", code, err)
			}
			log, err := os.ReadFile(z.logFile())
			if err != nil {
				t.Fatal(err)
			}
			if tt.token != "" && tt.token != "absent" {
				raw, err := os.ReadFile(file(tt.token))
				if err != nil {
					t.Fatal(err)
				}
				global, err := os.ReadFile(s.Global.logFile())
				if err != nil {
					t.Fatal(err)
				}
				if strings.Contains(string(log)+string(global), strings.TrimSpace(string(raw))) {
					t.Error("a log shows the token")
				}
			}
			z.Stop()
		})
	}
	// The session of the zone beside them did not notice.
	if n := s.Global.metric("meridian_zones_session_swaps_total"); n != 0 {
		t.Errorf("%v sessions were replaced", n)
	}
	s.Global.Must(http.MethodPut, "/meshes/after", `{"type":"Mesh","name":"after"}`, 201)
	s.Zones[0].eventually(2*time.Second, "has the mesh", func() error {
		code, _, err := s.Zones[0].Call(http.MethodGet, "/meshes/after", "")
		if err == nil && code != 200 {
			err = fmt.Errorf("status %d", code)
		}
		return err
	})
}

func TestARevokedOrExpiredTokenEndsTheSession(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin)
	z := s.newZone(bin, "zone-1")
	z.env = append(z.env, "MERIDIAN_ZONE_RECONNECT_MAX=1s")
	z.Start()
	s.waitActive("zone-1", true, 15*time.Second)
	token := filepath.Join(z.Dir, "zone-token")

	revoke := base64.StdEncoding.EncodeToString([]byte(tokenID(t, token) + "\n"))
	s.Global.Must(http.MethodPut, "/global-secrets/zone-token-revocations",
		`{"type":"GlobalSecret","name":"zone-token-revocations","data":"`+revoke+`"}`, 201)
	t.Log("shown as offline after the revocation was answered: ", s.waitActive("zone-1", false, time.Second))
	z.logs(10*time.Second, "the global refuses this zone", "revoked")
	s.Global.logs(time.Second, "could not prove to be the zone", "zone=zone-1", "revoked")

	// A new token in the same file is taken without a restart.
	s.Global.mint("zone-1", token, "--valid-for", "4s")
	t.Log("back after a new token: ", s.waitActive("zone-1", true, 15*time.Second))
	t.Log("shown as offline when that expired: ", s.waitActive("zone-1", false, 6*time.Second))
	z.logs(15*time.Second, "the global refuses this zone", "expired")

	// A second signing key signs from now on; what the first one signed stays good, until its key goes.
	s.Global.mint("zone-1", token)
	s.waitActive("zone-1", true, 15*time.Second)
	key := s.Global.Must(http.MethodGet, "/global-secrets/zone-token-signing-key-1", "", 200)
	s.Global.Must(http.MethodPut, "/global-secrets/zone-token-signing-key-2",
		strings.Replace(string(key), "zone-token-signing-key-1", "zone-token-signing-key-2", 1), 201)
	s.Global.Must(http.MethodPut, "/meshes/rotated", `{"type":"Mesh","name":"rotated"}`, 201)
	z.eventually(2*time.Second, "has the mesh", func() error {
		code, _, err := z.Call(http.MethodGet, "/meshes/rotated", "")
		if err == nil && code != 200 {
			err = fmt.Errorf("status %d", code)
		}
		return err
	})
	s.Global.Must(http.MethodDelete, "/global-secrets/zone-token-signing-key-1", "", 200)
	s.waitActive("zone-1", false, time.Second)
	s.Global.mint("zone-1", token)
	s.waitActive("zone-1", true, 15*time.Second)
}

func TestTheAdministratorsTokenLiesInTheDataDirectory(t *testing.T) {
	t.Parallel()
	s := newSystem(t, bin)
	raw, err := os.ReadFile(filepath.Join(s.Global.Dir, "admin-user-token"))
	if err != nil {
		t.Fatal(err)
	}
	// From elsewhere: the name of the host gives the request away.
	for authorization, want := range map[string]int{"Bearer " + strings.TrimSpace(string(raw)): 200, "": 403} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.Global.url("/global-secrets"), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = "meridian.example"
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("with authorization %t: %s, want %d", authorization != "", resp.Status, want)
		}
	}

	// The file follows the secret.
	s.Global.Must(http.MethodPut, "/global-secrets/admin-user-token", `{"type":"GlobalSecret","name":"admin-user-token","data":"bmV3"}`, 200)
	s.Global.eventually(2*time.Second, "written the new token", func() error {
		raw, err := os.ReadFile(filepath.Join(s.Global.Dir, "admin-user-token"))
		if err == nil && string(raw) != "new\n" {
			err = fmt.Errorf("it holds %q", raw)
		}
		return err
	})
	s.Global.Must(http.MethodDelete, "/global-secrets/admin-user-token", "", 200)
	s.Global.eventually(2*time.Second, "removed the token", func() error {
		if _, err := os.Stat(filepath.Join(s.Global.Dir, "admin-user-token")); !os.IsNotExist(err) {
			return fmt.Errorf("it is there: %w", err)
		}
		return nil
	})
}
