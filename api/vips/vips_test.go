package vips

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/meridian-mesh/meridian/api/dataplane"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func service(name string, more ...string) map[string]string {
	tags := map[string]string{"kuma.io/service": name}
	for i := 0; i < len(more); i += 2 {
		tags[more[i]] = more[i+1]
	}
	return tags
}

func external(address, service string) *meshv1.ExternalService {
	return &meshv1.ExternalService{
		Networking: &meshv1.ExternalService_Networking{Address: address}, Tags: map[string]string{"kuma.io/service": service},
	}
}

// outbound is a virtual outbound for everything; parameters are names and tags by turns.
func outbound(host, port string, parameters ...string) *meshv1.VirtualOutbound {
	conf := &meshv1.VirtualOutbound_Conf{Host: host, Port: port}
	for i := 0; i < len(parameters); i += 2 {
		conf.Parameters = append(conf.Parameters, &meshv1.VirtualOutbound_Conf_TemplateParameter{Name: parameters[i], TagKey: parameters[i+1]})
	}
	return &meshv1.VirtualOutbound{
		Selectors: []*meshv1.Selector{{Match: map[string]string{"kuma.io/service": "*"}}}, Conf: conf,
	}
}

func vip(address string, hostnames []string, outbounds ...dataplane.VIPOutbound) dataplane.VIP {
	return dataplane.VIP{Address: address, Hostnames: hostnames, Outbounds: outbounds}
}

func to(port uint32, tags map[string]string) dataplane.VIPOutbound {
	return dataplane.VIPOutbound{Port: port, Tags: tags}
}

func TestVirtualAddresses(t *testing.T) {
	for name, tc := range map[string]struct {
		prev string
		in   Input
		want []dataplane.VIP
		// problems are parts of what is told, in its order.
		problems []string
	}{
		"a service has its name in the domain, and one with dots for underscores": {
			in: Input{Services: []map[string]string{service("web_front", "version", "1"), service("web_front", "version", "2"), service("api")}},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api"))),
				vip("240.0.0.1", []string{"web_front.mesh", "web.front.mesh"}, to(80, service("web_front"))),
			},
		},
		"a service that is named the old way is one": {
			in:   Input{Services: []map[string]string{{"service": "api"}, {"version": "1"}}},
			want: []dataplane.VIP{vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api")))},
		},
		"an external service is also at its own port, under its own host": {
			in: Input{ExternalServices: map[string]*meshv1.ExternalService{
				"es-1": external("db.example.org:5432", "db"), "es-2": external("db2.example.org:5433", "db"),
			}},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"db.mesh"}, to(80, service("db")), to(5432, service("db")), to(5433, service("db"))),
				vip("240.0.0.1", []string{"db.example.org"}, to(5432, service("db"))),
				vip("240.0.0.2", []string{"db2.example.org"}, to(5433, service("db"))),
			},
		},
		"an external service may ask for no host": {
			in: Input{ExternalServices: map[string]*meshv1.ExternalService{"es": {
				Networking: &meshv1.ExternalService_Networking{Address: "db.example.org:5432", DisableHostDNSEntry: true},
				Tags:       service("db"),
			}}},
			want: []dataplane.VIP{vip("240.0.0.0", []string{"db.mesh"}, to(80, service("db")), to(5432, service("db")))},
		},
		"a host that is an address is its own": {
			in: Input{ExternalServices: map[string]*meshv1.ExternalService{
				"v4": external("192.0.2.7:5432", "db"), "v6": external("[2001:db8::7]:5432", "db6"), "in-range": external("240.0.0.0:1", "low"),
			}},
			want: []dataplane.VIP{
				vip("192.0.2.7", nil, to(5432, service("db"))),
				vip("240.0.0.0", nil, to(1, service("low"))),
				vip("240.0.0.1", []string{"db.mesh"}, to(80, service("db")), to(5432, service("db"))),
				vip("240.0.0.2", []string{"db6.mesh"}, to(80, service("db6")), to(5432, service("db6"))),
				vip("240.0.0.3", []string{"low.mesh"}, to(1, service("low")), to(80, service("low"))),
				vip("2001:db8::7", nil, to(5432, service("db6"))),
			},
		},
		"a virtual outbound makes a name and a port for each set of tags": {
			in: Input{
				Services: []map[string]string{service("api", "version", "1", "port", "8080"), service("api", "version", "2", "port", "8081", "team", "x")},
				VirtualOutbounds: map[string]*meshv1.VirtualOutbound{
					"versions": outbound("{{.s}}.{{.version}}.local", "{{.port}}", "s", "kuma.io/service", "version", "", "port", "port"),
				},
			},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api"))),
				vip("240.0.0.1", []string{"api.1.local"}, to(8080, service("api", "version", "1", "port", "8080"))),
				vip("240.0.0.2", []string{"api.2.local"}, to(8081, service("api", "version", "2", "port", "8081"))),
			},
		},
		"a virtual outbound only sees what it selects, also by older spellings": {
			in: Input{
				Services: []map[string]string{service("api", "kuma.io/protocol", "http"), service("db", "kuma.io/protocol", "tcp"), {"service": "old", "kuma.io/protocol": "http"}},
				VirtualOutbounds: map[string]*meshv1.VirtualOutbound{"http": func() *meshv1.VirtualOutbound {
					vo := outbound("{{.s}}.http", "81", "s", "kuma.io/service")
					vo.Selectors = []*meshv1.Selector{{Match: map[string]string{"service": "*", "protocol": "http"}}}
					return vo
				}()},
			},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api"))),
				vip("240.0.0.1", []string{"db.mesh"}, to(80, service("db"))),
				vip("240.0.0.2", []string{"old.mesh"}, to(80, service("old"))),
				vip("240.0.0.3", []string{"api.http"}, to(81, service("api"))),
				vip("240.0.0.4", []string{"old.http"}, to(81, service("old"))),
			},
		},
		"a virtual outbound with the name of a service adds a port to it": {
			in: Input{
				Services:         []map[string]string{service("api"), service("web_front")},
				VirtualOutbounds: map[string]*meshv1.VirtualOutbound{"vo": outbound("{{.s}}.MESH", "8080", "s", "kuma.io/service")},
			},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api")), to(8080, service("api"))),
				vip("240.0.0.1", []string{"web_front.mesh", "web.front.mesh"}, to(80, service("web_front")), to(8080, service("web_front"))),
			},
		},
		"of two that want a port of a name the earlier has it": {
			in: Input{
				Services: []map[string]string{service("api", "version", "1"), service("web", "version", "1")},
				ExternalServices: map[string]*meshv1.ExternalService{
					"es-a": external("db.example.org:5432", "db-a"), "es-b": external("DB.example.org:5432", "db-b"),
				},
				VirtualOutbounds: map[string]*meshv1.VirtualOutbound{
					"a": outbound("shared.local", "1", "s", "kuma.io/service"),
					"b": outbound("api.mesh", "80", "s", "kuma.io/service"),
				},
			},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api"))),
				vip("240.0.0.1", []string{"db-a.mesh"}, to(80, service("db-a")), to(5432, service("db-a"))),
				vip("240.0.0.2", []string{"db-b.mesh"}, to(80, service("db-b")), to(5432, service("db-b"))),
				vip("240.0.0.3", []string{"web.mesh"}, to(80, service("web"))),
				vip("240.0.0.4", []string{"db.example.org"}, to(5432, service("db-a"))),
				vip("240.0.0.5", []string{"shared.local"}, to(1, service("api"))),
			},
			problems: []string{
				"external-service:es-b: port 5432 of host db.example.org leads elsewhere already, because of external-service:es-a",
				"virtual-outbound:a: port 1 of name shared.local leads elsewhere already",
				"virtual-outbound:a: port 1 of name shared.local leads elsewhere already",
				"virtual-outbound:a: port 1 of name shared.local leads elsewhere already",
				"virtual-outbound:b: port 80 of service api leads elsewhere already, because of service",
				"virtual-outbound:b: port 80 of service api leads elsewhere already, because of service",
				"virtual-outbound:b: port 80 of service api leads elsewhere already, because of service",
			},
		},
		"a second name that is another service's is not given": {
			in: Input{Services: []map[string]string{service("a_b"), service("a.b"), service("API"), service("api")}},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"API.mesh"}, to(80, service("API"))),
				vip("240.0.0.1", []string{"a.b.mesh"}, to(80, service("a.b"))),
				vip("240.0.0.2", []string{"a_b.mesh"}, to(80, service("a_b"))),
				vip("240.0.0.3", nil, to(80, service("api"))),
			},
			problems: []string{"service api has not the host name api.mesh", "service a_b has not the host name a.b.mesh: that belongs to service a.b"},
		},
		"what a template cannot give is told of with the virtual outbound's name": {
			in: Input{
				Services: []map[string]string{service("api")},
				VirtualOutbounds: map[string]*meshv1.VirtualOutbound{
					"absent":  outbound("{{.v}}.local", "80", "s", "kuma.io/service", "v", "version"),
					"big":     outbound("{{.s}}.big", "70000", "s", "kuma.io/service"),
					"loop":    outbound(`{{range .}}x{{end}}`, "80", "s", "kuma.io/service"),
					"nothost": outbound("{{.s}}..local", "80", "s", "kuma.io/service"),
					"printf":  outbound(`{{printf "%1000000000d" 1}}`, "80", "s", "kuma.io/service"),
					"zero":    outbound("{{.s}}.zero", "0", "s", "kuma.io/service"),
				},
			},
			want: []dataplane.VIP{vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api")))},
			problems: []string{
				`virtual outbound "absent", for the tags kuma.io/service=api: evaluate conf.host`,
				`virtual outbound "big", for the tags kuma.io/service=api: conf.port gives "70000", which is not a port`,
				`virtual outbound "loop": read conf.host: {{range`,
				`virtual-outbound:nothost: "api..local" is not a host name`,
				`virtual outbound "printf": read conf.host: printf is not supported`,
				`virtual-outbound:zero: 0 is not a port`,
			},
		},
		"an entry that lives keeps its address, and a free one is given again": {
			prev: `{"0:api":{"address":"240.0.0.7"},"0:gone":{"address":"240.0.0.0"}}`,
			in:   Input{Services: []map[string]string{service("api"), service("new"), service("newer")}},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"new.mesh"}, to(80, service("new"))),
				vip("240.0.0.1", []string{"newer.mesh"}, to(80, service("newer"))),
				vip("240.0.0.7", []string{"api.mesh"}, to(80, service("api"))),
			},
		},
		"an address that is not of the range, or another's, is not kept": {
			prev: `{"0:a":{"address":"10.0.0.1"},"0:b":{"address":"240.0.0.9"},"0:c":{"address":"240.0.0.9"}}`,
			in:   Input{Services: []map[string]string{service("a"), service("b"), service("c")}},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"a.mesh"}, to(80, service("a"))),
				vip("240.0.0.1", []string{"c.mesh"}, to(80, service("c"))),
				vip("240.0.0.9", []string{"b.mesh"}, to(80, service("b"))),
			},
		},
		"when the range is used up those that have an address keep it": {
			prev: `{"0:z":{"address":"240.0.0.1"}}`,
			in: Input{
				Config:   Config{CIDR: "240.0.0.0/31"},
				Services: []map[string]string{service("a"), service("b"), service("z")},
			},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"a.mesh"}, to(80, service("a"))),
				vip("240.0.0.1", []string{"z.mesh"}, to(80, service("z"))),
			},
			problems: []string{"no virtual address is left in 240.0.0.0/31 for 1 names"},
		},
		"the last addresses there are can be given": {
			in: Input{
				Config:   Config{CIDR: "255.255.255.255/32"},
				Services: []map[string]string{service("a"), service("b")},
			},
			want:     []dataplane.VIP{vip("255.255.255.255", []string{"a.mesh"}, to(80, service("a")))},
			problems: []string{"no virtual address is left in 255.255.255.255/32 for 1 names"},
		},
		"further names are added last": {
			in: Input{
				Services: []map[string]string{service("api")},
				Names:    []Name{{Host: "gw.other", Port: 443, Tags: service("gw", "kuma.io/mesh", "other"), Origin: "mesh-gateway"}},
			},
			want: []dataplane.VIP{
				vip("240.0.0.0", []string{"api.mesh"}, to(80, service("api"))),
				vip("240.0.0.1", []string{"gw.other"}, to(443, service("gw", "kuma.io/mesh", "other"))),
			},
		},
		"a service whose name no host can have is at an address all the same": {
			in:   Input{Services: []map[string]string{service("a:b")}},
			want: []dataplane.VIP{vip("240.0.0.0", nil, to(80, service("a:b")))},
		},
	} {
		t.Run(name, func(t *testing.T) {
			prev, err := Parse(tc.prev)
			if err != nil {
				t.Fatal(err)
			}
			in := withDefaults(tc.in)
			table, problems := Compute(prev, in)
			got := table.VIPs(in.Domain, in.ServiceVIPPort)
			for i := range got {
				if len(got[i].Hostnames) == 0 {
					got[i].Hostnames = nil
				}
			}
			if diff := gocmp.Diff(tc.want, got); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
			match := len(problems) == len(tc.problems)
			for i := range min(len(problems), len(tc.problems)) {
				match = match && strings.HasPrefix(problems[i].Error(), tc.problems[i])
			}
			if !match {
				t.Errorf("problems: %v\nwant: %s", errors.Join(problems...), strings.Join(tc.problems, "\n"))
			}
		})
	}
}

func withDefaults(in Input) Input {
	d := DefaultConfig()
	if in.CIDR == "" {
		in.CIDR = d.CIDR
	}
	in.Domain, in.ServiceVIPPort = d.Domain, d.ServiceVIPPort
	return in
}

func TestATableIsWrittenAsKumaWritesIt(t *testing.T) {
	in := withDefaults(Input{
		Services:         []map[string]string{service("backend")},
		ExternalServices: map[string]*meshv1.ExternalService{"es": external("kuma.io:90", "external-host")},
		VirtualOutbounds: map[string]*meshv1.VirtualOutbound{"vo": outbound("x.{{.s}}", "81", "s", "kuma.io/service")},
	})
	table, problems := Compute(nil, in)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	got, err := table.Encode()
	if err != nil {
		t.Fatal(err)
	}
	golden, err := os.ReadFile("testdata/table.json")
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(strings.ReplaceAll(string(golden), "\n", ""), got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	back, err := Parse(got)
	if err != nil {
		t.Fatal(err)
	}
	if diff := gocmp.Diff(table, back, addresses); diff != "" {
		t.Errorf("what was read back differs:\n%s", diff)
	}
}

var addresses = gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })

func TestOlderTablesAreRead(t *testing.T) {
	got, err := Parse(`{"backend":"240.0.0.1","0:web":"240.0.0.2","1:host.com":"240.0.0.3","2:a.b":{"address":"240.0.0.4","outbounds":[{"TagSet":{"kuma.io/service":"b"}}]},"9:x":"240.0.0.5"}`)
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddr
	want := Table{
		{Service, "backend"}: {Address: at("240.0.0.1")}, {Service, "web"}: {Address: at("240.0.0.2")}, {Host, "host.com"}: {Address: at("240.0.0.3")},
		{FQDN, "a.b"}: {Address: at("240.0.0.4"), Outbounds: []Outbound{{TagSet: service("b")}}}, {Service, "9:x"}: {Address: at("240.0.0.5")},
	}
	if diff := gocmp.Diff(want, got, addresses); diff != "" {
		t.Error(diff)
	}
}

func TestAConfigThatIsNoTableIsAnError(t *testing.T) {
	for _, text := range []string{"{", "[]", `{"0:":"240.0.0.1"}`, `{"0:a":"300.0.0.1"}`, `{"0:a":7}`, `{"0:a":{"address":"x"}}`} {
		if got, err := Parse(text); err == nil {
			t.Errorf("%s was read as %v", text, got)
		}
	}
}

func TestTheConfigOfAMesh(t *testing.T) {
	if got := ConfigName("demo"); got != "kuma-demo-dns-vips" {
		t.Error(got)
	}
	for name, want := range map[string]string{"kuma-demo-dns-vips": "demo", "kuma-a-dns-vips-dns-vips": "a-dns-vips", "kuma-cluster-id": "", "kuma--dns-vips": "", "kuma-dns-vips": ""} {
		if mesh, ok := ConfigMesh(name); ok != (want != "") || ok && mesh != want {
			t.Errorf("%s: %q, %t", name, mesh, ok)
		}
	}
}

// TestWhateverComesAndGoes lets services, external services and virtual outbounds come and go.
func TestWhateverComesAndGoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		pool := []string{"a", "b", "c", "a_b", "a.b", "A", "d"}
		hosts := []string{"a.mesh:1", "x.org:1", "x.org:2", "X.org:1", "192.0.2.1:1", "240.0.0.2:1", "a.b.mesh:5"}
		templates := []string{"{{.s}}.local", "{{.s}}.mesh", "x.org", "192.0.2.1", "{{.v}}.v", "{{.s}}.{{.v}}"}
		ports := []string{"1", "80", "{{.v}}"}
		bits := rapid.IntRange(27, 30).Draw(t, "bits")
		table := Table{}
		for range rapid.IntRange(1, 8).Draw(t, "steps") {
			in := withDefaults(Input{
				Config:           Config{CIDR: "240.0.0.0/" + strconv.Itoa(bits)},
				ExternalServices: map[string]*meshv1.ExternalService{}, VirtualOutbounds: map[string]*meshv1.VirtualOutbound{},
			})
			for range rapid.IntRange(0, 6).Draw(t, "services") {
				tags := service(rapid.SampledFrom(pool).Draw(t, "service"))
				if v := rapid.IntRange(0, 3).Draw(t, "version"); v > 0 {
					tags["v"] = strconv.Itoa(v)
				}
				in.Services = append(in.Services, tags)
			}
			for i := range rapid.IntRange(0, 4).Draw(t, "external") {
				in.ExternalServices[strconv.Itoa(i)] = external(rapid.SampledFrom(hosts).Draw(t, "host"), rapid.SampledFrom(pool).Draw(t, "of"))
			}
			for i := range rapid.IntRange(0, 3).Draw(t, "outbounds") {
				in.VirtualOutbounds[strconv.Itoa(i)] = outbound(rapid.SampledFrom(templates).Draw(t, "template"),
					rapid.SampledFrom(ports).Draw(t, "port"), "s", "kuma.io/service", "v", "v")
			}
			table = step(t, table, in)
		}
	})
}

// step computes the next table and checks what must hold of it.
func step(t *rapid.T, prev Table, in Input) Table {
	before := maps.Clone(prev)
	next, problems := Compute(prev, in)
	if diff := gocmp.Diff(before, prev, addresses); diff != "" {
		t.Fatalf("the former table was changed:\n%s", diff)
	}

	seen := map[netip.Addr]Entry{}
	literal := map[netip.Addr]bool{}
	for e := range next {
		if a, err := netip.ParseAddr(e.Name); e.Kind != Service && err == nil {
			literal[a] = true
			if next[e].Address != a {
				t.Fatalf("%s is at %s", e, next[e].Address)
			}
		}
	}
	for e, a := range next {
		if other, ok := seen[a.Address]; ok {
			t.Fatalf("%s and %s share %s", e, other, a.Address)
		}
		seen[a.Address] = e
		if was, ok := prev[e]; ok && was.Address != a.Address && !literal[was.Address] {
			t.Fatalf("%s was at %s and is at %s", e, was.Address, a.Address)
		}
		taken := map[uint32]bool{}
		for _, o := range a.Outbounds {
			port := cmp.Or(o.Port, in.ServiceVIPPort)
			if taken[port] || o.TagSet["kuma.io/service"] == "" {
				t.Fatalf("%s: %+v", e, a.Outbounds)
			}
			taken[port] = true
		}
	}
	exhausted := slices.ContainsFunc(problems, func(err error) bool { return errors.Is(err, ErrExhausted) })
	for _, tags := range in.Services {
		if _, ok := next[Entry{Service, tags["kuma.io/service"]}]; !ok && !exhausted {
			t.Fatalf("%v has no address", tags)
		}
	}

	names := map[string]string{}
	for _, v := range next.VIPs(in.Domain, in.ServiceVIPPort) {
		for _, name := range v.Hostnames {
			if other, ok := names[strings.ToLower(name)]; ok {
				t.Fatalf("%s is at %s and at %s", name, v.Address, other)
			}
			names[strings.ToLower(name)] = v.Address
		}
	}

	again := in
	again.Services = slices.Concat(in.Services, in.Services)
	slices.Reverse(again.Services)
	other, otherProblems := Compute(prev, again)
	if diff := gocmp.Diff(next, other, addresses); diff != "" {
		t.Fatalf("another order gives another table:\n%s", diff)
	}
	if a, b := errors.Join(problems...), errors.Join(otherProblems...); (a == nil) != (b == nil) || a != nil && a.Error() != b.Error() {
		t.Fatalf("another order gives other problems:\n%v\n%v", a, b)
	}
	if still, _ := Compute(next, in); !gocmp.Equal(next, still, addresses) {
		t.Fatalf("the same once more:\n%s", gocmp.Diff(next, still, addresses))
	}

	text, err := next.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := Parse(text)
	if err != nil || !gocmp.Equal(next, back, addresses) {
		t.Fatalf("what was read back differs (%v):\n%s", err, gocmp.Diff(next, back, addresses))
	}
	return next
}

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			in := withDefaults(Input{VirtualOutbounds: map[string]*meshv1.VirtualOutbound{"vo": outbound("{{.s}}.local", "81", "s", "kuma.io/service")}})
			for i := range n {
				in.Services = append(in.Services, service("service-"+strconv.Itoa(i), "version", "1"))
			}
			table, _ := Compute(nil, in)
			b.ReportAllocs()
			for b.Loop() {
				table, _ = Compute(table, in)
			}
		})
	}
}

func TestListenersForOtherMeshesHaveNames(t *testing.T) {
	gateway := &meshv1.MeshGateway{
		Selectors: []*meshv1.Selector{{Match: service("edge")}},
		Tags:      map[string]string{"team": "x"},
		Conf: &meshv1.MeshGateway_Conf{Listeners: []*meshv1.MeshGateway_Listener{
			{Hostname: "own.example.org", Port: 80},
			{Hostname: "shared.example.org", Port: 81, CrossMesh: true, Tags: map[string]string{"port": "81"}},
			{Hostname: "*.example.org", Port: 82, CrossMesh: true},
		}},
	}
	want := []Name{
		{"shared.example.org", 81, service("edge", "team", "x", "port", "81", "kuma.io/mesh", "demo"), "mesh-gateway:demo:gw"},
		{"internal.gw.demo.mesh", 82, service("edge", "team", "x", "kuma.io/mesh", "demo"), "mesh-gateway:demo:gw"},
	}
	if diff := gocmp.Diff(want, GatewayNames("demo", "gw", gateway, "mesh")); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestInboundsWithoutAPortCannotBeReached(t *testing.T) {
	dp := &meshv1.Dataplane{Networking: &meshv1.Dataplane_Networking{Inbound: []*meshv1.Dataplane_Networking_Inbound{
		{Port: 8080, Tags: service("api")}, {Port: 49151, Tags: service("worker")},
	}}}
	if diff := gocmp.Diff([]map[string]string{service("api")}, TagSets(dp)); diff != "" {
		t.Error(diff)
	}
}

func TestNoMoreProblemsAreToldThanCanBeRead(t *testing.T) {
	in := withDefaults(Input{VirtualOutbounds: map[string]*meshv1.VirtualOutbound{"vo": outbound("{{.v}}", "1", "s", "kuma.io/service", "v", "")}})
	in.CIDR = "240.0.0.0/32"
	for i := range 500 {
		in.Services = append(in.Services, service(strconv.Itoa(i)))
	}
	_, problems := Compute(nil, in)
	if len(problems) != maxProblems+1 || !errors.Is(problems[0], ErrExhausted) {
		t.Fatalf("%d problems, the first: %v", len(problems), problems[0])
	}
	if got := problems[maxProblems].Error(); got != "401 more problems" {
		t.Error(got)
	}
}

func TestConfigIsChecked(t *testing.T) {
	if errs := DefaultConfig().Validate(); errs != nil {
		t.Errorf("the defaults: %v", errs)
	}
	got := errors.Join(Config{Domain: "a..b", CIDR: "240.0.0.0", ServiceVIPPort: 70000}.Validate()...)
	for _, field := range []string{"domain: ", "cidr: ", "serviceVipPort: "} {
		if !strings.Contains(got.Error(), field) {
			t.Errorf("nothing about %s in: %v", field, got)
		}
	}
}

// FuzzParse: whatever a Config holds is read as an error, or as a table that can be written and computed with.
func FuzzParse(f *testing.F) {
	f.Add(`{"0:a":{"address":"240.0.0.1","outbounds":[{"Port":80,"TagSet":{"kuma.io/service":"a"},"Origin":"service"}]},"b":"240.0.0.2"}`)
	f.Add(`{"9:a":"::ffff:1.2.3.4","1:x":{"address":"fe80::1%eth0"}}`)
	f.Fuzz(func(t *testing.T, text string) {
		table, err := Parse(text)
		if err != nil {
			return
		}
		again, err := table.Encode()
		if err != nil {
			t.Fatal(err)
		}
		back, err := Parse(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if third, _ := back.Encode(); third != again {
			t.Fatalf("%s became %s", again, third)
		}
		back.VIPs("mesh", 80)
		Compute(back, withDefaults(Input{Services: []map[string]string{service("a"), service("b")}}))
	})
}
