package judge

import (
	"math/rand/v2"
	"slices"
	"time"

	"gonum.org/v1/gonum/stat/distuv"
)

// Confidence of every interval.
const Confidence = 0.95

// ClopperPearson is the exact two-sided interval of k successes in n trials;
// [0, 1] without trials.
//
// Note: a cell stops early once it has proofs enough, so n is not always fixed
// in advance. Stopping at the k-th success (inverse sampling) has the exact
// interval [Beta(α/2; k, n-k+1), Beta(1-α/2; k, n-k)], which lies inside this
// one, so the coverage holds either way.
func ClopperPearson(k, n int) Interval {
	const tail = (1 - Confidence) / 2
	out := Interval{0, 1}
	if n <= 0 {
		return out
	}
	if k > 0 {
		out.Low = distuv.Beta{Alpha: float64(k), Beta: float64(n - k + 1)}.Quantile(tail)
	}
	if k < n {
		out.High = distuv.Beta{Alpha: float64(k + 1), Beta: float64(n - k)}.Quantile(1 - tail)
	}
	return out
}

// sample keeps count, minimum and maximum of durations exactly and a bounded
// random part of them for the median. The zero value is ready.
type sample struct {
	n        int
	min, max time.Duration
	kept     []time.Duration
	rng      *rand.Rand
}

const sampleSize = 2048

func (s *sample) add(d time.Duration) {
	if s.n == 0 || d < s.min {
		s.min = d
	}
	if s.n == 0 || d > s.max {
		s.max = d
	}
	s.n++
	if len(s.kept) < sampleSize {
		s.kept = append(s.kept, d)
		return
	}
	if s.rng == nil {
		s.rng = rand.New(rand.NewPCG(1, sampleSize)) // the same judgement of the same file, each time
	}
	if i := s.rng.IntN(s.n); i < sampleSize {
		s.kept[i] = d
	}
}

// quantile is the empirical q-quantile; 0 of nothing.
func (s *sample) quantile(q float64) time.Duration {
	if len(s.kept) == 0 {
		return 0
	}
	sorted := slices.Clone(s.kept)
	slices.Sort(sorted)
	return sorted[int(q*float64(len(sorted)-1))]
}

func (s *sample) quantiles() *Quantiles {
	if s.n == 0 {
		return nil
	}
	return &Quantiles{N: s.n, Min: Duration(s.min), P50: Duration(s.quantile(0.5)), Max: Duration(s.max)}
}
