package resource

var byPath = func() map[string]*Descriptor {
	m := make(map[string]*Descriptor, len(table))
	for i := range table {
		if table[i].Path != "" {
			m[table[i].Path] = &table[i]
		}
	}
	return m
}()

var insights = func() map[Type]*Descriptor {
	m := make(map[Type]*Descriptor)
	for i := range table {
		if table[i].InsightOf != "" {
			m[table[i].InsightOf] = &table[i]
		}
	}
	return m
}()

// ByPath returns the row whose collection has the given URL segment, e.g. "traffic-routes".
func ByPath(path string) (*Descriptor, bool) {
	d, ok := byPath[path]
	return d, ok
}

// Insight returns the row of the type that reports on d's resources, where there is one.
func (d *Descriptor) Insight() (*Descriptor, bool) {
	insight, ok := insights[d.Name]
	return insight, ok
}
