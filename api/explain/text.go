package explain

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
)

// Text is the explanation for people: the verdict first, then what a request meets on its way.
func (e *Explanation) Text() string {
	w := &writer{}
	w.line(0, "%s: %s", strings.ToUpper(string(e.Verdict)), e.Summary)
	for _, n := range e.Next {
		w.line(0, "next: %s", n)
	}
	w.line(0, "")
	w.line(0, "proxy %s of mesh %s in zone %s, to service %s", e.Proxy, e.Mesh, e.Zone, e.Service)
	if !e.Connected {
		w.line(1, "it is not connected to this control plane: it does what it was told before, if it runs")
	}
	if e.ConfigError != "" {
		w.line(1, "it keeps an older configuration: %s", e.ConfigError)
	}
	w.other(e.Other)
	for _, o := range e.Outbounds {
		w.outbound(o)
	}
	w.policies(0, e.Policies)
	for _, d := range e.Destinations {
		w.destination(d)
	}
	if len(e.Warnings) > 0 {
		w.line(0, "\nwarnings")
		for _, text := range e.Warnings {
			w.line(1, "%s", text)
		}
	}
	return w.String()
}

type writer struct{ strings.Builder }

func (w *writer) line(depth int, format string, args ...any) {
	w.WriteString(strings.Repeat("  ", depth))
	fmt.Fprintf(w, format, args...)
	w.WriteByte('\n')
}

// table writes rows of cells in columns.
func (w *writer) table(depth int, rows [][]string) {
	var b strings.Builder
	t := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		_, _ = fmt.Fprintln(t, strings.Join(row, "\t")) // into memory
	}
	_ = t.Flush()
	for text := range strings.Lines(b.String()) {
		w.line(depth, "%s", strings.TrimRight(text, " \n"))
	}
}

func (w *writer) other(o *Other) {
	if o == nil {
		return
	}
	w.line(1, "transparent proxying: %s", map[bool]string{true: "on", false: "off"}[o.TransparentProxying])
	w.line(1, "outbounds: %s", some(o.Outbounds, o.MoreOutbounds))
	if len(o.Similar) > 0 {
		w.line(1, "services with similar names: %s", some(o.Similar, 0))
	}
}

func some(names []string, more int) string {
	text := strings.Join(names, ", ")
	switch {
	case len(names) == 0:
		return "none"
	case more > 0:
		return text + " and " + strconv.Itoa(more) + " more"
	default:
		return text
	}
}

func (w *writer) outbound(o Outbound) {
	at := o.Address
	if len(o.Hostnames) > 0 {
		at = strings.TrimSpace(at + " (" + strings.Join(o.Hostnames, ", ") + ")")
	}
	w.line(0, "\noutbound %s", at)
	w.line(1, "protocol %s: %s", o.Protocol, o.ProtocolReason)
	var rows [][]string
	for _, r := range o.Rules {
		rows = append(rows, []string{r.Match, "->", shares(r.To)})
	}
	name := "everything"
	if len(o.Rules) > 0 {
		name = "everything else"
	}
	w.table(1, append(rows, []string{name, "->", shares(o.Default)}))
}

func shares(to []Share) string {
	if len(to) == 0 {
		return "nowhere"
	}
	parts := make([]string, len(to))
	for i, s := range to {
		parts[i] = s.Cluster
		if len(to) > 1 {
			parts[i] += " " + percent(s.Percent)
		}
	}
	return strings.Join(parts, ", ")
}

func percent(p float64) string { return strconv.FormatFloat(p, 'f', -1, 64) + "%" }

func (w *writer) policies(depth int, list []Policy) {
	for _, p := range list {
		if len(p.Names) == 0 && len(p.Candidates) == 0 {
			continue
		}
		if depth == 0 {
			w.line(0, "")
		}
		w.policy(depth, p)
	}
}

func (w *writer) policy(depth int, p Policy) {
	text := p.Type + " " + some(p.Names, 0)
	var settings []string
	for _, s := range p.Settings {
		settings = append(settings, s.Name+" "+s.Value)
	}
	if len(settings) > 0 {
		text += ": " + strings.Join(settings, ", ")
	}
	w.line(depth, "%s", text)
	rows := make([][]string, len(p.Candidates))
	for i, c := range p.Candidates {
		rows[i] = []string{c.Result, c.Name, c.Reason}
	}
	w.table(depth+1, rows)
	if p.MoreLost+p.MoreUnmatched > 0 {
		w.line(depth+1, "and %d more that lost, %d more that do not match", p.MoreLost, p.MoreUnmatched)
	}
}

func (w *writer) destination(d Destination) {
	w.line(0, "\ndestination %s: %s, %s", named(d.Cluster, d.Service, d.Tags), d.Verdict, d.Reason)
	w.line(1, "load balancer %s", d.LoadBalancer)
	w.line(1, "TLS %s: %s", d.TLS.Mode, d.TLS.Reason)
	if d.TLS.SNI != "" {
		w.line(2, "server name %s", d.TLS.SNI)
	}
	if d.TLS.Identity != "" {
		w.line(2, "the other end proves to be %s", d.TLS.Identity)
	}
	w.policies(1, d.Policies)
	for _, g := range d.Groups {
		where := "zone " + g.Zone
		if g.Zone == "" {
			where = "no zone"
		}
		w.line(1, "%s, %s: %s, %s of the traffic, priority %d", where, g.Via, plural(g.Count, "endpoint"), percent(g.Percent), g.Priority)
		w.endpoints(g.Endpoints, g.Count-len(g.Endpoints))
		word := string(g.Permission.Verdict)
		if !g.Permission.Checked {
			word += ", not checked"
		}
		w.line(2, "%s: %s", word, g.Permission.Reason)
		if g.Permission.Policy != nil {
			w.policy(3, *g.Permission.Policy)
		}
		w.policies(2, g.Policies)
	}
	if len(d.Down) > 0 {
		w.line(1, "not ready: %s", plural(len(d.Down)+d.MoreDown, "instance"))
		w.endpoints(d.Down, d.MoreDown)
	}
}

func (w *writer) endpoints(list []Endpoint, more int) {
	rows := make([][]string, len(list))
	for i, e := range list {
		rows[i] = []string{e.Address, e.Dataplane}
		if e.Weight > 0 {
			rows[i] = []string{e.Address, "weight " + strconv.FormatUint(uint64(e.Weight), 10), e.Dataplane}
		}
	}
	w.table(2, rows)
	if more > 0 {
		w.line(2, "and %d more", more)
	}
}

func plural(n int, what string) string {
	if n != 1 {
		what += "s"
	}
	return strconv.Itoa(n) + " " + what
}

// named is a cluster, with the part of the service that it is.
func named(cluster, service string, tags map[string]string) string {
	if len(tags) == 0 && cluster == service {
		return cluster
	}
	pairs := []string{service}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		pairs = append(pairs, k+"="+tags[k])
	}
	return cluster + " (" + strings.Join(pairs, ", ") + ")"
}
