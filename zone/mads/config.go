package mads

import (
	"fmt"
	"time"
)

// Config is the section monitoringAssignmentServer.
type Config struct {
	BindAddress string `yaml:"bindAddress" env:"MERIDIAN_MADS_BIND_ADDRESS" doc:"IP address the listener for monitoring systems binds; empty means all interfaces"`
	Port        int    `yaml:"port" env:"MERIDIAN_MADS_PORT" doc:"port at which monitoring systems (kuma_sd_configs of Prometheus) learn which proxies to scrape, 0-65535; 0 takes any free port, -1 switches it off"`
	TLSCertFile string `yaml:"tlsCertFile" env:"MERIDIAN_MADS_TLS_CERT_FILE" doc:"PEM file with the certificate chain of that port; empty means plain text: what is told there is addresses, names and tags of proxies"`
	TLSKeyFile  string `yaml:"tlsKeyFile" env:"MERIDIAN_MADS_TLS_KEY_FILE" doc:"PEM file with the key of tlsCertFile"`

	DefaultFetchTimeout time.Duration `yaml:"defaultFetchTimeout" env:"MERIDIAN_MADS_DEFAULT_FETCH_TIMEOUT" doc:"how long a fetch waits for something new unless it says otherwise, 0 or more"`
	MaxFetchTimeout     time.Duration `yaml:"maxFetchTimeout" env:"MERIDIAN_MADS_MAX_FETCH_TIMEOUT" doc:"longest time a fetch may ask to wait, defaultFetchTimeout or more"`
	Holdoff             time.Duration `yaml:"holdoff" env:"MERIDIAN_MADS_HOLDOFF" doc:"how long changes are collected before they are told, 0 or more"`
	MaxWaiting          int           `yaml:"maxWaiting" env:"MERIDIAN_MADS_MAX_WAITING" doc:"most fetches and streams at the same time, 1 or more; further ones are refused"`
}

// Default returns the documented defaults.
func Default() Config {
	return Config{
		Port: 5676, DefaultFetchTimeout: 30 * time.Second, MaxFetchTimeout: 5 * time.Minute,
		Holdoff: 500 * time.Millisecond, MaxWaiting: 256,
	}
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Port < -1 || c.Port > 65535 {
		bad("port: %d is not in -1-65535", c.Port)
	}
	if (c.TLSCertFile == "") != (c.TLSKeyFile == "") {
		bad("tlsCertFile, tlsKeyFile: one is set without the other")
	}
	if c.DefaultFetchTimeout < 0 {
		bad("defaultFetchTimeout: %s is negative", c.DefaultFetchTimeout)
	}
	if c.MaxFetchTimeout < c.DefaultFetchTimeout {
		bad("maxFetchTimeout: %s is less than defaultFetchTimeout, %s", c.MaxFetchTimeout, c.DefaultFetchTimeout)
	}
	if c.Holdoff < 0 {
		bad("holdoff: %s is negative", c.Holdoff)
	}
	if c.MaxWaiting < 1 {
		bad("maxWaiting: %d is less than 1", c.MaxWaiting)
	}
	return errs
}
