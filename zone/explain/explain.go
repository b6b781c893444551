// Package explain answers questions about the traffic of proxies from what their zone configures them with.
package explain

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/meridian-mesh/meridian/api/explain"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/zone/envoy"
	"github.com/meridian-mesh/meridian/zone/reconcile"
	"github.com/meridian-mesh/meridian/zone/topology"
)

// timeout is how long an answer may take, most of which would be waiting for the reconciler.
const timeout = 5 * time.Second

// Looker shows what proxies are configured from. It is [reconcile.Reconciler].
type Looker interface {
	Look(ctx context.Context, mesh string, f func(reconcile.View)) error
}

// Explainer answers [server.ViewExplain] about the Dataplanes of this zone, and is what a [server.Proxies] hands these questions to.
type Explainer struct{ Looker Looker }

var _ server.Proxies = (*Explainer)(nil)

// Ask answers a question with an [explain.Explanation] as JSON. Of all views it knows ViewExplain only.
func (e *Explainer) Ask(ctx context.Context, q server.ProxyQuestion) ([]byte, error) {
	if q.View != server.ViewExplain {
		return nil, &server.AskError{Reason: server.AskUnreachable, Details: fmt.Sprintf(
			"The proxy of %s %q is not connected to this control plane", q.Type, q.Name)}
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var out *explain.Explanation
	var asked error
	err := e.Looker.Look(ctx, q.Mesh, func(v reconcile.View) { out, asked = look(v, q) })
	switch {
	case errors.Is(err, reconcile.ErrBusy):
		return nil, &server.AskError{Reason: server.AskBusy, Details: "Too many explanations are asked for at once"}
	case errors.Is(err, reconcile.ErrStopped):
		return nil, &server.AskError{Reason: server.AskUnreachable, Details: "This control plane is stopping"}
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, context.Canceled):
		return nil, &server.AskError{Reason: server.AskTimeout, Details: "There was no time to explain this: the control plane is busy"}
	case err != nil:
		return nil, fmt.Errorf("explain the traffic from %s to %s: %w", q.Name, q.Service, err)
	case asked != nil:
		return nil, asked
	}
	body, err := json.Marshal(out)
	if err != nil {
		return nil, fmt.Errorf("encode an explanation: %w", err)
	}
	return body, nil
}

// look makes the explanation.
func look(v reconcile.View, q server.ProxyQuestion) (*explain.Explanation, error) {
	mesh := v.World.Mesh(q.Mesh)
	if mesh == nil || mesh.Dataplanes[q.Name] == nil {
		return nil, &server.AskError{Reason: server.AskNotFound, Details: fmt.Sprintf("Dataplane %q of mesh %q is not one of this zone", q.Name, q.Mesh)}
	}
	dp := mesh.Dataplanes[q.Name]
	if gateway := dp.GetNetworking().GetGateway(); gateway.GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN {
		return nil, &server.AskError{Reason: server.AskInvalid, Details: "The proxy is a builtin gateway, whose traffic is not explained: " +
			"its routes are shown by /meshes/" + q.Mesh + "/dataplanes/" + q.Name + "/policies"}
	}
	connected, failure, online := v.Sidecar(q.Name)
	out := envoy.Explain(mesh, &envoy.ExplainInput{
		Proxy:     &envoy.Proxy{Mesh: q.Mesh, Name: q.Name, Dataplane: located(v.World, dp), Features: connected.Metadata.Features},
		Zone:      v.World.Zone(),
		Proxyless: online && connected.Proxyless || !online && proxyless(dp),
		Service:   q.Service, Resolve: v.World.Address,
	})
	out.Connected = online
	if failure != "" {
		out.ConfigError = failure
	}
	return out, nil
}

// located is the Dataplane with the address that its host name stands for, as its configuration has it.
func located(w *topology.World, dp *meshv1.Dataplane) *meshv1.Dataplane {
	host := dp.GetNetworking().GetAddress()
	if _, err := netip.ParseAddr(host); err == nil || w.Address(host) == "" {
		return dp
	}
	dp = proto.CloneOf(dp)
	dp.Networking.Address = w.Address(host)
	return dp
}

// proxyless reports whether a Dataplane says of itself that it is a gRPC program.
func proxyless(dp *meshv1.Dataplane) bool {
	for _, in := range dp.GetNetworking().GetInbound() {
		if in.GetTags()[topology.ProxylessTag] == "true" {
			return true
		}
	}
	return false
}
