package spec

import "strings"

// suggest is the hint for a word that is none of known.
func suggest(word string, known []string) string {
	all := "known: " + strings.Join(known, ", ")
	if near := nearest(word, known); near != "" {
		return "did you mean " + near + "? " + all
	}
	return all
}

// nearest is the known word that takes the fewest edits to reach from word,
// case apart; empty when the nearest is another word altogether.
func nearest(word string, known []string) string {
	best, most := "", max(1, len(word)/3)
	for _, k := range known {
		if len(word) > 2*len(k)+2 {
			continue
		}
		if d := edits(strings.ToLower(word), strings.ToLower(k)); d <= most {
			best, most = k, d-1
		}
	}
	return best
}

// edits is the Levenshtein distance of a and b in bytes, a swap of neighbours
// counting as one.
func edits(a, b string) int {
	before, last, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		before, last, row = last, row, before
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(last[j+1]+1, row[j]+1, last[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
	}
	return row[len(b)]
}
