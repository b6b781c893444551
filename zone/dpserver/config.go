package dpserver

import (
	"fmt"
	"time"
)

// Config is the section dpServer.
type Config struct {
	BindAddress string `yaml:"bindAddress" env:"MERIDIAN_DP_BIND_ADDRESS" doc:"IP address the listener for proxies binds; empty means all interfaces"`
	Port        int    `yaml:"port" env:"MERIDIAN_DP_PORT" doc:"port of the listener for proxies: start-up configuration over HTTP and xDS over gRPC, both with TLS, 0-65535; 0 takes any free port"`

	TLSCertFile   string `yaml:"tlsCertFile" env:"MERIDIAN_DP_TLS_CERT_FILE" doc:"PEM file with the certificate chain shown to proxies; empty means a self-made one"`
	TLSKeyFile    string `yaml:"tlsKeyFile" env:"MERIDIAN_DP_TLS_KEY_FILE" doc:"PEM file with the key of tlsCertFile"`
	TLSCAFile     string `yaml:"tlsCaFile" env:"MERIDIAN_DP_TLS_CA_FILE" doc:"PEM file of the authorities proxies are told to trust when they bring none; empty means the authorities in tlsCertFile, or the self-made one"`
	TLSMinVersion string `yaml:"tlsMinVersion" env:"MERIDIAN_DP_TLS_MIN_VERSION" doc:"oldest TLS version that is spoken: TLSv1_2 or TLSv1_3"`

	Auth Auth `yaml:"auth"`

	MaxConnections  int           `yaml:"maxConnections" env:"MERIDIAN_DP_MAX_CONNECTIONS" doc:"most connections open at the same time, 1 or more; further ones are closed at once"`
	MaxMessageBytes int           `yaml:"maxMessageBytes" env:"MERIDIAN_DP_MAX_MESSAGE_BYTES" doc:"largest gRPC message sent, in bytes, 65536-2147483647; of those received it is 4 MiB at most"`
	RequestTimeout  time.Duration `yaml:"requestTimeout" env:"MERIDIAN_DP_REQUEST_TIMEOUT" doc:"longest time for an HTTP request to arrive and be answered"`
	Keepalive       time.Duration `yaml:"keepalive" env:"MERIDIAN_DP_KEEPALIVE" doc:"silence after which a connection is pinged, and how long the answer may take, 1s or more"`
	ShutdownTimeout time.Duration `yaml:"shutdownTimeout" env:"MERIDIAN_DP_SHUTDOWN_TIMEOUT" doc:"how long requests and streams may take to end at shutdown"`
}

// Auth is the section dpServer.auth: how proxies prove who they are.
type Auth struct {
	Type         string `yaml:"type" env:"MERIDIAN_DP_AUTH_TYPE" doc:"dpToken (a dataplane token, or a zone token of an ingress or egress) or none (whoever reaches the port may be any proxy)"`
	UseTokenPath bool   `yaml:"useTokenPath" env:"MERIDIAN_DP_AUTH_USE_TOKEN_PATH" doc:"let Envoy read the token from the file its data plane program was given, so that it can be replaced while Envoy runs; Envoy must be built with Google's gRPC library"`
}

// The values of Auth.Type.
const (
	AuthDPToken = "dpToken"
	AuthNone    = "none"
)

// Default returns the documented defaults.
func Default() Config {
	return Config{
		Port:            5678,
		TLSMinVersion:   tls12,
		Auth:            Auth{Type: AuthDPToken},
		MaxConnections:  50_000,
		MaxMessageBytes: 32 << 20,
		RequestTimeout:  10 * time.Second,
		Keepalive:       15 * time.Second,
		ShutdownTimeout: 5 * time.Second,
	}
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Port < 0 || c.Port > 65535 {
		bad("port: %d is not in 0-65535", c.Port)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		bad("tlsCertFile, tlsKeyFile: one is set without the other")
	}
	if c.TLSCAFile != "" && c.TLSCertFile == "" {
		bad("tlsCaFile: is set, but the certificate is self-made (tlsCertFile is empty)")
	}
	if _, ok := tlsVersion(c.TLSMinVersion); !ok {
		bad("tlsMinVersion: %q is not %s or %s", c.TLSMinVersion, tls12, tls13)
	}
	if c.Auth.Type != AuthDPToken && c.Auth.Type != AuthNone {
		bad("auth.type: %q is not %s or %s", c.Auth.Type, AuthDPToken, AuthNone)
	}
	if c.Auth.Type == AuthNone && c.Auth.UseTokenPath {
		bad("auth.useTokenPath: auth.type is %s", AuthNone)
	}
	if c.MaxConnections < 1 {
		bad("maxConnections: %d is less than 1", c.MaxConnections)
	}
	if c.MaxMessageBytes < 64<<10 || c.MaxMessageBytes > 1<<31-1 {
		bad("maxMessageBytes: %d is not in 65536-2147483647", c.MaxMessageBytes)
	}
	for _, t := range []struct {
		name     string
		d, least time.Duration
	}{
		{"requestTimeout", c.RequestTimeout, time.Second},
		{"keepalive", c.Keepalive, time.Second},
		{"shutdownTimeout", c.ShutdownTimeout, time.Millisecond},
	} {
		if t.d < t.least {
			bad("%s: %s is less than %s", t.name, t.d, t.least)
		}
	}
	return errs
}
