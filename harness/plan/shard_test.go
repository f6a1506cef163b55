package plan

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"idlerace/harness/spec"
)

func TestParseShard(t *testing.T) {
	for text, want := range map[string]Shard{
		"1/1": {1, 1}, "1/3": {1, 3}, "3/3": {3, 3}, "0+1/3": {1, 3}, "2+1/3": {3, 3}, "1024/1024": {1024, 1024},
	} {
		got, err := ParseShard(text)
		if err != nil || got != want {
			t.Errorf("%s: %v, %v, want %v", text, got, err, want)
		}
	}
	const needed = " is no shard; I/N is needed, such as 1/3, or 0+1/3 where jobs are counted from 0"
	for text, want := range map[string]string{
		"":          `""` + needed,
		"x":         `"x"` + needed,
		"1":         `"1"` + needed,
		"1/":        `"1/"` + needed,
		"-1/3":      `"-1/3"` + needed,
		"1 / 3":     `"1 / 3"` + needed,
		"1+2/3":     `"1+2/3"` + needed,
		"1/3/3":     `"1/3/3"` + needed,
		"1/99999":   `"1/99999"` + needed,
		"$(I)+1/4":  `"$(I)+1/4"` + needed,
		"1/3\n":     `"1/3\n"` + needed,
		"0/3":       `"0/3": there is no shard 0 of 3; they are 1/3 to 3/3`,
		"4/3":       `"4/3": there is no shard 4 of 3; they are 1/3 to 3/3`,
		"3+1/3":     `"3+1/3": there is no shard 4 of 3; they are 1/3 to 3/3`,
		"9999+1/3":  `"9999+1/3": there is no shard 10000 of 3; they are 1/3 to 3/3`,
		"1/0":       `"1/0": there may be 1 to 1024 shards, not 0`,
		"1/1025":    `"1/1025": there may be 1 to 1024 shards, not 1025`,
		"1025/1025": `"1025/1025": there may be 1 to 1024 shards, not 1025`,
	} {
		if got, err := ParseShard(text); err == nil || err.Error() != want || got != (Shard{}) {
			t.Errorf("%q: %v, %v\nwant %s", text, got, err, want)
		}
	}
}

func TestShardJSON(t *testing.T) {
	type holder struct {
		Shard Shard `json:"shard,omitzero"`
	}
	for text, want := range map[string]holder{"{}": {}, `{"shard":"2/3"}`: {Shard{2, 3}}} {
		var got holder
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != want {
			t.Errorf("%s: %v, %v", text, got, err)
		}
		if b, err := json.Marshal(want); err != nil || string(b) != text {
			t.Errorf("%v: %s, %v", want, b, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"shard":"4/3"}`), new(holder)); err == nil {
		t.Error("4/3 is read")
	}
}

func ids(n int) []string {
	var out []string
	for i := range n {
		c := spec.Cell{Proxy: []string{"gohttp", "nginx"}[i%2], Upstream: "go", ProxyIdle: spec.Idle(i/2) * 1e6, UpstreamIdle: 1e9,
			Method: "POST", Retry: spec.RetryDefault, Close: spec.CloseFIN}
		out = append(out, c.ID())
	}
	return out
}

func TestDealIsEven(t *testing.T) {
	for _, cells := range []int{0, 1, 2, 3, 7, 72, 128, 1024} {
		for _, n := range []int{1, 2, 3, 5, 8, 100, 1024} {
			dealt := deal(ids(cells), n)
			if len(dealt) != cells {
				t.Fatalf("%d cells, %d shards: %d dealt", cells, n, len(dealt))
			}
			size := make([]int, n)
			for id, i := range dealt {
				if i < 1 || i > n {
					t.Fatalf("%s is in shard %d of %d", id, i, n)
				}
				size[i-1]++
			}
			if slices.Max(size)-slices.Min(size) > 1 {
				t.Errorf("%d cells, %d shards: %v", cells, n, size)
			}
		}
	}
}

// What a shard has must be the same on every machine, and in a year.
func TestDealIsStable(t *testing.T) {
	all := ids(12)
	want := deal(all, 3)
	slices.Reverse(all)
	if got := deal(all, 3); !maps.Equal(got, want) {
		t.Error("the order matters")
	}
	var got []int
	for _, id := range ids(12) {
		got = append(got, want[id])
	}
	if was := fmt.Sprint(got); was != "[3 2 2 1 3 1 2 1 1 3 3 2]" {
		t.Errorf("dealt %s", was)
	}
}

// A cell more moves few others. A deal in order would move about all behind it.
func TestDealMovesFew(t *testing.T) {
	for _, n := range []int{2, 3, 8, 16} {
		moved, grown := 0, 0
		for cells := 60; cells < 180; cells++ {
			before, after := deal(ids(cells), n), deal(ids(cells+1), n)
			grown++
			for id, i := range before {
				if after[id] != i {
					moved++
				}
			}
		}
		mean := float64(moved) / float64(grown)
		t.Logf("%d shards: %.1f of 60 to 180 cells move", n, mean)
		if mean > float64(n)/2 {
			t.Errorf("%d shards: a cell more moves %.1f others", n, mean)
		}
	}
}

func TestShardCells(t *testing.T) {
	s := scenario()
	seen := map[string]int{}
	for i := range 5 {
		for id := range (Shard{i + 1, 5}).Cells(s) {
			seen[id]++
		}
	}
	for _, c := range s.Cells() {
		if seen[c.ID()] != 1 {
			t.Errorf("%s is in %d shards", c.ID(), seen[c.ID()])
		}
	}
	if len(seen) != len(s.Cells()) {
		t.Errorf("%d cells in shards, %d in the scenario", len(seen), len(s.Cells()))
	}
	if got := (Shard{}).String(); got != "" {
		t.Errorf("the whole is %q", got)
	}
}
