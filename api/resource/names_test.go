package resource_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
)

func TestCheckName(t *testing.T) {
	for name, want := range map[string]error{
		"a":                      nil,
		"web-to_backend-2":       nil,
		"-_-":                    nil,
		strings.Repeat("a", 253): nil,
		"":                       resource.ErrNameEmpty,
		"zone.name":              resource.ErrNameCharacters,
		"Web":                    resource.ErrNameCharacters,
		"a b":                    resource.ErrNameCharacters,
		"a/b":                    resource.ErrNameCharacters,
		"ä":                      resource.ErrNameCharacters,
		"a\x00":                  resource.ErrNameCharacters,
		strings.Repeat("a", 254): resource.ErrNameLength,
	} {
		if err := resource.CheckName(name); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", name, err, want)
		}
	}
}

func TestCheckZoneName(t *testing.T) {
	for name, want := range map[string]error{
		"zone-1":                nil,
		"1":                     nil,
		strings.Repeat("a", 63): nil,
		"":                      resource.ErrNameEmpty,
		strings.Repeat("a", 64): resource.ErrZoneName,
		"zone_1":                resource.ErrZoneName,
		"eu.west":               resource.ErrZoneName,
		"-zone":                 resource.ErrZoneName,
		"zone-":                 resource.ErrZoneName,
		"Zone":                  resource.ErrZoneName,
	} {
		if err := resource.CheckZoneName(name); !errors.Is(err, want) {
			t.Errorf("%q: got %v, want %v", name, err, want)
		}
	}
}
