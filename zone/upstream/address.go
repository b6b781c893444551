package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/resolver"
)

// ParseAddresses returns the host:port of each address of a global, which are separated by commas, and whether they are plain
// text. Errors name the address.
func ParseAddresses(list string) (targets []string, plain bool, err error) {
	for i, address := range strings.Split(list, ",") {
		address = strings.TrimSpace(address)
		target, isPlain, err := parseAddress(address)
		switch {
		case err != nil:
			return nil, false, err
		case i > 0 && isPlain != plain:
			return nil, false, fmt.Errorf("%q is not of the same scheme as those before it", address)
		case slices.Contains(targets, target):
			return nil, false, fmt.Errorf("%q is there twice", address)
		}
		targets, plain = append(targets, target), isPlain
	}
	return targets, plain, nil
}

func parseAddress(address string) (target string, plain bool, err error) {
	u, err := url.Parse(address)
	if err != nil || u.Scheme != "grpcs" && u.Scheme != "grpc" || u.Hostname() == "" || u.Port() == "" || *u != (url.URL{Scheme: u.Scheme, Host: u.Host}) {
		return "", false, fmt.Errorf("%q is not grpcs://host:port or grpc://host:port", address)
	}
	if port, err := strconv.Atoi(u.Port()); err != nil || port < 1 || port > 65535 {
		return "", false, fmt.Errorf("%q: the port must be 1-65535", address)
	}
	return u.Host, u.Scheme == "grpc", nil
}

// anyOf makes grpc try all addresses of all targets in random order until one answers: its pick_first policy begins with the
// next where one refuses, or has not answered within 250 ms. Each connection draws the order anew, and so zones spread over the
// replicas of a global.
func anyOf(targets []string) (target string, opts []grpc.DialOption) {
	opts = []grpc.DialOption{
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"pick_first": {"shuffleAddressList": true}}]}`),
		grpc.WithDisableServiceConfig(), // DNS has no say in it
	}
	if len(targets) == 1 { // an HTTP proxy may have to look it up
		return "dns:///" + targets[0], opts
	}
	return resolverScheme + ":///" + targets[0], append(opts, grpc.WithResolvers(&resolverBuilder{targets}))
}

const (
	resolverScheme = "meridian-global"
	// resolvePatience is how long the first of several names waits for the addresses of the others, so that the order is random
	// among all of them. A name that cannot be looked up delays no more than that.
	resolvePatience = time.Second
)

// resolverBuilder makes resolvers of several targets. What the addresses of one are, grpc's resolver of DNS knows.
type resolverBuilder struct{ targets []string }

// Scheme implements [resolver.Builder].
func (b *resolverBuilder) Scheme() string { return resolverScheme }

// Build implements [resolver.Builder].
func (b *resolverBuilder) Build(_ resolver.Target, cc resolver.ClientConn, opts resolver.BuildOptions) (resolver.Resolver, error) {
	r := &targetsResolver{cc: cc, missing: len(b.targets)}
	for _, target := range b.targets {
		r.targets = append(r.targets, &targetResolver{ClientConn: cc, all: r, name: target})
	}
	r.impatience = time.AfterFunc(resolvePatience, r.waitNoLonger)
	dns := resolver.Get("dns")
	for _, t := range r.targets {
		child, err := dns.Build(resolver.Target{URL: url.URL{Scheme: dns.Scheme(), Path: "/" + t.name}}, t, opts)
		if err != nil {
			r.Close()
			return nil, fmt.Errorf("global address %s: %w", t.name, err)
		}
		r.children = append(r.children, child)
	}
	return r, nil
}

// targetsResolver gives grpc the addresses of all targets as one list.
type targetsResolver struct {
	// Set by Build, read-only after.
	cc         resolver.ClientConn
	children   []resolver.Resolver
	targets    []*targetResolver
	impatience *time.Timer

	mu      sync.Mutex // guards what follows, and the targets; held while grpc is told, so that the newest list is the last
	missing int        // targets of which nothing is known yet
}

// targetResolver is what the resolver of one target reports to.
type targetResolver struct {
	resolver.ClientConn

	all  *targetsResolver
	name string

	heard     bool
	addresses []resolver.Address // those found last
	err       error              // of the latest look-up
}

// UpdateState implements [resolver.ClientConn]. Its error makes the resolver look again soon.
func (t *targetResolver) UpdateState(s resolver.State) error {
	if len(s.Addresses) == 0 {
		err := errors.New("no address of that name is known")
		t.ReportError(err)
		return err
	}
	addresses := slices.Clone(s.Addresses)
	for i := range addresses {
		addresses[i].ServerName = t.name // what the certificate must be valid for, and what is asked for
	}
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	t.addresses, t.err = addresses, nil
	t.hearLocked()
	t.all.publishLocked()
	return nil
}

// ReportError implements [resolver.ClientConn]. Addresses that were found before stay in use.
func (t *targetResolver) ReportError(err error) {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	t.err = fmt.Errorf("%s: %w", t.name, err)
	if t.hearLocked() || len(t.all.addressesLocked()) == 0 {
		t.all.publishLocked()
	}
}

// hearLocked reports whether it is the first time that something of the target is known.
func (t *targetResolver) hearLocked() bool {
	first := !t.heard
	if t.heard = true; first && t.all.missing > 0 {
		t.all.missing--
	}
	return first
}

func (r *targetsResolver) waitNoLonger() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.missing > 0 {
		r.missing = 0
		r.publishLocked()
	}
}

func (r *targetsResolver) addressesLocked() (all []resolver.Address) {
	for _, t := range r.targets {
		all = append(all, t.addresses...)
	}
	return all
}

// publishLocked tells grpc what is known, once that is something of every target.
func (r *targetsResolver) publishLocked() {
	if r.missing > 0 {
		return
	}
	if all := r.addressesLocked(); len(all) > 0 {
		_ = r.cc.UpdateState(resolver.State{Addresses: all}) // an error asks for another look-up: ResolveNow comes when one is of use
		return
	}
	var errs []error
	for _, t := range r.targets {
		errs = append(errs, t.err)
	}
	r.cc.ReportError(errors.Join(errs...))
}

// ResolveNow implements [resolver.Resolver].
func (r *targetsResolver) ResolveNow(o resolver.ResolveNowOptions) {
	for _, child := range r.children {
		child.ResolveNow(o)
	}
}

// Close implements [resolver.Resolver].
func (r *targetsResolver) Close() {
	r.impatience.Stop()
	for _, child := range r.children {
		child.Close()
	}
}

// perName is TLS whose settings depend on the server's name: it is made for each handshake.
type perName struct {
	credentials.TransportCredentials // what is not about one server

	of func(serverName string) (credentials.TransportCredentials, error)
}

func newPerName(of func(serverName string) (credentials.TransportCredentials, error)) perName {
	return perName{credentials.NewTLS(&tls.Config{MinVersion: tls.VersionTLS12}), of}
}

// ClientHandshake implements [credentials.TransportCredentials]; authority is the address that was set, host:port.
func (p perName) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	host, _, err := net.SplitHostPort(authority)
	if err != nil {
		return nil, nil, fmt.Errorf("name of the server: %w", err)
	}
	creds, err := p.of(host)
	if err != nil {
		return nil, nil, fmt.Errorf("prepare TLS: %w", err)
	}
	return creds.ClientHandshake(ctx, authority, conn) //nolint:wrapcheck // grpc looks at it
}

// Clone implements [credentials.TransportCredentials].
func (p perName) Clone() credentials.TransportCredentials { return p }
