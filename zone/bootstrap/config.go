package bootstrap

import (
	"fmt"
	"net"
	"time"
)

// Config is the section bootstrapServer.
type Config struct {
	Params Params `yaml:"params"`
}

// Params is the section bootstrapServer.params: what proxies are told where they do not say it themselves.
type Params struct {
	AdminAddress       string        `yaml:"adminAddress" env:"MERIDIAN_BOOTSTRAP_ADMIN_ADDRESS" doc:"IP address of Envoy's own administration"`
	AdminPort          int           `yaml:"adminPort" env:"MERIDIAN_BOOTSTRAP_ADMIN_PORT" doc:"port of Envoy's own administration where the proxy does not name one, 0-65535; 0 means none, and then drain, metrics and inspection do not work"`
	AdminAccessLogPath string        `yaml:"adminAccessLogPath" env:"MERIDIAN_BOOTSTRAP_ADMIN_ACCESS_LOG_PATH" doc:"file Envoy logs requests to its administration to; /dev/null is NUL for proxies on Windows"`
	XDSHost            string        `yaml:"xdsHost" env:"MERIDIAN_BOOTSTRAP_XDS_HOST" doc:"host name or IP address at which Envoys reach this control plane, which its certificate must be valid for; empty means the one their data plane program used"`
	XDSPort            int           `yaml:"xdsPort" env:"MERIDIAN_BOOTSTRAP_XDS_PORT" doc:"port at which Envoys reach this control plane, 0-65535; 0 means dpServer.port"`
	XDSConnectTimeout  time.Duration `yaml:"xdsConnectTimeout" env:"MERIDIAN_BOOTSTRAP_XDS_CONNECT_TIMEOUT" doc:"how long Envoys wait for a connection to this control plane"`
}

// devNull is where the administration's log goes by default.
const devNull = "/dev/null"

// Default returns the documented defaults.
func Default() Config {
	return Config{Params{
		AdminAddress: "127.0.0.1", AdminPort: 9901, AdminAccessLogPath: devNull, XDSConnectTimeout: time.Second,
	}}
}

// Validate returns every problem of p, each starting with the field's name in the file.
func (p Params) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if net.ParseIP(p.AdminAddress) == nil {
		bad("adminAddress: %q is not an IP address", p.AdminAddress)
	}
	if p.AdminPort < 0 || p.AdminPort > 65535 {
		bad("adminPort: %d is not in 0-65535", p.AdminPort)
	}
	if p.AdminAccessLogPath == "" {
		bad("adminAccessLogPath: must be set")
	}
	if p.XDSPort < 0 || p.XDSPort > 65535 {
		bad("xdsPort: %d is not in 0-65535", p.XDSPort)
	}
	if p.XDSConnectTimeout < time.Millisecond {
		bad("xdsConnectTimeout: %s is less than 1ms", p.XDSConnectTimeout)
	}
	return errs
}
