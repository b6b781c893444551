package zone_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/zone"
)

func complete() zone.Config {
	c := zone.DefaultConfig()
	c.Multizone.Zone.Name = "zone-1"
	c.Multizone.Zone.GlobalAddress = "grpcs://global.example:5685"
	return c
}

func TestConfig(t *testing.T) {
	tests := []struct {
		name   string
		change func(*zone.Config)
		want   []string
	}{
		{"a name and an address complete the default", func(*zone.Config) {}, nil},
		{"plain text", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "grpc://10.0.0.1:5685" }, nil},
		{"an address of IPv6", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "grpcs://[::1]:5685" }, nil},
		{"the default alone lacks both", func(c *zone.Config) { *c = zone.DefaultConfig() }, []string{
			"multizone.zone.name: must be set (MERIDIAN_ZONE_NAME)",
			"multizone.zone.globalAddress: must be set (MERIDIAN_ZONE_GLOBAL_ADDRESS)",
		}},
		{"a name that is no DNS label", func(c *zone.Config) { c.Multizone.Zone.Name = "eu.west" }, []string{
			`multizone.zone.name: "eu.west" must be a DNS label: at most 63 digits, lower-case letters and '-', not beginning or ending with '-'`,
		}},
		{"a scheme that is not ours", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "https://global:5685" }, []string{
			`multizone.zone.globalAddress: "https://global:5685" is not grpcs://host:port or grpc://host:port`,
		}},
		{"an address without a port", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "grpcs://global" }, []string{
			`multizone.zone.globalAddress: "grpcs://global" is not grpcs://host:port or grpc://host:port`,
		}},
		{"an address with a path", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "grpcs://global:5685/kds" }, []string{
			`multizone.zone.globalAddress: "grpcs://global:5685/kds" is not grpcs://host:port or grpc://host:port`,
		}},
		{"several addresses", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "grpcs://g1:5685,grpcs://g2:5685" }, nil},
		{"one of several addresses without a port", func(c *zone.Config) { c.Multizone.Zone.GlobalAddress = "grpcs://g1:5685,grpcs://g2" }, []string{
			`multizone.zone.globalAddress: "grpcs://g2" is not grpcs://host:port or grpc://host:port`,
		}},
		{"plain text with a CA", func(c *zone.Config) {
			c.Multizone.Zone.GlobalAddress, c.Multizone.Zone.KDS.CAFile = "grpc://global:5685", "ca.crt"
		}, []string{
			`multizone.zone.globalAddress: "grpc://global:5685" is plain text, but kds.caFile or kds.tlsSkipVerify is set`,
		}},
		{"two tokens", func(c *zone.Config) { c.Multizone.Zone.Token, c.Multizone.Zone.TokenFile = "t", "f" }, []string{
			"multizone.zone.token: tokenFile is set too; they exclude each other",
		}},
		{"two listeners on one port", func(c *zone.Config) { c.Diagnostics.Port = 5682 }, []string{
			"diagnostics.port: 5682 is apiServer.httpsPort too",
		}},
		{"everything wrong at once", func(c *zone.Config) {
			c.Mode, c.Environment, c.General.DataDir = "global", "kubernetes", ""
			c.Multizone.Zone.KDS = zone.KDS{CAFile: "a", TLSSkipVerify: true, ReconnectMax: -1}
		}, []string{
			"general.dataDir: must be set",
			"multizone.zone.kds.tlsSkipVerify: caFile is set too; they exclude each other",
			"multizone.zone.kds.maxMessageBytes: 0 is not in 65536-2147483647",
			"multizone.zone.kds.reconnectMax: -1ns is less than reconnectBase, 0s",
			"multizone.zone.kds.insightInterval: 0s is not positive",
			"multizone.zone.kds.healthCheckInterval: 0s is less than 100ms",
			"multizone.zone.kds.healthCheckTimeout: 0s is less than 100ms",
			"multizone.zone.kds.ackTimeout: 0s is less than 1s",
			"multizone.zone.kds.keepalive: 0s is less than 1s",
			"multizone.zone.kds.reconnectBase: 0s is less than 10ms",
			`mode: "global" is not zone: is this the configuration of another program?`,
			`environment: "kubernetes" is not universal`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := complete()
			tt.change(&c)
			var got []string
			for _, err := range config.Check(c) {
				got = append(got, err.Error())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// Clients of Kuma look for these keys in GET /config.
func TestConfigHasTheKeysClientsLookFor(t *testing.T) {
	got, err := config.Effective(complete())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"mode":"zone"`, `"environment":"universal"`, `"apiServer":{`, `"store":{"postgres":{`, `"type":"bolt"}`,
		`"multizone":{"zone":{`, `"globalAddress":"grpcs://global.example:5685"`, `"name":"zone-1"`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
}
