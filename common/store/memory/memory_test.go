package memory_test

import (
	"testing"

	"go.uber.org/goleak"

	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/common/store/memory"
	"github.com/meridian-mesh/meridian/common/store/storetest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	storetest.Run(t, func(*testing.T) storetest.Opener {
		b := memory.New()
		return func() (store.Backend, error) { return b, nil }
	})
}

func TestTheSecondOfTwoStoresOnOneValueCannotWriteUnderTheFirst(t *testing.T) {
	b := memory.New()
	open := func() *store.Store {
		s, err := store.Open(t.Context(), b, store.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	put := func(s *store.Store, name string) error {
		_, err := s.Update(t.Context(), func(*store.Snapshot) ([]store.Op, error) {
			return []store.Op{store.Put(&store.Record{Key: store.Key{Type: "T", Name: name}})}, nil
		})
		return err
	}
	first, second := open(), open()
	if err := put(first, "a"); err != nil {
		t.Fatal(err)
	}
	if err := put(second, "b"); err == nil {
		t.Error("two histories were written to one backend")
	}
}
