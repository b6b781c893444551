package server

import (
	"fmt"
	"regexp"
	"time"
)

// Config is the operators' part of [Options]: the section apiServer of a control plane's configuration.
type Config struct {
	BindAddress string `yaml:"bindAddress" env:"MERIDIAN_API_BIND_ADDRESS" doc:"IP address both listeners bind; empty means all interfaces"`
	HTTPPort    int    `yaml:"httpPort" env:"MERIDIAN_API_HTTP_PORT" doc:"port of the plain HTTP listener, 0-65535; 0 takes any free port"`
	HTTPSPort   int    `yaml:"httpsPort" env:"MERIDIAN_API_HTTPS_PORT" doc:"port of the HTTPS listener, 0-65535; 0 takes any free port, -1 switches it off"`
	TLSCertFile string `yaml:"tlsCertFile" env:"MERIDIAN_API_TLS_CERT_FILE" doc:"PEM file with the HTTPS certificate chain; empty means a self-made one"`
	TLSKeyFile  string `yaml:"tlsKeyFile" env:"MERIDIAN_API_TLS_KEY_FILE" doc:"PEM file with the key of tlsCertFile"`

	ReadOnly         bool   `yaml:"readOnly" env:"MERIDIAN_API_READ_ONLY" doc:"answer every write with 405"`
	LocalhostIsAdmin bool   `yaml:"localhostIsAdmin" env:"MERIDIAN_API_LOCALHOST_IS_ADMIN" doc:"requests from the loopback interface have administrator rights, unless they carry an Origin header, a Host that is not local, or signs of a proxy"`
	Writes           string `yaml:"writes" env:"MERIDIAN_API_WRITES" doc:"who may write resources that are not an administrator's: anonymous (everybody who reaches the API) or authenticated (who shows a user token or a client certificate, and this host where localhostIsAdmin)"`
	ClientCertsDir   string `yaml:"clientCertsDir" env:"MERIDIAN_API_CLIENT_CERTS_DIR" doc:"directory of PEM files (.pem, .crt) with client certificates, or authorities of such: who presents one on the HTTPS port is mesh-system:admin; read again when it changes; empty means that nobody is asked for one"`
	UnsafeDelete     bool   `yaml:"unsafeDelete" env:"MERIDIAN_API_UNSAFE_DELETE" doc:"delete meshes that hold dataplanes, zones that are online and secrets that are in use"`

	CORSAllowedDomains []string `yaml:"corsAllowedDomains" env:"MERIDIAN_API_CORS_ALLOWED_DOMAINS" doc:"regular expressions; pages whose origin or its host name matches one as a whole may call the API from a browser"`

	MaxBodyBytes     int64 `yaml:"maxBodyBytes" env:"MERIDIAN_API_MAX_BODY_BYTES" doc:"largest request body in bytes, 1024 or more"`
	MaxWrites        int   `yaml:"maxWrites" env:"MERIDIAN_API_MAX_WRITES" doc:"writes worked on at the same time, 1 or more; further ones are answered with 503 and Retry-After"`
	ImportMaxBytes   int64 `yaml:"importMaxBytes" env:"MERIDIAN_API_IMPORT_MAX_BYTES" doc:"largest body of /import in bytes, 1024 or more; each resource in it is bounded by maxBodyBytes"`
	RenderCacheBytes int64 `yaml:"renderCacheBytes" env:"MERIDIAN_API_RENDER_CACHE_BYTES" doc:"memory for rendered JSON in bytes, 0 or more"`

	MaxWait        time.Duration `yaml:"maxWait" env:"MERIDIAN_API_MAX_WAIT" doc:"longest time a write may wait for the zones (?wait=), 0 or more"`
	MaxWatches     int           `yaml:"maxWatches" env:"MERIDIAN_API_MAX_WATCHES" doc:"most lists that are watched (?watch=true) at the same time, 0 or more; beyond that 503"`
	WatchHeartbeat time.Duration `yaml:"watchHeartbeat" env:"MERIDIAN_API_WATCH_HEARTBEAT" doc:"after how long without an event a watch sends a bookmark, so that the connection is not taken for dead"`

	ReadTimeout     time.Duration `yaml:"readTimeout" env:"MERIDIAN_API_READ_TIMEOUT" doc:"longest time to receive a request"`
	WriteTimeout    time.Duration `yaml:"writeTimeout" env:"MERIDIAN_API_WRITE_TIMEOUT" doc:"longest time from the end of the request's header to the end of the answer; of a watch, for each write"`
	IdleTimeout     time.Duration `yaml:"idleTimeout" env:"MERIDIAN_API_IDLE_TIMEOUT" doc:"how long an idle connection is kept open"`
	ShutdownTimeout time.Duration `yaml:"shutdownTimeout" env:"MERIDIAN_API_SHUTDOWN_TIMEOUT" doc:"how long requests in flight may take to finish at shutdown"`

	Authn Authn `yaml:"authn"`
}

// Authn is the section apiServer.authn.
type Authn struct {
	Tokens AuthnTokens `yaml:"tokens"`
}

// AuthnTokens is the section apiServer.authn.tokens.
type AuthnTokens struct {
	// BootstrapAdminToken is for the plane that the server is part of: the server itself makes nothing.
	BootstrapAdminToken bool `yaml:"bootstrapAdminToken" env:"MERIDIAN_API_BOOTSTRAP_ADMIN_TOKEN" doc:"make the global secret admin-user-token, a token of the administrator, at each start where it is absent"`
}

// The values of Config.Writes.
const (
	writesAnonymous     = "anonymous"
	writesAuthenticated = "authenticated"
)

// Access is the section access: who may do what beyond what everybody may.
type Access struct {
	Static StaticAccess `yaml:"static"`
}

// StaticAccess is the section access.static.
type StaticAccess struct {
	AdminResources         Grant `yaml:"adminResources" env:"MERIDIAN_ACCESS_ADMIN_RESOURCES"`
	GenerateDataplaneToken Grant `yaml:"generateDataplaneToken" env:"MERIDIAN_ACCESS_GENERATE_DATAPLANE_TOKEN"`
	GenerateZoneToken      Grant `yaml:"generateZoneToken" env:"MERIDIAN_ACCESS_GENERATE_ZONE_TOKEN"`
	GenerateUserToken      Grant `yaml:"generateUserToken" env:"MERIDIAN_ACCESS_GENERATE_USER_TOKEN"`
	ViewConfigDump         Grant `yaml:"viewConfigDump" env:"MERIDIAN_ACCESS_VIEW_CONFIG_DUMP"`
	ViewStats              Grant `yaml:"viewStats" env:"MERIDIAN_ACCESS_VIEW_STATS"`
	ViewClusters           Grant `yaml:"viewClusters" env:"MERIDIAN_ACCESS_VIEW_CLUSTERS"`
}

// Grant names who may do something. A user may who is in either list.
type Grant struct {
	Users  []string `yaml:"users" env:"_USERS" doc:"names of the users who may"`
	Groups []string `yaml:"groups" env:"_GROUPS" doc:"groups whose members may; mesh-system:authenticated has everyone with a token, mesh-system:unauthenticated everyone without"`
}

// DefaultAccess gives every right to administrators.
func DefaultAccess() Access {
	admins := Grant{Users: []string{adminName}, Groups: []string{adminGroup}}
	return Access{StaticAccess{
		AdminResources: admins, GenerateDataplaneToken: admins, GenerateZoneToken: admins, GenerateUserToken: admins,
		ViewConfigDump: admins, ViewStats: admins, ViewClusters: admins,
	}}
}

// Default returns the documented defaults.
func Default() Config {
	return Config{
		HTTPPort:         5681,
		HTTPSPort:        5682,
		LocalhostIsAdmin: true,
		Writes:           writesAnonymous,
		MaxBodyBytes:     4 << 20,
		MaxWrites:        1024,
		ImportMaxBytes:   256 << 20,
		RenderCacheBytes: 64 << 20,
		MaxWait:          time.Minute,
		MaxWatches:       10_000,
		WatchHeartbeat:   30 * time.Second,
		ReadTimeout:      30 * time.Second,
		WriteTimeout:     time.Minute,
		IdleTimeout:      2 * time.Minute,
		ShutdownTimeout:  5 * time.Second,
		Authn:            Authn{Tokens: AuthnTokens{BootstrapAdminToken: true}},
	}
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.HTTPPort < 0 || c.HTTPPort > 65535 {
		bad("httpPort: %d is not in 0-65535", c.HTTPPort)
	}
	if c.HTTPSPort < -1 || c.HTTPSPort > 65535 {
		bad("httpsPort: %d is not in -1-65535", c.HTTPSPort)
	}
	if c.HTTPPort != 0 && c.HTTPPort == c.HTTPSPort {
		bad("httpsPort: %d is the httpPort too", c.HTTPSPort)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		bad("tlsCertFile, tlsKeyFile: one is set without the other")
	}
	if c.Writes != writesAnonymous && c.Writes != writesAuthenticated {
		bad("writes: %q is not %s or %s", c.Writes, writesAnonymous, writesAuthenticated)
	}
	if c.ClientCertsDir != "" && c.HTTPSPort < 0 {
		bad("clientCertsDir: certificates can be shown on the HTTPS port only, and httpsPort is %d", c.HTTPSPort)
	}
	if c.MaxBodyBytes < 1024 {
		bad("maxBodyBytes: %d is less than 1024", c.MaxBodyBytes)
	}
	if c.MaxWrites < 1 {
		bad("maxWrites: %d is less than 1", c.MaxWrites)
	}
	if c.ImportMaxBytes < 1024 {
		bad("importMaxBytes: %d is less than 1024", c.ImportMaxBytes)
	}
	if c.RenderCacheBytes < 0 {
		bad("renderCacheBytes: %d is negative", c.RenderCacheBytes)
	}
	if c.MaxWait < 0 {
		bad("maxWait: %s is negative", c.MaxWait)
	}
	if c.MaxWatches < 0 {
		bad("maxWatches: %d is negative", c.MaxWatches)
	}
	for _, t := range []struct {
		name string
		d    time.Duration
	}{
		{"watchHeartbeat", c.WatchHeartbeat},
		{"readTimeout", c.ReadTimeout},
		{"writeTimeout", c.WriteTimeout},
		{"idleTimeout", c.IdleTimeout},
		{"shutdownTimeout", c.ShutdownTimeout},
	} {
		if t.d <= 0 {
			bad("%s: %s is not positive", t.name, t.d)
		}
	}
	if _, err := compileOrigins(c.CORSAllowedDomains); err != nil {
		errs = append(errs, err)
	}
	return errs
}

// compileOrigins turns corsAllowedDomains into expressions that match a whole origin or host name.
func compileOrigins(patterns []string) ([]*regexp.Regexp, error) {
	compiled := make([]*regexp.Regexp, 0, len(patterns))
	for i, p := range patterns {
		re, err := regexp.Compile(`(?i)\A(?:` + p + `)\z`)
		if err != nil {
			return nil, fmt.Errorf("corsAllowedDomains[%d]: %w", i, err)
		}
		compiled = append(compiled, re)
	}
	return compiled, nil
}
