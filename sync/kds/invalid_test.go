package kds

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/common/store"
)

// What a peer's version allows and ours does not is the owner's business: it is stored, passed on, acknowledged, and told
// of once, when it arrives.
func TestAResourceThatBreaksOurRulesIsStoredAndTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		global, zone := openStore(t, store.Options{}), openStore(t, store.Options{})
		var log bytes.Buffer
		reg := prometheus.NewRegistry()
		sub := subscriberConfig(t, Up, global)
		sub.Metrics = NewMetrics(reg)
		sub.Log = slog.New(slog.NewTextHandler(&log, nil))
		commit(t, zone,
			store.Put(newRecord(t, "Dataplane", "default", "bad", &meshv1.Dataplane{})),
			store.Put(newRecord(t, "Dataplane", "default", "good", newDataplane("10.0.0.1"))))
		p, stop := join(t, publisherConfig(t, Up, zone), sub)
		synctest.Wait()
		if names := strings.Join(namesOf(global, "Dataplane"), " "); names != "default/zone-1.bad default/zone-1.good" {
			t.Errorf("the global has %s", names)
		}
		if lag := p.Lag(zone.Snapshot()); lag != 0 {
			t.Errorf("lag is %d: something was not acknowledged", lag)
		}
		counted := func() (n float64) {
			families, err := reg.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == "meridian_kds_invalid_resources_total" {
					n = f.GetMetric()[0].GetCounter().GetValue()
				}
			}
			return n
		}
		if n := counted(); n != 1 {
			t.Errorf("counted %v, want 1", n)
		}
		if text := log.String(); strings.Count(text, "\n") != 1 || !strings.Contains(text, "Dataplane/default/zone-1.bad: networking must be defined") {
			t.Errorf("logged %q", text)
		}

		commit(t, zone, store.Put(newRecord(t, "Dataplane", "default", "good", newDataplane("10.0.0.2"))))
		synctest.Wait()
		if n := counted(); n != 1 || strings.Count(log.String(), "\n") != 1 {
			t.Errorf("counted %v after another resource changed, and logged %q", n, log.String())
		}
		_, _ = stop()
	})
}
