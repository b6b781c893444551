package server

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"strconv"
	"strings"
)

const (
	// gzipMinBytes is the smallest body worth compressing: below, it fits one packet anyway.
	gzipMinBytes = 1 << 10
	// streamBytes is how much of a body is held back. Up to that, the answer has a Content-Length and can still turn
	// into an error; a larger one is sent piece by piece.
	streamBytes = 1 << 20
)

// reply collects the body of a 200 answer in a pooled buffer.
type reply struct {
	s *Server
	w http.ResponseWriter
	r *http.Request

	contentType string
	// tag is the entity tag of the body, "" when it has none. A strong one says that the bytes are the same each time,
	// so such a body is never compressed: the compressed one would be another, and clients send back what they saw.
	tag string

	buf    *bytes.Buffer
	gz     *gzip.Writer // nil until the body is being sent compressed
	begun  bool         // the header is out
	broken bool         // the client is gone: what follows is thrown away
	length int          // of what flush dropped for HEAD
}

// newReply starts a body of JSON. release must be called in any case; send only when the body is whole.
func (s *Server) newReply(w http.ResponseWriter, r *http.Request) *reply {
	buf, ok := s.buffers.Get().(*bytes.Buffer)
	if !ok {
		buf = new(bytes.Buffer)
	}
	return &reply{s: s, w: w, r: r, contentType: "application/json", buf: buf}
}

func (o *reply) write(p []byte) {
	o.buf.Write(p)
	if o.buf.Len() >= streamBytes {
		o.flush()
	}
}

func (o *reply) writeString(p string) { o.buf.WriteString(p) }

func (o *reply) writeInt(n int) {
	o.buf.Write(strconv.AppendInt(o.buf.AvailableBuffer(), int64(n), 10))
}

// begin sends the header.
func (o *reply) begin(whole bool) {
	o.begun = true
	h := o.w.Header()
	h.Set("Content-Type", o.contentType)
	h.Set("X-Content-Type-Options", "nosniff")
	strong := strings.HasPrefix(o.tag, `"`)
	if o.tag != "" {
		h.Set("ETag", o.tag)
	}
	if !strong {
		h.Add("Vary", "Accept-Encoding")
	}
	head := o.r.Method == http.MethodHead
	switch {
	case !head && !strong && o.buf.Len() > gzipMinBytes && acceptsGzip(o.r):
		h.Set("Content-Encoding", "gzip")
		gz, ok := o.s.gzips.Get().(*gzip.Writer)
		if !ok {
			gz, _ = gzip.NewWriterLevel(nil, gzip.BestSpeed) // the level is valid
		}
		gz.Reset(o.w)
		o.gz = gz
	case whole:
		h.Set("Content-Length", strconv.Itoa(o.length+o.buf.Len()))
	}
	o.w.WriteHeader(http.StatusOK)
}

// flush sends what has been collected. A failed write means that the client is gone.
func (o *reply) flush() {
	if o.r.Method == http.MethodHead {
		o.length += o.buf.Len()
		o.buf.Reset()
		return
	}
	if !o.begun {
		o.begin(false)
	}
	if !o.broken {
		var err error
		if o.gz != nil {
			_, err = o.gz.Write(o.buf.Bytes())
		} else {
			_, err = o.w.Write(o.buf.Bytes())
		}
		o.broken = err != nil
	}
	o.buf.Reset()
}

// send completes the answer.
func (o *reply) send() error {
	if !o.begun {
		o.begin(true)
	}
	if o.r.Method == http.MethodHead {
		return nil
	}
	o.flush()
	if o.gz != nil && !o.broken {
		o.broken = o.gz.Close() != nil
	}
	return nil
}

// fail returns err while it can still be answered; after that it cuts the connection.
func (o *reply) fail(err error) error {
	if !o.begun {
		return err
	}
	o.s.log.ErrorContext(o.r.Context(), "answer cut off", "path", o.r.URL.Path, "err", err)
	panic(http.ErrAbortHandler)
}

// release gives the buffers back. Very large ones are left to the collector.
func (o *reply) release() {
	if o.buf.Cap() <= 4*streamBytes {
		o.buf.Reset()
		o.s.buffers.Put(o.buf)
	}
	if o.gz != nil {
		o.gz.Reset(nil)
		o.s.gzips.Put(o.gz)
	}
	o.buf, o.gz = nil, nil
}

// sendJSON answers 200 with a whole body.
func (s *Server) sendJSON(w http.ResponseWriter, r *http.Request, body []byte) error {
	return s.sendTagged(w, r, body, "")
}

// sendTagged answers 200 with a whole body and its entity tag, "" for none.
func (s *Server) sendTagged(w http.ResponseWriter, r *http.Request, body []byte, tag string) error {
	o := s.newReply(w, r)
	o.tag = tag
	defer o.release()
	o.write(body)
	return o.send()
}

func acceptsGzip(r *http.Request) bool {
	values := r.Header["Accept-Encoding"]
	if len(values) == 0 {
		return false
	}
	others := false
	for element := range elements(values) {
		switch name, q := quality(element); name {
		case "gzip":
			return q > 0
		case "*":
			others = q > 0
		}
	}
	return others
}
