// Command meridian-zone is the zone control plane. Flags and configuration in, Run out; see --help.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/meridian-mesh/meridian/cmd/internal/launch"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/zone"
)

func main() {
	program := launch.Program[zone.Config]{
		Name:        "meridian-zone",
		Summary:     "The zone control plane of a Meridian mesh: holds the proxies of one zone, and replicates with the global control plane.",
		Defaults:    zone.DefaultConfig(),
		Log:         func(c zone.Config) logging.Config { return c.Log },
		Diagnostics: func(c zone.Config) diagnostics.Config { return c.Diagnostics },
		Commands: map[string]launch.Command{
			"migrate": launch.Migrate(zone.DefaultConfig(), func(c zone.Config) storage.Config { return c.Store }),
		},
		Start: func(ctx context.Context, c zone.Config, log *slog.Logger) (launch.Plane, error) {
			return zone.New(ctx, c, log)
		},
	}
	os.Exit(program.OS().Main())
}
