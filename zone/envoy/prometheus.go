package envoy

import (
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func (g *generator) effectivePrometheus() *meshv1.PrometheusMetricsBackendConfig { return nil }

func (g *generator) prometheus() {}
