// Command meridian-agent joins a gRPC program to a mesh without a proxy beside it. Flags and configuration in, Run out; see
// --help.
package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/meridian-mesh/meridian/cmd/internal/agent"
	"github.com/meridian-mesh/meridian/cmd/internal/launch"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
)

func main() {
	program := launch.Program[agent.Config]{
		Name: "meridian-agent",
		Summary: "Joins a gRPC program to a mesh without a proxy beside it: registers it with the zone control plane, keeps its\n" +
			"certificate and authorities in files, and passes its xDS requests on.",
		Defaults:    agent.DefaultConfig(),
		Log:         func(c agent.Config) logging.Config { return c.Log },
		Diagnostics: func(c agent.Config) diagnostics.Config { return c.Diagnostics },
		Start: func(ctx context.Context, c agent.Config, log *slog.Logger) (launch.Plane, error) {
			return agent.New(ctx, c, log)
		},
	}
	os.Exit(program.OS().Main())
}
