package zone

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/meridian-mesh/meridian/zone/xds"
)

// What follows is the other process of the benchmarks: many proxies, each with a connection of its own, that ask for what Envoy
// asks for in Envoy's order and acknowledge it. They are in a process of their own so that what the plane uses can be told from
// what they use. The two talk by lines of JSON.

// peersEnv makes the test binary the process of the proxies.
const peersEnv = "MERIDIAN_BENCH_PEERS"

// order is what the benchmark tells the proxies.
type order struct {
	// The first order says what to connect to, and as what.
	Address string `json:",omitempty"`
	CA      []byte `json:",omitempty"`
	Peers   []peer `json:",omitempty"`
	// The others say where the changing service will be, and how many proxies are to learn it.
	Await string `json:",omitempty"`
	Count int    `json:",omitempty"`
}

// peer is one proxy.
type peer struct {
	Node, Token, Resource string
	Clusters              []string // services that it must get endpoints of
	Listeners             int
}

// event is what the proxies tell.
type event struct {
	What  string // ready: the order is taken; complete; lost: nobody is connected; changed; wrong
	At    int64  `json:",omitempty"` // Unix time in nanoseconds
	Bytes int64  `json:",omitempty"` // of the responses since the order
	Text  string `json:",omitempty"`
}

type fleet struct {
	conf   order
	secure credentials.TransportCredentials

	mu       sync.Mutex // guards what follows
	out      *json.Encoder
	await    string
	want     int
	got      int
	bytes    int64
	complete int
}

func runPeers(in io.Reader, out io.Writer) int {
	p := &fleet{out: json.NewEncoder(out)}
	dec := json.NewDecoder(in)
	if err := dec.Decode(&p.conf); err != nil {
		fmt.Fprintln(os.Stderr, "read the order:", err)
		return 1
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(p.conf.CA)
	p.secure = credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS12})
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	for i := range p.conf.Peers {
		go p.live(ctx, &p.conf.Peers[i])
	}
	for {
		var o order
		if err := dec.Decode(&o); err != nil {
			return 0 // the benchmark is over
		}
		p.mu.Lock()
		p.await, p.want, p.got, p.bytes = o.Await, o.Count, 0, 0
		p.tellLocked(event{What: "ready"})
		p.mu.Unlock()
	}
}

func (p *fleet) tellLocked(e event) {
	e.At = time.Now().UnixNano()
	_ = p.out.Encode(e)
}

func (p *fleet) wrong(format string, args ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.tellLocked(event{What: "wrong", Text: fmt.Sprintf(format, args...)})
}

// completed counts proxies that have all they are to have, or no longer.
func (p *fleet) completed(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch p.complete += n; {
	case n > 0 && p.complete == len(p.conf.Peers):
		p.tellLocked(event{What: "complete"})
	case n < 0 && p.complete == 0:
		p.tellLocked(event{What: "lost"})
	}
}

func (p *fleet) received(bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bytes += int64(bytes)
}

func (p *fleet) learned(address string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if address != p.await {
		return
	}
	if p.got++; p.got == p.want {
		p.tellLocked(event{What: "changed", Bytes: p.bytes})
	}
}

// live keeps one proxy connected.
func (p *fleet) live(ctx context.Context, who *peer) {
	conn, err := grpc.NewClient(p.conf.Address, grpc.WithTransportCredentials(p.secure),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 500 * time.Millisecond, Multiplier: 1, Jitter: 0.5, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: 20 * time.Second,
		}))
	if err != nil {
		p.wrong("connect: %v", err)
		return
	}
	defer conn.Close()
	for ctx.Err() == nil {
		l := &life{peers: p, who: who}
		err := l.run(ctx, conn)
		if l.complete {
			p.completed(-1)
		}
		if errors.Is(err, errWrong) {
			return
		}
		time.Sleep(time.Duration(rand.Int64N(int64(100 * time.Millisecond))))
	}
}

// life is one stream of a proxy.
type life struct {
	peers  *fleet
	who    *peer
	stream discoveryv3.AggregatedDiscoveryService_StreamAggregatedResourcesClient

	started                        [xds.Runtime + 1]bool // kinds that are subscribed to
	clusters                       []string
	endpoints                      map[string]bool
	haveEndpoints, secrets, listen bool
	complete                       bool
}

var errWrong = errors.New("wrong")

var secretNames = []string{"identity_cert:secret:default", "mesh_ca:secret:default"}

func (l *life) run(ctx context.Context, conn *grpc.ClientConn) error {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "authorization", l.who.Token))
	defer cancel()
	var err error
	l.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).StreamAggregatedResources(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	meta, _ := structpb.NewStruct(map[string]any{"dataplane.resource": l.who.Resource, "dataplane.proxyType": "dataplane"})
	l.started[xds.Cluster] = true
	err = l.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: xds.Cluster.TypeURL(), Node: &corev3.Node{Id: l.who.Node, Metadata: meta}})
	if err != nil {
		return err
	}
	for {
		resp, err := l.stream.Recv()
		if err != nil {
			return err
		}
		l.peers.received(proto.Size(resp))
		if text := l.take(resp); text != "" {
			l.peers.wrong("%s: %s", l.who.Node, text)
			return errWrong
		}
		if !l.complete && l.haveEndpoints && l.secrets && l.listen {
			l.complete = true
			l.peers.completed(1)
		}
	}
}

func (l *life) take(resp *discoveryv3.DiscoveryResponse) string {
	kind, ok := xds.KindOf(resp.GetTypeUrl())
	if !ok {
		return "a response of type " + resp.GetTypeUrl()
	}
	first := l.started[kind] && !l.complete
	var names []string
	switch kind { //nolint:exhaustive // the others are not asked for
	case xds.Cluster:
		l.clusters = l.clusters[:0]
		for _, r := range resp.GetResources() {
			var c clusterv3.Cluster
			if err := r.UnmarshalTo(&c); err != nil {
				return err.Error()
			}
			if c.GetType() == clusterv3.Cluster_EDS {
				l.clusters = append(l.clusters, c.GetName())
			}
		}
		slices.Sort(l.clusters)
		if !slices.Equal(l.clusters, l.who.Clusters) {
			return fmt.Sprintf("clusters %v, want %v", l.clusters, l.who.Clusters)
		}
	case xds.Endpoint:
		names = l.clusters
		if text := l.assignments(resp.GetResources(), first); text != "" {
			return text
		}
	case xds.Secret:
		names = secretNames
		if n := len(resp.GetResources()); n != len(secretNames) && !l.secrets {
			return fmt.Sprintf("%d secrets", n)
		}
		l.secrets = true
	case xds.Listener:
		if n := len(resp.GetResources()); n != l.who.Listeners {
			return fmt.Sprintf("%d listeners, want %d", n, l.who.Listeners)
		}
		l.listen = true
	}
	if err := l.stream.Send(&discoveryv3.DiscoveryRequest{
		TypeUrl: resp.GetTypeUrl(), VersionInfo: resp.GetVersionInfo(), ResponseNonce: resp.GetNonce(), ResourceNames: names,
	}); err != nil {
		return ""
	}
	switch { // what Envoy asks for next
	case kind == xds.Cluster && !l.started[xds.Endpoint]:
		l.subscribe(xds.Endpoint, l.clusters)
		l.subscribe(xds.Secret, secretNames)
	case kind == xds.Endpoint && !l.started[xds.Listener]:
		l.subscribe(xds.Listener, nil)
	}
	return ""
}

func (l *life) subscribe(k xds.Kind, names []string) {
	l.started[k] = true
	_ = l.stream.Send(&discoveryv3.DiscoveryRequest{TypeUrl: k.TypeURL(), ResourceNames: names}) // Recv tells of errors
}

func (l *life) assignments(list []*anypb.Any, first bool) string {
	if first && !l.haveEndpoints && len(list) != len(l.who.Clusters) {
		return fmt.Sprintf("endpoints of %d clusters, want %d", len(list), len(l.who.Clusters))
	}
	for _, r := range list {
		if l.haveEndpoints && len(list) > 1 {
			continue
		}
		var cla endpointv3.ClusterLoadAssignment
		if err := r.UnmarshalTo(&cla); err != nil {
			return err.Error()
		}
		if len(cla.GetEndpoints()) == 0 || len(cla.GetEndpoints()[0].GetLbEndpoints()) == 0 {
			return fmt.Sprintf("no endpoints of %q", cla.GetClusterName())
		}
		if strings.HasPrefix(cla.GetClusterName(), "changing") {
			l.peers.learned(cla.GetEndpoints()[0].GetLbEndpoints()[0].GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
		}
	}
	l.haveEndpoints = true
	return ""
}
