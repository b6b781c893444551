// Package component runs the parts of a control plane together. A plane is a literal list of components; there is no
// registry to search for what runs, and nothing runs that the list does not name.
package component

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
)

// Component is one part of a plane. Run blocks until ctx ends or the part fails; what it started it has waited for
// when it returns. Returning nil before ctx ends means that the part had only so much to do: the others go on.
type Component struct {
	Name string
	Run  func(ctx context.Context) error
}

// Run runs all components until ctx ends or one fails, which ends the others, and returns when the last has returned.
// The error is that of the first to fail, with its name in front. Ending because ctx ended is no failure.
func Run(ctx context.Context, components ...Component) error {
	g, groupCtx := errgroup.WithContext(ctx)
	for _, c := range components {
		g.Go(func() error {
			err := c.Run(groupCtx)
			if err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err()) {
				return nil
			}
			return fmt.Errorf("%s: %w", c.Name, err)
		})
	}
	return g.Wait()
}
