package validate

import (
	"fmt"
	"strconv"

	"github.com/meridian-mesh/meridian/api/hosttemplate"
	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
)

func virtualOutbound(r *report, at path, m *meshv1.VirtualOutbound) {
	r.selectors(at.field("selectors"), m.GetSelectors(), selectorRules{})

	conf, c := at.field("conf"), m.GetConf()
	if !r.check(c != nil, conf, msgDefined) {
		return
	}
	names := make([]string, len(c.GetParameters()))
	for i, p := range c.GetParameters() {
		names[i] = p.GetName()
	}
	host, port := conf.field("host"), conf.field("port")
	if r.check(c.GetHost() != "", host, msgDefined) {
		if _, err := evaluate(c.GetHost(), names, "dummy"); err != nil {
			r.preEvaluation(host, err)
		}
	}
	if r.check(c.GetPort() != "", port, msgDefined) {
		text, err := evaluate(c.GetPort(), names, "1")
		if err == nil {
			if _, parseErr := strconv.ParseUint(text, 10, 16); parseErr != nil {
				err = fmt.Errorf("%q is not a port", clip(text))
			}
		}
		if err != nil {
			r.preEvaluation(port, err)
		}
	}

	list, service := conf.field("parameters"), false
	seen := make(map[string]bool)
	for i, p := range c.GetParameters() {
		item := list.at(i)
		service = service || p.GetTagKey() == tagService
		name := item.field("name")
		r.check(!seen[p.GetName()], name, "name is already used")
		seen[p.GetName()] = true
		r.check(isAlphanumeric(p.GetName()), name, "must consist of alphanumeric characters to be used as a gotemplate key")
		if p.GetTagKey() == "" {
			r.check(tagText(p.GetName(), true), name, "must be a valid tag name if no tagKey is set")
		} else {
			r.check(tagText(p.GetTagKey(), true), item.field("tagKey"), "must be a valid tag name")
		}
	}
	r.check(service, list, "must contain a parameter with kuma.io/service as a tagKey")
}

func (r *report) preEvaluation(at path, err error) {
	r.addf(at, "template pre evaluation failed with error='%s'", clip(err.Error()))
}

func isAlphanumeric(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// evaluate renders a template of a host or port with the same value for every parameter.
func evaluate(text string, parameters []string, value string) (string, error) {
	t, err := hosttemplate.Parse(text)
	if err != nil {
		return "", err
	}
	values := make(map[string]string, len(parameters))
	for _, name := range parameters {
		values[name] = value
	}
	return t.Render(values)
}
