// Package admin asks zones about their proxies, over the streams that zones hold open for that.
//
// A zone has three such streams, one for each kind of question, on which the global asks and the zone answers, in any order. A
// question fails at once when the stream is not there or ends, and after a bounded time when no answer comes; what happens on these
// streams touches no sync stream.
package admin
