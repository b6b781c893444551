// Package proxies knows the proxies of a zone: who is connected and by what right, what is stored of them, and what is told
// about them in insights. It decides who may open a stream; what is sent on it is for others.
//
// A proxy is registered by the first request of its stream: with the resource it brings in the metadata of its node, or with
// one that is stored already. What it brought is removed again some time after its last stream has ended, unless it is back by
// then. Its credential is looked at with every request, and a stream ends as soon as the credential is no longer good: one
// goroutine watches the store for all streams.
//
// Several processes may serve a zone, on one store. A proxy has its streams at any of them, and what is known of it is an insight
// that all of them write, each the subscriptions of its own streams: merge.go has the rules. That a proxy is to be removed is
// announced there too, so that another process calls it off, or does it when the one that announced it has died: attend.go.
//
// When the resource of a connected proxy is deleted, over HTTP say, its streams end. The proxy comes back by itself: one that
// brings its resource is registered again, any other is told that there is none. So a deletion is never undone silently by
// a stream that was open before, and never leaves a proxy configured that the API does not show.
package proxies
