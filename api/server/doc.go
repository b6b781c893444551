// Package server is the HTTP API that both planes serve to operators: curl, kumactl, scripts and CI.
//
// It exists once because the global and the zone differ in data only: which types may be written where is a column
// of the registry ([resource.Descriptor].Writable), and what only the global knows (which zones are connected)
// arrives through [ZoneSessions]. Everything per type (routes, scope, read-only answers, access, cascades) follows
// from the registry; a new row there needs no change here.
//
// # Where to read
//
//	server.go     what a Server is made of, its listeners and its life
//	routes.go     the whole routing table, each route with its description (package openapi)
//	aliases.go    other spellings of paths, in one table
//	middleware.go what happens around every request: metrics, log, panics, CORS, path clean-up
//	access.go     who is asking, and who may do what
//	tokens.go     issuing tokens
//	problem.go    every error answer
//	read.go       GET of one resource and of lists, with paging
//	overview.go   a resource joined with its insight
//	inspect.go    what is attached to proxies, and what proxies say; inspected.go keeps what that needs decoded
//	proxies.go    who looks into proxies: what each plane brings for it
//	services.go   ServiceInsight, stored per mesh and shown per service
//	write.go      PUT and DELETE
//	plan.go       what a write does to a state, without doing it
//	export.go     everything a plane owns, as one stream
//	import.go     such a stream, stored as one batch
//	rules.go      what single types ask of a write: cascades, refusals, tags a zone adds
//	status.go     /, /config, /policies, /versions, /status/zones, /global-insights
//	instances.go  /status/instances
//	description.go  that description, served as JSON, YAML and a page
//	render.go     JSON of a record, made once per version
//	reply.go      sending bodies: buffering, gzip, HEAD
//
// # Promises
//
//   - Reads take one snapshot and no lock; a list is consistent, and complete at its revision.
//   - A 200 or 201 to a write means that the batch is durable.
//   - Every check that reads state runs inside [store.Store.Update], against the state the batch is committed on.
//   - A request can be wrong in any way and is answered 4xx; 5xx means that this side failed, is logged with an id
//     that the answer carries in X-Request-Id, and tells the client nothing else.
package server
