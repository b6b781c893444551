// Command meridian-global is the global control plane. Flags and configuration in, Run out; see --help.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/meridian-mesh/meridian/cmd/internal/launch"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/global"
)

func main() {
	program := launch.Program[global.Config]{
		Name:        "meridian-global",
		Summary:     "The global control plane of a Meridian mesh: holds meshes and policies, and replicates them to the zones that connect to it.",
		Defaults:    global.DefaultConfig(),
		Log:         func(c global.Config) logging.Config { return c.Log },
		Diagnostics: func(c global.Config) diagnostics.Config { return c.Diagnostics },
		Commands: map[string]launch.Command{
			"token":   {Summary: "zone makes the token that a zone presents to the global; see token --help.", Run: tokenCommand},
			"keygen":  {Summary: "makes a file with a random key, for MERIDIAN_CLUSTER_KEY_FILE; see keygen --help.", Run: keygenCommand},
			"migrate": launch.Migrate(global.DefaultConfig(), func(c global.Config) storage.Config { return c.Store }),
		},
		Start: func(ctx context.Context, c global.Config, log *slog.Logger) (launch.Plane, error) {
			return global.New(ctx, c, log)
		},
	}
	os.Exit(program.OS().Main())
}
