package logging_test

import (
	"bytes"
	"log/slog"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/logging"
)

func TestNew(t *testing.T) {
	tests := []struct {
		name   string
		config logging.Config
		want   string
	}{
		{"text leaves out what is below the level", logging.Config{Level: "warn", Format: "text"}, "level=WARN msg=degraded zone=zone-1\n"},
		{"json writes an object a line", logging.Config{Level: "warn", Format: "json"}, `{"level":"WARN","msg":"degraded","zone":"zone-1"}` + "\n"},
		{"error leaves out warnings", logging.Config{Level: "error", Format: "text"}, ""},
		{"a wrong configuration logs as the default", logging.Config{Level: "loud", Format: "xml"}, "level=INFO msg=connected zone=zone-1\nlevel=WARN msg=degraded zone=zone-1\n"},
		{"debug writes everything", logging.Config{Level: "debug", Format: "text"}, "level=DEBUG msg=message zone=zone-1\nlevel=INFO msg=connected zone=zone-1\nlevel=WARN msg=degraded zone=zone-1\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var b bytes.Buffer
			log := logging.New(tt.config, &withoutTime{&b})
			for _, r := range []struct {
				level slog.Level
				msg   string
			}{{slog.LevelDebug, "message"}, {slog.LevelInfo, "connected"}, {slog.LevelWarn, "degraded"}} {
				log.Log(t.Context(), r.level, r.msg, "zone", "zone-1")
			}
			if diff := cmp.Diff(tt.want, b.String()); diff != "" {
				t.Errorf("log (-want +got):\n%s", diff)
			}
		})
	}
}

// withoutTime drops the time, the only part of a line that differs between runs.
type withoutTime struct{ w *bytes.Buffer }

func (o *withoutTime) Write(line []byte) (int, error) {
	var rest []byte
	if bytes.HasPrefix(line, []byte("{")) {
		_, after, _ := bytes.Cut(line, []byte(","))
		rest = append([]byte("{"), after...)
	} else {
		_, rest, _ = bytes.Cut(line, []byte(" "))
	}
	o.w.Write(rest)
	return len(line), nil
}

func TestValidateReportsAllProblems(t *testing.T) {
	var got []string
	for _, err := range (logging.Config{Level: "loud", Format: "xml"}).Validate() {
		got = append(got, err.Error())
	}
	want := []string{`level: "loud" is not debug, info, warn or error`, `format: "xml" is not text or json`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if errs := logging.Default().Validate(); len(errs) > 0 {
		t.Errorf("the default is refused: %v", errs)
	}
}
