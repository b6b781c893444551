package validate

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/template"
	"text/template/parse"

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

// maxTemplate bounds a template, in bytes. What comes out has to be a host name or a port.
const maxTemplate = 1024

// evaluate renders a template of a host or port with the same value for every parameter.
//
// Templates are Go's, of which only what a name needs is admitted: text, parameters, conditions and comparisons. Anyone
// may write one, and loops or formatting would let its author use up the control plane's memory.
func evaluate(text string, parameters []string, value string) (string, error) {
	if len(text) > maxTemplate {
		return "", fmt.Errorf("longer than %d bytes", maxTemplate)
	}
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return "", err
	}
	if len(t.Templates()) > 1 {
		return "", errors.New("templates inside templates are not supported")
	}
	if t.Tree != nil {
		if err := plain(t.Root); err != nil {
			return "", err
		}
	}
	values := make(map[string]string, len(parameters))
	for _, name := range parameters {
		values[name] = value
	}
	var b strings.Builder
	if err := t.Execute(&b, values); err != nil {
		return "", err
	}
	return b.String(), nil
}

// comparisons are the functions that templates may call.
var comparisons = map[string]bool{"eq": true, "ne": true, "and": true, "or": true, "not": true, "len": true, "lt": true, "gt": true, "le": true, "ge": true}

// plain reports what in a template is more than text, parameters, conditions and comparisons.
func plain(n parse.Node) error {
	switch n := n.(type) {
	case nil:
		return nil
	case *parse.ListNode:
		if n == nil {
			return nil
		}
		return plainAll(n.Nodes)
	case *parse.TextNode, *parse.CommentNode, *parse.FieldNode, *parse.StringNode, *parse.NumberNode, *parse.BoolNode, *parse.DotNode:
		return nil
	case *parse.IdentifierNode:
		if comparisons[n.Ident] {
			return nil
		}
	case *parse.ActionNode:
		return plain(n.Pipe)
	case *parse.PipeNode:
		if n == nil {
			return nil
		}
		if len(n.Decl) > 0 {
			return errors.New("variables are not supported")
		}
		return plainAll(n.Cmds)
	case *parse.CommandNode:
		return plainAll(n.Args)
	case *parse.IfNode:
		if err := plain(n.Pipe); err != nil {
			return err
		}
		if err := plain(n.List); err != nil {
			return err
		}
		return plain(n.ElseList)
	}
	return fmt.Errorf("%s is not supported", clip(n.String()))
}

func plainAll[N parse.Node](nodes []N) error {
	for _, n := range nodes {
		if err := plain(n); err != nil {
			return err
		}
	}
	return nil
}
