package launch

import (
	"context"
	"fmt"
	"io"

	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/storage"
)

// Migrate is the command that brings the tables of a database up to date, for operators who do not let a plane do that.
// It takes the configuration, flags included, that the plane is started with.
func Migrate[C any](defaults C, section func(C) storage.Config) Command {
	return Command{
		Summary: "brings the tables of a Postgres store up to date, and exits.",
		Run: func(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
			cfg, err := config.Load(defaults, args, environ)
			if err != nil {
				fmt.Fprintln(stderr, "migrate:", err)
				return ExitUsage
			}
			applied, err := storage.Migrate(ctx, section(cfg))
			if err != nil {
				fmt.Fprintln(stderr, "migrate:", err)
				return ExitFailed
			}
			for _, name := range applied {
				fmt.Fprintln(stdout, "applied migration", name)
			}
			if len(applied) == 0 {
				fmt.Fprintln(stdout, "the database is up to date")
			}
			return ExitOK
		},
	}
}
