package codec

import "github.com/meridian-mesh/meridian/api/resource"

// shape is what a schema would be for the JSON types: just enough to name values of a wrong JSON type. Exactly one of
// its fields is set. Fields that a shape does not list may hold anything: newer peers and clients have more of them,
// and they are kept.
type shape struct {
	fields   map[string]*shape // an object with these members, among others
	elements *shape            // an array
	entries  *shape            // an object with any names
	allowed  []string          // one of these strings
	percent  bool              // a whole number, or a string
	scalar   kind
}

func object(fields map[string]*shape) *shape { return &shape{fields: fields} }
func array(elements *shape) *shape           { return &shape{elements: elements} }

// jsonShapes are the shapes of the JSON types' specifications.
var jsonShapes = func() map[resource.Type]*shape {
	var (
		text      = &shape{scalar: kindString}
		boolean   = &shape{scalar: kindBool}
		percent   = &shape{percent: true}
		targetRef = object(map[string]*shape{
			"kind": text, "name": text, "mesh": text,
			"tags": {entries: text},
		})
		// rules is a list of targets with what applies to each.
		rules = func(conf *shape) *shape {
			return array(object(map[string]*shape{"targetRef": targetRef, "default": conf}))
		}
	)

	format := object(map[string]*shape{
		"plain": text,
		"json":  array(object(map[string]*shape{"key": text, "value": text})),
	})
	accessLog := object(map[string]*shape{
		"backends": array(object(map[string]*shape{
			"tcp":  object(map[string]*shape{"format": format, "address": text}),
			"file": object(map[string]*shape{"format": format, "path": text}),
		})),
	})
	trace := object(map[string]*shape{
		"backends": array(object(map[string]*shape{
			"zipkin": object(map[string]*shape{
				"url": text, "traceId128bit": boolean, "apiVersion": text, "sharedSpanContext": boolean,
			}),
			"datadog": object(map[string]*shape{"url": text, "splitService": boolean}),
		})),
		"sampling": object(map[string]*shape{"overall": percent, "client": percent, "random": percent}),
		"tags": array(object(map[string]*shape{
			"name": text, "literal": text,
			"header": object(map[string]*shape{"name": text, "default": text}),
		})),
	})
	permission := object(map[string]*shape{
		// Both generations of the policy: capitals are the older.
		"action": {allowed: []string{"ALLOW", "DENY", "ALLOW_WITH_SHADOW_DENY", "Allow", "Deny", "AllowWithShadowDeny"}},
	})

	return map[resource.Type]*shape{
		"MeshAccessLog": object(map[string]*shape{
			"targetRef": targetRef, "to": rules(accessLog), "from": rules(accessLog),
		}),
		"MeshTrace": object(map[string]*shape{
			"targetRef": targetRef, "default": trace,
		}),
		"MeshTrafficPermission": object(map[string]*shape{
			"targetRef": targetRef, "from": rules(permission),
		}),
	}
}()
