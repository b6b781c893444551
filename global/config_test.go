package global_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/meridian-mesh/meridian/common/config"
	"github.com/meridian-mesh/meridian/global"
	"github.com/meridian-mesh/meridian/global/admin"
)

func TestConfig(t *testing.T) {
	tests := []struct {
		name   string
		change func(*global.Config)
		want   []string
	}{
		{"the default is complete", func(*global.Config) {}, nil},
		{"any free port may be taken more than once", func(c *global.Config) {
			c.API.HTTPPort, c.API.HTTPSPort, c.Diagnostics.Port, c.Multizone.Global.KDS.Port = 0, 0, 0, 0
		}, nil},
		{"health checks can be switched off", func(c *global.Config) { c.Multizone.Global.KDS.HealthCheckTimeout = 0 }, nil},
		{"two listeners on one port", func(c *global.Config) { c.Diagnostics.Port = 5681; c.Multizone.Global.KDS.Port = 5682 }, []string{
			"diagnostics.port: 5681 is the port of apiServer.httpPort too",
			"multizone.global.kds.port: 5682 is the port of apiServer.httpsPort too",
		}},
		{"the file of a zone", func(c *global.Config) { c.Mode = "zone" }, []string{
			`mode: "zone" is not global: is this the configuration of another program?`,
		}},
		{"everything wrong at once", func(c *global.Config) {
			c.Environment = "kubernetes"
			c.General.DataDir = ""
			c.Log.Level = "loud"
			c.Store.Type = "etcd"
			c.API.MaxBodyBytes = 1
			c.Diagnostics.Port = -1
			c.Multizone.Global.KDS = global.KDS{
				BindAddress: "x", Port: 70000, TLSCertFile: "a", HealthCheckTimeout: -1, MaxMessageBytes: 1,
				Auth: "mtls", AuthExemptZones: []string{"zone-1", "Zone 2"},
				Proxies: admin.Config{MaxPerZone: 2, MaxTotal: 1},
			}
			c.Metrics.Mesh.MinResyncTimeout = 0
			c.DNSServer = global.DNSServer{Domain: "mesh.", ServiceVIPPort: 0}
		}, []string{
			"general.dataDir: must be set",
			`log.level: "loud" is not debug, info, warn or error`,
			`store.type: "etcd" is not memory, bolt or postgres`,
			"apiServer.maxBodyBytes: 1 is less than 1024",
			"diagnostics.port: -1 is not in 0-65535",
			"multizone.global.kds.proxies.timeout: 0s is less than 100ms",
			"multizone.global.kds.proxies.maxTotal: 1 is less than maxPerZone, 2",
			`multizone.global.kds.bindAddress: "x" is not an IP address`,
			"multizone.global.kds.port: 70000 is not in 0-65535",
			"multizone.global.kds.tlsCertFile, tlsKeyFile: one is set without the other",
			"multizone.global.kds.tlsEnabled: a certificate is given, but TLS is off",
			`multizone.global.kds.auth: "mtls" is not token or none`,
			`multizone.global.kds.authExemptZones[1]: "Zone 2" must be a DNS label: at most 63 digits, lower-case letters and '-', not beginning or ending with '-'`,
			"multizone.global.kds.maxMessageBytes: 1 is not in 65536-2147483647",
			"multizone.global.kds.healthCheckInterval: 0s is less than 100ms",
			"multizone.global.kds.healthCheckTimeout: -1ns is not more than healthCheckInterval, 0s",
			"multizone.global.kds.ackTimeout: 0s is less than 1s",
			"multizone.global.kds.zoneInsightInterval: 0s is not positive",
			"multizone.global.kds.subscriptionLimit: 0 is less than 1",
			"multizone.global.kds.keepalive: 0s is less than 1s",
			"metrics.mesh.minResyncTimeout: 0s is less than 100ms",
			`dnsServer.domain: "mesh." is not a domain name`,
			"dnsServer.serviceVipPort: 0 is not in 1-65535",
			`environment: "kubernetes" is not universal`,
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := global.DefaultConfig()
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
	got, err := config.Effective(global.DefaultConfig())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"mode":"global"`, `"environment":"universal"`, `"apiServer":{`, `"store":{"postgres":{`, `"type":"bolt"}`, `"multizone":{"global":{"kds":{`,
	} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
}
