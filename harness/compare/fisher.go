package compare

import (
	"cmp"
	"slices"

	"github.com/aclements/go-moremath/stats"
)

// Count is how many of n requests were hit.
type Count struct{ Hit, N int }

func (c Count) rate() float64 { return float64(c.Hit) / float64(c.N) }

// Fisher is the two-sided p-value of Fisher's exact test on two counts: the
// probability, under one rate for both and the sums as they are, of a table no
// likelier than this one. It is 1 where a table can be no other.
//
// Tables count as equally likely up to a relative error of 1e-7, as in R's
// fisher.test.
func Fisher(a, b Count) float64 {
	const tolerance = 1 + 1e-7
	d := stats.HypergeometicDist{N: a.N + b.N, K: a.Hit + b.Hit, Draws: a.N}
	low, high := d.Bounds()
	seen, p := d.PMF(float64(a.Hit)), 0.0
	for k := low; k <= high; k++ {
		if q := d.PMF(k); q <= seen*tolerance {
			p += q
		}
	}
	return min(p, 1)
}

// Holm corrects p-values for their number (Holm 1979), in their order: each is
// the least level of the whole family at which its test rejects.
func Holm(p []float64) []float64 {
	order := make([]int, len(p))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(p[a], p[b]) })
	out := make([]float64, len(p))
	most := 0.0
	for rank, i := range order {
		most = max(most, min(1, float64(len(p)-rank)*p[i]))
		out[i] = most
	}
	return out
}
