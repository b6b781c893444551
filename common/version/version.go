// Package version says what this program is, and what it claims to others to be compatible with. The claims are here,
// in one place, because each is checked by somebody else's code.
package version

import (
	"cmp"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
)

const (
	// KumaAPI is the generation of the HTTP API shown at GET /; kumactl warns when it differs from its own.
	KumaAPI = "2.0.8"
	// KDS is the version a plane announces in the version header and in the node's metadata of KDS.
	KDS = "2.13.0"
	// OldestProxy is the oldest kuma-dp version that bootstrap accepts.
	OldestProxy = "2.0.0"
	// NewestProxy is the newest one.
	NewestProxy = "2.13.99"
)

// MajorMinor reads the first two numbers of a version such as 2.0.8 or v2.13.0-preview.1; ok is false where there are none.
func MajorMinor(v string) (major, minor int, ok bool) {
	first, rest, _ := strings.Cut(strings.TrimPrefix(v, "v"), ".")
	second, _, _ := strings.Cut(rest, ".")
	major, err := strconv.Atoi(first)
	if err != nil {
		return 0, 0, false
	}
	minor, err = strconv.Atoi(second)
	return major, minor, err == nil
}

// Set by the linker, empty otherwise:
// go build -ldflags "-X github.com/meridian-mesh/meridian/common/version.version=v1.2.3".
var version, commit, buildDate string //nolint:gochecknoglobals // the linker can set nothing else

// Build describes how the program was built. No field is empty.
type Build struct {
	Version   string // "dev" when nobody gave one
	Commit    string // of git, "-dirty" appended when files differed; "unknown" without git
	Date      string // RFC 3339; that of the commit when nobody gave one; "unknown" without git
	GoVersion string
	Platform  string // operating system/architecture
}

// Get returns what the linker was told, completed by what the Go tool recorded.
func Get() Build {
	b := Build{
		Version: version, Commit: commit, Date: buildDate,
		GoVersion: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		b.complete(info)
	}
	b.Version = cmp.Or(b.Version, "dev")
	b.Commit = cmp.Or(b.Commit, "unknown")
	b.Date = cmp.Or(b.Date, "unknown")
	return b
}

// complete fills empty fields from what the Go tool recorded.
func (b *Build) complete(info *debug.BuildInfo) {
	if v := info.Main.Version; v != "(devel)" {
		b.Version = cmp.Or(b.Version, v)
	}
	settings := map[string]string{}
	for _, s := range info.Settings {
		settings[s.Key] = s.Value
	}
	recorded := settings["vcs.revision"]
	if recorded != "" && settings["vcs.modified"] == "true" {
		recorded += "-dirty"
	}
	b.Commit = cmp.Or(b.Commit, recorded)
	b.Date = cmp.Or(b.Date, settings["vcs.time"])
}

// String is the text of --version, without the program's name.
func (b Build) String() string {
	return fmt.Sprintf("%s (commit %s, built %s, %s, %s; API %s, KDS %s)",
		b.Version, b.Commit, b.Date, b.GoVersion, b.Platform, KumaAPI, KDS)
}
