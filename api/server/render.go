package server

import (
	"bytes"
	"encoding/json"
	"fmt"

	"github.com/maypok86/otter/v2"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// renders keeps the JSON of records, made on first read. Its keys are the records themselves: a record never changes,
// and a new version is a new record, so nothing has to be invalidated. What is no longer read is pushed out.
//
// The form kept is the one of a list's item, whose lines are indented by two more than those of a resource on its own:
// lists are what must be fast, and they become a concatenation.
type renders struct {
	cache *otter.Cache[renderKey, []byte] // nil: nothing is kept
}

// renderKey names one rendered form.
type renderKey struct {
	main    *store.Record
	insight *store.Record // of an overview; nil when it has none
	form    form
	part    string // service name, for parts of a ServiceInsight
}

type form uint8

const (
	formResource form = iota
	formOverview
	formService
	formLine
	formServiceLine
	formOverviewLine
	formFlat
)

// entryOverheadBytes is charged for each entry beside its bytes: key, node and slice headers.
const entryOverheadBytes = 256

// newRenders returns a cache of at most maxBytes, counting the specifications of the records it keeps alive.
func newRenders(maxBytes int64) *renders {
	if maxBytes <= 0 {
		return &renders{}
	}
	return &renders{cache: otter.Must(&otter.Options[renderKey, []byte]{
		MaximumWeight: uint64(maxBytes),
		Weigher: func(k renderKey, v []byte) uint32 {
			n := len(v) + len(k.main.Spec) + len(k.part) + entryOverheadBytes
			if k.insight != nil {
				n += len(k.insight.Spec)
			}
			return uint32(min(n, 1<<31))
		},
		// Upkeep runs on the caller: no goroutine outlives a request.
		Executor: func(fn func()) { fn() },
	})}
}

// item returns what k names in the form of codec.EncodeItem, which render makes when it is not kept. The bytes are
// shared and must not be changed.
func (c *renders) item(k renderKey, render func() ([]byte, error)) ([]byte, error) {
	if c.cache != nil {
		if b, ok := c.cache.GetIfPresent(k); ok {
			return b, nil
		}
	}
	b, err := render()
	if err != nil {
		return nil, fmt.Errorf("render %s: %w", k.main.Key, err)
	}
	if c.cache != nil {
		c.cache.Set(k, b)
	}
	return b, nil
}

// resource returns rec as a list's item.
func (c *renders) resource(d *resource.Descriptor, rec *store.Record) ([]byte, error) {
	return c.item(renderKey{main: rec}, func() ([]byte, error) { return codec.EncodeItem(d, rec) })
}

// line returns rec as one line of JSON.
func (c *renders) line(d *resource.Descriptor, rec *store.Record) ([]byte, error) {
	return c.item(renderKey{main: rec, form: formLine}, func() ([]byte, error) {
		item, err := codec.EncodeItem(d, rec)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		return oneLine(item)
	})
}

// flat returns a policy as one line of JSON, with the specification of a targetRef policy not nested.
func (c *renders) flat(d *resource.Descriptor, rec *store.Record) ([]byte, error) {
	if !d.IsJSON() {
		return c.line(d, rec)
	}
	return c.item(renderKey{main: rec, form: formFlat}, func() ([]byte, error) {
		doc, err := codec.EncodeFlat(rec)
		if err != nil {
			return nil, fmt.Errorf("encode: %w", err)
		}
		return oneLine(doc)
	})
}

func oneLine(doc []byte) ([]byte, error) {
	var b bytes.Buffer
	b.Grow(len(doc))
	if err := json.Compact(&b, doc); err != nil {
		return nil, fmt.Errorf("put on one line: %w", err)
	}
	return b.Bytes(), nil
}

// writeItem writes a list's item as a resource on its own, and the final newline: codec.Single without the copy.
// Strings in JSON hold no raw newline, so a newline always ends a line, and the next one is indented by two at least.
func (o *reply) writeItem(p []byte) {
	for {
		n := bytes.IndexByte(p, '\n')
		if n < 0 {
			o.write(p)
			o.writeString("\n")
			return
		}
		o.write(p[:n+1])
		p = p[n+3:]
	}
}
