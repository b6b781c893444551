package validate

import (
	"context"
	"log/slog"

	"github.com/meridian-mesh/meridian/api/codec"
	"github.com/meridian-mesh/meridian/api/resource"
	"github.com/meridian-mesh/meridian/common/store"
)

// maxExamples is how many resources a log line about many names.
const maxExamples = 5

// Findings collects resources that are stored although something is wrong with them, to be told of in one line. What is
// stored stays: it was written by an older version, or by another plane, whose say it is, and to drop it would take away
// what runs by it.
type Findings struct {
	Count    int
	examples []string
}

// Add notes a resource if there is anything wrong with it.
func (f *Findings) Add(key store.Key, found []codec.Violation) {
	if len(found) == 0 {
		return
	}
	f.Count++
	if len(f.examples) < maxExamples {
		example := key.String() + ": " + found[0].Field + " " + found[0].Message
		f.examples = append(f.examples, example)
	}
}

// LogValue renders the first few.
func (f *Findings) LogValue() slog.Value {
	return slog.GroupValue(slog.Int("count", f.Count), slog.Any("first", f.examples))
}

// LogStored judges every resource of a snapshot, warns once for each type in which there is something wrong, and returns
// how many resources that is. It returns early when ctx ends.
func LogStored(ctx context.Context, snap *store.Snapshot, log *slog.Logger) int {
	total := 0
	all := resource.All()
	for i := range all {
		var bad Findings
		for rec := range snap.List(string(all[i].Name), "") {
			if ctx.Err() != nil {
				return total
			}
			found := Spec(&all[i], rec.Key, rec.Spec)
			if len(found) == 0 {
				found = State(snap, &all[i], rec, rec)
			}
			bad.Add(rec.Key, found)
		}
		if total += bad.Count; bad.Count > 0 {
			log.WarnContext(ctx, "stored resources break the rules of this version; they are kept and used as they are",
				"type", all[i].Name, "resources", &bad)
		}
	}
	return total
}
