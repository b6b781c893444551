package cluster

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
)

// Config is the section cluster: how replicas of a plane find each other.
type Config struct {
	BindAddress      string   `yaml:"bindAddress" env:"MERIDIAN_CLUSTER_BIND_ADDRESS" doc:"IP address at which the other replicas of this plane are heard, by TCP and UDP; empty means all IPv4 interfaces; without keyFile a loopback address only"`
	BindPort         int      `yaml:"bindPort" env:"MERIDIAN_CLUSTER_BIND_PORT" doc:"port of that address, 0-65535; 0 takes any free port, -1 switches membership off: this plane has one replica"`
	AdvertiseAddress string   `yaml:"advertiseAddress" env:"MERIDIAN_CLUSTER_ADVERTISE_ADDRESS" doc:"IP address at which the others reach this replica; empty means bindAddress, or a private address of this host where that is all interfaces"`
	Join             []string `yaml:"join" env:"MERIDIAN_CLUSTER_JOIN" doc:"where other replicas may be: IP addresses, or DNS names of which all addresses are tried, with :port or bindPort; may name this replica too, and those that are not there yet"`
	PeerPort         int      `yaml:"peerPort" env:"MERIDIAN_CLUSTER_PEER_PORT" doc:"port of bindAddress at which the other replicas call this one, by TCP with mutual TLS, 0-65535; 0 takes any free port; not used while bindPort is -1"`
	KeyFile          string   `yaml:"keyFile" env:"MERIDIAN_CLUSTER_KEY_FILE" doc:"file with the keys of what replicas tell each other, one a line: 16, 24 or 32 random bytes in base64; the first encrypts, all decrypt; read anew every few seconds, so that replacing it rotates the key"`

	DrainTime time.Duration `yaml:"drainTime" env:"MERIDIAN_CLUSTER_DRAIN_TIME" doc:"over how long a replica that stops tells who is connected to it to go to the others, where there are any, 0-4s; 0 means all at once"`
}

// maxDrainTime leaves what stops a process enough of the 10 seconds that it has.
const maxDrainTime = 4 * time.Second

// Default returns the documented defaults.
func Default() Config { return Config{BindPort: -1, PeerPort: 7947, DrainTime: 2 * time.Second} }

// Enabled says whether there may be other replicas.
func (c Config) Enabled() bool { return c.BindPort >= 0 }

// CallPort is PeerPort where it is used, else -1.
func (c Config) CallPort() int {
	if !c.Enabled() {
		return -1
	}
	return c.PeerPort
}

// Validate returns every problem of c, each starting with the field's name in the file.
func (c Config) Validate() []error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.BindPort < -1 || c.BindPort > 65535 {
		bad("bindPort: %d is not in -1-65535", c.BindPort)
	}
	if c.PeerPort < 0 || c.PeerPort > 65535 {
		bad("peerPort: %d is not in 0-65535", c.PeerPort)
	}
	if c.DrainTime < 0 || c.DrainTime > maxDrainTime {
		bad("drainTime: %s is not in 0-%s", c.DrainTime, maxDrainTime)
	}
	ip := net.ParseIP(c.BindAddress)
	if c.BindAddress != "" && ip == nil {
		bad("bindAddress: %q is not an IP address", c.BindAddress)
	}
	if c.AdvertiseAddress != "" && net.ParseIP(c.AdvertiseAddress) == nil {
		bad("advertiseAddress: %q is not an IP address", c.AdvertiseAddress)
	}
	for i, address := range c.Join {
		if _, _, err := splitAddress(address, max(c.BindPort, 0)); err != nil {
			bad("join[%d]: %w", i, err)
		}
	}
	switch {
	case !c.Enabled() && len(c.Join) > 0:
		bad("join: there is nobody to join while bindPort is -1")
	case c.Enabled() && c.KeyFile == "" && (ip == nil || !ip.IsLoopback()):
		bad("keyFile: must be set unless bindAddress is a loopback address: whoever reaches the port could join")
	}
	return errs
}

// splitAddress returns the host and port of an entry of the join list.
func splitAddress(address string, defaultPort int) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil { // no port
		host, text = strings.Trim(address, "[]"), strconv.Itoa(defaultPort)
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 0 || port > 65535 || host == "" || strings.ContainsAny(host, " /[]") || strings.Contains(host, ":") && net.ParseIP(host) == nil {
		return "", 0, fmt.Errorf("%q is not host or host:port", address)
	}
	return host, port, nil
}

// readKeys returns the keys of a file, the one that encrypts first.
func readKeys(file string) ([][]byte, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var keys [][]byte
	for i, line := range strings.Split(string(raw), "\n") {
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		key, err := base64.StdEncoding.DecodeString(line)
		if err != nil || memberlist.ValidateKey(key) != nil { // errors of both could show the key
			return nil, fmt.Errorf("%s: line %d is not 16, 24 or 32 bytes in base64", file, i+1)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New(file + ": no key in it")
	}
	return keys, nil
}

// replaceKeys makes ring hold keys.
func replaceKeys(ring *memberlist.Keyring, keys [][]byte) error {
	for _, key := range keys {
		if err := ring.AddKey(key); err != nil {
			return err
		}
	}
	if err := ring.UseKey(keys[0]); err != nil {
		return err
	}
	wanted := make(map[string]bool)
	for _, key := range keys {
		wanted[string(key)] = true
	}
	for _, key := range append([][]byte(nil), ring.GetKeys()...) {
		if !wanted[string(key)] {
			if err := ring.RemoveKey(key); err != nil {
				return err
			}
		}
	}
	return nil
}
