package resource_test

import (
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
)

// The table is the one of the KDS contract, §8, observed from Kuma 2.13.
func TestHashedNamesAreThoseOfKuma(t *testing.T) {
	const zone, namespace = resource.LabelZone, resource.LabelNamespace
	tests := []struct {
		mesh, name string
		labels     map[string]string
		want       string
	}{
		{"default", "allow-all", nil, "allow-all-6cf46w7x6f445w75"},
		{"m2", "allow-all", nil, "allow-all-d9vccvv86988xw95"},
		{"default", "mes", nil, "mes-xxxw64xdv47z45c9"},
		{"", "synced-kube-mesh-service", nil, "synced-kube-mesh-service-8xc5x6c9f588fzz9"},
		{"default", "ms", map[string]string{zone: "zone-1"}, "ms-2w48w4f9f227v4c6"},
		{"default", "dp-1", map[string]string{zone: "zone-1"}, "dp-1-dff6z597w47d46xx"},
		{"", "zi", map[string]string{zone: "zone-1"}, "zi-zwbwbdf82cwz442x"},
		{"default", "prod", map[string]string{zone: "zone-1", namespace: "ns1"}, "prod-fd96c9x9xwbbdc6w"},
		{"default", "allow-all", map[string]string{"other": "label"}, "allow-all-6cf46w7x6f445w75"},
	}
	for _, tt := range tests {
		if got := resource.HashedName(tt.mesh, tt.name, tt.labels); got != tt.want {
			t.Errorf("HashedName(%q, %q, %v) = %q, want %q", tt.mesh, tt.name, tt.labels, got, tt.want)
		}
	}
}

func TestALongNameIsCutButHashedWhole(t *testing.T) {
	long := strings.Repeat("a", 236)
	one, other := resource.HashedName("m", long+"x", nil), resource.HashedName("m", long+"y", nil)
	if len(one) != 253 || !strings.HasPrefix(one, long+"-") {
		t.Errorf("%q has %d bytes", one, len(one))
	}
	if one == other {
		t.Error("names that differ after the cut have one hash")
	}
}

func BenchmarkHashedName(b *testing.B) {
	b.ReportAllocs()
	labels := map[string]string{resource.LabelZone: "zone-1"}
	for b.Loop() {
		resource.HashedName("default", "web-to-backend", labels)
	}
}
