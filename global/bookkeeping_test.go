package global

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
)

// The authority of the replicas is in the store, and must never leave it: what is served, exported and synchronised are the types of
// the registry, of which it is none.
func TestTheAuthorityOfReplicasIsBookkeeping(t *testing.T) {
	cfg := DefaultConfig()
	cfg.General.DataDir = t.TempDir()
	cfg.API.BindAddress, cfg.Diagnostics.BindAddress, cfg.Multizone.Global.KDS.BindAddress, cfg.Cluster.BindAddress = "127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.1"
	cfg.API.HTTPPort, cfg.API.HTTPSPort, cfg.Diagnostics.Port, cfg.Multizone.Global.KDS.Port = 0, 0, 0, 0
	cfg.Cluster.BindPort, cfg.Cluster.PeerPort = 0, 0
	plane, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- plane.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		_ = plane.Close()
	})
	const typ = "PeerAuthority"
	timeout := time.After(30 * time.Second)
	for changed := plane.store.Changed(typ); plane.store.Snapshot().Count(typ, "") != 1; changed = plane.store.Changed(typ) {
		select {
		case <-changed:
		case <-timeout:
			t.Fatal("there is no authority")
		}
	}
	for _, d := range resource.All() {
		if string(d.Name) == typ {
			t.Errorf("%s is in the registry", typ)
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+plane.api.HTTPAddr().String()+"/export", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK || strings.Contains(string(body), "PeerAuth") || strings.Contains(string(body), "BEGIN") {
		t.Errorf("%s, %v: %s", resp.Status, err, body)
	}
}
