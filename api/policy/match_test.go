package policy_test

import (
	"testing"

	"github.com/meridian-mesh/meridian/api/policy"
)

func TestTheMoreSpecificTimeoutCounts(t *testing.T) {
	any := []tags{service("*")}
	set := newSet(t,
		record(policy.Timeout, "all", connection(any, any, ""), 1),
		record(policy.Timeout, "one", connection(any, []tags{service("b")}, ""), 1),
	)
	m := set.Match(sidecar(service("a")), policy.Options{Outbounds: []tags{service("b"), service("c")}})
	if name(m.Outbounds[0].Timeout) != "one" || name(m.Outbounds[1].Timeout) != "all" {
		t.Errorf("got %s, %s", name(m.Outbounds[0].Timeout), name(m.Outbounds[1].Timeout))
	}
	if !m.Outbounds[0].TrafficRoute.Synthetic() {
		t.Error("no synthetic route")
	}
}
