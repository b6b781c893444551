package admin

import (
	"fmt"
	"time"
)

// Config is the section multizone.global.kds.proxies: questions about proxies, which their zones answer.
type Config struct {
	Timeout    time.Duration `yaml:"timeout" env:"MERIDIAN_KDS_PROXIES_TIMEOUT" doc:"longest wait for a zone's answer to a question about one of its proxies, 100ms or more"`
	MaxPerZone int           `yaml:"maxPerZone" env:"MERIDIAN_KDS_PROXIES_MAX_PER_ZONE" doc:"how many questions to one zone may be on their way at a time, 1 or more; above that they are refused with status 429"`
	MaxTotal   int           `yaml:"maxTotal" env:"MERIDIAN_KDS_PROXIES_MAX_TOTAL" doc:"how many questions to all zones may be on their way at a time, maxPerZone or more; an answer takes as much memory as it has bytes, kds.maxMessageBytes at most"`
}

// Default returns the documented defaults.
func Default() Config { return Config{Timeout: 10 * time.Second, MaxPerZone: 32, MaxTotal: 64} }

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	if c.Timeout < 100*time.Millisecond {
		errs = append(errs, fmt.Errorf("timeout: %s is less than 100ms", c.Timeout))
	}
	if c.MaxPerZone < 1 {
		errs = append(errs, fmt.Errorf("maxPerZone: %d is less than 1", c.MaxPerZone))
	}
	if c.MaxTotal < c.MaxPerZone {
		errs = append(errs, fmt.Errorf("maxTotal: %d is less than maxPerZone, %d", c.MaxTotal, c.MaxPerZone))
	}
	return errs
}
