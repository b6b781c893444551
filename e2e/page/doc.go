// Package page holds the planes to the documentation page of Kuma's HTTP API: every endpoint it lists answers, every
// request body it prints is accepted, and every example answer has its counterpart. It holds only tests: both planes
// run in this process, joined by KDS, and are asked over their sockets.
//
// The page itself is not part of the project. testdata/page.json is an extract of what a machine needs of it: paths,
// methods, statuses, curl lines and JSON. Where MERIDIAN_CONTRACT names a folder with the page (page.txt), the page is
// read again and a stale extract fails; -update rewrites it.
//
//	parse_test.go    the page as endpoints and examples
//	lenient_test.go  the page's JSON, which is written for people
//	extract_test.go  the extract, and that it is current
//	planes_test.go   the planes
//	seed_test.go     what only proxies could write
//	match_test.go    comparing an answer with an example
//	page_test.go     the page, put to the planes
//	inspect_test.go  the examples of the inspect API, each with what it shows
package page
