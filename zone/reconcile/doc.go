// Package reconcile decides which proxy needs which configuration, and when. It follows the store and the proxies that come and
// go, marks the proxies that a change can affect, has their configuration made by pure functions, and publishes what came out
// different.
//
// One goroutine, that of Run, owns the topology, the proxies and the indexes between them. It works in small batches: the
// configurations of a batch are made by several workers, which only read while it waits for them. Between two batches it looks
// at what happened meanwhile, so that a proxy that connects waits for one batch at most, whatever else is to be done.
//
//	reconcile.go  options, and the loop
//	proxy.go      what is known of a connected proxy, and who depends on what
//	mark.go       from what is different to the proxies it can affect
//	build.go      the configuration of one proxy
//	share.go      what several proxies have in common: endpoints, trust, equal resources
//	available.go  what the zone's ingresses offer to others
//	addresses.go  virtual addresses
//	resolve.go    addresses of host names
//	look.go       for those who only look
package reconcile
