package validate

import (
	"fmt"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	capb "github.com/meridian-mesh/meridian/api/kuma/plugins/ca"
	systemv1 "github.com/meridian-mesh/meridian/api/kuma/system/v1alpha1"
)

func mesh(r *report, at path, m *meshv1.Mesh) {
	mtls := at.field("mtls")
	r.mtls(mtls, m.GetMtls())
	r.check(!m.GetRouting().GetZoneEgress() || m.GetMtls().GetEnabledBackend() != "", mtls, "has to be set when zoneEgress enabled")
	r.tracing(at.field("tracing"), m.GetTracing())
	r.logging(at.field("logging"), m.GetLogging())
	r.metrics(at.field("metrics"), m.GetMetrics())
	r.constraints(at.field("constraints.dataplaneProxy"), m.GetConstraints().GetDataplaneProxy())
}

// maxAuthorities bounds how many certificate authorities a mesh lists; a change of authority takes two. Keys are made
// for the builtin ones, and the pairs of the others are read on the committer: a body holds enough of either to keep a
// plane busy for minutes.
const maxAuthorities = 16

// mtls checks the certificate authorities. Several may be listed: all are trusted, the enabled one signs.
func (r *report) mtls(at path, m *meshv1.Mesh_Mtls) {
	names := newNames(r, false)
	backends := at.field("backends")
	r.check(len(m.GetBackends()) <= maxAuthorities, backends, fmt.Sprintf("must have at most %d elements", maxAuthorities))
	for _, b := range m.GetBackends() {
		names.known[b.GetName()] = false
	}
	names.enabled(at.field("enabledBackend"), m.GetEnabledBackend(), msgNoBackend)
	for i, b := range m.GetBackends() {
		item := backends.at(i)
		names.add(item.field("name"), b.GetName())
		if e := b.GetDpCert().GetRotation().GetExpiration(); e != "" {
			_, err := model.ParseDuration(e)
			r.check(err == nil, at.field("dpcert.rotation.expiration"), "has to be a valid format")
		}
		r.notNegative(item.field("dpCert.requestTimeout"), b.GetDpCert().GetRequestTimeout())
		r.notNegative(item.field("rootChain.requestTimeout"), b.GetRootChain().GetRequestTimeout())
		conf := item.field("conf")
		switch b.GetType() {
		case "builtin":
			r.builtinCA(conf, b)
		case "provided":
			r.providedCA(conf, b.GetConf())
		default:
			r.add(item.field("type"), "could not find installed plugin for this type")
		}
	}
}

// The sizes of RSA keys that a builtin authority may be asked for. A smaller key is weak. A larger one takes seconds to
// find, and whoever may write a mesh could keep the plane busy with it.
const (
	MinRSABits = 2048
	MaxRSABits = 4096
)

func (r *report) builtinCA(at path, b *meshv1.CertificateAuthorityBackend) {
	name := at.field("mtls.backends.name")
	r.check(len(r.key.Name)+len(".")+len(b.GetName()) <= 255, name, "Backend name is too long. Max length: 255")
	if !isLowerDNS(b.GetName()) {
		r.addf(name, "%q name must be valid dns name", clip(b.GetName()))
	}
	var conf capb.BuiltinCertificateAuthorityConfig
	if !r.parse(at, b.GetConf(), &conf) {
		return
	}
	if bits := conf.GetCaCert().GetRSAbits(); bits != nil {
		r.check(bits.GetValue() >= MinRSABits && bits.GetValue() <= MaxRSABits, at.field("caCert.RSAbits"),
			fmt.Sprintf("must be in the range [%d, %d]", MinRSABits, MaxRSABits))
	}
	if e := conf.GetCaCert().GetExpiration(); e != "" {
		life, err := model.ParseDuration(e)
		r.check(err == nil && life > 0, at.field("caCert.expiration"), "must be a number above 0 and a unit, such as 10y or 30d")
	}
}

// providedCA never repeats what it was given: a key that stands in the wrong place is still a key.
func (r *report) providedCA(at path, s *structpb.Struct) {
	var conf capb.ProvidedCertificateAuthorityConfig
	if err := unpack(s, &conf); err != nil {
		r.add(at, "could not parse config: cert and key must be objects with one of secret, file, inline, inlineString")
		return
	}
	r.caSource(at.field("cert"), conf.GetCert())
	r.caSource(at.field("key"), conf.GetKey())
}

func (r *report) caSource(at path, s *systemv1.DataSource) {
	if !r.check(s != nil, at, msgDefined) {
		return
	}
	switch v := s.GetType().(type) {
	case nil:
		r.add(at, "data source has to be chosen. Available sources: secret, file, inline")
	case *systemv1.DataSource_Secret:
		r.notEmpty(at.field("secret"), v.Secret)
	case *systemv1.DataSource_File:
		r.notEmpty(at.field("file"), v.File)
	case *systemv1.DataSource_Inline:
		r.check(len(v.Inline.GetValue()) > 0, at.field("inline"), msgEmpty)
	case *systemv1.DataSource_InlineString:
		r.notEmpty(at.field("inlineString"), v.InlineString)
	}
}

func (r *report) tracing(at path, m *meshv1.Tracing) {
	names := newNames(r, true)
	backends := at.field("backends")
	for _, b := range m.GetBackends() {
		names.known[b.GetName()] = false
	}
	names.enabled(at.field("defaultBackend"), m.GetDefaultBackend(), "has to be set to one of the tracing backend in mesh")
	for i, b := range m.GetBackends() {
		item := backends.at(i)
		names.add(item.field("name"), b.GetName())
		r.percent(item.field("sampling"), b.GetSampling().GetValue())
		config := item.field("config")
		switch b.GetType() {
		case "zipkin":
			var conf meshv1.ZipkinTracingBackendConfig
			if r.parse(config, b.GetConf(), &conf) {
				r.zipkin(config, &conf)
			}
		case "datadog":
			var conf meshv1.DatadogTracingBackendConfig
			if r.parse(config, b.GetConf(), &conf) {
				r.notEmpty(config.field("address"), conf.GetAddress())
				r.port(config.field("port"), conf.GetPort())
			}
		default:
			r.add(item.field("type"), `unknown backend type. Available backends: "zipkin", "datadog"`)
		}
	}
}

func (r *report) zipkin(at path, conf *meshv1.ZipkinTracingBackendConfig) {
	where := at.field("url")
	if r.notEmpty(where, conf.GetUrl()) {
		u, err := url.Parse(conf.GetUrl())
		if r.check(err == nil && u.Host != "" && u.Scheme != "", where, "invalid URL") {
			r.check(u.Port() != "", where, "port has to be explicitly specified")
		}
	}
	switch conf.GetApiVersion() {
	case "", "httpJsonV1", "httpJson", "httpProto":
	default:
		r.add(at.field("apiVersion"), "has invalid value. Allowed values: httpJsonV1, httpJson, httpProto")
	}
}

func (r *report) logging(at path, m *meshv1.Logging) {
	names := newNames(r, true)
	backends := at.field("backends")
	for _, b := range m.GetBackends() {
		names.known[b.GetName()] = false
	}
	names.enabled(at.field("defaultBackend"), m.GetDefaultBackend(), "has to be set to one of the logging backend in mesh")
	for i, b := range m.GetBackends() {
		item := backends.at(i)
		names.add(item.field("name"), b.GetName())
		if err := checkLogFormat(b.GetFormat()); err != nil {
			r.addf(item.field("format"), "format string is not valid: %v", err)
		}
		config := item.field("config")
		switch b.GetType() {
		case "file":
			var conf meshv1.FileLoggingBackendConfig
			if r.parse(config, b.GetConf(), &conf) {
				r.notEmpty(config.field("path"), conf.GetPath())
			}
		case "tcp":
			var conf meshv1.TcpLoggingBackendConfig
			if r.parse(config, b.GetConf(), &conf) {
				address := config.field("address")
				if r.notEmpty(address, conf.GetAddress()) {
					r.check(isHostPort(conf.GetAddress()), address, "has to be in format of HOST:PORT")
				}
			}
		default:
			r.add(item.field("type"), `unknown backend type. Available backends: "tcp", "file"`)
		}
	}
}

func (r *report) metrics(at path, m *meshv1.Metrics) {
	names := newNames(r, false)
	backends := at.field("backends")
	for _, b := range m.GetBackends() {
		names.known[b.GetName()] = false
	}
	names.enabled(at.field("enabledBackend"), m.GetEnabledBackend(), msgNoBackend)
	for i, b := range m.GetBackends() {
		item := backends.at(i)
		names.add(item.field("name"), b.GetName())
		r.metricsBackend(item, b)
	}
}

// metricsBackend checks what a mesh and a dataplane may both say about metrics.
func (r *report) metricsBackend(at path, b *meshv1.MetricsBackend) {
	if !r.check(b.GetType() == "prometheus", at.field("type"), `unknown backend type. Available backends: "prometheus"`) {
		return
	}
	at2 := at.field("conf")
	var conf meshv1.PrometheusMetricsBackendConfig
	if !r.parse(at2, b.GetConf(), &conf) {
		return
	}
	r.portIfSet(at2.field("port"), conf.GetPort())
	seen := make(map[string]bool)
	for i, a := range conf.GetAggregate() {
		list := at2.field("aggregate")
		item := list.at(i)
		if seen[a.GetName()] {
			r.addf(item.field("name"), "duplicate entry: %s, values have to be unique", clip(a.GetName()))
		}
		seen[a.GetName()] = true
	}
	r.regex(at2.field("envoy.filterRegex"), conf.GetEnvoy().GetFilterRegex(), "provided regexp isn't correct")
}

func (r *report) constraints(at path, m *meshv1.Mesh_DataplaneProxyConstraints) {
	for _, group := range [...]struct {
		name  string
		rules []*meshv1.Mesh_DataplaneProxyConstraints_Rules
	}{{"requirements", m.GetRequirements()}, {"restrictions", m.GetRestrictions()}} {
		list := at.field(group.name)
		for i, rule := range group.rules {
			item := list.at(i)
			r.match(item.field("tags"), rule.GetTags(), false)
		}
	}
}

// names checks the names of backends that stand in one list.
type names struct {
	r *report
	// named: each must have a name.
	named bool
	// known has every name of the list; true once its entry was visited.
	known map[string]bool
}

func newNames(r *report, named bool) names {
	return names{r: r, named: named, known: make(map[string]bool)}
}

func (n names) add(at path, name string) {
	if name == "" {
		n.r.check(!n.named, at, msgEmpty)
		return
	}
	if n.known[name] {
		n.r.addf(at, msgUsedName, clip(name))
	}
	n.known[name] = true
}

// enabled checks the field that names one of the backends, or none.
func (n names) enabled(at path, name, message string) {
	if _, ok := n.known[name]; !ok && name != "" {
		n.r.add(at, message)
	}
}

// parse reads the free-form configuration of a backend, or says why it cannot.
func (r *report) parse(at path, s *structpb.Struct, conf proto.Message) bool {
	err := unpack(s, conf)
	if err != nil {
		r.addf(at, "could not parse config: %s", reason(err))
	}
	return err == nil
}

// unpack fills a message from its free form. Fields that the schema does not have are passed over, as in every body.
func unpack(s *structpb.Struct, conf proto.Message) error {
	if len(s.GetFields()) == 0 {
		return nil
	}
	text, err := protojson.Marshal(s)
	if err != nil {
		return err //nolint:wrapcheck // the caller says what was being done
	}
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(text, conf) //nolint:wrapcheck // likewise
}

// reason is the text of an error of protobuf's JSON, which is made unstable on purpose: its package prefix goes, with
// the position in a text that only we know, and its spaces become plain ones.
func reason(err error) string {
	s := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	s = strings.TrimPrefix(s, "proto: ")
	return clip(position.ReplaceAllString(s, ""))
}

var position = regexp.MustCompile(`(syntax error )?\(line \d+:\d+\): `)

// isLowerDNS reports whether s is a DNS name of lower-case labels.
func isLowerDNS(s string) bool { return len(s) <= 253 && lowerDNS.MatchString(s) }

var lowerDNS = regexp.MustCompile(`^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

// checkLogFormat checks the commands in a format of access logs: %NAME%, %NAME(arguments)%, %NAME(arguments):LENGTH%,
// and %% for a percent sign. Which names there are is the proxy's business, apart from ours.
func checkLogFormat(format string) error {
	for rest, offset := format, 0; ; {
		i := strings.IndexByte(rest, '%')
		if i < 0 {
			return nil
		}
		rest, offset = rest[i:], offset+i
		command := logCommand.FindString(rest)
		if command == "" {
			return fmt.Errorf("expected a command such as %%START_TIME%% at position %s", strconv.Itoa(offset))
		}
		if name := logName.FindString(command); strings.HasPrefix(name, "%KUMA_") && !kumaCommands[name[1:]] {
			return fmt.Errorf("unknown command %%%s%% at position %s", clip(name[1:]), strconv.Itoa(offset))
		}
		rest, offset = rest[len(command):], offset+len(command)
	}
}

var (
	logCommand = regexp.MustCompile(`^%(%|[A-Z][A-Z0-9_]*(\([^)]*\))?(:\d+)?%)`)
	logName    = regexp.MustCompile(`^%[A-Z0-9_]*`)

	// kumaCommands are those that the control plane fills in.
	kumaCommands = map[string]bool{
		"KUMA_SOURCE_SERVICE": true, "KUMA_DESTINATION_SERVICE": true, "KUMA_SOURCE_ADDRESS": true,
		"KUMA_SOURCE_ADDRESS_WITHOUT_PORT": true, "KUMA_MESH": true, "KUMA_TRAFFIC_DIRECTION": true,
	}
)
