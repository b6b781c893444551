// Package pgtest runs a real Postgres for tests, from the server's installed programs, and does to it what networks and
// machines do: kills it, freezes it, cuts and slows its connections.
package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Server is a Postgres of its own, in a directory of its own, on a port of the loopback interface.
type Server struct {
	bin, dir   string
	port       int
	settings   []string
	env        []string // more of the server's environment
	credential *syscall.Credential // whom it runs as; nil: as this process
	process    *exec.Cmd           // nil: not running
	exited     chan struct{}
	schemas    atomic.Int64
}

// Start makes and starts a server with further settings, such as "fsync=off". Where there is no Postgres the test is skipped,
// or fails if MERIDIAN_REQUIRE_POSTGRES is 1. The server ends with the test.
func Start(tb testing.TB, settings ...string) *Server {
	tb.Helper()
	s, err := New(settings...)
	if errors.Is(err, ErrNoPostgres) {
		NotRun(tb)
	}
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Remove(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// NotRun ends a test that needs a Postgres.
func NotRun(tb testing.TB) {
	tb.Helper()
	if os.Getenv("MERIDIAN_REQUIRE_POSTGRES") == "1" {
		tb.Fatal("no Postgres, and MERIDIAN_REQUIRE_POSTGRES is 1")
	}
	tb.Skip("NOT RUN: no Postgres")
}

// ErrNoPostgres reports that the programs of the server are not installed.
var ErrNoPostgres = errors.New("no Postgres: initdb and postgres are neither in /usr/lib/postgresql/*/bin nor in PATH")

// New makes and starts a server that the caller removes.
func New(settings ...string) (*Server, error) {
	s := &Server{settings: settings}
	var err error
	if s.bin, err = programs(); err != nil {
		return nil, err
	}
	if s.dir, err = os.MkdirTemp("", "meridian-pg-"); err != nil {
		return nil, err
	}
	if err := errors.Join(s.runAs(), s.init(), s.Start()); err != nil {
		return nil, errors.Join(err, s.Remove())
	}
	return s, nil
}

// programs returns the folder of the newest server.
func programs() (string, error) {
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	if len(found) > 0 {
		return filepath.Dir(slices.MaxFunc(found, func(a, b string) int {
			return version(a) - version(b)
		})), nil
	}
	if path, err := exec.LookPath("initdb"); err == nil {
		return filepath.Dir(path), nil
	}
	return "", ErrNoPostgres
}

// version is the number in /usr/lib/postgresql/15/bin/initdb.
func version(path string) int {
	n, err := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
	if err != nil {
		return 0
	}
	return n
}

// runAs decides whom the server runs as: it refuses to be root.
func (s *Server) runAs() error {
	if os.Getuid() != 0 {
		return nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		return fmt.Errorf("as root, a Postgres needs the user postgres to run as: %w", err)
	}
	uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
	gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
	s.credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return errors.Join(err1, err2, os.Chown(s.dir, int(uid), int(gid)))
}

// command makes a process of the server's, in a group of its own, so that no Ctrl-C of the test's reaches it.
func (s *Server) command(name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(context.Background(), filepath.Join(s.bin, name), args...)
	cmd.Dir = s.dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: s.credential}
	return cmd
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

func (s *Server) init() error {
	out, err := s.command("initdb", "--pgdata="+s.data(), "--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-sync").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	// The port stays the same over restarts.
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // at once
	if err != nil {
		return err
	}
	s.port = l.Addr().(*net.TCPAddr).Port
	return l.Close()
}

// Start starts the server again, and returns when it answers.
func (s *Server) Start() error {
	// What a killed server leaves behind is in use until the last of its processes is gone.
	deadline := time.Now().Add(30 * time.Second)
	for {
		err := s.start()
		if !errors.Is(err, errEnded) || time.Now().After(deadline) {
			return err
		}
		<-time.After(50 * time.Millisecond)
	}
}

var errEnded = errors.New("postgres ended")

func (s *Server) start() error {
	args := []string{"-D", s.data(), "-p", strconv.Itoa(s.port), "-k", s.dir, "-h", "127.0.0.1"}
	for _, setting := range s.settings {
		args = append(args, "-c", setting)
	}
	log, err := os.OpenFile(filepath.Join(s.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { _ = log.Close() }() // the server has it
	cmd := s.command("postgres", args...)
	cmd.Env = append(cmd.Env, s.env...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start postgres: %w", err)
	}
	s.process, s.exited = cmd, make(chan struct{})
	go func(exited chan struct{}) {
		defer close(exited)
		_ = cmd.Wait() // how it ended is in its log
	}(s.exited)
	return s.awaitAnswer()
}

func (s *Server) awaitAnswer() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for {
		err := s.exec(ctx, s.URL(), "SELECT 1")
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			log, _ := os.ReadFile(filepath.Join(s.dir, "log"))
			return fmt.Errorf("%w: %s", errEnded, log[max(0, len(log)-2000):])
		case <-ctx.Done():
			return fmt.Errorf("postgres does not answer: %w", err)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Stop ends the server as an operator would: connections are closed, transactions rolled back.
func (s *Server) Stop() error { return s.end(syscall.SIGINT, false) }

// Kill ends all processes of the server with SIGKILL.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL, true) }

func (s *Server) end(sig syscall.Signal, all bool) error {
	if s.process == nil {
		return nil
	}
	pids := []int{s.process.Process.Pid}
	if all {
		pids = append(pids, children(pids[0])...) // each is in a group of its own
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("stop postgres: %w", err)
		}
	}
	<-s.exited
	s.process = nil
	return nil
}

// Pause freezes the server with all connections; Resume lets it go on.
func (s *Server) Pause() error { return s.signalAll(syscall.SIGSTOP) }

// Resume ends a Pause.
func (s *Server) Resume() error { return s.signalAll(syscall.SIGCONT) }

// signalAll reaches every process: sessions are in groups of their own.
func (s *Server) signalAll(sig syscall.Signal) error {
	if s.process == nil {
		return nil
	}
	for _, pid := range append([]int{s.process.Process.Pid}, children(s.process.Process.Pid)...) {
		if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
			return fmt.Errorf("signal postgres: %w", err)
		}
	}
	return nil
}

// Remove ends the server and deletes what it stored.
func (s *Server) Remove() error {
	return errors.Join(s.Resume(), s.Kill(), os.RemoveAll(s.dir))
}

// Addr is the server's host:port.
func (s *Server) Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.port)) }

// URL leads to the server's first database.
func (s *Server) URL() string { return s.urlAt(s.Addr(), "") }

func (s *Server) urlAt(addr, schema string) string {
	u := "postgres://postgres@" + addr + "/postgres?sslmode=disable"
	if schema != "" {
		u += "&search_path=" + schema
	}
	return u
}

// NewSchema makes an empty database.
func (s *Server) NewSchema(tb testing.TB) Database {
	tb.Helper()
	d := Database{server: s, schema: fmt.Sprintf("s%d", s.schemas.Add(1))}
	s.Exec(tb, "CREATE SCHEMA "+d.schema)
	return d
}

// Database is a schema of a server, as good as a database of its own.
type Database struct {
	server *Server
	schema string
}

// URL leads to the database.
func (d Database) URL() string { return d.server.urlAt(d.server.Addr(), d.schema) }

// Schema is the name of the database on its server.
func (d Database) Schema() string { return d.schema }

// Through is URL by way of a proxy.
func (d Database) Through(p *Proxy) string { return d.server.urlAt(p.Addr(), d.schema) }

// Exec runs statements in the database.
func (d Database) Exec(tb testing.TB, sql string) {
	tb.Helper()
	if err := d.server.exec(tb.Context(), d.URL(), sql); err != nil {
		tb.Fatal(err)
	}
}

// Exec runs statements in the server's first database.
func (s *Server) Exec(tb testing.TB, sql string) {
	tb.Helper()
	if err := s.exec(tb.Context(), s.URL(), sql); err != nil {
		tb.Fatal(err)
	}
}

func (s *Server) exec(ctx context.Context, url, sql string) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	c, err := pgx.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close(ctx)) }()
	_, err = c.Exec(ctx, sql, pgx.QueryExecModeSimpleProtocol)
	return err
}

// RequirePassword makes the server ask a role for its password.
func (s *Server) RequirePassword(tb testing.TB, role string) {
	tb.Helper()
	file := filepath.Join(s.data(), "pg_hba.conf")
	rules, err := os.ReadFile(file)
	if err == nil {
		err = os.WriteFile(file, append([]byte("host all "+role+" 127.0.0.1/32 scram-sha-256\n"), rules...), 0o600)
	}
	if err != nil {
		tb.Fatal(err)
	}
	s.Exec(tb, "SELECT pg_reload_conf()")
}
