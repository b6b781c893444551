package server

import (
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/pb33f/libopenapi"
	"github.com/pb33f/libopenapi-validator/config"
	"github.com/pb33f/libopenapi-validator/errors"
	"github.com/pb33f/libopenapi-validator/parameters"
	"github.com/pb33f/libopenapi-validator/paths"
	"github.com/pb33f/libopenapi-validator/requests"
	"github.com/pb33f/libopenapi-validator/responses"
	v3 "github.com/pb33f/libopenapi/datamodel/high/v3"
	"go.yaml.in/yaml/v3"
)

// contract holds what a server does against what its description says, by a validator that is not ours. All traffic of
// the tests in this package goes through it; see plane.do.
type contract struct {
	mu            sync.Mutex // the validator writes to the model's nodes while it renders a schema to compile
	options       *config.ValidationOptions
	requestModel  *v3.Document
	parameters    parameters.ParameterValidator
	bodies        requests.RequestBodyValidator
	responseModel *v3.Document
	responses     responses.ResponseBodyValidator
}

// contracts are made once for each distinct description, by its bytes: compiling schemas is what takes time.
var contracts sync.Map // of func() (*contract, error)

func contractOf(document []byte) (*contract, error) {
	made, _ := contracts.LoadOrStore(string(document), sync.OnceValues(func() (*contract, error) {
		doc, err := libopenapi.NewDocument(document)
		if err != nil {
			return nil, fmt.Errorf("parse: %w", err)
		}
		model, err := doc.BuildV3Model()
		if err != nil {
			return nil, fmt.Errorf("build model: %w", err)
		}
		strict, err := withoutMore(document)
		if err != nil {
			return nil, err
		}
		strictDoc, err := libopenapi.NewDocument(strict)
		if err != nil {
			return nil, fmt.Errorf("parse: %w", err)
		}
		strictModel, err := strictDoc.BuildV3Model()
		if err != nil {
			return nil, fmt.Errorf("build model: %w", err)
		}
		opts := []config.Option{config.WithoutSecurityValidation(), config.WithStandardBodyDecoders(), config.WithFormatAssertions()}
		return &contract{
			options: config.NewValidationOptions(opts...),
			// Not the validator of whole requests: it compiles all schemas at once, of which the tests need few.
			requestModel:  &model.Model,
			parameters:    parameters.NewParameterValidator(&model.Model, opts...),
			bodies:        requests.NewRequestBodyValidator(&model.Model, opts...),
			responseModel: &strictModel.Model,
			responses:     responses.NewResponseBodyValidator(&strictModel.Model, opts...),
		}, nil
	}))
	return made.(func() (*contract, error))()
}

// withoutMore returns a document whose objects have no members but those that are described. What clients may rely on
// is that described members are there; what the tests hold the server to is that there are no others.
func withoutMore(document []byte) ([]byte, error) {
	var root any
	if err := json.Unmarshal(document, &root); err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	var walk func(v any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			_, fields := v["properties"].(map[string]any)
			if _, said := v["additionalProperties"]; fields && !said && v["type"] == "object" {
				v["additionalProperties"] = false
			}
			for _, child := range v {
				walk(child)
			}
		case []any:
			for _, child := range v {
				walk(child)
			}
		}
	}
	walk(root)
	return json.Marshal(root)
}

// transportHeaders are about the transport of an answer, not about its meaning, and are not described.
var transportHeaders = []string{
	"Vary", "X-Content-Type-Options", "X-Accel-Buffering", "Content-Encoding", "Content-Length", "Connection",
	"Content-Type", "Content-Security-Policy", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers",
}

// check holds one exchange against the description. The request is held against it when it was accepted: tests send
// wrong ones on purpose.
func (c *contract) check(r *http.Request, body string, a answer) error {
	request, ok := described(r)
	if !ok {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	item, errs, pattern := paths.FindPath(request, c.responseModel, c.options)
	if item == nil || item.GetOperations().GetOrZero(strings.ToLower(r.Method)) == nil {
		// What is not described must not be there; strangers are not even told that.
		switch a.Status {
		case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusUnauthorized:
		default:
			return fmt.Errorf("answered %d, but is not described: %w", a.Status, violations(errs))
		}
		return nil
	}
	if a.Status < 300 {
		request.Body = io.NopCloser(strings.NewReader(withoutNulls(body, r.Header.Get("Content-Type"))))
		item, _, pattern := paths.FindPath(request, c.requestModel, c.options)
		for _, validate := range []func(*http.Request, *v3.PathItem, string) (bool, []*errors.ValidationError){
			c.parameters.ValidatePathParamsWithPathItem, c.parameters.ValidateQueryParamsWithPathItem,
			c.parameters.ValidateHeaderParamsWithPathItem, c.bodies.ValidateRequestBodyWithPathItem,
		} {
			if ok, errs := validate(request, item, pattern); !ok {
				return fmt.Errorf("was accepted, but is not as described: %w", violations(errs))
			}
		}
	}
	content := io.Reader(strings.NewReader(a.Body))
	if a.Header.Get("Content-Encoding") == "gzip" {
		var err error
		if content, err = gzip.NewReader(content); err != nil {
			return fmt.Errorf("answer %d: %w", a.Status, err)
		}
	}
	known := item.GetOperations().GetOrZero(strings.ToLower(r.Method)).Responses.Codes.GetOrZero(strconv.Itoa(a.Status))
	if known == nil {
		return fmt.Errorf("answer %d is not described", a.Status)
	}
	var headers []string
	if known.Headers != nil {
		headers = slices.Collect(known.Headers.KeysFromOldest())
	}
	for name := range a.Header {
		if !slices.ContainsFunc(append(headers, transportHeaders...), func(h string) bool { return strings.EqualFold(h, name) }) {
			return fmt.Errorf("answer %d has the header %s, which is not described", a.Status, name)
		}
	}
	response := &http.Response{StatusCode: a.Status, Header: a.Header, Body: io.NopCloser(content), Request: request}
	if a.Body == "" && a.Status < 300 && request.Method != http.MethodGet {
		// A write that is not a dry run has no body. OpenAPI cannot say so where there may be one.
		if ok, errs := responses.ValidateResponseHeaders(request, response, known.Headers, pattern, strconv.Itoa(a.Status)); !ok {
			return fmt.Errorf("answer %d is not as described: %w", a.Status, violations(errs))
		}
		return nil
	}
	if ok, errs := c.responses.ValidateResponseBodyWithPathItem(request, response, item, pattern); !ok {
		return fmt.Errorf("answer %d is not as described: %w", a.Status, violations(errs))
	}
	return nil
}

// described returns the request in the form in which the description knows it, false for the few that it does not know:
//
//   - HEAD, which the description's introduction covers as a whole: an answer without a body fits no schema;
//   - preflight requests, which are the browser's own;
//   - paths that end in a slash, of which the server knows no resource: the validator takes one for an empty name.
//
// Other spellings of a path are described as that path, those of true and false as these, and a query parameter without
// a value as none.
func described(r *http.Request) (*http.Request, bool) {
	path := canonical(r.URL.Path)
	if r.Method == http.MethodHead || path != "/" && strings.HasSuffix(path, "/") ||
		r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		return nil, false
	}
	query := r.URL.Query()
	maps.DeleteFunc(query, func(_ string, values []string) bool { return slices.Equal(values, []string{""}) })
	for _, flag := range []string{"strict", "dryRun", "watch"} {
		if on, err := strconv.ParseBool(query.Get(flag)); err == nil {
			query.Set(flag, strconv.FormatBool(on))
		}
	}
	clone := r.Clone(r.Context())
	clone.URL = &url.URL{Scheme: "http", Host: r.Host, Path: path, RawQuery: query.Encode()}
	return clone, true
}

// withoutNulls leaves out members that are null: the introduction says that they stand for absence anywhere.
func withoutNulls(body, contentType string) string {
	var v any
	if yaml.Unmarshal([]byte(body), &v) != nil { // JSON is YAML
		return body
	}
	var drop func(v any)
	drop = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			maps.DeleteFunc(v, func(_ string, member any) bool { return member == nil })
			for _, member := range v {
				drop(member)
			}
		case []any:
			for _, element := range v {
				drop(element)
			}
		}
	}
	drop(v)
	marshal := json.Marshal
	if strings.Contains(contentType, "yaml") {
		marshal = yaml.Marshal
	}
	out, err := marshal(v)
	if err != nil {
		return body
	}
	return string(out)
}

func violations(errs []*errors.ValidationError) error {
	var b bytes.Buffer
	for _, e := range errs {
		fmt.Fprintf(&b, "%s: %s", e.Message, e.Reason)
		for _, s := range e.SchemaValidationErrors {
			fmt.Fprintf(&b, "; %s at %v (%s)", s.Reason, s.InstancePath, s.KeywordLocation)
		}
		b.WriteByte('\n')
	}
	return fmt.Errorf("%s", strings.TrimSpace(b.String()))
}

// contract returns the contract of the plane's description.
func (p *plane) contract() *contract {
	p.t.Helper()
	p.describe.Do(func() {
		document, err := p.srv.doc.JSON()
		if err != nil {
			p.t.Fatal(err)
		}
		if p.described, err = contractOf(document); err != nil {
			p.t.Fatal(err)
		}
	})
	return p.described
}
