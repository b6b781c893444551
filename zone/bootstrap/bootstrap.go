// Package bootstrap answers what a proxy asks first: POST /bootstrap, with which kuma-dp gets the configuration that it
// starts Envoy with. The request says who the proxy is and carries its token, which is not verified here: it goes into the
// configuration, and counts when Envoy connects with it.
//
// kuma-dp tries again after an empty 404 and after a 5xx, and gives up after any other 4xx, whose text it shows. So what a
// retry cannot mend is 400 or 422, and a resource that is not there yet is an empty 404.
//
// A client of gRPC without a proxy has no use for any of this: its bootstrap holds a node and an address, which the
// program that writes it knows.
package bootstrap

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/validate"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/store"
)

// maxBodyBytes bounds a request. A Dataplane of a gateway to hundreds of services has some ten kilobytes.
const maxBodyBytes = 1 << 20

// Trust is the certificate that proxies meet when they connect. *dpserver.TLS is one.
type Trust interface {
	// CA is what signed it, in PEM; empty: nobody here knows.
	CA() ([]byte, error)
	// VerifyHost reports whether it is valid for a host name or IP address.
	VerifyHost(host string) error
}

// Options is what a [Handler] needs.
type Options struct {
	Config

	Store *store.Store
	Trust Trust
	// Port is where Envoys connect unless the configuration says otherwise: the port that is listened on.
	Port int
	// AuthRequired: a proxy must bring a token. UseTokenPath: Envoy reads it from its file.
	AuthRequired, UseTokenPath bool
	// HDS: proxies report the health of their workloads.
	HDS bool

	Registerer prometheus.Registerer // nil: nothing is exported
	Log        *slog.Logger
}

// Handler answers POST /bootstrap. It reads the store and never writes it.
type Handler struct {
	o        Options
	log      *slog.Logger
	requests *prometheus.CounterVec
}

// New checks o and registers the metrics.
func New(o Options) (*Handler, error) {
	if err := errors.Join(o.Params.Validate()...); err != nil {
		return nil, fmt.Errorf("bootstrap server: %w", err)
	}
	if o.Store == nil || o.Trust == nil || o.Log == nil {
		return nil, errors.New("bootstrap server: Store, Trust and Log must be set")
	}
	h := &Handler{o: o, log: o.Log.With("component", "bootstrap"), requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "meridian", Subsystem: "bootstrap", Name: "requests_total",
		Help: "Requests of proxies for the configuration to start with, by status of the answer.",
	}, []string{"status"})}
	if o.Registerer != nil {
		if err := o.Registerer.Register(h.requests); err != nil {
			return nil, fmt.Errorf("bootstrap server: register metrics: %w", err)
		}
	}
	return h, nil
}

// failure is a request that is not answered with a configuration.
type failure struct {
	status int
	text   string // the body; kuma-dp shows it
	err    error  // what happened, for the log; nil where the text says it
}

func (f *failure) Error() string {
	if f.err != nil {
		return f.err.Error()
	}
	return f.text
}

func refuse(status int, format string, args ...any) *failure {
	return &failure{status: status, text: fmt.Sprintf(format, args...)}
}

// silent is a failure with an empty body.
func silent(status int, format string, args ...any) *failure {
	return &failure{status: status, err: fmt.Errorf(format, args...)}
}

// violated names what is wrong with a resource.
func violated(found ...codec.Violation) *failure {
	lines := make([]string, len(found))
	for i, v := range found {
		if lines[i] = v.Message; v.Field != "" {
			lines[i] = v.Field + ": " + v.Message
		}
	}
	return &failure{status: http.StatusUnprocessableEntity, text: strings.Join(lines, "; ")}
}

// ServeHTTP answers a request.
func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	status := http.StatusOK
	body, contentType, err := h.answer(w, r)
	if err != nil {
		f, ok := errors.AsType[*failure](err)
		if !ok {
			f = &failure{status: http.StatusInternalServerError, err: err}
		}
		status, body, contentType = f.status, []byte(f.text), "text/plain; charset=utf-8"
		level := slog.LevelInfo
		switch {
		case status >= http.StatusInternalServerError:
			level = slog.LevelError
		case status == http.StatusNotFound:
			level = slog.LevelDebug // asked every few seconds until the resource is there
		}
		h.log.Log(r.Context(), level, "no configuration to start with", "status", status, "peer", r.RemoteAddr, "err", f)
	}
	h.requests.WithLabelValues(strconv.Itoa(status)).Inc()
	if len(body) > 0 {
		w.Header().Set("Content-Type", contentType)
		w.Header().Set("X-Content-Type-Options", "nosniff")
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // a failed write means that the client is gone
}

// answer returns a body and its content type, or a *failure.
func (h *Handler) answer(w http.ResponseWriter, r *http.Request) ([]byte, string, error) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBodyBytes))
	if err != nil {
		if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, "", refuse(http.StatusRequestEntityTooLarge, "the request is longer than %d bytes", maxBodyBytes)
		}
		return nil, "", silent(http.StatusBadRequest, "read request: %w", err)
	}
	var req request
	if err := json.Unmarshal(raw, &req); err != nil {
		return nil, "", silent(http.StatusBadRequest, "request is not what kuma-dp sends: %w", err)
	}
	p, sidecar, err := h.proxy(&req, r.Host)
	if err != nil {
		return nil, "", err
	}
	b, err := Generate(p)
	if err != nil { // what stands in it comes from the request or the resource
		return nil, "", refuse(http.StatusUnprocessableEntity, "the configuration of the proxy cannot be made: %v", err)
	}
	document, err := toYAML(b)
	if err != nil {
		return nil, "", fmt.Errorf("bootstrap of %s: %w", p.NodeID(), err)
	}
	if !strings.Contains(r.Header.Get("Accept"), "application/json") {
		return document, "text/x-yaml", nil
	}
	body, err := json.Marshal(response{Bootstrap: document, KumaSidecarConfiguration: *sidecar})
	if err != nil {
		return nil, "", fmt.Errorf("render response: %w", err)
	}
	return body, "application/json", nil
}

// proxy decides what a request is answered with. usedHost is the Host header.
func (h *Handler) proxy(req *request, usedHost string) (*Proxy, *sidecarConfiguration, error) {
	host, err := h.host(usedHost)
	if err != nil {
		return nil, nil, err
	}
	token, err := h.token(req)
	if err != nil {
		return nil, nil, err
	}
	params := h.o.Params
	p := &Proxy{
		Type: req.ProxyType, Mesh: req.Mesh, Name: req.Name,
		AdminAddress: params.AdminAddress, AdminPort: uint32(params.AdminPort), AdminAccessLogPath: params.AdminAccessLogPath,
		XDSHost: host, XDSPort: uint32(h.o.Port), XDSConnectTimeout: params.XDSConnectTimeout,
		Token: config.Secret(token), HDS: h.o.HDS,
		Resource: req.DataplaneResource, Version: req.Version, DynamicMetadata: req.DynamicMetadata,
		DNSPort: req.DNSPort, EmptyDNSPort: req.EmptyDNSPort, Features: req.Features,
	}
	if params.XDSPort != 0 {
		p.XDSPort = uint32(params.XDSPort)
	}
	if req.OperatingSystem == "windows" && p.AdminAccessLogPath == devNull {
		p.AdminAccessLogPath = "NUL"
	}
	if path := req.DataplaneTokenPath; path != "" && (h.o.UseTokenPath || token == "" && h.o.AuthRequired) {
		p.TokenPath = path
	}
	sidecar := &sidecarConfiguration{Metrics: metrics{Aggregate: []aggregate{}}}
	switch p.Type {
	case "", typeDataplane:
		p.Type = typeDataplane
		err = h.dataplane(p, req, sidecar)
	case typeIngress, typeEgress:
		p.Mesh = ""
		err = h.zoneProxy(p)
	default:
		err = silent(http.StatusInternalServerError, "proxy type %q is not known", clip(p.Type))
	}
	if err != nil {
		return nil, nil, err
	}
	if p.CA, err = h.ca(req.CACert); err != nil {
		return nil, nil, err
	}
	return p, sidecar, nil
}

// host is where Envoy finds us: where kuma-dp did, unless the configuration says otherwise.
func (h *Handler) host(used string) (string, error) {
	if h.o.Params.XDSHost != "" {
		return h.o.Params.XDSHost, nil
	}
	host, _, err := net.SplitHostPort(used)
	if err != nil { // without a port
		host = strings.TrimSuffix(strings.TrimPrefix(used, "["), "]")
	}
	if host == "" {
		return "", refuse(http.StatusBadRequest, "the request has no Host header, so nobody knows where Envoy should connect to")
	}
	if err := h.o.Trust.VerifyHost(host); err != nil {
		return "", refuse(http.StatusBadRequest, "the control plane was reached as %q, which its certificate is not valid for (%v): "+
			"use another address, or let the certificate of dpServer have this name (general.hostnames), or set bootstrapServer.params.xdsHost",
			clip(host), err)
	}
	return host, nil
}

func (h *Handler) token(req *request) (string, error) {
	token := strings.TrimSpace(req.DataplaneToken)
	if h.o.AuthRequired && token == "" && req.DataplaneTokenPath == "" {
		return "", refuse(http.StatusUnprocessableEntity, "a token is required: make one (kumactl generate dataplane-token, "+
			"or zone-token for an ingress or egress) and give its file to kuma-dp run --dataplane-token-file")
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' { // it becomes a header
			return "", refuse(http.StatusUnprocessableEntity, "dataplaneToken: holds a character that no token has")
		}
	}
	return token, nil
}

// ca is whom Envoy is told to trust.
func (h *Handler) ca(given string) ([]byte, error) {
	content, whose := []byte(given), "the CA certificate that was passed to kuma-dp"
	if given == "" {
		var err error
		if content, err = h.o.Trust.CA(); err != nil {
			return nil, fmt.Errorf("authority of the control plane: %w", err)
		}
		if len(content) == 0 {
			return nil, refuse(http.StatusBadRequest, "the certificate of the control plane is no authority (CA=false), and nobody here knows "+
				"which one signed it: pass that one to kuma-dp run --ca-cert-file, or set dpServer.tlsCaFile")
		}
		whose = "the CA certificate of the control plane"
	}
	found, authority := false, false
	for rest := content; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, refuse(http.StatusBadRequest, "%s cannot be read: %v", whose, err)
		}
		found, authority = true, authority || cert.IsCA
	}
	switch {
	case !found:
		return nil, refuse(http.StatusBadRequest, "%s is not a certificate in PEM", whose)
	case !authority:
		return nil, refuse(http.StatusBadRequest, "%s is no authority (CA=false): pass the one that signed it", whose)
	}
	return content, nil
}

// dataplane fills in what depends on the Dataplane and its mesh.
func (h *Handler) dataplane(p *Proxy, req *request, sidecar *sidecarConfiguration) error {
	snap := h.o.Store.Snapshot()
	rec, err := h.resource(snap, resource.Dataplane, p)
	if err != nil {
		return err
	}
	meshRec, ok := snap.Get(store.Key{Type: string(resource.Mesh), Name: p.Mesh})
	if !ok {
		return violated(codec.Violation{Field: "mesh", Message: fmt.Sprintf("mesh %q does not exist", clip(p.Mesh))})
	}
	dp, err := codec.SpecOf[*meshv1.Dataplane](rec)
	if err != nil {
		return err
	}
	mesh, err := codec.SpecOf[*meshv1.Mesh](meshRec)
	if err != nil {
		return err
	}
	n := dp.GetNetworking()
	if p.Resource != "" && n.GetTransparentProxying() != nil && len(n.GetOutbound()) > 0 {
		return violated(codec.Violation{
			Field: "networking.outbound", Message: "must be empty: with transparentProxying, which services are reached does not have to be said",
		})
	}
	p.Service = dataplane.IdentifyingService(dp)
	p.Gateway = n.GetGateway() != nil && n.GetGateway().GetType() == meshv1.Dataplane_Networking_Gateway_BUILTIN
	p.MaxHeapBytes = req.Resources.MaxHeapSizeBytes
	setAdminPort(p, n.GetAdmin())

	sidecar.Networking.IsUsingTransparentProxy = n.GetTransparentProxying() != nil
	prom, err := dataplane.Prometheus(mesh, dp)
	if err != nil {
		// Metrics are no reason not to start.
		h.log.Warn("metrics of a proxy cannot be told", "mesh", p.Mesh, "name", p.Name, "err", err)
	}
	for _, a := range prom.GetAggregate() {
		if dataplane.Aggregated(a) {
			sidecar.Metrics.Aggregate = append(sidecar.Metrics.Aggregate, aggregate{
				Name: a.GetName(), Address: n.GetAddress(), Port: a.GetPort(), Path: a.GetPath(),
			})
		}
	}
	return nil
}

// zoneProxy fills in what depends on the ZoneIngress or ZoneEgress.
func (h *Handler) zoneProxy(p *Proxy) error {
	typ := resource.ZoneIngress
	if p.Type == typeEgress {
		typ = resource.ZoneEgress
	}
	p.Service = p.Type
	rec, err := h.resource(h.o.Store.Snapshot(), typ, p)
	if err != nil {
		return err
	}
	if p.Type == typeEgress {
		egress, err := codec.SpecOf[*meshv1.ZoneEgress](rec)
		if err != nil {
			return err
		}
		setAdminPort(p, egress.GetNetworking().GetAdmin())
		return nil
	}
	ingress, err := codec.SpecOf[*meshv1.ZoneIngress](rec)
	if err != nil {
		return err
	}
	setAdminPort(p, ingress.GetNetworking().GetAdmin())
	return nil
}

func setAdminPort(p *Proxy, admin *meshv1.EnvoyAdmin) {
	if port := admin.GetPort(); port != 0 {
		p.AdminPort = port
	}
}

// resource returns what the request brought, after the checks that a client of the HTTP API would meet, or else what is
// stored. It sets mesh and name of p to those of the resource.
func (h *Handler) resource(snap *store.Snapshot, typ resource.Type, p *Proxy) (*store.Record, error) {
	d, ok := resource.Lookup(typ)
	if !ok {
		return nil, fmt.Errorf("type %s is not in the registry", typ)
	}
	if p.Resource == "" {
		rec, ok := snap.Get(store.Key{Type: string(typ), Mesh: p.Mesh, Name: p.Name})
		if !ok {
			return nil, silent(http.StatusNotFound, "%s %q in mesh %q is not there (yet)", typ, clip(p.Name), clip(p.Mesh))
		}
		return rec, nil
	}
	doc, err := decode(d, p.Resource)
	if err != nil {
		return nil, err
	}
	if err := agree(p, doc); err != nil {
		return nil, err
	}
	key := store.Key{Type: string(typ), Mesh: p.Mesh, Name: p.Name}
	old, exists := snap.Get(key)
	switch {
	case exists && old.Origin != "":
		return nil, violated(codec.Violation{Field: "name", Message: "there is a resource of this name that another control plane owns"})
	case !exists:
		if err := resource.CheckName(p.Name); err != nil {
			return nil, violated(codec.Violation{Field: "name", Message: err.Error()})
		}
	}
	// A dot in the mesh's name would make another mesh of it when the node id is read.
	if err := resource.CheckName(p.Mesh); err != nil && d.Scope == resource.ScopeMesh {
		return nil, violated(codec.Violation{Field: "mesh", Message: err.Error()})
	}
	if found := validate.Spec(d, key, doc.Spec); len(found) > 0 {
		return nil, violated(found...)
	}
	rec := &store.Record{Key: key, Spec: doc.Spec, Labels: doc.Labels}
	if found := validate.State(snap, d, rec, old); len(found) > 0 {
		return nil, violated(found...)
	}
	return rec, nil
}

// resourceFormat takes JSON as well.
const resourceFormat = "application/yaml"

// decode reads a resource that must be of type d.
func decode(d *resource.Descriptor, text string) (*codec.Document, error) {
	plain, err := codec.JSON(resourceFormat, []byte(text))
	if err != nil {
		return nil, unreadable(err)
	}
	var head struct {
		Type any `json:"type"`
	}
	if !bytes.HasPrefix(plain, []byte("{")) {
		return nil, violated(codec.Violation{Field: "dataplaneResource", Message: "is not an object"})
	}
	if err := json.Unmarshal(plain, &head); err != nil {
		return nil, unreadable(err)
	}
	if head.Type != string(d.Name) {
		return nil, silent(http.StatusInternalServerError, "resource is a %q where a %s is expected", clip(fmt.Sprint(head.Type)), d.Name)
	}
	doc, err := codec.Decode(d, "application/json", plain)
	if err != nil {
		return nil, unreadable(err)
	}
	return doc, nil
}

func unreadable(err error) *failure {
	if e, ok := errors.AsType[*codec.Error](err); ok && len(e.Violations) > 0 {
		return violated(e.Violations...)
	}
	return violated(codec.Violation{Field: "dataplaneResource", Message: "cannot be read: " + err.Error()})
}

// agree takes from the resource what the request left out; what both say must be the same.
func agree(p *Proxy, doc *codec.Document) error {
	if p.Name == "" {
		p.Name = doc.Name
	}
	if p.Mesh == "" {
		p.Mesh = doc.Mesh
	}
	if doc.Name != "" && doc.Name != p.Name {
		return violated(codec.Violation{Field: "name", Message: "differs from the name in the request"})
	}
	if doc.Mesh != "" && doc.Mesh != p.Mesh {
		return violated(codec.Violation{Field: "mesh", Message: "differs from the mesh in the request"})
	}
	return nil
}

// maxQuoted bounds how much of a value is repeated in an answer or in the log.
const maxQuoted = 128

func clip(s string) string {
	if len(s) <= maxQuoted {
		return s
	}
	return strings.ToValidUTF8(s[:maxQuoted], "") + "…"
}
