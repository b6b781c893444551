package hds

import (
	"errors"
	"fmt"
	"time"
)

// Config is what operators may set about the health of workloads.
type Config struct {
	Enabled  bool          `yaml:"enabled" env:"MERIDIAN_HDS_ENABLED" doc:"have proxies check the workload beside them; without it, inbounds are as healthy as their dataplane says"`
	Interval time.Duration `yaml:"interval" env:"MERIDIAN_HDS_INTERVAL" doc:"how often a proxy reports, 100ms or more"`
	Check    Check         `yaml:"check"`
}

// Check is the section check: of a workload whose probe says nothing else.
type Check struct {
	Timeout            time.Duration `yaml:"timeout" env:"MERIDIAN_HDS_CHECK_TIMEOUT" doc:"longest wait for an answer of the workload, more than 0"`
	Interval           time.Duration `yaml:"interval" env:"MERIDIAN_HDS_CHECK_INTERVAL" doc:"time between two checks, more than 0"`
	NoTrafficInterval  time.Duration `yaml:"noTrafficInterval" env:"MERIDIAN_HDS_CHECK_NO_TRAFFIC_INTERVAL" doc:"time between two checks while there is no traffic, more than 0"`
	HealthyThreshold   uint32        `yaml:"healthyThreshold" env:"MERIDIAN_HDS_CHECK_HEALTHY_THRESHOLD" doc:"good checks in a row that make a workload ready, 1 or more"`
	UnhealthyThreshold uint32        `yaml:"unhealthyThreshold" env:"MERIDIAN_HDS_CHECK_UNHEALTHY_THRESHOLD" doc:"bad checks in a row that make a workload not ready, 1 or more"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{Enabled: true, Interval: 5 * time.Second, Check: Check{
		Timeout: 2 * time.Second, Interval: time.Second, NoTrafficInterval: time.Second, HealthyThreshold: 1, UnhealthyThreshold: 1,
	}}
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	if c.Interval < 100*time.Millisecond {
		return []error{fmt.Errorf("interval: %s is less than 100ms", c.Interval)}
	}
	return nil
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Check) Validate() []error {
	var errs []error
	for _, d := range []struct {
		name string
		d    time.Duration
	}{{"timeout", c.Timeout}, {"interval", c.Interval}, {"noTrafficInterval", c.NoTrafficInterval}} {
		if d.d <= 0 {
			errs = append(errs, fmt.Errorf("%s: %s is not positive", d.name, d.d))
		}
	}
	if c.HealthyThreshold == 0 {
		errs = append(errs, errors.New("healthyThreshold: must be 1 or more"))
	}
	if c.UnhealthyThreshold == 0 {
		errs = append(errs, errors.New("unhealthyThreshold: must be 1 or more"))
	}
	return errs
}
