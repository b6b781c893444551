// Package launch is what the main functions of the two control planes share: configuration in, Run out, signals and
// exit codes.
package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
	"github.com/meridian-mesh/meridian/common/version"
)

// The codes a program exits with.
const (
	ExitOK     = 0
	ExitFailed = 1 // it could not start or go on; health: not ready
	ExitUsage  = 2 // its configuration is wrong
	// ExitKilled is for a shutdown that did not finish, because a second signal came or time was up.
	ExitKilled = 3
)

// shutdownLimit is how long a clean shutdown may take. It leaves a second of the ten that docker stop and our own
// promise give.
const shutdownLimit = 9 * time.Second

// Plane is a control plane that was made and does not run yet.
type Plane interface {
	// Run serves until ctx ends.
	Run(ctx context.Context) error
	// Close frees what was opened when the plane was made. It is called once, after Run.
	Close() error
}

// Command is a task beside running a plane.
type Command struct {
	Summary string // completes "NAME COMMAND ..."
	Run     func(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int
}

// Program is one of the two programs. C is its configuration.
type Program[C any] struct {
	Name, Summary string
	Defaults      C
	// Log and Diagnostics find two sections that the program needs before there is a plane.
	Log         func(C) logging.Config
	Diagnostics func(C) diagnostics.Config
	// Commands are what the program does instead when its first argument is one of these names. Each returns the exit
	// code; ctx ends when the program is told to stop.
	Commands map[string]Command
	// Start makes the plane. ctx ends when the program is told to stop.
	Start func(ctx context.Context, cfg C, log *slog.Logger) (Plane, error)

	Args           []string // without the program's name
	Environ        []string
	Stdout, Stderr io.Writer
	Signals        <-chan os.Signal
	shutdownLimit  time.Duration // zero: the constant
}

// OS fills in what comes from the operating system: arguments, environment, outputs and signals.
func (p Program[C]) OS() Program[C] {
	// Two places, so that a second signal is not lost while the first is taken.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	p.Args, p.Environ, p.Stdout, p.Stderr, p.Signals = os.Args[1:], os.Environ(), os.Stdout, os.Stderr, signals
	return p
}

// Main runs the program and returns its exit code.
func (p Program[C]) Main() int {
	args := p.Args
	if len(args) > 0 {
		if c, ok := p.Commands[args[0]]; ok {
			return p.command(c, args[1:])
		}
	}
	health := len(args) > 0 && args[0] == "health"
	if health {
		args = args[1:]
	}
	cfg, err := config.Load(p.Defaults, args, p.Environ)
	switch {
	case errors.Is(err, config.ErrHelp):
		return p.help()
	case errors.Is(err, config.ErrVersion):
		fmt.Fprintln(p.Stdout, p.Name, version.Get())
		return ExitOK
	case health:
		// Whatever else may be wrong with the configuration, the port is what counts here.
		return p.health(p.Diagnostics(cfg))
	case err != nil:
		fmt.Fprintf(p.Stderr, "%s: %v\nSee %s --help.\n", p.Name, err, p.Name)
		return ExitUsage
	}
	return p.serve(cfg)
}

// command runs c until it is done or a signal comes.
func (p Program[C]) command(c Command, args []string) int {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan int, 1)
	go func() { done <- c.Run(ctx, args, p.Environ, p.Stdout, p.Stderr) }()
	select {
	case code := <-done:
		return code
	case <-p.Signals:
		cancel()
		return <-done
	}
}

func (p Program[C]) help() int {
	summary := []string{
		p.Summary, "",
		p.Name + " health asks a running plane on this host whether it is ready, and exits 0 or 1.",
	}
	for _, name := range slices.Sorted(maps.Keys(p.Commands)) {
		summary = append(summary, p.Name+" "+name+" "+p.Commands[name].Summary)
	}
	if err := config.Usage(p.Stdout, p.Name, strings.Join(summary, "\n"), p.Defaults); err != nil {
		return ExitFailed
	}
	return ExitOK
}

// serve runs the plane until it fails or a signal comes. A second signal, or a shutdown that takes too long, leaves the
// plane as it is: a process that ends at any instant loses nothing it acknowledged.
func (p Program[C]) serve(cfg C) int {
	log := logging.New(p.Log(cfg), p.Stderr)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	log.InfoContext(ctx, "starting", "program", p.Name, "version", version.Get().String())
	done := make(chan error, 1)
	go func() { done <- p.run(ctx, cfg, log) }()

	select {
	case err := <-done:
		return report(ctx, log, err)
	case sig := <-p.Signals:
		log.InfoContext(ctx, "stopping", "signal", sig.String())
	}
	cancel()
	limit := p.shutdownLimit
	if limit == 0 {
		limit = shutdownLimit
	}
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case err := <-done:
		return report(ctx, log, err)
	case sig := <-p.Signals:
		log.ErrorContext(ctx, "stopped before the shutdown was finished", "signal", sig.String())
	case <-timer.C:
		log.ErrorContext(ctx, "shutdown took too long", "limit", limit)
	}
	return ExitKilled
}

func report(ctx context.Context, log *slog.Logger, err error) int {
	if err != nil {
		log.ErrorContext(ctx, "failed", "err", err)
		return ExitFailed
	}
	log.InfoContext(ctx, "stopped")
	return ExitOK
}

func (p Program[C]) run(ctx context.Context, cfg C, log *slog.Logger) error {
	plane, err := p.Start(ctx, cfg, log)
	if err != nil {
		if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
			return nil // told to stop while starting
		}
		return fmt.Errorf("start: %w", err)
	}
	err = plane.Run(ctx)
	if closeErr := plane.Close(); closeErr != nil {
		err = errors.Join(err, fmt.Errorf("close: %w", closeErr))
	}
	return err
}

// health asks the diagnostics listener of this host whether the plane is ready. It is what HEALTHCHECK runs in an image
// that has no shell.
func (p Program[C]) health(c diagnostics.Config) int {
	host := c.BindAddress
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, strconv.Itoa(c.Port)) + "/ready"
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		fmt.Fprintln(p.Stderr, err)
		return ExitFailed
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(req)
	if err != nil {
		fmt.Fprintln(p.Stderr, err)
		return ExitFailed
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		reason, err := io.ReadAll(io.LimitReader(res.Body, 4<<10))
		if err != nil {
			reason = []byte(err.Error())
		}
		fmt.Fprintf(p.Stderr, "not ready: %s: %s\n", res.Status, reason)
		return ExitFailed
	}
	fmt.Fprintln(p.Stdout, "ready")
	return ExitOK
}
