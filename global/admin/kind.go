package admin

import (
	"bytes"
	"strings"

	"google.golang.org/protobuf/proto"

	meshv1 "github.com/meridian-mesh/meridian/api/kuma/mesh/v1alpha1"
	"github.com/meridian-mesh/meridian/api/redact"
	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/global/zones"
	"github.com/meridian-mesh/meridian/sync/kds"
)

// kind is how the questions of a view are asked.
type kind struct {
	stream    zones.Kind
	operation string // Kuma's name of it
	request   func(id, name string, q server.ProxyQuestion) proto.Message
	// never says why an answer of nothing at all is a failure; "": it is none.
	never string
}

var kinds = map[server.ProxyView]kind{
	server.ViewConfigDump: {zones.XDSConfigs, "XDSConfig", xdsConfigRequest, "the zone answered with no configuration"},
	server.ViewExplain:    {zones.XDSConfigs, "XDSConfig", xdsConfigRequest, "the zone answered with no explanation"},
	server.ViewStats: {zones.Stats, "Stats", func(id, name string, q server.ProxyQuestion) proto.Message {
		return &meshv1.StatsRequest{
			RequestId: id, ResourceType: string(q.Type), ResourceName: name, ResourceMesh: q.Mesh, Format: format(q), UsedOnly: q.UsedOnly,
		}
	}, ""},
	server.ViewClusters: {zones.Clusters, "Clusters", func(id, name string, q server.ProxyQuestion) proto.Message {
		return &meshv1.ClustersRequest{
			RequestId: id, ResourceType: string(q.Type), ResourceName: name, ResourceMesh: q.Mesh, Format: format(q),
		}
	}, ""},
}

func xdsConfigRequest(id, name string, q server.ProxyQuestion) proto.Message {
	return &meshv1.XDSConfigRequest{
		RequestId: id, ResourceType: string(q.Type), ResourceName: name, ResourceMesh: q.Mesh, IncludeEds: q.IncludeEndpoints,
		MeridianQuery: kds.Query(q),
	}
}

func format(q server.ProxyQuestion) meshv1.AdminOutputFormat {
	if q.JSON {
		return meshv1.AdminOutputFormat_JSON
	}
	return meshv1.AdminOutputFormat_TEXT
}

// failure and prefix begin the details of errors as Kuma's do: of a question that cannot be asked, and of one that was.
func (k kind) failure() string { return "couldn't execute " + k.operation + " operation" }
func (k kind) prefix() string  { return "could not send " + k.operation + "Request" }

// kumaNotFound begins the error of a Kuma zone that has not the resource that is asked for.
const kumaNotFound = "resource not found: "

// result is what a zone's answer means to who asked.
func (k kind) result(a answer) ([]byte, error) {
	switch {
	case a.failed && a.reason == "" && strings.HasPrefix(a.text, kumaNotFound):
		return nil, fail(server.AskNotFound, "%s: %s", k.prefix(), a.text)
	case a.failed:
		return nil, kds.AskError(a.reason, k.prefix()+": "+a.text)
	case len(a.body) == 0 && k.never != "":
		return nil, fail(server.AskFailed, "%s: %s", k.prefix(), k.never)
	default:
		return a.body, nil
	}
}

// redact masks what is secret in a config dump. A Meridian zone has done so, a Kuma zone does less.
func (k kind) redact(dump []byte) ([]byte, error) {
	var out bytes.Buffer
	out.Grow(len(dump))
	if err := redact.Dump(&out, bytes.NewReader(dump)); err != nil {
		return nil, fail(server.AskFailed, "%s: what the zone answered is no JSON: %v", k.prefix(), err)
	}
	return out.Bytes(), nil
}
