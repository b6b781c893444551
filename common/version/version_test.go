package version

import (
	"runtime/debug"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestBuildIsCompletedFromTheGoTool(t *testing.T) {
	info := &debug.BuildInfo{
		Main: debug.Module{Version: "v1.0.1"},
		Settings: []debug.BuildSetting{
			{Key: "vcs.revision", Value: "abc123"},
			{Key: "vcs.modified", Value: "true"},
			{Key: "vcs.time", Value: "2026-01-02T03:04:05Z"},
		},
	}
	tests := []struct {
		name  string
		given Build
		info  *debug.BuildInfo
		want  Build
	}{
		{
			"what the linker was told stands",
			Build{Version: "v2", Commit: "def", Date: "today"},
			info,
			Build{Version: "v2", Commit: "def", Date: "today"},
		},
		{
			"the rest comes from the module and git",
			Build{},
			info,
			Build{Version: "v1.0.1", Commit: "abc123-dirty", Date: "2026-01-02T03:04:05Z"},
		},
		{"a build of a work tree has no version", Build{}, &debug.BuildInfo{Main: debug.Module{Version: "(devel)"}}, Build{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.given
			got.complete(tt.info)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("build (-want +got):\n%s", diff)
			}
		})
	}
}

func TestGetLeavesNothingEmpty(t *testing.T) {
	b := Get()
	for _, s := range []string{b.Version, b.Commit, b.Date, b.GoVersion, b.Platform} {
		if s == "" {
			t.Errorf("a field of %+v is empty", b)
		}
	}
	if s := b.String(); !strings.Contains(s, "API "+KumaAPI) || !strings.Contains(s, "KDS "+KDS) {
		t.Errorf("%q does not say which API and KDS it serves", s)
	}
}

func TestMajorMinor(t *testing.T) {
	for v, want := range map[string][2]int{"2.0.8": {2, 0}, "v2.13.0-preview.1": {2, 13}, "1.0.0-rc2-119-g50e35395": {1, 0}} {
		if major, minor, ok := MajorMinor(v); !ok || [2]int{major, minor} != want {
			t.Errorf("%s: %d %d %t, want %v", v, major, minor, ok, want)
		}
	}
	for _, v := range []string{"", "2", "dev", "2.x", "x.2"} {
		if _, _, ok := MajorMinor(v); ok {
			t.Errorf("%q was read as a version", v)
		}
	}
}
