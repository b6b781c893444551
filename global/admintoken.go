package global

import (
	"fmt"
	"path/filepath"

	"google.golang.org/protobuf/proto"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/atomicfile"
	"github.com/meridian-mesh/meridian/common/store"
)

// AdminTokenFile is the file in the data directory that holds the administrator's token, for programs that may read
// that directory and cannot open the store, because the global has it open.
const AdminTokenFile = "admin-user-token"

// shareAdminToken writes the administrator's token, where there is one, to its file. It gives nothing to anybody who
// does not have it: the store beside the file holds the same token, with the same permissions.
func shareAdminToken(snap *store.Snapshot, dataDir string) error {
	rec, ok := snap.Get(store.Key{Type: string(resource.GlobalSecret), Name: AdminTokenFile})
	if !ok {
		return nil
	}
	var secret systemv1.Secret
	if err := proto.Unmarshal(rec.Spec, &secret); err != nil {
		return fmt.Errorf("read %s: %w", rec.Key, err)
	}
	return atomicfile.Write(filepath.Join(dataDir, AdminTokenFile), append(secret.GetData().GetValue(), '\n'), 0o600, 0o700)
}
