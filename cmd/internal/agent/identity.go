package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
)

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

// keepIdentity holds a stream open, on which the program is registered and its secrets come, and opens another when it ends.
func (a *Agent) keepIdentity(ctx context.Context) error {
	const first = 250 * time.Millisecond
	pause := first
	for {
		began := time.Now()
		err := a.receiveSecrets(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop
		}
		a.failure.Store(&err)
		a.log.WarnContext(ctx, "stream to the control plane failed", "err", err)
		if time.Since(began) > maxRetry {
			pause = first
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-timer.C:
		}
		pause = min(2*pause, maxRetry)
	}
}

// receiveSecrets subscribes to the program's secrets and writes what comes, until the stream ends.
func (a *Agent) receiveSecrets(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(a.conn).StreamAggregatedResources(ctx)
	if err != nil {
		return fmt.Errorf("open stream: %w", err)
	}
	node, err := a.self.node()
	if err != nil {
		return err
	}
	names := []string{"identity_cert:secret:" + a.self.mesh, "mesh_ca:secret:" + a.self.mesh}
	req := &discoveryv3.DiscoveryRequest{Node: node, TypeUrl: secretType, ResourceNames: names}
	var held secrets
	for {
		if err := stream.Send(req); err != nil {
			_, err = stream.Recv() // the reason
			return fmt.Errorf("send request: %w", err)
		}
		resp, err := stream.Recv()
		if err != nil {
			return fmt.Errorf("read response: %w", err)
		}
		req = &discoveryv3.DiscoveryRequest{
			TypeUrl: secretType, ResourceNames: names, ResponseNonce: resp.GetNonce(), VersionInfo: resp.GetVersionInfo(),
		}
		if err := a.take(ctx, &held, resp); errors.Is(err, errFiles) {
			return err // on another stream the same comes again; what is rejected does not
		} else if err != nil {
			a.log.ErrorContext(ctx, "secrets cannot be used", "err", err)
			req.VersionInfo = ""
			req.ErrorDetail = &status.Status{Code: int32(codes.InvalidArgument), Message: err.Error()}
			continue
		}
		a.failure.Store(nil)
		select {
		case <-a.registered:
		default:
			close(a.registered) // by this goroutine alone
			a.log.InfoContext(ctx, "registered with the control plane")
		}
	}
}

// errFiles is that the disk did not take the secrets, which are good.
var errFiles = errors.New("the certificate could not be written")

// secrets are what the stream has sent so far.
type secrets struct{ cert, key, ca []byte }

// take writes what a response changes, once all of it is there. A mesh without mutual TLS has no secrets.
func (a *Agent) take(ctx context.Context, held *secrets, resp *discoveryv3.DiscoveryResponse) error {
	next := *held
	for _, any := range resp.GetResources() {
		secret := &tlsv3.Secret{}
		if err := any.UnmarshalTo(secret); err != nil {
			return fmt.Errorf("decode a secret: %w", err)
		}
		if c := secret.GetTlsCertificate(); c != nil {
			next.cert, next.key = c.GetCertificateChain().GetInlineBytes(), c.GetPrivateKey().GetInlineBytes()
		}
		if v := secret.GetValidationContext(); v != nil {
			next.ca = v.GetTrustedCa().GetInlineBytes()
		}
	}
	same := bytes.Equal(next.cert, held.cert) && bytes.Equal(next.key, held.key) && bytes.Equal(next.ca, held.ca)
	if same || len(next.cert) == 0 || len(next.key) == 0 || len(next.ca) == 0 {
		*held = next
		return nil
	}
	if err := a.files.writeIdentity(next.cert, next.key, next.ca); err != nil {
		return fmt.Errorf("%w: %w", errFiles, err)
	}
	*held = next
	a.log.InfoContext(ctx, "certificate and authorities written")
	return nil
}
