package cluster

import (
	"context"
	"log/slog"
	"strings"
	"sync"
	"time"
)

// maxLines is how many lines of memberlist are logged in lineWindow. It writes one for each packet that it cannot read, and who
// sends those may be anybody.
const (
	maxLines   = 20
	lineWindow = 10 * time.Second
)

// logWriter passes what memberlist logs on to slog. Its errors are warnings here: all of them heal, or are said by this package.
type logWriter struct {
	log *slog.Logger

	mu      sync.Mutex // guards what follows
	since   time.Time
	lines   int
	skipped int
}

func (w *logWriter) Write(p []byte) (int, error) {
	ctx := context.Background()
	level, text := slog.LevelInfo, strings.TrimSpace(string(p))
	for prefix, l := range map[string]slog.Level{
		"[DEBUG] ": slog.LevelDebug, "[INFO] ": slog.LevelInfo, "[WARN] ": slog.LevelWarn, "[ERR] ": slog.LevelWarn, "[ERROR] ": slog.LevelWarn,
	} {
		if rest, ok := strings.CutPrefix(text, prefix); ok {
			level, text = l, rest
			break
		}
	}
	if !w.log.Enabled(ctx, level) {
		return len(p), nil
	}
	w.mu.Lock()
	skipped := 0
	if now := time.Now(); now.Sub(w.since) >= lineWindow {
		w.since, w.lines, skipped, w.skipped = now, 0, w.skipped, 0
	}
	w.lines++
	quiet := w.lines > maxLines
	if quiet {
		w.skipped++
	}
	w.mu.Unlock()
	if skipped > 0 {
		w.log.WarnContext(ctx, "lines of memberlist left out", "lines", skipped)
	}
	if !quiet {
		w.log.Log(ctx, level, "memberlist", "text", strings.TrimPrefix(text, "memberlist: "))
	}
	return len(p), nil
}
