// Package logging makes the one logger of a program from its configuration. Everything else is handed a *slog.Logger.
package logging

import (
	"fmt"
	"io"
	"log/slog"
)

// Config is the section log.
type Config struct {
	Level  string `yaml:"level" env:"MERIDIAN_LOG_LEVEL" doc:"least severe level to write: debug (each message), info (changes of state), warn (degraded, healing itself) or error (a human should look)"`
	Format string `yaml:"format" env:"MERIDIAN_LOG_FORMAT" doc:"text (key=value) or json (one object a line)"`
}

// Default returns the documented defaults.
func Default() Config { return Config{Level: "info", Format: "text"} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if _, ok := c.level(); !ok {
		errs = append(errs, fmt.Errorf("level: %q is not debug, info, warn or error", c.Level))
	}
	if c.Format != "text" && c.Format != "json" {
		errs = append(errs, fmt.Errorf("format: %q is not text or json", c.Format))
	}
	return errs
}

func (c Config) level() (slog.Level, bool) {
	switch c.Level {
	case "debug":
		return slog.LevelDebug, true
	case "info":
		return slog.LevelInfo, true
	case "warn":
		return slog.LevelWarn, true
	case "error":
		return slog.LevelError, true
	}
	return 0, false
}

// New returns a logger that writes to w, one Write a record. A configuration that Validate refuses logs as the
// default does, so that the refusal itself can be logged.
func New(c Config, w io.Writer) *slog.Logger {
	level, _ := c.level() // slog's zero level is info
	opts := &slog.HandlerOptions{Level: level}
	if c.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, opts))
	}
	return slog.New(slog.NewTextHandler(w, opts))
}
