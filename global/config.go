package global

import (
	"errors"
	"fmt"
	"net"
	"regexp"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/global/admin"
)

// Config is everything that can be set on a global control plane. Its keys are those of the file and of GET /config;
// docs/CONFIGURATION.md is generated from it.
type Config struct {
	// Mode and Environment are fixed. They are keys of the file so that a file written for the other program is
	// refused, and so that clients of GET /config find them.
	Mode        string `yaml:"mode" doc:"always global"`
	Environment string `yaml:"environment" doc:"always universal"`

	General     General            `yaml:"general"`
	Log         logging.Config     `yaml:"log"`
	Store       storage.Config     `yaml:"store"`
	Cluster     cluster.Config     `yaml:"cluster"`
	API         server.Config      `yaml:"apiServer"`
	Access      server.Access      `yaml:"access"`
	Diagnostics diagnostics.Config `yaml:"diagnostics"`
	Multizone   Multizone          `yaml:"multizone"`
	Metrics     Metrics            `yaml:"metrics"`
	DNSServer   DNSServer          `yaml:"dnsServer"`
	Defaults    Defaults           `yaml:"defaults"`
}

// General is the section general.
type General struct {
	DataDir    string   `yaml:"dataDir" env:"MERIDIAN_DATA_DIR" doc:"directory of the store and of self-made certificates; made with mode 0700 when missing, one process at a time"`
	InstanceID string   `yaml:"instanceId" env:"MERIDIAN_INSTANCE_ID" doc:"name of this process in insights and logs; empty means the host's name and a random suffix"`
	Hostnames  []string `yaml:"hostnames" env:"MERIDIAN_HOSTNAMES" doc:"further host names and IP addresses self-made certificates are valid for, beside localhost and this host's own"`
}

// Multizone is the section multizone.
type Multizone struct {
	Global MultizoneGlobal `yaml:"global"`
}

// MultizoneGlobal is the section multizone.global.
type MultizoneGlobal struct {
	KDS KDS `yaml:"kds"`
}

// KDS is the section multizone.global.kds: the listener zones connect to.
type KDS struct {
	BindAddress string `yaml:"bindAddress" env:"MERIDIAN_KDS_BIND_ADDRESS" doc:"IP address the listener binds; empty means all interfaces"`
	Port        int    `yaml:"port" env:"MERIDIAN_KDS_PORT" doc:"port zones connect to, 0-65535; 0 takes any free port"`

	TLSEnabled  bool   `yaml:"tlsEnabled" env:"MERIDIAN_KDS_TLS_ENABLED" doc:"false serves plain text: for tests, or behind something that ends TLS"`
	TLSCertFile string `yaml:"tlsCertFile" env:"MERIDIAN_KDS_TLS_CERT_FILE" doc:"PEM file with the certificate chain; empty means a self-made one, whose authority is trust/kds-ca.crt in the data directory"`
	TLSKeyFile  string `yaml:"tlsKeyFile" env:"MERIDIAN_KDS_TLS_KEY_FILE" doc:"PEM file with the key of tlsCertFile"`

	Auth            string   `yaml:"auth" env:"MERIDIAN_KDS_AUTH" doc:"how zones prove who they are: token (each call carries a zone token of scope cp) or none (whoever reaches the port may join as any zone)"`
	AuthExemptZones []string `yaml:"authExemptZones" env:"MERIDIAN_KDS_AUTH_EXEMPT_ZONES" doc:"zones that need no token where auth is token: Kuma zones, which cannot send one"`

	MaxMessageBytes     int           `yaml:"maxMessageBytes" env:"MERIDIAN_KDS_MAX_MESSAGE_BYTES" doc:"largest message sent or received, in bytes, 65536-2147483647"`
	HealthCheckInterval time.Duration `yaml:"healthCheckInterval" env:"MERIDIAN_KDS_HEALTH_CHECK_INTERVAL" doc:"how often zones are told to report that they live, 100ms or more"`
	HealthCheckTimeout  time.Duration `yaml:"healthCheckTimeout" env:"MERIDIAN_KDS_HEALTH_CHECK_TIMEOUT" doc:"silence after which a zone that reports is offline and its streams are closed; more than healthCheckInterval, 0 never"`
	AckTimeout          time.Duration `yaml:"ackTimeout" env:"MERIDIAN_KDS_ACK_TIMEOUT" doc:"longest wait for the acknowledgement of a response before the stream is closed, 1s or more"`
	WithdrawLostZones   bool          `yaml:"withdrawLostZones" env:"MERIDIAN_KDS_WITHDRAW_LOST_ZONES" doc:"keep the ingresses of a zone from the other zones while its control plane is gone without having said that it stops; not while more zones are gone than are connected"`

	ZoneInsightInterval time.Duration `yaml:"zoneInsightInterval" env:"MERIDIAN_KDS_ZONE_INSIGHT_INTERVAL" doc:"least time between two stored versions of a zone's counters; connecting and disconnecting is stored at once"`
	SubscriptionLimit   int           `yaml:"subscriptionLimit" env:"MERIDIAN_KDS_SUBSCRIPTION_LIMIT" doc:"how many of its newest subscriptions a ZoneInsight keeps, 1 or more"`
	Keepalive           time.Duration `yaml:"keepalive" env:"MERIDIAN_KDS_KEEPALIVE" doc:"idle time after which a connection is pinged, 1s or more"`

	MaxConnectionAge time.Duration `yaml:"maxConnectionAge" env:"MERIDIAN_KDS_MAX_CONNECTION_AGE" doc:"how long a zone stays connected, up to a tenth more or less, before it is asked to connect anew, so that zones spread over the replicas again, 10s or more; 0 means without end"`

	Proxies admin.Config `yaml:"proxies"`
}

// Metrics is the section metrics: what is counted of the resources.
type Metrics struct {
	Mesh MeshMetrics `yaml:"mesh"`
}

// MeshMetrics is the section metrics.mesh: MeshInsights and ServiceInsights.
type MeshMetrics struct {
	MinResyncTimeout time.Duration `yaml:"minResyncTimeout" env:"MERIDIAN_METRICS_MESH_MIN_RESYNC_TIMEOUT" doc:"least time between two stored versions of insights of meshes and services, 100ms or more; the first change after a quiet time is stored at once"`
}

// DNSServer is the section dnsServer: how the meshes name services. ServiceInsights tell their addresses by it.
type DNSServer struct {
	Domain         string `yaml:"domain" env:"MERIDIAN_DNS_SERVER_DOMAIN" doc:"domain of the names under which meshes offer services"`
	ServiceVIPPort int    `yaml:"serviceVipPort" env:"MERIDIAN_DNS_SERVER_SERVICE_VIP_PORT" doc:"port under which meshes offer services, 1-65535"`
}

// The values of multizone.global.kds.auth.
const (
	AuthToken = "token"
	AuthNone  = "none"
)

// Defaults is the section defaults: what a global makes by itself at the start.
type Defaults struct {
	SkipMeshCreation bool `yaml:"skipMeshCreation" env:"MERIDIAN_DEFAULTS_SKIP_MESH_CREATION" doc:"do not make the mesh default, which is otherwise made at each start where it is absent"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		Mode:        "global",
		Environment: "universal",
		General:     General{DataDir: "meridian-data/global"},
		Log:         logging.Default(),
		Store:       storage.Default(),
		Cluster:     cluster.Default(),
		API:         server.Default(),
		Access:      server.DefaultAccess(),
		Diagnostics: diagnostics.Default(),
		Multizone: Multizone{Global: MultizoneGlobal{KDS: KDS{
			Port:                5685,
			TLSEnabled:          true,
			Auth:                AuthToken,
			MaxMessageBytes:     10 << 20,
			HealthCheckInterval: 2 * time.Second,
			HealthCheckTimeout:  6 * time.Second,
			AckTimeout:          30 * time.Second,
			ZoneInsightInterval: time.Second,
			WithdrawLostZones:   true,
			SubscriptionLimit:   10,
			Keepalive:           15 * time.Second,
			Proxies:             admin.Default(),
		}}},
		Metrics:   Metrics{Mesh: MeshMetrics{MinResyncTimeout: time.Second}},
		DNSServer: DNSServer{Domain: "mesh", ServiceVIPPort: 80},
	}
}

// Validate returns the problems that are not those of a single section.
func (c Config) Validate() []error {
	var errs []error
	if c.Mode != "global" {
		errs = append(errs, fmt.Errorf("mode: %q is not global: is this the configuration of another program?", c.Mode))
	}
	if c.Environment != "universal" {
		errs = append(errs, fmt.Errorf("environment: %q is not universal", c.Environment))
	}
	ports := map[int]string{}
	for _, p := range []struct {
		path string
		port int
	}{
		{"apiServer.httpPort", c.API.HTTPPort},
		{"apiServer.httpsPort", c.API.HTTPSPort},
		{"diagnostics.port", c.Diagnostics.Port},
		{"multizone.global.kds.port", c.Multizone.Global.KDS.Port},
		{"cluster.bindPort", c.Cluster.BindPort},
		{"cluster.peerPort", c.Cluster.CallPort()},
	} {
		other, taken := ports[p.port]
		switch {
		case p.port <= 0: // any free port, or none
		case taken && p.path != "apiServer.httpsPort": // the API checks its own two
			errs = append(errs, fmt.Errorf("%s: %d is the port of %s too", p.path, p.port, other))
		default:
			ports[p.port] = p.path
		}
	}
	return errs
}

// Validate returns every problem of m, each starting with the field's name in the file.
func (m MeshMetrics) Validate() []error {
	if m.MinResyncTimeout < 100*time.Millisecond {
		return []error{fmt.Errorf("minResyncTimeout: %s is less than 100ms", m.MinResyncTimeout)}
	}
	return nil
}

// domainName is one DNS label or several with dots between them.
var domainName = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)

// Validate returns every problem of d, each starting with the field's name in the file.
func (d DNSServer) Validate() []error {
	var errs []error
	if !domainName.MatchString(d.Domain) {
		errs = append(errs, fmt.Errorf("domain: %q is not a domain name", d.Domain))
	}
	if d.ServiceVIPPort < 1 || d.ServiceVIPPort > 65535 {
		errs = append(errs, fmt.Errorf("serviceVipPort: %d is not in 1-65535", d.ServiceVIPPort))
	}
	return errs
}

// Validate returns every problem of g, each starting with the field's name in the file.
func (g General) Validate() []error {
	if g.DataDir == "" {
		return []error{errors.New("dataDir: must be set")}
	}
	return nil
}

// Validate returns every problem of k, each starting with the field's name in the file.
func (k KDS) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if k.BindAddress != "" && net.ParseIP(k.BindAddress) == nil {
		bad("bindAddress: %q is not an IP address", k.BindAddress)
	}
	if k.Port < 0 || k.Port > 65535 {
		bad("port: %d is not in 0-65535", k.Port)
	}
	if (k.TLSCertFile == "") != (k.TLSKeyFile == "") {
		bad("tlsCertFile, tlsKeyFile: one is set without the other")
	}
	if !k.TLSEnabled && k.TLSCertFile != "" {
		bad("tlsEnabled: a certificate is given, but TLS is off")
	}
	if k.Auth != AuthToken && k.Auth != AuthNone {
		bad("auth: %q is not token or none", k.Auth)
	}
	for i, zone := range k.AuthExemptZones {
		if err := resource.CheckZoneName(zone); err != nil {
			bad("authExemptZones[%d]: %q %w", i, zone, err)
		}
	}
	if k.MaxMessageBytes < 64<<10 || k.MaxMessageBytes > 1<<31-1 {
		bad("maxMessageBytes: %d is not in 65536-2147483647", k.MaxMessageBytes)
	}
	if k.HealthCheckInterval < 100*time.Millisecond {
		bad("healthCheckInterval: %s is less than 100ms", k.HealthCheckInterval)
	}
	if k.HealthCheckTimeout != 0 && k.HealthCheckTimeout <= k.HealthCheckInterval {
		bad("healthCheckTimeout: %s is not more than healthCheckInterval, %s", k.HealthCheckTimeout, k.HealthCheckInterval)
	}
	if k.AckTimeout < time.Second {
		bad("ackTimeout: %s is less than 1s", k.AckTimeout)
	}
	if k.ZoneInsightInterval <= 0 {
		bad("zoneInsightInterval: %s is not positive", k.ZoneInsightInterval)
	}
	if k.SubscriptionLimit < 1 {
		bad("subscriptionLimit: %d is less than 1", k.SubscriptionLimit)
	}
	if k.Keepalive < time.Second {
		bad("keepalive: %s is less than 1s", k.Keepalive)
	}
	if k.MaxConnectionAge != 0 && k.MaxConnectionAge < 10*time.Second {
		bad("maxConnectionAge: %s is neither 0 nor 10s or more", k.MaxConnectionAge)
	}
	return errs
}
