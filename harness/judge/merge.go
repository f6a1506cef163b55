package judge

import (
	"idlerace/harness/plan"
	"idlerace/harness/record"
	"idlerace/harness/spec"
)

// Merge is the document of a run that was merged from shards, each judged by its
// own record: parts[i] is that of shard i+1. A control speaks for the cells of
// its shard alone, so that all of them stay, under ids that name the shard. m is
// the merged run's manifest; cells come in its order.
func Merge(m record.Manifest, s *spec.Scenario, parts []*Document) *Document {
	d := newDocument(m, s)
	cells := map[string]Verdict{}
	for i, part := range parts {
		sh := plan.Shard{I: i + 1, N: len(parts)}
		for _, v := range part.Cells {
			cells[v.ID] = v
		}
		for _, v := range part.Controls {
			v.ID = sh.Control(v.ID)
			d.Controls = append(d.Controls, v)
		}
		for what, n := range part.Run.Disturbances {
			d.Run.Disturbances[what] += n
		}
		for _, w := range part.Run.Warnings {
			d.Run.Warnings = append(d.Run.Warnings, "shard "+sh.String()+": "+w)
		}
	}
	for _, it := range m.Items {
		if v, ok := cells[it.ID]; ok {
			d.Cells = append(d.Cells, v)
		}
	}
	d.Margins = margins(d.Cells)
	return d
}
