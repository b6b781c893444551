package zone

import (
	"errors"
	"fmt"
	"time"

	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/api/vips"
	"github.com/meridian-mesh/meridian/common/cluster"
	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/common/diagnostics"
	"github.com/meridian-mesh/meridian/common/logging"
	"github.com/meridian-mesh/meridian/common/storage"
	"github.com/meridian-mesh/meridian/zone/admin"
	"github.com/meridian-mesh/meridian/zone/bootstrap"
	"github.com/meridian-mesh/meridian/zone/dpserver"
	"github.com/meridian-mesh/meridian/zone/hds"
	"github.com/meridian-mesh/meridian/zone/mads"
	"github.com/meridian-mesh/meridian/zone/mtls"
	"github.com/meridian-mesh/meridian/zone/proxies"
	"github.com/meridian-mesh/meridian/zone/upstream"
)

// Config is everything that can be set on a zone control plane. Its keys are those of the file and of GET /config;
// docs/CONFIGURATION.md is generated from it.
type Config struct {
	// Mode and Environment are fixed. They are keys of the file so that a file written for the other program is
	// refused, and so that clients of GET /config find them.
	Mode        string `yaml:"mode" doc:"always zone"`
	Environment string `yaml:"environment" doc:"always universal"`

	General     General            `yaml:"general"`
	Log         logging.Config     `yaml:"log"`
	Store       storage.Config     `yaml:"store"`
	Cluster     cluster.Config     `yaml:"cluster"`
	API         server.Config      `yaml:"apiServer"`
	Access      server.Access      `yaml:"access"`
	Diagnostics diagnostics.Config `yaml:"diagnostics"`
	Multizone   Multizone          `yaml:"multizone"`

	DPServer        dpserver.Config  `yaml:"dpServer"`
	BootstrapServer bootstrap.Config `yaml:"bootstrapServer"`
	Proxies         proxies.Config   `yaml:"proxies"`
	XDSServer       XDSServer        `yaml:"xdsServer"`
	HDS             hds.Config       `yaml:"hds"`
	MADS            mads.Config      `yaml:"monitoringAssignmentServer"`
	MTLS            mtls.Config      `yaml:"mtls"`
	DNSServer       vips.Config      `yaml:"dnsServer"`
	Inspection      admin.Config     `yaml:"inspection"`
}

// XDSServer is the section xdsServer: how proxies are configured.
type XDSServer struct {
	Holdoff time.Duration `yaml:"holdoff" env:"MERIDIAN_XDS_HOLDOFF" doc:"how long after the first change of a burst its other changes are waited for before proxies are configured, 0-1m"`
}

// Validate returns every problem of x, each starting with the field's name in the file.
func (x XDSServer) Validate() []error {
	if x.Holdoff < 0 || x.Holdoff > time.Minute {
		return []error{fmt.Errorf("holdoff: %s is not in 0-1m", x.Holdoff)}
	}
	return nil
}

// General is the section general.
type General struct {
	DataDir    string   `yaml:"dataDir" env:"MERIDIAN_DATA_DIR" doc:"directory of the store and of self-made certificates; made with mode 0700 when missing, one process at a time"`
	InstanceID string   `yaml:"instanceId" env:"MERIDIAN_INSTANCE_ID" doc:"name of this process in insights and logs; empty means the host's name and a random suffix"`
	Hostnames  []string `yaml:"hostnames" env:"MERIDIAN_HOSTNAMES" doc:"further host names and IP addresses self-made certificates are valid for, beside localhost and this host's own"`
}

// Multizone is the section multizone.
type Multizone struct {
	Zone MultizoneZone `yaml:"zone"`
}

// MultizoneZone is the section multizone.zone.
type MultizoneZone struct {
	Name          string `yaml:"name" env:"MERIDIAN_ZONE_NAME" doc:"name of this zone, one DNS label; must be set, and differ from every other zone's"`
	GlobalAddress string `yaml:"globalAddress" env:"MERIDIAN_ZONE_GLOBAL_ADDRESS" doc:"where the global control plane listens for zones: grpcs://host:port, or grpc://host:port for plain text; several, separated by commas, are tried in random order, with all addresses of each name, until one answers; must be set"`
	AcceptGlobal  string `yaml:"acceptGlobal" env:"MERIDIAN_ZONE_ACCEPT_GLOBAL" doc:"cluster id of the one global to take resources from; empty means the one met first"`
	// TokenFile and Token are what the zone presents to the global.
	TokenFile string        `yaml:"tokenFile" env:"MERIDIAN_ZONE_TOKEN_FILE" doc:"file with the zone token of scope cp that this zone presents to the global; it may appear later than the zone and is read anew for every call, so that replacing it rotates the token"`
	Token     config.Secret `yaml:"token" env:"MERIDIAN_ZONE_TOKEN" doc:"the zone token itself; tokenFile is the better place"`
	KDS       KDS           `yaml:"kds"`
}

// KDS is the section multizone.zone.kds: the session with the global.
type KDS struct {
	CAFile        string `yaml:"caFile" env:"MERIDIAN_ZONE_KDS_CA_FILE" doc:"PEM file of the authorities the global's certificate may come from, such as trust/kds-ca.crt of its data directory; it may appear later than the zone; empty means those of the operating system"`
	TLSSkipVerify bool   `yaml:"tlsSkipVerify" env:"MERIDIAN_ZONE_KDS_TLS_SKIP_VERIFY" doc:"trust whoever answers at globalAddress: for tests only"`

	MaxMessageBytes     int           `yaml:"maxMessageBytes" env:"MERIDIAN_KDS_MAX_MESSAGE_BYTES" doc:"largest message sent or received, in bytes, 65536-2147483647"`
	HealthCheckInterval time.Duration `yaml:"healthCheckInterval" env:"MERIDIAN_KDS_HEALTH_CHECK_INTERVAL" doc:"how often to report to the global until it says otherwise, 100ms or more"`
	HealthCheckTimeout  time.Duration `yaml:"healthCheckTimeout" env:"MERIDIAN_KDS_HEALTH_CHECK_TIMEOUT" doc:"longest wait for the answer to a report before the session is given up, 100ms or more"`
	AckTimeout          time.Duration `yaml:"ackTimeout" env:"MERIDIAN_KDS_ACK_TIMEOUT" doc:"longest wait for the acknowledgement of a response before the stream is closed, 1s or more"`
	InsightInterval     time.Duration `yaml:"insightInterval" env:"MERIDIAN_KDS_INSIGHT_INTERVAL" doc:"least time between two sendings of insights to the global"`
	Keepalive           time.Duration `yaml:"keepalive" env:"MERIDIAN_KDS_KEEPALIVE" doc:"idle time after which the connection is pinged, 1s or more; a Kuma global needs 15s or more"`
	ReconnectBase       time.Duration `yaml:"reconnectBase" env:"MERIDIAN_ZONE_RECONNECT_BASE" doc:"wait before the first reconnect, doubled at each further failure and varied at random, 10ms or more"`
	ReconnectMax        time.Duration `yaml:"reconnectMax" env:"MERIDIAN_ZONE_RECONNECT_MAX" doc:"longest wait between reconnects, reconnectBase or more"`
}

// DefaultConfig returns the documented defaults. The zone's name and the global's address have none.
func DefaultConfig() Config {
	return Config{
		Mode:        "zone",
		Environment: "universal",
		General:     General{DataDir: "meridian-data/zone"},
		Log:         logging.Default(),
		Store:       storage.Default(),
		Cluster:     cluster.Default(),
		API:         server.Default(),
		Access:      server.DefaultAccess(),
		Diagnostics: diagnostics.Default(),
		Multizone: Multizone{Zone: MultizoneZone{KDS: KDS{
			MaxMessageBytes:     10 << 20,
			HealthCheckInterval: 2 * time.Second,
			HealthCheckTimeout:  6 * time.Second,
			AckTimeout:          30 * time.Second,
			InsightInterval:     time.Second,
			Keepalive:           15 * time.Second,
			ReconnectBase:       250 * time.Millisecond,
			ReconnectMax:        10 * time.Second,
		}}},
		DPServer:        dpserver.Default(),
		BootstrapServer: bootstrap.Default(),
		Proxies:         proxies.DefaultConfig(),
		XDSServer:       XDSServer{Holdoff: 5 * time.Millisecond},
		HDS:             hds.DefaultConfig(),
		MADS:            mads.Default(),
		MTLS:            mtls.DefaultConfig(),
		DNSServer:       vips.DefaultConfig(),
		Inspection:      admin.DefaultConfig(),
	}
}

// Validate returns the problems that are not those of a single section.
func (c Config) Validate() []error {
	var errs []error
	if c.Mode != "zone" {
		errs = append(errs, fmt.Errorf("mode: %q is not zone: is this the configuration of another program?", c.Mode))
	}
	if c.Environment != "universal" {
		errs = append(errs, fmt.Errorf("environment: %q is not universal", c.Environment))
	}
	taken := make(map[int]string)
	for _, p := range []struct {
		field string
		port  int
	}{
		{"apiServer.httpPort", c.API.HTTPPort},
		{"apiServer.httpsPort", c.API.HTTPSPort},
		{"diagnostics.port", c.Diagnostics.Port},
		{"dpServer.port", c.DPServer.Port},
		{"monitoringAssignmentServer.port", c.MADS.Port},
		{"cluster.bindPort", c.Cluster.BindPort},
		{"cluster.peerPort", c.Cluster.CallPort()},
	} {
		if other := taken[p.port]; other != "" && p.port > 0 {
			errs = append(errs, fmt.Errorf("%s: %d is %s too", p.field, p.port, other))
		}
		taken[p.port] = p.field
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

// Validate returns every problem of z, each starting with the field's name in the file.
func (z MultizoneZone) Validate() []error {
	var errs []error
	if z.Name == "" {
		errs = append(errs, errors.New("name: must be set (MERIDIAN_ZONE_NAME)"))
	} else if err := resource.CheckZoneName(z.Name); err != nil {
		errs = append(errs, fmt.Errorf("name: %q %w", z.Name, err))
	}
	if z.TokenFile != "" && z.Token != "" {
		errs = append(errs, errors.New("token: tokenFile is set too; they exclude each other"))
	}
	if z.GlobalAddress == "" {
		return append(errs, errors.New("globalAddress: must be set (MERIDIAN_ZONE_GLOBAL_ADDRESS)"))
	}
	_, plain, err := upstream.ParseAddresses(z.GlobalAddress)
	if err != nil {
		errs = append(errs, fmt.Errorf("globalAddress: %w", err))
	} else if plain && (z.KDS.CAFile != "" || z.KDS.TLSSkipVerify) {
		errs = append(errs, fmt.Errorf("globalAddress: %q is plain text, but kds.caFile or kds.tlsSkipVerify is set", z.GlobalAddress))
	}
	return errs
}

// Validate returns every problem of k, each starting with the field's name in the file.
func (k KDS) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if k.CAFile != "" && k.TLSSkipVerify {
		bad("tlsSkipVerify: caFile is set too; they exclude each other")
	}
	if k.MaxMessageBytes < 64<<10 || k.MaxMessageBytes > 1<<31-1 {
		bad("maxMessageBytes: %d is not in 65536-2147483647", k.MaxMessageBytes)
	}
	if k.ReconnectMax < k.ReconnectBase {
		bad("reconnectMax: %s is less than reconnectBase, %s", k.ReconnectMax, k.ReconnectBase)
	}
	if k.InsightInterval <= 0 {
		bad("insightInterval: %s is not positive", k.InsightInterval)
	}
	for _, t := range []struct {
		name     string
		d, least time.Duration
	}{
		{"healthCheckInterval", k.HealthCheckInterval, 100 * time.Millisecond},
		{"healthCheckTimeout", k.HealthCheckTimeout, 100 * time.Millisecond},
		{"ackTimeout", k.AckTimeout, time.Second},
		{"keepalive", k.Keepalive, time.Second},
		{"reconnectBase", k.ReconnectBase, 10 * time.Millisecond},
	} {
		if t.d < t.least {
			bad("%s: %s is less than %s", t.name, t.d, t.least)
		}
	}
	return errs
}
