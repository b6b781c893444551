package proxies

import (
	"fmt"
	"time"
)

// How proxies prove who they are.
const (
	// AuthToken: with a dataplane token, or a zone token for ingresses and egresses.
	AuthToken = "dpToken"
	// AuthNone: they need not.
	AuthNone = "none"
)

// Config is what operators may set about proxies.
type Config struct {
	// Auth is AuthToken or AuthNone. It is set where the listener is configured, and no setting of its own.
	Auth string `yaml:"-"`

	DeregistrationDelay time.Duration `yaml:"deregistrationDelay" env:"MERIDIAN_DP_DEREGISTRATION_DELAY" doc:"how long after its last stream the resource that a proxy brought is kept, should the proxy come back; 0 or more"`
	InsightInterval     time.Duration `yaml:"insightInterval" env:"MERIDIAN_DP_INSIGHT_INTERVAL" doc:"least time between two storings of what changed in insights, other than that a proxy connected or disconnected; more than 0"`
	IdleTimeout         time.Duration `yaml:"idleTimeout" env:"MERIDIAN_DP_IDLE_TIMEOUT" doc:"age at which a subscription that no control plane keeps alive is closed, 1s or more"`
	CleanupAge          time.Duration `yaml:"cleanupAge" env:"MERIDIAN_DP_CLEANUP_AGE" doc:"how long a dataplane that is offline is kept; more than 0"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config {
	return Config{
		Auth: AuthToken, DeregistrationDelay: 10 * time.Second, InsightInterval: time.Second, IdleTimeout: 5 * time.Minute,
		CleanupAge: 72 * time.Hour,
	}
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if c.Auth != AuthToken && c.Auth != AuthNone {
		errs = append(errs, fmt.Errorf("auth: %q is neither %s nor %s", c.Auth, AuthToken, AuthNone))
	}
	for _, d := range []struct {
		name     string
		d, least time.Duration
	}{
		{"deregistrationDelay", c.DeregistrationDelay, 0},
		{"insightInterval", c.InsightInterval, time.Nanosecond},
		{"idleTimeout", c.IdleTimeout, time.Second},
		{"cleanupAge", c.CleanupAge, time.Nanosecond},
	} {
		if d.d < d.least {
			errs = append(errs, fmt.Errorf("%s: %s is less than %s", d.name, d.d, d.least))
		}
	}
	return errs
}
