package admin

import (
	"fmt"
	"time"
)

// Config is what operators may set about asking proxies.
type Config struct {
	MaxConcurrent int           `yaml:"maxConcurrent" env:"MERIDIAN_INSPECTION_MAX_CONCURRENT" doc:"how many proxies are asked for xds, stats or clusters at a time, 1-1000; each takes up to about 20 MiB for up to 5 seconds"`
	MaxWait       time.Duration `yaml:"maxWait" env:"MERIDIAN_INSPECTION_MAX_WAIT" doc:"how long a question waits for its turn when that many are on their way, before it is refused with 429, 0-1m"`
}

// DefaultConfig returns the documented defaults.
func DefaultConfig() Config { return Config{MaxConcurrent: 16, MaxWait: 2 * time.Second} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if c.MaxConcurrent < 1 || c.MaxConcurrent > 1000 {
		errs = append(errs, fmt.Errorf("maxConcurrent: %d is not in 1-1000", c.MaxConcurrent))
	}
	if c.MaxWait < 0 || c.MaxWait > time.Minute {
		errs = append(errs, fmt.Errorf("maxWait: %s is not in 0-1m", c.MaxWait))
	}
	return errs
}
