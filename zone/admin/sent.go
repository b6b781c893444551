package admin

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"google.golang.org/protobuf/encoding/protojson"

	"github.com/meridian-mesh/meridian/api/server"
	"github.com/meridian-mesh/meridian/zone/xds"
)

// sentDump is a dump of what the control plane sent: Envoy's config_dump, as far as it can be told from here, and a status.
type sentDump struct {
	Configs []any      `json:"configs"`
	Status  sentStatus `json:"status"`
}

// sentStatus is what became of what was sent. Times and versions of what has not happened are left out.
type sentStatus struct {
	Node           string     `json:"node"`
	Connected      bool       `json:"connected"`
	DisconnectedAt string     `json:"disconnectedAt,omitempty"`
	ConfigError    string     `json:"configError,omitempty"` // why no newer configuration can be made
	Kinds          []sentKind `json:"kinds"`
}

type sentKind struct {
	TypeURL             string     `json:"typeUrl"`
	Resources           int        `json:"resources"`
	SentVersion         string     `json:"sentVersion,omitempty"`
	SentAt              string     `json:"sentAt,omitempty"`
	AcknowledgedVersion string     `json:"acknowledgedVersion,omitempty"`
	Rejected            *rejection `json:"rejected,omitempty"`
	PublishedVersion    string     `json:"publishedVersion,omitempty"` // of the newest configuration
	Pending             bool       `json:"pending,omitempty"`          // something of it is yet to be sent
}

type rejection struct {
	Version string `json:"version"`
	Reason  string `json:"reason"`
	At      string `json:"at"`
}

// sent shows what was sent to a proxy. Neither need it be connected, nor have an administration port.
func (a *Asker) sent(p *asked, endpoints bool) ([]byte, error) {
	look, ok := a.o.Sent.Look(p.nodeID)
	if !ok {
		return nil, failure(server.AskUnreachable,
			"This control plane has sent nothing to the proxy of %s since it runs, or no longer remembers what it was", p)
	}
	dump := sentDump{Configs: []any{}, Status: sentStatus{
		Node: p.nodeID, Connected: look.Ended.IsZero(), DisconnectedAt: timeOf(look.Ended), ConfigError: p.look.ConfigError, Kinds: []sentKind{},
	}}
	size := 0
	for _, k := range look.Kinds {
		resources := k.Resources()
		dump.Status.Kinds = append(dump.Status.Kinds, statusOf(&k, len(resources)))
		form, ok := forms[k.Kind]
		if !ok || k.Kind == xds.Endpoint && !endpoints {
			continue
		}
		entries := make([]any, len(resources))
		for i, r := range resources {
			text, err := (protojson.MarshalOptions{UseProtoNames: true}).Marshal(r.Any)
			if err != nil {
				return nil, fmt.Errorf("show %s %q: %w", r.Kind.TypeURL(), r.Name, err)
			}
			if size += len(text); size > maxAnswerBytes {
				return nil, tooLarge(p)
			}
			entries[i] = form.entry(r.Name, k.Sent, timeOf(k.SentAt), text)
		}
		config := map[string]any{"@type": "type.googleapis.com/envoy.admin.v3." + form.message, form.list: entries}
		if k.Kind == xds.Cluster || k.Kind == xds.Listener {
			config["version_info"] = k.Sent
		}
		dump.Configs = append(dump.Configs, config)
	}
	text, err := json.Marshal(dump)
	if err != nil {
		return nil, fmt.Errorf("show what was sent to %s: %w", p, err)
	}
	return read(p, bytes.NewReader(text), true)
}

// form is how a kind stands in Envoy's dump.
type form struct {
	message, list string
	entry         func(name, version, at string, resource json.RawMessage) any
}

type object = map[string]any

var forms = map[xds.Kind]form{
	xds.Cluster: {"ClustersConfigDump", "dynamic_active_clusters", func(_, version, at string, r json.RawMessage) any {
		return object{"version_info": version, "cluster": r, "last_updated": at}
	}},
	xds.Endpoint: {"EndpointsConfigDump", "dynamic_endpoint_configs", func(_, version, at string, r json.RawMessage) any {
		return object{"version_info": version, "endpoint_config": r, "last_updated": at}
	}},
	xds.Secret: {"SecretsConfigDump", "dynamic_active_secrets", func(name, version, at string, r json.RawMessage) any {
		return object{"name": name, "version_info": version, "secret": r, "last_updated": at}
	}},
	xds.Listener: {"ListenersConfigDump", "dynamic_listeners", func(name, version, at string, r json.RawMessage) any {
		return object{"name": name, "active_state": object{"version_info": version, "listener": r, "last_updated": at}}
	}},
	xds.Route: {"RoutesConfigDump", "dynamic_route_configs", func(_, version, at string, r json.RawMessage) any {
		return object{"version_info": version, "route_config": r, "last_updated": at}
	}},
}

func statusOf(k *xds.KindLook, resources int) sentKind {
	s := sentKind{
		TypeURL: k.Kind.TypeURL(), Resources: resources, SentVersion: k.Sent, SentAt: timeOf(k.SentAt),
		AcknowledgedVersion: k.Acknowledged, PublishedVersion: k.Published, Pending: k.Pending,
	}
	if k.Rejected != "" {
		s.Rejected = &rejection{k.Rejected, k.Reason, timeOf(k.RejectedAt)}
	}
	return s
}

// timeOf is a time as text, "" for none.
func timeOf(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}
