package codec

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// parseJSON parses one JSON value. Its error is an *Error that names line and column, both counted from 1; columns
// count characters.
func parseJSON(text string) (*body, error) {
	p := jsonParser{src: text}
	root, err := p.document()
	if err != nil {
		return nil, err
	}
	return &body{root: root, source: text, repeats: p.repeats}, nil
}

type jsonParser struct {
	src     string
	pos     int
	depth   int
	repeats bool
}

func (p *jsonParser) document() (node, error) {
	if !utf8.ValidString(p.src) {
		for i, r := range p.src {
			if r == utf8.RuneError && !strings.HasPrefix(p.src[i:], "\ufffd") {
				return node{}, p.failAt(i, "not UTF-8")
			}
		}
	}
	n, err := p.value()
	if err != nil {
		return node{}, err
	}
	p.space()
	if p.pos < len(p.src) {
		return node{}, p.failAt(p.pos, "there is more after the end of the value: "+p.here())
	}
	return n, nil
}

func (p *jsonParser) failAt(offset int, message string) error {
	before := p.src[:offset]
	line := 1 + strings.Count(before, "\n")
	column := 1 + utf8.RuneCountInString(before[strings.LastIndexByte(before, '\n')+1:])
	return &Error{Violations: []Violation{{
		Message: fmt.Sprintf("malformed JSON at line %d, column %d: %s", line, column, message),
	}}}
}

// here describes the character at the current position.
func (p *jsonParser) here() string {
	if p.pos >= len(p.src) {
		return "end of the body"
	}
	r, _ := utf8.DecodeRuneInString(p.src[p.pos:])
	return strconv.QuoteRune(r)
}

func (p *jsonParser) space() {
	for p.pos < len(p.src) {
		switch p.src[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

func (p *jsonParser) peek() byte {
	if p.pos < len(p.src) {
		return p.src[p.pos]
	}
	return 0
}

func (p *jsonParser) value() (node, error) {
	p.space()
	n := node{start: p.pos}
	var err error
	switch c := p.peek(); {
	case c == '{':
		n.kind = kindObject
		n.children, err = p.object()
	case c == '[':
		n.kind = kindArray
		n.children, err = p.array()
	case c == '"':
		n.kind = kindString
		n.text, err = p.string()
	case c == '-' || c >= '0' && c <= '9':
		n.kind = kindNumber
		n.text, err = p.number()
	case strings.HasPrefix(p.src[p.pos:], "true"):
		n.kind, n.text = kindBool, "true"
		p.pos += 4
	case strings.HasPrefix(p.src[p.pos:], "false"):
		n.kind, n.text = kindBool, "false"
		p.pos += 5
	case strings.HasPrefix(p.src[p.pos:], "null"):
		n.kind = kindNull
		p.pos += 4
	default:
		return n, p.failAt(p.pos, "expected a value, got "+p.here())
	}
	n.end = p.pos
	return n, err
}

func (p *jsonParser) enter() error {
	if p.depth++; p.depth > maxDepth {
		return p.failAt(p.pos, fmt.Sprintf("nested deeper than %d levels", maxDepth))
	}
	p.pos++
	return nil
}

func (p *jsonParser) object() ([]node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	var members []node
	if p.space(); p.peek() == '}' {
		p.pos++
		return nil, nil
	}
	for {
		p.space()
		if p.peek() != '"' {
			return nil, p.failAt(p.pos, "expected the name of a member in double quotes, got "+p.here())
		}
		name, err := p.string()
		if err != nil {
			return nil, err
		}
		if p.space(); p.peek() != ':' {
			return nil, p.failAt(p.pos, "expected ':' after the name of a member, got "+p.here())
		}
		p.pos++
		n, err := p.value()
		if err != nil {
			return nil, err
		}
		n.name = name
		members = append(members, n)
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			if markRepeats(members) {
				p.repeats = true
			}
			return members, nil
		default:
			return nil, p.failAt(p.pos, "expected ',' or '}' after a member, got "+p.here())
		}
	}
}

func (p *jsonParser) array() ([]node, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer func() { p.depth-- }()
	var elements []node
	if p.space(); p.peek() == ']' {
		p.pos++
		return nil, nil
	}
	for {
		n, err := p.value()
		if err != nil {
			return nil, err
		}
		elements = append(elements, n)
		p.space()
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			return elements, nil
		default:
			return nil, p.failAt(p.pos, "expected ',' or ']' after an element, got "+p.here())
		}
	}
}

// string parses the string at the current position. Without escapes it shares memory with the body.
func (p *jsonParser) string() (string, error) {
	open := p.pos
	p.pos++
	start := p.pos
	var decoded []byte // once an escape was met
	for {
		if p.pos >= len(p.src) {
			return "", p.failAt(open, "the string has no end")
		}
		switch c := p.src[p.pos]; {
		case c == '"':
			rest := p.src[start:p.pos]
			p.pos++
			if decoded == nil {
				return rest, nil
			}
			return string(append(decoded, rest...)), nil
		case c < ' ':
			return "", p.failAt(p.pos, "control characters in a string must be escaped, got "+p.here())
		case c == '\\':
			decoded = append(decoded, p.src[start:p.pos]...)
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			decoded = utf8.AppendRune(decoded, r)
			start = p.pos
		default:
			p.pos++
		}
	}
}

// escape parses what begins with the backslash at the current position.
func (p *jsonParser) escape() (rune, error) {
	at := p.pos
	p.pos += 2
	if p.pos > len(p.src) {
		return 0, p.failAt(at, "the string has no end")
	}
	switch c := p.src[at+1]; c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		r, err := p.hex(at)
		if err != nil || !utf16.IsSurrogate(r) {
			return r, err
		}
		if strings.HasPrefix(p.src[p.pos:], `\u`) {
			p.pos += 2
			low, err := p.hex(at)
			if err != nil {
				return 0, err
			}
			if r = utf16.DecodeRune(r, low); r != utf8.RuneError {
				return r, nil
			}
		}
		return 0, p.failAt(at, "half a surrogate pair")
	default:
		return 0, p.failAt(at, "unknown escape in a string")
	}
}

func (p *jsonParser) hex(at int) (rune, error) {
	if p.pos+4 > len(p.src) {
		return 0, p.failAt(at, `\u needs four hexadecimal digits`)
	}
	v, err := strconv.ParseUint(p.src[p.pos:p.pos+4], 16, 16)
	if err != nil || p.src[p.pos] == '+' {
		return 0, p.failAt(at, `\u needs four hexadecimal digits`)
	}
	p.pos += 4
	return rune(v), nil
}

func (p *jsonParser) number() (string, error) {
	length := numberLength(p.src[p.pos:])
	if length == 0 {
		return "", p.failAt(p.pos, "not a number")
	}
	text := p.src[p.pos : p.pos+length]
	p.pos += length
	switch c := p.peek(); {
	case c >= '0' && c <= '9', c == '.', c == 'e', c == 'E', c == '+', c == '-':
		return "", p.failAt(p.pos, "not a number")
	}
	return text, nil
}

// numberLength returns the length of the longest JSON number that s begins with; 0 when there is none.
func numberLength(s string) int {
	digits := func(i int) int {
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		return i
	}
	i := 0
	if i < len(s) && s[i] == '-' {
		i++
	}
	switch {
	case i < len(s) && s[i] == '0':
		i++
	case digits(i) > i:
		i = digits(i)
	default:
		return 0
	}
	if i < len(s) && s[i] == '.' {
		if end := digits(i + 1); end > i+1 {
			i = end
		}
	}
	if i < len(s) && (s[i] == 'e' || s[i] == 'E') {
		j := i + 1
		if j < len(s) && (s[j] == '+' || s[j] == '-') {
			j++
		}
		if end := digits(j); end > j {
			i = end
		}
	}
	return i
}
