package server

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"sync"

	"github.com/meridian-mesh/meridian/api/openapi"
)

// description is what this server serves, in three forms, each made when it is first asked for.
type description struct {
	json, yaml, page func() (rendition, error)
}

// rendition is one form of the description: fixed bytes with an entity tag, a weak one because they may be sent compressed.
type rendition struct {
	contentType, etag string
	body              []byte
}

func describe(doc *openapi.Document) description {
	form := func(contentType string, render func() ([]byte, error)) func() (rendition, error) {
		return sync.OnceValues(func() (rendition, error) {
			body, err := render()
			if err != nil {
				return rendition{}, fmt.Errorf("describe the API as %s: %w", contentType, err)
			}
			sum := sha256.Sum256(body)
			return rendition{contentType, `W/"` + hex.EncodeToString(sum[:8]) + `"`, body}, nil
		})
	}
	return description{
		json: form("application/json", doc.JSON),
		yaml: form("application/yaml", doc.YAML),
		page: form("text/html; charset=utf-8", doc.Page),
	}
}

// descriptionRoutes adds the description of the API to the API.
func (s *Server) descriptionRoutes(t table) {
	d := describe(t.doc)
	t.get("/openapi.json", s.sendRendition(d.json), openapi.Description("getOpenAPIJSON", "in JSON", "application/json"))
	t.read("/openapi.yaml", s.sendRendition(d.yaml), openapi.Description("getOpenAPIYAML", "in YAML", "application/yaml"))
	t.read("/docs", s.sendRendition(d.page), openapi.Description("getDocs", "as a page", "text/html"))
}

// sendRendition serves one form of the description.
func (s *Server) sendRendition(form func() (rendition, error)) handlerFunc {
	return func(w http.ResponseWriter, r *http.Request) error {
		f, err := form()
		if err != nil {
			return internal(titleGet, err)
		}
		if done, err := s.unchanged(w, r, f.etag, titleGet); done || err != nil {
			return err
		}
		w.Header().Set("Content-Security-Policy", openapi.PagePolicy)
		o := s.newReply(w, r)
		defer o.release()
		o.contentType, o.tag = f.contentType, f.etag
		o.write(f.body)
		return o.send()
	}
}
