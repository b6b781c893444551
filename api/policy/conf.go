package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
)

// Action is what a MeshTrafficPermission says of a client.
type Action uint8

// The actions. The zero value denies.
const (
	Deny Action = iota
	Allow
	// AllowWithShadowDeny allows, and reports what Deny would have denied.
	AllowWithShadowDeny
)

// Action is what the rule of a MeshTrafficPermission says, in the spelling of either generation. An error comes with Deny.
func (r *Rule) Action() (Action, error) {
	switch text := asObject(r.conf).text("action"); text {
	case "ALLOW", "Allow":
		return Allow, nil
	case "DENY", "Deny":
		return Deny, nil
	case "ALLOW_WITH_SHADOW_DENY", "AllowWithShadowDeny":
		return AllowWithShadowDeny, nil
	default:
		return Deny, fmt.Errorf("action %q is not known", text)
	}
}

// LogBackend is where the rule of a MeshAccessLog sends its lines: to a file or over TCP.
type LogBackend struct {
	File *LogFile // nil unless it is a file
	TCP  *LogTCP  // nil unless it is over TCP
}

// LogFile is a file on the machine of the proxy.
type LogFile struct {
	Path   string
	Format LogFormat
}

// LogTCP is a collector.
type LogTCP struct {
	Address string
	Format  LogFormat
}

// LogFormat is how a line looks: Plain, or an object with the members of JSON; neither: the default.
type LogFormat struct {
	Plain string
	JSON  []LogField
}

// LogField is a member of a line that is a JSON object.
type LogField struct{ Key, Value string }

// AccessLog are the backends in the rule of a MeshAccessLog. What it does not know is left out and named by the error; the
// others are returned all the same.
func (r *Rule) AccessLog() ([]LogBackend, error) {
	var backends []LogBackend
	var errs []error
	for i, b := range asObject(r.conf).list("backends") {
		switch tcp, file := b.object("tcp"), b.object("file"); {
		case file != nil:
			backends = append(backends, LogBackend{File: &LogFile{Path: file.text("path"), Format: file.logFormat()}})
		case tcp != nil:
			backends = append(backends, LogBackend{TCP: &LogTCP{Address: tcp.text("address"), Format: tcp.logFormat()}})
		default:
			errs = append(errs, fmt.Errorf("backends[%d]: neither tcp nor file", i))
		}
	}
	return backends, errors.Join(errs...)
}

func (n node) logFormat() LogFormat {
	format := n.object("format")
	f := LogFormat{Plain: format.text("plain")}
	for _, field := range format.list("json") {
		f.JSON = append(f.JSON, LogField{Key: field.text("key"), Value: field.text("value")})
	}
	return f
}

// Trace is what a MeshTrace says.
type Trace struct {
	// Zipkin or Datadog is where traces go; both nil: nowhere.
	Zipkin  *Zipkin
	Datadog *Datadog
	// Overall, Client and Random are percentages of requests; nil: not said.
	Overall, Client, Random *float64
	Tags                    []TraceTag
}

// Zipkin is a collector of traces.
type Zipkin struct {
	URL           string
	TraceID128Bit bool
	// APIVersion is httpJson, httpProto, or "" when not said.
	APIVersion        string
	SharedSpanContext *bool // nil: not said
}

// Datadog is a collector of traces.
type Datadog struct {
	URL          string
	SplitService bool
}

// TraceTag is a tag on traces: a literal, or with Header the value of a header.
type TraceTag struct {
	Name, Literal string
	Header        *TraceHeader
}

// TraceHeader is a header of requests, and what stands for it where a request has none.
type TraceHeader struct{ Name, Default string }

// Trace is what the rule of a MeshTrace says. What it does not know is left out and named by the error.
func (r *Rule) Trace() (*Trace, error) {
	conf := asObject(r.conf)
	var errs []error
	t := &Trace{}
	backends := conf.list("backends")
	if len(backends) > 1 {
		errs = append(errs, errors.New("backends: only the first is used"))
	}
	if len(backends) > 0 {
		switch zipkin, datadog := backends[0].object("zipkin"), backends[0].object("datadog"); {
		case zipkin != nil:
			t.Zipkin = &Zipkin{URL: zipkin.text("url"), TraceID128Bit: zipkin.is("traceId128bit"), APIVersion: zipkin.text("apiVersion")}
			if shared, ok := zipkin["sharedSpanContext"].(bool); ok {
				t.Zipkin.SharedSpanContext = &shared
			}
		case datadog != nil:
			t.Datadog = &Datadog{URL: datadog.text("url"), SplitService: datadog.is("splitService")}
		default:
			errs = append(errs, errors.New("backends[0]: neither zipkin nor datadog"))
		}
	}
	sampling := conf.object("sampling")
	var overall, client, random error
	t.Overall, overall = sampling.percentage("overall")
	t.Client, client = sampling.percentage("client")
	t.Random, random = sampling.percentage("random")
	errs = append(errs, overall, client, random)
	for _, tag := range conf.list("tags") {
		out := TraceTag{Name: tag.text("name"), Literal: tag.text("literal")}
		if header := tag.object("header"); header != nil {
			out.Header = &TraceHeader{Name: header.text("name"), Default: header.text("default")}
		}
		t.Tags = append(t.Tags, out)
	}
	return t, errors.Join(errs...)
}

// node is a parsed JSON object. Values of another type than asked for are as good as absent.
type node map[string]any

func asObject(v any) node {
	m, _ := v.(map[string]any)
	return m
}

func (n node) text(name string) string {
	s, _ := n[name].(string)
	return s
}

func (n node) object(name string) node { return asObject(n[name]) }

func (n node) list(name string) []node {
	elements, _ := n[name].([]any)
	out := make([]node, len(elements))
	for i, e := range elements {
		out[i] = asObject(e)
	}
	return out
}

func (n node) is(name string) bool {
	b, _ := n[name].(bool)
	return b
}

// percentage is a number from 0 to 100, or how later generations write fractions: a string with one.
func (n node) percentage(name string) (*float64, error) {
	var text string
	switch v := n[name].(type) {
	case nil:
		return nil, nil
	case string:
		text = v
	case json.Number:
		text = v.String()
	}
	f, err := strconv.ParseFloat(text, 64)
	if err != nil || !(f >= 0 && f <= 100) {
		return nil, fmt.Errorf("sampling.%s: not a percentage", name)
	}
	return &f, nil
}
