package server

import "strings"

// alias is another spelling of a path. Both sides start at the collection (the first segment, or the one after
// /meshes/{mesh}); "{}" stands for any one segment, and further segments are kept. A path is rewritten at most once.
type alias struct {
	from, to string
}

// aliasTable is every other spelling that is answered. The first entry that fits wins.
var aliasTable = []alias{
	// Slips of the reference's documentation.
	{"dataplane+insights", "dataplanes+insights"},
	{"dataplanes+insights/", "dataplanes+insights"},
	{"zones+insights/", "zones+insights"},
	{"zoneingresses+insights/", "zoneingresses+insights"},
	{"zoneegressoverviews/", "zoneegressoverviews"},
	{"zonesegressoverviews", "zoneegressoverviews"},
	{"dataplane", "dataplanes"},
	{"zone-ingress", "zone-ingresses"},
	{"meshgateways/{}/policies", "meshgateways/{}/dataplanes"},
	{"trafficpermissions", "traffic-permissions"},

	// Paths that newer clients use.
	{"dataplanes/_overview", "dataplanes+insights"},
	{"dataplanes/{}/_overview", "dataplanes+insights/{}"},
	{"zones/_overview", "zones+insights"},
	{"zones/{}/_overview", "zones+insights/{}"},
	{"zoneingresses/_overview", "zoneingresses+insights"},
	{"zoneingresses/{}/_overview", "zoneingresses+insights/{}"},
	{"zone-ingresses/_overview", "zoneingresses+insights"},
	{"zone-ingresses/{}/_overview", "zoneingresses+insights/{}"},
	{"zoneegresses/_overview", "zoneegressoverviews"},
	{"zoneegresses/{}/_overview", "zoneegressoverviews/{}"},
	// A path of its own beside the alias of the same name.
	{"zoneingresses/{}/xds", "zoneingresses/{}/xds"},
	{"zoneingresses/{}/stats", "zoneingresses/{}/stats"},
	{"zoneingresses/{}/clusters", "zoneingresses/{}/clusters"},
	{"zoneingresses", "zone-ingresses"},
	{"globalsecrets", "global-secrets"},
}

// canonical returns path with an alias resolved.
func canonical(path string) string {
	collection := strings.TrimPrefix(path, "/")
	if rest, ok := strings.CutPrefix(collection, "meshes/"); ok {
		if _, below, ok := strings.Cut(rest, "/"); ok && below != "" {
			collection = below
		}
	}
	for _, a := range aliasTable {
		if to, ok := a.apply(collection); ok {
			return path[:len(path)-len(collection)] + strings.TrimSuffix(to, "/")
		}
	}
	return path
}

// apply rewrites a path that starts at its collection.
func (a alias) apply(path string) (string, bool) {
	from, to := a.from, a.to
	before, after, wild := strings.Cut(from, "{}")
	rest, ok := strings.CutPrefix(path, before)
	if !ok {
		return "", false
	}
	if wild {
		name, _, _ := strings.Cut(rest, "/")
		if name == "" {
			return "", false
		}
		if rest, ok = strings.CutPrefix(rest[len(name):], after); !ok {
			return "", false
		}
		to = strings.Replace(to, "{}", name, 1)
	}
	// What follows must start a new segment; an alias that ends in a slash is the whole path.
	if strings.HasSuffix(from, "/") {
		return to, rest == ""
	}
	if rest != "" && rest[0] != '/' {
		return "", false
	}
	return to + rest, true
}
