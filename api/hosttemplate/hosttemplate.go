// Package hosttemplate renders the templates of virtual outbounds, from which host names and ports are made out of tags.
// Which of them may be stored, and what becomes of them, must not differ.
//
// Templates are Go's, of which only what a name needs is admitted: text, parameters, conditions and comparisons. Anyone may
// write one, and loops or formatting would let its author use up the control plane's memory.
package hosttemplate

import (
	"errors"
	"fmt"
	"strings"
	"text/template"
	"text/template/parse"
)

// The longest template, and the longest text that one may give, in bytes. What comes out has to be a host name or a port.
const maxTemplate, maxText = 1024, 4096

// Template is a parsed template. It is safe for concurrent use.
type Template struct{ t *template.Template }

// Parse reads a template.
func Parse(text string) (*Template, error) {
	if len(text) > maxTemplate {
		return nil, fmt.Errorf("longer than %d bytes", maxTemplate)
	}
	t, err := template.New("").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	if len(t.Templates()) > 1 {
		return nil, errors.New("templates inside templates are not supported")
	}
	if t.Tree != nil {
		if err := plain(t.Root); err != nil {
			return nil, err
		}
	}
	return &Template{t}, nil
}

// Render returns what the template gives for the values of its parameters. One without a value is an error.
func (t *Template) Render(values map[string]string) (string, error) {
	var b bounded
	if err := t.t.Execute(&b, values); err != nil {
		return "", err
	}
	return b.String(), nil
}

// bounded is a text of at most maxText bytes.
type bounded struct{ strings.Builder }

func (b *bounded) Write(p []byte) (int, error) {
	if b.Len()+len(p) > maxText {
		return 0, fmt.Errorf("gives more than %d bytes", maxText)
	}
	return b.Builder.Write(p)
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
	return fmt.Errorf("%.128s is not supported", n.String())
}

func plainAll[N parse.Node](nodes []N) error {
	for _, n := range nodes {
		if err := plain(n); err != nil {
			return err
		}
	}
	return nil
}
