package run

import (
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"

	"idlerace/harness/plan"
	"idlerace/harness/record"
)

// many has 128 cells of a proxy that is here and 128 of one that is not, and
// leaves the lanes to the run.
func many() string {
	var idles []string
	for i := range 64 {
		idles = append(idles, fmt.Sprintf("%dms", 100+i))
	}
	return "version: 1\nname: many\nproxies: [gohttp, nginx]\naxes: {proxy_idle: [" + strings.Join(idles, ", ") + "], upstream_idle: [100ms]}\n"
}

// TestShards: together they are the whole, cell by cell as it would be there.
func TestShards(t *testing.T) {
	const n = 50
	whole := prepared(t, many(), Options{})
	if own := prepared(t, many(), Options{Only: func(it plan.Item) bool { return it.ID == whole.plan.Items[0].ID }}); own.manifest.Lanes == whole.manifest.Lanes {
		t.Logf("%d cores drive a cell and all of them with %d lanes: their number is not tested", runtime.NumCPU(), own.manifest.Lanes)
	}
	items := map[string]plan.Item{}
	for i := range n {
		r := prepared(t, many(), Options{Shard: plan.Shard{I: i + 1, N: n}})
		if r.manifest.Lanes != whole.manifest.Lanes || r.manifest.SHA256 != whole.manifest.SHA256 || !strings.HasSuffix(r.folder.Path, fmt.Sprintf("-shard%dof%d", i+1, n)) {
			t.Errorf("shard %d: %d lanes, the whole has %d; %s", i+1, r.manifest.Lanes, whole.manifest.Lanes, r.folder.Path)
		}
		controls := 0
		for _, it := range r.plan.Items {
			if it.Role != plan.RoleCell {
				controls++
				continue
			}
			if _, twice := items[it.ID]; twice {
				t.Errorf("%s is in two shards", it.ID)
			}
			items[it.ID] = it
		}
		if want := min(len(r.plan.Items)-controls, 1) * 2; controls != want {
			t.Errorf("shard %d: %d controls of %d items, want %d", i+1, controls, len(r.plan.Items), want)
		}
	}
	for _, it := range whole.plan.Items {
		if it.Role == plan.RoleCell && items[it.ID] != it {
			t.Errorf("%s is in no shard, or another", it.ID)
		}
	}
}

// TestShardWithoutCells: a shard to which nothing falls that can run here ends
// well, and says what it is.
func TestShardWithoutCells(t *testing.T) {
	for _, text := range []string{small, strings.Replace(small, "[gohttp]", "[gohttp, nginx]", 1)} {
		empty, told := 0, 0
		for i := range 3 {
			r := prepared(t, text, Options{Shard: plan.Shard{I: i + 1, N: 3}, Say: func(format string, args ...any) {
				if strings.HasSuffix(fmt.Sprintf(format, args...), "has no cell that can run here") {
					told++
				}
			}})
			if len(r.plan.Items) > 0 {
				continue
			}
			empty++
			if err := r.do(t.Context(), t.Context(), nil); err != nil {
				t.Error(err)
			}
			m, err := r.folder.Manifest()
			if err != nil || m.Ended != record.EndDone || m.Shard != (plan.Shard{I: i + 1, N: 3}) || len(m.Items) != 0 {
				t.Errorf("%+v, %v", m, err)
			}
			if _, err := r.folder.Observations(); err != nil {
				t.Error(err)
			}
			mine := r.Shard.Cells(r.scenario)
			if missing := slices.ContainsFunc(m.Unavailable, func(u record.Unavailable) bool { return u.Proxy == "nginx" }); missing != (len(mine) > 0) {
				t.Errorf("cells %v, unavailable %v", mine, m.Unavailable)
			}
		}
		if empty != 2 || told != 2 {
			t.Errorf("%d of 3 shards are empty, %d said so, want 2:\n%s", empty, told, text)
		}
	}
}
