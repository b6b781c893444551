package validate_test

import (
	"bytes"
	"context"
	"log/slog"
	"strconv"
	"strings"
	"testing"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/api/validate/validatetest"
	"github.com/meridian-mesh/meridian/common/store"
)

func TestStoredResourcesThatBreakRulesAreToldOfOnceForEachType(t *testing.T) {
	var records []*store.Record
	add := func(typ resource.Type, name, changes string) {
		_, rec := mustParse(t, typ, validatetest.Sample(typ, changes))
		rec.Key.Name = name
		records = append(records, rec)
	}
	for i := range 20 {
		add("Timeout", "t"+strconv.Itoa(i), "conf -")
	}
	add("Timeout", "fine", "")
	add("ExternalService", "es", `tags.version = "1"`) // fine by itself
	add("RateLimit", "rl", `destinations[0].match = {kuma.io/service: httpbin, version: "1"}`)
	add(resource.Mesh, "mesh", "mtls = {enabledBackend: a, backends: [{name: a, type: provided, conf: {cert: {inlineString: sesame}, key: {inlineString: sesame}}}]}")

	var out bytes.Buffer
	snap := open(t, records...).Snapshot()
	if n := validate.LogStored(t.Context(), snap, slog.New(slog.NewTextHandler(&out, nil))); n != 23 {
		t.Errorf("found %d, want 20 timeouts, the two that conflict, and the mesh", n)
	}
	if lines := strings.Count(out.String(), "\n"); lines != 4 {
		t.Errorf("%d lines:\n%s", lines, &out)
	}
	for _, want := range []string{"type=Timeout", "count=20", "Timeout/demo/t0: conf has to be defined", "Mesh/mesh: mtls.backends[0].conf.cert"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, &out)
		}
	}
	if strings.Contains(out.String(), "sesame") || out.Len() > 3000 {
		t.Errorf("logged %d bytes:\n%s", out.Len(), &out)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n := validate.LogStored(ended, snap, slog.New(slog.DiscardHandler)); n != 0 {
		t.Errorf("judged %d after the end", n)
	}
}
