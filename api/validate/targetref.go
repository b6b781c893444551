package validate

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// The targetRef policies: MeshAccessLog, MeshTrace, MeshTrafficPermission. Their specification is JSON of which only
// what the rules need is read. Enumerations are accepted in the spelling of either generation.

const (
	kindMesh              = "Mesh"
	kindMeshSubset        = "MeshSubset"
	kindMeshService       = "MeshService"
	kindMeshServiceSubset = "MeshServiceSubset"
	kindMeshGatewayRoute  = "MeshGatewayRoute"
)

// proxyKinds select the proxies that a policy is for.
var proxyKinds = []string{kindMesh, kindMeshSubset, kindMeshService, kindMeshServiceSubset, kindMeshGatewayRoute}

// jsonRule lets a function over a decoded specification stand in a table. The specification stands under "spec".
func jsonRule(check func(*report, path, object)) func(*report, path, []byte) {
	return func(r *report, at path, spec []byte) {
		where := at.field("spec")
		var s object
		if err := json.Unmarshal(spec, &s); err != nil {
			r.addf(where, "cannot be decoded: %s", clip(err.Error()))
			return
		}
		check(r, where, s)
	}
}

// object is a JSON object. Values of another JSON type than asked for are as good as absent: codec refuses them in
// bodies. It is read member by member because encoding/json fills structs without regard to case, and would take a
// field that is not ours for one that is.
type object map[string]any

func (o object) text(name string) string {
	s, _ := o[name].(string)
	return s
}

// object returns a member that is an object, nil when there is none.
func (o object) object(name string) object {
	m, _ := o[name].(map[string]any)
	return m
}

// list returns the elements of a member that is an array, and whether it is one.
func (o object) list(name string) ([]object, bool) {
	elements, ok := o[name].([]any)
	list := make([]object, len(elements))
	for i, e := range elements {
		list[i], _ = e.(map[string]any)
	}
	return list, ok
}

func (o object) texts(name string) map[string]string {
	members := o.object(name)
	texts := make(map[string]string, len(members))
	for k := range members {
		texts[k] = members.text(k)
	}
	return texts
}

func (r *report) targetRef(at path, ref object, kinds []string) {
	kind, is := at.field("kind"), ref.text("kind")
	if !r.check(is != "", kind, "must be set") || !r.check(slices.Contains(kinds, is), kind, "value is not supported") {
		return
	}
	name, tags := at.field("name"), at.field("tags")
	named, tagged := ref.text("name") != "", len(ref.object("tags")) > 0
	switch is {
	case kindMesh:
		r.check(!named, name, "using name with kind Mesh is not yet supported")
		r.absent(tags, tagged, is)
	case kindMeshSubset:
		r.absent(name, named, is)
	case kindMeshService:
		r.present(name, named, is)
		r.absent(tags, tagged, is)
	default:
		r.present(name, named, is)
	}
	r.absent(at.field("mesh"), ref.text("mesh") != "", is)
	r.tagCharacters(tags, ref.texts("tags"), selectorTags)
}

func (r *report) absent(at path, given bool, kind string) {
	r.check(!given, at, "cannot be set with kind "+kind)
}

func (r *report) present(at path, given bool, kind string) {
	r.check(given, at, "must be set with kind "+kind)
}

func meshAccessLog(r *report, at path, s object) {
	ref := s.object("targetRef")
	r.targetRef(at.field("targetRef"), ref, proxyKinds)
	toRules, _ := s.list("to")
	fromRules, _ := s.list("from")
	r.check(len(fromRules)+len(toRules) > 0, at, "at least one of 'from', 'to' has to be defined")
	to, from := at.field("to"), at.field("from")
	r.check(ref.text("kind") != kindMeshGatewayRoute || len(toRules) == 0, to,
		`cannot use "to" when "targetRef" is "MeshGatewayRoute" as the only destination is the gateway`)
	for i, rule := range toRules {
		r.accessLogRule(to.at(i), rule, []string{kindMesh, kindMeshService})
	}
	for i, rule := range fromRules {
		r.accessLogRule(from.at(i), rule, []string{kindMesh})
	}
}

func (r *report) accessLogRule(at path, rule object, kinds []string) {
	r.targetRef(at.field("targetRef"), rule.object("targetRef"), kinds)
	where := at.field("default.backends")
	backends, ok := rule.object("default").list("backends")
	r.check(ok, where, "must be defined")
	for j, b := range backends {
		item, tcp, file := where.at(j), b.object("tcp"), b.object("file")
		r.check((tcp != nil) != (file != nil), item, "backend must have only one type defined: tcp, file")
		if tcp != nil {
			address := tcp.text("address")
			r.accessLogFormat(item.field("tcp.format"), tcp.object("format"))
			r.check(isHostPort(address) || isURL(address), item.field("tcp.address"), "tcp backend requires valid address")
		}
		if file != nil {
			path := file.text("path")
			r.accessLogFormat(item.field("file.format"), file.object("format"))
			r.check(strings.HasPrefix(path, "/") && !strings.ContainsRune(path, 0), item.field("file.path"), "file backend requires a valid path")
		}
	}
}

func (r *report) accessLogFormat(at path, f object) {
	fields, ok := f.list("json")
	r.check(f.text("plain") == "" || !ok, at, "format must have only one type defined: plain, json")
	list := at.field("json")
	r.check(!ok || len(fields) > 0, list, "must not be empty")
	for k, field := range fields {
		item, key, value := list.at(k), field.text("key"), field.text("value")
		r.check(key != "", item.field("key"), "key cannot be empty")
		r.check(value != "", item.field("value"), "value cannot be empty")
		// Both are put between quotes as they are.
		r.check(json.Valid([]byte(`{"`+key+`": "`+value+`"}`)), item, "is not a valid JSON object")
	}
}

func meshTrace(r *report, at path, s object) {
	r.targetRef(at.field("targetRef"), s.object("targetRef"), proxyKinds)
	conf := s.object("default")
	where := at.field("default.backends")
	backends, ok := conf.list("backends")
	r.check(ok, where, "must be defined")
	r.check(len(backends) <= 1, where, "must have zero or one backend defined")
	for i, b := range backends {
		item, zipkin, datadog := where.at(i), b.object("zipkin"), b.object("datadog")
		r.check((datadog != nil) != (zipkin != nil), item, "backend must have only one type defined: datadog, zipkin")
		if zipkin != nil {
			address, version := item.field("zipkin.url"), zipkin.text("apiVersion")
			if r.check(zipkin.text("url") != "", address, "must not be empty") {
				r.check(isURL(zipkin.text("url")), address, "must be a valid url")
			}
			r.check(version == "" || version == "httpJson" || version == "httpProto", item.field("zipkin.apiVersion"), "must be one of httpJson, httpProto")
		}
		if datadog != nil {
			r.datadogURL(item.field("datadog.url"), datadog.text("url"))
		}
	}
	sampling := at.field("default.sampling")
	for _, name := range [...]string{"overall", "client", "random"} {
		r.check(isPercentage(conf.object("sampling")[name]), sampling.field(name), "must be between 0 and 100")
	}
	tags := at.field("default.tags")
	tagList, _ := conf.list("tags")
	for i, tag := range tagList {
		item := tags.at(i)
		r.check(tag.text("name") != "", item.field("name"), "must not be empty")
		r.check((tag.object("header") != nil) != (tag.text("literal") != ""), item, "tag must have only one type defined: header, literal")
	}
}

// isPercentage reports whether v is absent, a number from 0 to 100, or how later generations write fractions: a string
// with one.
func isPercentage(v any) bool {
	if s, ok := v.(string); ok {
		f, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return false
		}
		v = f
	}
	f, ok := v.(float64)
	return v == nil || ok && f >= 0 && f <= 100
}

// datadogURL wants http://HOST:PORT and nothing else.
func (r *report) datadogURL(at path, s string) {
	u, err := url.Parse(s)
	if !r.check(err == nil && u.Host != "", at, "must be a valid url") {
		return
	}
	r.check(u.Scheme == "http", at, "scheme must be http")
	if r.check(u.Port() != "", at, "port must be defined") {
		n, err := strconv.ParseUint(u.Port(), 10, 16)
		r.check(err == nil && n > 0, at, "port must be a valid (1-65535)")
	}
	r.check(u.User == nil, at, "user info must not be defined")
	r.check(u.Path == "", at, "path must not be defined")
	r.check(u.RawQuery == "" && !u.ForceQuery, at, "query must not be defined")
	r.check(u.Fragment == "", at, "fragment must not be defined")
}

// isURL reports whether s is an absolute URL with a host.
func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Scheme != "" && u.Host != ""
}

func meshTrafficPermission(r *report, at path, s object) {
	r.targetRef(at.field("targetRef"), s.object("targetRef"), proxyKinds)
	where := at.field("from")
	from, _ := s.list("from")
	r.check(len(from) > 0, where, "needs at least one item")
	for i, rule := range from {
		item := where.at(i)
		r.targetRef(item.field("targetRef"), rule.object("targetRef"), []string{kindMesh, kindMeshSubset, kindMeshService, kindMeshServiceSubset})
		action := item.field("default.action")
		switch rule.object("default").text("action") {
		case "":
			r.add(action, "must be defined")
		case "ALLOW", "DENY", "ALLOW_WITH_SHADOW_DENY", "Allow", "Deny", "AllowWithShadowDeny":
		default:
			r.add(action, "must be one of ALLOW, DENY, ALLOW_WITH_SHADOW_DENY")
		}
	}
}
