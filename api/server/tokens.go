package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"time"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/openapi"
	"github.com/meridian-mesh/meridian/api/tokens"
	"github.com/meridian-mesh/meridian/common/store"
)

// Titles of errors about tokens.
const (
	titleTokenRequest = "Invalid request"
	titleNoSigningKey = "Signing Key not found"
	titleIssueToken   = "Could not issue a token"
)

const (
	// maxTokenRequestBytes is much more than what fits a token.
	maxTokenRequestBytes = 64 << 10
	// defaultTokenLife is that of tokens whose request does not say.
	defaultTokenLife = 10 * 365 * 24 * time.Hour
	minTokenLife     = time.Second
	maxTokenLife     = 10 * defaultTokenLife

	mustNotBeEmpty = "cannot be empty"
)

// proxyTypes are the values of type in requests for tokens of proxies.
var proxyTypes = []string{"", "dataplane", "ingress", "egress"}

// tokenRequest is the body of every request for a token; each kind knows some of the fields.
type tokenRequest struct {
	name, mesh, typ, zone, validFor string
	tags                            map[string][]string
	scope, groups                   []string
}

// tokenField is a field that the requests of a kind have.
type tokenField struct {
	name string
	// into is where the value goes: a *string, *[]string or *map[string][]string.
	into     func(*tokenRequest) any
	required bool
}

// tokenKind is one kind of token as it is asked for over HTTP.
type tokenKind struct {
	kind   tokens.Kind
	paths  []string
	grant  Grant
	fields []tokenField
}

func (s *Server) tokenKinds() []tokenKind {
	var (
		name     = tokenField{name: "name", into: func(t *tokenRequest) any { return &t.name }}
		mesh     = tokenField{name: "mesh", into: func(t *tokenRequest) any { return &t.mesh }}
		tags     = tokenField{name: "tags", into: func(t *tokenRequest) any { return &t.tags }}
		typ      = tokenField{name: "type", into: func(t *tokenRequest) any { return &t.typ }}
		zone     = tokenField{name: "zone", into: func(t *tokenRequest) any { return &t.zone }}
		scope    = tokenField{name: "scope", into: func(t *tokenRequest) any { return &t.scope }}
		groups   = tokenField{name: "groups", into: func(t *tokenRequest) any { return &t.groups }}
		validFor = tokenField{name: "validFor", into: func(t *tokenRequest) any { return &t.validFor }}
	)
	needs := func(f tokenField) tokenField { f.required = true; return f }
	return []tokenKind{
		{tokens.Dataplane, []string{"/tokens/dataplane", "/tokens"}, s.access.GenerateDataplaneToken, []tokenField{name, needs(mesh), tags, typ, validFor}},
		{tokens.ZoneIngress, []string{"/tokens/zone-ingress"}, s.access.GenerateZoneToken, []tokenField{needs(zone), validFor}},
		{tokens.Zone, []string{"/tokens/zone"}, s.access.GenerateZoneToken, []tokenField{zone, needs(scope), validFor}},
		{tokens.User, []string{"/tokens/user"}, s.access.GenerateUserToken, []tokenField{needs(name), groups, needs(validFor)}},
	}
}

// tokenRoutes registers the endpoints that issue tokens. They are the same on both planes; what a plane can issue depends
// on the keys it has. PUT does what POST does, because clients of the reference may use either.
func (s *Server) tokenRoutes(t table) {
	for _, k := range s.tokenKinds() {
		h := s.issueToken(k)
		for _, path := range k.paths {
			for _, method := range [...]string{http.MethodPost, http.MethodPut} {
				t.handle(method, path, h, openapi.IssueToken(method, path, k.kind.String(), k.schema(t.doc)))
			}
		}
	}
}

// schema describes a request for a token of the kind.
func (k *tokenKind) schema(doc *openapi.Document) *openapi.Schema {
	object := &openapi.Schema{Type: openapi.Types{"object"}}
	for _, f := range k.fields {
		into := reflect.ValueOf(f.into(&tokenRequest{})).Elem()
		member := doc.Of(into.Interface())
		switch f.name {
		case "validFor":
			member.Description = "How long the token is valid, such as 720h. Ten years when nothing is said."
		case "type":
			member.Enum = proxyTypes
		}
		if f.required {
			object.Required = append(object.Required, f.name)
		} else {
			member.Type = append(member.Type, "null")
		}
		object.Properties = append(object.Properties, openapi.Property{Name: f.name, Schema: member})
	}
	return doc.Named("TokenRequest."+k.kind.String(), object)
}

// issueToken serves requests for a kind of token, and leaves one audit line for each, whatever the outcome.
func (s *Server) issueToken(k tokenKind) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		u := userOf(r)
		raw, issued, err := s.newToken(w, r, u, k)
		status, outcome := http.StatusOK, "issued"
		if err != nil {
			status = s.fail(w, r, err)
			outcome = failure(status)
		} else {
			w.Header().Set("Cache-Control", "no-store")
			sendBody(w, status, "text/plain", []byte(raw))
		}
		attrs := []any{"action", "issue", "outcome", outcome, "status", status, "kind", k.kind.String()}
		if err == nil {
			attrs = append(attrs, "mesh", issued.Mesh, "zone", issued.Zone, "name", issued.Name, "groups", issued.Groups,
				"scope", issued.Scope, "token_id", issued.ID, "key", issued.KeyID, "expires", issued.Expires)
		}
		s.log.InfoContext(r.Context(), "token", append(attrs, "user", u.String(), "remote", r.RemoteAddr)...)
	}
}

func (s *Server) newToken(w http.ResponseWriter, r *http.Request, u user, k tokenKind) (string, tokens.Claims, error) {
	if !k.grant.allows(u) {
		return "", tokens.Claims{}, denied("action not allowed")
	}
	req, validFor, err := k.read(w, r)
	if err != nil {
		return "", tokens.Claims{}, err
	}
	var issued tokens.Claims
	raw, err := planned(r.Context(), s, titleIssueToken, func(snap *store.Snapshot) (raw string, err error) {
		raw, issued, err = s.tokens.Issue(snap, k.kind, tokens.Claims{
			Name: req.name, Mesh: req.mesh, Tags: req.tags, Type: req.typ, Zone: req.zone, Scope: req.scope, Groups: req.groups,
		}, validFor)
		return raw, err
	})
	if _, said := errors.AsType[*problem](err); said {
		return "", tokens.Claims{}, err
	}
	switch {
	case err == nil:
	case errors.Is(err, tokens.ErrNoKey):
		err = &problem{status: http.StatusNotFound, Title: titleNoSigningKey, Details: err.Error()}
	case errors.Is(err, tokens.ErrInvalid):
		err = invalid(titleTokenRequest, cause{"", err.Error()})
	default:
		err = internal(titleIssueToken, err)
	}
	return raw, issued, err
}

// read reads and checks a request for a token, and returns how long the token shall be valid.
func (k *tokenKind) read(w http.ResponseWriter, r *http.Request) (tokenRequest, time.Duration, error) {
	var req tokenRequest
	mediaType, err := bodyMediaType(r)
	if err != nil {
		return req, 0, err
	}
	opts, err := writeOptionsOf(r, "dryRun", "wait")
	if err != nil {
		return req, 0, err
	}
	body, err := readBody(w, r, titleTokenRequest, maxTokenRequestBytes)
	if err != nil {
		return req, 0, err
	}
	if body, err = codec.JSON(mediaType, body); err != nil {
		return req, 0, undecodable(titleTokenRequest, err)
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(body, &members); err != nil || members == nil {
		return req, 0, invalid(titleTokenRequest, cause{"", "must be an object"})
	}
	causes := k.fill(&req, members)
	for _, unknown := range k.unknown(members) {
		if opts.strict {
			causes = append(causes, cause{unknown, "unknown field"})
		} else {
			w.Header().Add("Warning", warning("unknown field "+unknown))
		}
	}
	validFor, c := tokenLife(req.validFor)
	causes = append(causes, c...)
	if !slices.Contains(proxyTypes, req.typ) {
		causes = append(causes, cause{"type", req.typ + " is not a valid proxy type"})
	}
	if len(causes) > 0 {
		return req, 0, invalid(titleTokenRequest, causes...)
	}
	return req, validFor, nil
}

// fill sets the fields of req that the kind knows, and returns what is wrong with them.
func (k *tokenKind) fill(req *tokenRequest, members map[string]json.RawMessage) (causes []cause) {
	for _, f := range k.fields {
		into := f.into(req)
		if value, ok := members[f.name]; ok && json.Unmarshal(value, into) != nil {
			want := "must be a string"
			switch into.(type) {
			case *[]string:
				want = "must be a list of strings"
			case *map[string][]string:
				want = "must be an object of lists of strings"
			}
			causes = append(causes, cause{f.name, want})
			continue
		}
		if !f.required {
			continue
		}
		switch v := into.(type) {
		case *string:
			if *v == "" {
				causes = append(causes, cause{f.name, mustNotBeEmpty})
			}
		case *[]string:
			if *v == nil { // an empty list is what was asked for
				causes = append(causes, cause{f.name, mustNotBeEmpty})
			}
		}
	}
	return causes
}

// unknown returns the names of members that the kind does not know, sorted; no more than a header of each may be made.
func (k *tokenKind) unknown(members map[string]json.RawMessage) []string {
	var names []string
	for name := range members {
		if !slices.ContainsFunc(k.fields, func(f tokenField) bool { return f.name == name }) {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names[:min(len(names), maxWarnings)]
}

// tokenLife reads validFor.
func tokenLife(text string) (time.Duration, []cause) {
	if text == "" {
		return defaultTokenLife, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, []cause{{"validFor", "is invalid: " + err.Error()}}
	}
	if d < minTokenLife || d > maxTokenLife {
		return 0, []cause{{"validFor", fmt.Sprintf("must be between %s and %dh", minTokenLife, maxTokenLife/time.Hour)}}
	}
	return d, nil
}
