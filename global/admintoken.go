package global

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"google.golang.org/protobuf/proto"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/atomicfile"
	"github.com/meridian-mesh/meridian/common/store"
)

// AdminTokenFile is the file in the data directory that holds the administrator's token, for programs that may read
// that directory and cannot open the store, because the global has it open.
const AdminTokenFile = "admin-user-token"

var adminTokenKey = store.Key{Type: string(resource.GlobalSecret), Name: AdminTokenFile}

// shareAdminToken makes the file hold the administrator's token, and removes it where there is none. It gives nothing to
// anybody who does not have it: the store beside the file holds the same token, with the same permissions.
func shareAdminToken(snap *store.Snapshot, dataDir string) error {
	path := filepath.Join(dataDir, AdminTokenFile)
	rec, ok := snap.Get(adminTokenKey)
	if !ok {
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("remove the administrator's token, which is no more: %w", err)
		}
		return nil
	}
	var secret systemv1.Secret
	if err := proto.Unmarshal(rec.Spec, &secret); err != nil {
		return fmt.Errorf("read %s: %w", rec.Key, err)
	}
	return atomicfile.Write(path, append(secret.GetData().GetValue(), '\n'), 0o600, 0o700)
}

// keepAdminToken keeps the file in step with the secret, which operators replace and imports bring back, until ctx ends.
func (g *Global) keepAdminToken(ctx context.Context) error {
	from := g.startRevision
	for {
		for changes, err := range g.store.Watch(ctx, from, adminTokenKey.Type) {
			switch {
			case errors.Is(err, store.ErrCompacted):
			case err != nil:
				return nil // told to stop, or the store is closed
			case !slices.ContainsFunc(changes.List, func(c store.Change) bool { return c.Key == adminTokenKey }):
				continue
			}
			snap := g.store.Snapshot()
			if err := shareAdminToken(snap, g.cfg.General.DataDir); err != nil {
				g.log.ErrorContext(ctx, "the file with the administrator's token is not what the secret is", "err", err)
			}
			from = snap.Revision()
		}
	}
}
