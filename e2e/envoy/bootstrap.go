package envoy

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	"go.yaml.in/yaml/v3"
	"google.golang.org/protobuf/encoding/protojson"
)

// RefusedError is an answer to the bootstrap request that kuma-dp takes as final.
type RefusedError struct {
	Status int
	Body   string
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("bootstrap refused with status %d: %s", e.Status, e.Body)
}

// bootstrapRequest is what kuma-dp posts; names and omissions are its own.
type bootstrapRequest struct {
	Mesh               string            `json:"mesh"`
	Name               string            `json:"name"`
	ProxyType          string            `json:"proxyType"`
	DataplaneToken     string            `json:"dataplaneToken,omitempty"`
	DataplaneTokenPath string            `json:"dataplaneTokenPath,omitempty"`
	DataplaneResource  string            `json:"dataplaneResource,omitempty"`
	Version            versions          `json:"version"`
	CACert             string            `json:"caCert"`
	DynamicMetadata    map[string]string `json:"dynamicMetadata"`
	DNSPort            uint32            `json:"dnsPort,omitempty"`
	EmptyDNSPort       uint32            `json:"emptyDnsPort,omitempty"`
	OperatingSystem    string            `json:"operatingSystem"`
	Features           []string          `json:"features"`
	Resources          proxyResources    `json:"resources"`
}

type versions struct {
	KumaDP kumaDPVersion `json:"kumaDp"`
	Envoy  envoyVersion  `json:"envoy"`
}

type kumaDPVersion struct {
	Version   string `json:"version"`
	GitTag    string `json:"gitTag"`
	GitCommit string `json:"gitCommit"`
	BuildDate string `json:"buildDate"`
}

type envoyVersion struct {
	Version          string `json:"version"`
	Build            string `json:"build"`
	KumaDPCompatible bool   `json:"kumaDpCompatible"`
}

type proxyResources struct {
	MaxHeapSizeBytes uint64 `json:"maxHeapSizeBytes"`
}

// Sidecar is the part of the bootstrap answer that is for kuma-dp itself.
type Sidecar struct {
	Networking struct {
		IsUsingTransparentProxy bool `json:"isUsingTransparentProxy"`
	} `json:"networking"`
	Metrics struct {
		Aggregate []struct {
			Name    string `json:"name"`
			Address string `json:"address"`
			Port    uint32 `json:"port"`
			Path    string `json:"path"`
		} `json:"aggregate"`
	} `json:"metrics"`
}

type bootstrapResponse struct {
	Bootstrap []byte  `json:"bootstrap"`
	Sidecar   Sidecar `json:"kumaSidecarConfiguration"`
}

func (o *Options) request() (*bootstrapRequest, error) {
	r := &bootstrapRequest{
		Mesh: o.Mesh, Name: o.Name, ProxyType: o.ProxyType, DataplaneToken: o.Token, DataplaneTokenPath: o.TokenPath,
		Version: versions{
			KumaDP: kumaDPVersion{Version: o.KumaDPVersion, GitTag: o.KumaDPVersion, GitCommit: "unknown", BuildDate: "unknown"},
			Envoy:  envoyVersion{Version: o.EnvoyVersion, Build: "stand-in/" + o.EnvoyVersion, KumaDPCompatible: true},
		},
		CACert: string(o.CA), DynamicMetadata: o.DynamicMetadata, DNSPort: o.DNSPort, EmptyDNSPort: o.EmptyDNSPort,
		OperatingSystem: "linux", Features: o.Features,
	}
	if o.Resource == "" {
		return r, nil
	}
	var resource map[string]any
	if err := yaml.Unmarshal([]byte(o.Resource), &resource); err != nil {
		return nil, fmt.Errorf("read the resource of the proxy: %w", err)
	}
	// kuma-dp sends the resource as it would be after a decode: the times are there and zero.
	for _, key := range []string{"creationTime", "modificationTime"} {
		if _, ok := resource[key]; !ok {
			resource[key] = "0001-01-01T00:00:00Z"
		}
	}
	if name, ok := resource["name"].(string); ok && r.Name == "" {
		r.Name = name
	}
	if mesh, ok := resource["mesh"].(string); ok && r.Mesh == "" && o.ProxyType == "dataplane" {
		r.Mesh = mesh
	}
	b, err := json.Marshal(resource)
	if err != nil {
		return nil, fmt.Errorf("encode the resource of the proxy: %w", err)
	}
	r.DataplaneResource = string(b)
	return r, nil
}

// bootstrap asks for a bootstrap until there is one, the answer is final, or time is up.
func (o *Options) bootstrap(ctx context.Context) (*bootstrapv3.Bootstrap, *Sidecar, error) {
	request, err := o.request()
	if err != nil {
		return nil, nil, err
	}
	body, err := json.Marshal(request)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the bootstrap request: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(o.CA) {
		return nil, nil, errors.New("no certificate in the CA of the control plane")
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}, ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	ctx, cancel := context.WithTimeout(ctx, o.BootstrapTimeout)
	defer cancel()
	for {
		b, side, err := o.askOnce(ctx, client, body)
		if err == nil {
			return b, side, nil
		}
		if _, refused := errors.AsType[*RefusedError](err); refused {
			return nil, nil, err
		}
		if _, broken := errors.AsType[*answerError](err); broken {
			return nil, nil, err
		}
		o.Log.DebugContext(ctx, "bootstrap is asked for again", "err", err)
		if !pause(ctx, o.BootstrapRetry) {
			return nil, nil, fmt.Errorf("no bootstrap: %w (last: %w)", ctx.Err(), err)
		}
	}
}

// answerError is a successful answer that does not hold what it must.
type answerError struct{ err error }

func (e *answerError) Error() string { return "bootstrap answer: " + e.err.Error() }
func (e *answerError) Unwrap() error { return e.err }

func (o *Options) askOnce(ctx context.Context, client *http.Client, body []byte) (*bootstrapv3.Bootstrap, *Sidecar, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimSuffix(o.ControlPlane, "/")+"/bootstrap",
		bytes.NewReader(body))
	if err != nil {
		return nil, nil, &answerError{err}
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return nil, nil, fmt.Errorf("ask for the bootstrap: %w", err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	if err != nil {
		return nil, nil, fmt.Errorf("read the bootstrap: %w", err)
	}
	switch {
	case resp.StatusCode == http.StatusNotFound && len(answer) == 0:
		return nil, nil, errors.New("the control plane does not know the proxy yet")
	case resp.StatusCode >= 400 && resp.StatusCode < 500:
		return nil, nil, &RefusedError{Status: resp.StatusCode, Body: string(answer)}
	case resp.StatusCode != http.StatusOK:
		return nil, nil, fmt.Errorf("bootstrap answered with status %d", resp.StatusCode)
	}
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "application/json") {
		return nil, nil, &answerError{fmt.Errorf("content type is %q", ct)}
	}
	var decoded bootstrapResponse
	if err := json.Unmarshal(answer, &decoded); err != nil {
		return nil, nil, &answerError{err}
	}
	if decoded.Sidecar.Metrics.Aggregate == nil {
		return nil, nil, &answerError{errors.New("metrics.aggregate must be an array")}
	}
	b, err := parseBootstrap(decoded.Bootstrap)
	if err != nil {
		return nil, nil, &answerError{err}
	}
	return b, &decoded.Sidecar, nil
}

// parseBootstrap reads a bootstrap as strictly as can be: unknown fields and types are errors.
func parseBootstrap(text []byte) (*bootstrapv3.Bootstrap, error) {
	var tree any
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return nil, fmt.Errorf("read the bootstrap as YAML: %w", err)
	}
	b, err := json.Marshal(tree)
	if err != nil {
		return nil, fmt.Errorf("turn the bootstrap into JSON: %w", err)
	}
	out := &bootstrapv3.Bootstrap{}
	if err := protojson.Unmarshal(b, out); err != nil {
		return nil, fmt.Errorf("read the bootstrap as a v3 Bootstrap: %w", err)
	}
	if err := check(out); err != nil {
		return nil, fmt.Errorf("bootstrap: %w", err)
	}
	return out, nil
}

// pause waits for d and reports whether ctx still lives.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
