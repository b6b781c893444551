package zone

import (
	"errors"
	"log/slog"
	"net"
	"testing"

	"github.com/meridian-mesh/meridian/common/store/bolt"
)

func TestAStartThatFailsSaysWhyAndLeavesTheDataDirectoryToTheNext(t *testing.T) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	taken := portOf(l.Addr())
	free := DefaultConfig()
	free.General.DataDir = t.TempDir()
	free.Multizone.Zone.Name, free.Multizone.Zone.GlobalAddress = "zone-1", "grpc://localhost:1"
	free.API.BindAddress, free.Diagnostics.BindAddress = "127.0.0.1", "127.0.0.1"
	free.API.HTTPPort, free.API.HTTPSPort, free.Diagnostics.Port = 0, 0, 0
	free.DPServer.Port, free.MADS.Port = 0, 0

	for name, change := range map[string]func(*Config){
		"the port of the API is taken":         func(c *Config) { c.API.HTTPPort = taken },
		"the port for proxies is taken":        func(c *Config) { c.DPServer.Port = taken },
		"the port of MADS is taken":            func(c *Config) { c.MADS.Port = taken },
		"the port of the diagnostics is taken": func(c *Config) { c.Diagnostics.Port = taken },
	} {
		t.Run(name, func(t *testing.T) {
			cfg := free
			change(&cfg)
			_, err := New(t.Context(), cfg, slog.New(slog.DiscardHandler))
			if op := new(net.OpError); !errors.As(err, &op) {
				t.Errorf("err = %v, want the one of listening", err)
			}
		})
	}

	plane, err := New(t.Context(), free, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatalf("the data directory is not free again: %v", err)
	}
	t.Cleanup(func() { _ = plane.Close() })
	if _, err := New(t.Context(), free, slog.New(slog.DiscardHandler)); !errors.Is(err, bolt.ErrLocked) {
		t.Errorf("a second plane on one data directory: err = %v, want %v", err, bolt.ErrLocked)
	}
}
