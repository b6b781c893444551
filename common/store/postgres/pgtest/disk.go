package pgtest

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

//go:embed testdata/slowdisk.c
var slowDisk []byte

// ErrNoCompiler reports that a disk cannot be made slow.
var ErrNoCompiler = errors.New("no C compiler: neither cc nor gcc is in PATH")

// SlowDisk restarts the server so that [Server.DelayDisk] works. The server's fsync must be on.
func (s *Server) SlowDisk() error {
	cc, err := exec.LookPath("cc")
	if err != nil {
		if cc, err = exec.LookPath("gcc"); err != nil {
			return ErrNoCompiler
		}
	}
	source, library := filepath.Join(s.dir, "slowdisk.c"), filepath.Join(s.dir, "slowdisk.so")
	if err := os.WriteFile(source, slowDisk, 0o600); err != nil {
		return err
	}
	cmd := exec.Command(cc, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl") //nolint:noctx // at once
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("compile slowdisk.c: %w: %s", err, out)
	}
	if err := errors.Join(os.Chmod(library, 0o755), s.DelayDisk(0), s.Stop()); err != nil { //nolint:gosec // the server's user reads it
		return err
	}
	s.env = []string{"LD_PRELOAD=" + library, "SLOWDISK_DELAY=" + s.delayFile()}
	return s.Start()
}

func (s *Server) delayFile() string { return filepath.Join(s.dir, "slowdisk.delay") }

// DelayDisk makes the server wait each time that it asks its disk to store what was written.
func (s *Server) DelayDisk(d time.Duration) error {
	// By way of another file, so that the server never reads half of it.
	next := s.delayFile() + ".next"
	if err := os.WriteFile(next, strconv.AppendInt(nil, d.Microseconds(), 10), 0o644); err != nil { //nolint:gosec // the server's user reads it
		return err
	}
	return os.Rename(next, s.delayFile())
}
