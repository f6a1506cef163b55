package plan

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"

	"idlerace/harness/spec"
)

// Shard is part I of N of a scenario's cells, counted from 1: so many jobs can
// run one scenario, each a part of it. The zero Shard is the whole.
type Shard struct{ I, N int }

var shardText = regexp.MustCompile(`^([0-9]{1,4})(\+1)?/([0-9]{1,4})$`)

// ParseShard reads "2/3", or "1+1/3" from a job that is counted from 0.
func ParseShard(s string) (Shard, error) {
	m := shardText.FindStringSubmatch(s)
	if m == nil {
		return Shard{}, fmt.Errorf("%q is no shard; I/N is needed, such as 1/3, or 0+1/3 where jobs are counted from 0", s)
	}
	i, _ := strconv.Atoi(m[1]) // digits, four at most
	n, _ := strconv.Atoi(m[3])
	if m[2] != "" {
		i++
	}
	switch {
	case n < 1 || n > spec.MaxCells:
		return Shard{}, fmt.Errorf("%q: there may be 1 to %d shards, not %d", s, spec.MaxCells, n)
	case i < 1 || i > n:
		return Shard{}, fmt.Errorf("%q: there is no shard %d of %d; they are 1/%d to %d/%d", s, i, n, n, n, n)
	}
	return Shard{i, n}, nil
}

// String gives "2/3"; "" for the whole.
func (sh Shard) String() string {
	if sh.N == 0 {
		return ""
	}
	return strconv.Itoa(sh.I) + "/" + strconv.Itoa(sh.N)
}

// MarshalText gives what String does.
func (sh Shard) MarshalText() ([]byte, error) { return []byte(sh.String()), nil }

// UnmarshalText reads what ParseShard does.
func (sh *Shard) UnmarshalText(b []byte) (err error) {
	*sh, err = ParseShard(string(b))
	return err
}

// Control is the id, in the merged run, of a control that this shard ran: each
// shard runs those of its proxies.
func (sh Shard) Control(id string) string { return id + "_shard" + strconv.Itoa(sh.I) }

// Cells are the ids of the shard's cells.
func (sh Shard) Cells(s *spec.Scenario) map[string]bool {
	var ids []string
	for _, c := range s.Cells() {
		ids = append(ids, c.ID())
	}
	out := map[string]bool{}
	for id, i := range deal(ids, sh.N) {
		if i == sh.I {
			out[id] = true
		}
	}
	return out
}

// deal gives each id a shard from 1 to n. It depends on the ids alone, not on
// their order; sizes differ by one at most; and most ids stay where they are
// when one is added: each goes to the shard that it prefers among those with
// room left, and the preference is its own.
func deal(ids []string, n int) map[string]int {
	ids = slices.Clone(ids)
	slices.SortFunc(ids, func(a, b string) int { return cmp.Or(cmp.Compare(hash(a), hash(b)), cmp.Compare(a, b)) })
	least, larger := len(ids)/n, len(ids)%n
	size := make([]int, n)
	out := make(map[string]int, len(ids))
	for _, id := range ids {
		preference := rand.NewPCG(hash(id), 0)
		to, most := -1, uint64(0)
		for i := range size {
			p := preference.Uint64()
			if room := size[i] < least || size[i] == least && larger > 0; room && (to < 0 || p > most) {
				to, most = i, p
			}
		}
		if size[to] == least {
			larger--
		}
		size[to]++
		out[id] = to + 1
	}
	return out
}
