package admin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/store"
	"github.com/meridian-mesh/meridian/zone/mtls"
)

// target is where a proxy is asked.
type target struct {
	at  netip.AddrPort
	tls *tls.Config // nil: plain text
}

// locate finds out where to ask a proxy. It is the only place that decides so; see the package's comment.
func (a *Asker) locate(ctx context.Context, p *asked) (target, error) {
	switch {
	case !p.online:
		return target{}, failure(server.AskUnreachable, "The proxy of %s is not connected to this control plane", p)
	case p.look.Proxyless:
		return target{}, failure(server.AskUnreachable, "%s is a gRPC program without a proxy: there is nothing to ask", p)
	case p.look.Metadata.AdminPort == 0:
		return target{}, failure(server.AskUnreachable, "The proxy of %s has no administration port. What it was sent is at ?source=controlplane", p)
	case p.address == "":
		return target{}, failure(server.AskUnreachable, "%s has no address", p)
	}
	address, err := a.resolved(ctx, p)
	if err != nil {
		return target{}, err
	}
	if !address.IsLoopback() && !address.IsGlobalUnicast() && !address.IsLinkLocalUnicast() {
		return target{}, failure(server.AskUnreachable, "The address of %s, %s, is not that of a host", p, address)
	}
	t := target{at: netip.AddrPortFrom(address, uint16(p.look.Metadata.AdminPort))} //nolint:gosec // the registry has seen to it
	if p.address == p.look.Metadata.AdminAddress && address.IsLoopback() {          // no listener is in front of Envoy's own: see zone/envoy
		if !a.onThisHost(p.look.Peer) {
			return target{}, failure(server.AskUnreachable, "The address of %s, %s, is of its own host alone, which is not this one", p, address)
		}
		return t, nil
	}
	ca, err := a.adminCA()
	if err != nil {
		return target{}, err
	}
	if len(ca) == 0 {
		return target{}, failure(server.AskUnreachable, "Proxies cannot be asked: global secret %q is not there", mtls.AdminSecret)
	}
	if t.tls, err = a.o.Authority.AdminClient(ca); err != nil {
		return target{}, err //nolint:wrapcheck // says it
	}
	t.tls.ServerName = address.String()
	return t, nil
}

// resolved returns the address of a proxy, of a host name that which its certificate is for.
func (a *Asker) resolved(ctx context.Context, p *asked) (netip.Addr, error) {
	if address, err := netip.ParseAddr(p.address); err == nil {
		return address.Unmap(), nil
	}
	all, err := a.o.Resolve(ctx, p.address)
	if ctx.Err() != nil {
		return netip.Addr{}, fmt.Errorf("resolve %q: %w", p.address, ctx.Err())
	}
	if err != nil || len(all) == 0 {
		return netip.Addr{}, failure(server.AskUnreachable, "The address of %s, %q, is a host name that cannot be resolved", p, p.address)
	}
	// Of several the reconciler takes the first as text.
	return slices.MinFunc(all, func(x, y netip.Addr) int { return strings.Compare(x.Unmap().String(), y.Unmap().String()) }).Unmap(), nil
}

func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host) //nolint:wrapcheck // the caller says what for
}

// onThisHost says whether a peer, an address and a port, is a program on this host.
func (a *Asker) onThisHost(peer string) bool {
	at, err := netip.ParseAddrPort(peer)
	if err != nil {
		return false
	}
	address := at.Addr().Unmap().WithZone("")
	return address.IsLoopback() || a.o.Local(address)
}

// local says whether an interface of this host has the address.
func local(address netip.Addr) bool {
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(of net.Addr) bool {
		prefix, err := netip.ParsePrefix(of.String())
		return err == nil && prefix.Addr().Unmap() == address
	})
}

// adminCA returns the authority of administration ports, nil when there is none (yet).
func (a *Asker) adminCA() ([]byte, error) {
	rec, ok := a.o.Store.Snapshot().Get(store.Key{Type: string(resource.GlobalSecret), Name: mtls.AdminSecret})
	if !ok {
		return nil, nil
	}
	secret, err := specOf[*systemv1.Secret](rec)
	if err != nil {
		return nil, errors.New("the authority of administration ports cannot be read") // without what is in it
	}
	return secret.GetData().GetValue(), nil
}
