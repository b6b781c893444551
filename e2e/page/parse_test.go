package page

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// Page is what a machine needs of the documentation page.
type Page struct {
	// Endpoints are the paths of the list at the top, with parameters in braces.
	Endpoints []string  `json:"endpoints"`
	Examples  []Example `json:"examples"`
}

// Example is one example of the page: a call, and what goes with it.
type Example struct {
	// Line is where the example begins on the page.
	Line int `json:"line"`
	// Request is the documented call, e.g. "GET /meshes/{name}", as it stands before the example; empty when there is none.
	Request string `json:"request,omitempty"`
	// Statuses are the documented ones; none: the page does not say.
	Statuses []int `json:"statuses,omitempty"`
	// Curl is the command line; empty for an example that shows a body alone.
	Curl string `json:"curl,omitempty"`
	// Body is what is sent, Answer what comes back; either may be missing.
	Body   json.RawMessage `json:"body,omitempty"`
	Answer json.RawMessage `json:"answer,omitempty"`
	// Repaired names the slips of the printed JSON.
	Repaired []string `json:"repaired,omitempty"`
}

// Call is what a curl command does.
type Call struct {
	Method, Path string
	Headers      [][2]string
	// Data is the body; "@" and a file name stands for one.
	Data string
}

var (
	endpointLine = regexp.MustCompile(`^- (/\S+)$`)
	requestLine  = regexp.MustCompile(`^Request: ([A-Z]+ /\S*)`)
	statusWord   = regexp.MustCompile(`\b[1-5]\d\d\b`)
)

// Parse reads the text of the page. Every curl line and every block of JSON is part of an example.
func Parse(r io.Reader) (*Page, error) {
	var p Page
	var request string
	var statuses []int
	var current *Example // whose parts are being read
	begin := func(line int) *Example {
		p.Examples = append(p.Examples, Example{Line: line, Request: request, Statuses: statuses})
		return &p.Examples[len(p.Examples)-1]
	}
	lines := &lineReader{s: bufio.NewScanner(r)}
	for lines.next() {
		text, at := lines.text, lines.number
		switch {
		case endpointLine.MatchString(text):
			p.Endpoints = append(p.Endpoints, endpointLine.FindStringSubmatch(text)[1])
		case strings.HasPrefix(text, "Request: "):
			m := requestLine.FindStringSubmatch(text)
			if m == nil {
				return nil, fmt.Errorf("line %d: no method and path in %q", at, text)
			}
			request, statuses, current = m[1], nil, nil
		case strings.HasPrefix(text, "Response: "):
			for _, s := range statusWord.FindAllString(text, -1) {
				n, _ := strconv.Atoi(s) // three digits
				statuses = append(statuses, n)
			}
			if current != nil {
				current.Statuses = statuses
			}
		case strings.HasPrefix(text, "curl "):
			command, err := lines.command()
			if err != nil {
				return nil, err
			}
			current = begin(at)
			current.Curl = command
		case strings.HasPrefix(text, "{"), strings.HasPrefix(text, "["):
			block, err := lines.block()
			if err != nil {
				return nil, err
			}
			body, repaired, err := repair(block)
			if err != nil {
				return nil, fmt.Errorf("line %d: %w", at, err)
			}
			if current == nil || current.Curl != "" && (current.Body != nil || current.Answer != nil) {
				current = begin(at)
			}
			current.Repaired = repaired
			switch {
			case current.Curl == "" && !strings.HasPrefix(request, "GET") && request != "":
				current.Body = body
				current = nil
			case strings.Contains(current.Curl, "--data @"):
				current.Body = body
			default:
				current.Answer = body
			}
		case headingAfter(request, text):
			request, statuses, current = "", nil, nil
		}
	}
	if err := lines.s.Err(); err != nil {
		return nil, fmt.Errorf("read the page: %w", err)
	}
	if len(p.Endpoints) == 0 || len(p.Examples) == 0 {
		return nil, errors.New("no endpoints or no examples: is this the page?")
	}
	return &p, nil
}

// headingAfter reports that a new subject begins: an example below it has no documented call unless one follows.
func headingAfter(request, text string) bool {
	return request != "" && strings.HasPrefix(text, "Generate ")
}

// lineReader reads the page line by line; a command or a block may take several.
type lineReader struct {
	s      *bufio.Scanner
	text   string
	number int
}

func (l *lineReader) next() bool {
	if !l.s.Scan() {
		return false
	}
	l.text, l.number = strings.TrimRight(l.s.Text(), " \r"), l.number+1
	return true
}

// command reads a command that goes on while lines end in a backslash.
func (l *lineReader) command() (string, error) {
	command := l.text
	for strings.HasSuffix(command, `\`) {
		if !l.next() {
			return "", fmt.Errorf("line %d: the command does not end", l.number)
		}
		command = strings.TrimRight(strings.TrimSuffix(command, `\`), " ") + " " + strings.TrimSpace(l.text)
	}
	return command, nil
}

// block reads JSON up to the line that closes its first bracket, or to the end of the page.
func (l *lineReader) block() (string, error) {
	var b strings.Builder
	depth := 0
	for {
		quoted := false
		for i := 0; i < len(l.text); i++ {
			switch c := l.text[i]; {
			case c == '\\':
				i++
			case c == '"':
				quoted = !quoted
			case quoted:
			case c == '{' || c == '[':
				depth++
			case c == '}' || c == ']':
				depth--
			}
		}
		if quoted {
			return "", fmt.Errorf("line %d: a string goes over its end", l.number)
		}
		b.WriteString(l.text + "\n")
		if depth <= 0 || !l.next() {
			return b.String(), nil
		}
	}
}

// Call says what the example's curl command does.
func (e Example) Call() (Call, error) {
	words, err := split(e.Curl)
	if err != nil {
		return Call{}, fmt.Errorf("%s: %w", e.Curl, err)
	}
	var c Call
	var target string
	for i := 1; i < len(words); i++ {
		argument := func() string { i++; return words[min(i, len(words)-1)] }
		switch w := words[i]; {
		case w == "-X":
			c.Method = argument()
		case strings.HasPrefix(w, "-X"):
			c.Method = w[2:]
		case w == "-H", strings.HasPrefix(w, "-H"):
			header := w[2:]
			if header == "" {
				header = argument()
			}
			name, value, _ := strings.Cut(header, ": ")
			c.Headers = append(c.Headers, [2]string{name, value})
		case w == "--data":
			c.Data = argument()
		case strings.HasPrefix(w, "-"):
			return Call{}, fmt.Errorf("%s: option %s is not known", e.Curl, w)
		default:
			target = w
		}
	}
	if !strings.Contains(target, "://") {
		target = "http://" + target
	}
	u, err := url.Parse(target)
	if err != nil || u.Host != "localhost:5681" {
		return Call{}, fmt.Errorf("%s: %q is no address of the API", e.Curl, target)
	}
	c.Path = u.RequestURI()
	if c.Method == "" {
		c.Method = "GET"
	}
	return c, nil
}

// split splits a command line into words, as a shell does where nothing is to be expanded.
func split(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	var quote rune
	begun := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, begun = r, true
		case quote == 0 && r == ' ':
			if begun {
				words = append(words, word.String())
				word.Reset()
			}
			begun = false
		default:
			word.WriteRune(r)
			begun = true
		}
	}
	if quote != 0 {
		return nil, errors.New("a quote does not end")
	}
	if begun {
		words = append(words, word.String())
	}
	return words, nil
}

const samplePage = `Things
The endpoints available are:
- /things
- /things/{name}
Some words about - /things and GET.
{
  "items": [...]
}
Get Thing
Request: GET /things/{name}
Response: 200 OK with Thing
Example:
curl http://localhost:5681/things/a
{
 "name": "a"
 "text": "{ \" ["
}
Another example:
curl localhost:5681/things/b
[]
Create Thing
Request: PUT /things/{name} with Thing in body
Response: 201 Created when new and 200 OK otherwise
curl -XPUT http://localhost:5681/things/a --data @thing.json -H'content-type: application/json'
{ "name": "a" }
Delete Thing
Request: DELETE /things/{name}
Response: 200 OK
curl -XDELETE http://localhost:5681/things/a
Generate Token
Request: PUT /tokens/thing with the following body:
{ "thing": "a" }
Response: 200 OK
curl -XPOST \ 
  -H "Content-Type: application/json" \
  --data '{"thing": "a b"}' \
  http://localhost:5681/tokens/thing
Generate Other Token
curl -XPOST http://localhost:5681/tokens/other
`

func TestParse(t *testing.T) {
	got, err := Parse(strings.NewReader(samplePage))
	if err != nil {
		t.Fatal(err)
	}
	raw := func(s string) json.RawMessage { return json.RawMessage(s) }
	want := &Page{
		Endpoints: []string{"/things", "/things/{name}"},
		Examples: []Example{
			{Line: 6, Answer: raw(`{"items":[]}`), Repaired: []string{"ellipsis"}},
			{
				Line: 13, Request: "GET /things/{name}", Statuses: []int{200}, Curl: "curl http://localhost:5681/things/a",
				Answer: raw(`{"name":"a","text":"{ \" ["}`), Repaired: []string{"comma missing"},
			},
			{Line: 19, Request: "GET /things/{name}", Statuses: []int{200}, Curl: "curl localhost:5681/things/b", Answer: raw(`[]`)},
			{
				Line: 24, Request: "PUT /things/{name}", Statuses: []int{201, 200},
				Curl: "curl -XPUT http://localhost:5681/things/a --data @thing.json -H'content-type: application/json'",
				Body: raw(`{"name":"a"}`),
			},
			{Line: 29, Request: "DELETE /things/{name}", Statuses: []int{200}, Curl: "curl -XDELETE http://localhost:5681/things/a"},
			{Line: 32, Request: "PUT /tokens/thing", Body: raw(`{"thing":"a"}`)},
			{
				Line: 34, Request: "PUT /tokens/thing", Statuses: []int{200},
				Curl: `curl -XPOST -H "Content-Type: application/json" --data '{"thing": "a b"}' http://localhost:5681/tokens/thing`,
			},
			{Line: 39, Curl: "curl -XPOST http://localhost:5681/tokens/other"},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	call, err := got.Examples[6].Call()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Call{
		Method: "POST", Path: "/tokens/thing", Headers: [][2]string{{"Content-Type", "application/json"}}, Data: `{"thing": "a b"}`,
	}, call); diff != "" {
		t.Error(diff)
	}
	call, err = got.Examples[3].Call()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Call{
		Method: "PUT", Path: "/things/a", Headers: [][2]string{{"content-type", "application/json"}}, Data: "@thing.json",
	}, call); diff != "" {
		t.Error(diff)
	}
}

func TestParseRefusesWhatItDoesNotUnderstand(t *testing.T) {
	for _, text := range []string{
		"", "- /things\n", "- /things\nRequest: things\n", "- /things\n{ \"a\n}\n", "- /things\n{ ] }\n", "- /things\ncurl \\",
	} {
		if p, err := Parse(strings.NewReader(text)); err == nil {
			t.Errorf("%q was read as %+v", text, p)
		}
	}
	for _, curl := range []string{"curl -k http://localhost:5681/", "curl http://elsewhere/", "curl", "curl 'http://localhost:5681/"} {
		if c, err := (Example{Curl: curl}).Call(); err == nil {
			t.Errorf("%q was read as %+v", curl, c)
		}
	}
}
