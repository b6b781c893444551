package postgres_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/postgres"
	"github.com/meridian-mesh/meridian/common/store/postgres/pgtest"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

// server is shared by the tests that do it no harm; nil where there is no Postgres.
var server *pgtest.Server

func TestMain(m *testing.M) {
	var err error
	if server, err = pgtest.New("fsync=off"); err != nil {
		fmt.Fprintln(os.Stderr, err)
	}
	code := m.Run()
	if server != nil {
		if err := server.Remove(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

// database returns an empty database on the shared server.
func database(tb testing.TB) pgtest.Database {
	tb.Helper()
	if server == nil {
		pgtest.NotRun(tb)
	}
	return server.NewSchema(tb)
}

func TestConformance(t *testing.T) {
	storetest.Run(t, func(t *testing.T) storetest.Opener {
		d := database(t)
		return func() (store.Backend, error) { return postgres.Open(t.Context(), postgres.Options{URL: d.URL()}) }
	})
}

func TestReplicas(t *testing.T) {
	storetest.RunReplicas(t, func(t *testing.T) storetest.Opener {
		d := database(t)
		return func() (store.Backend, error) { return postgres.Open(t.Context(), postgres.Options{URL: d.URL()}) }
	})
}
