// Package nearest finds the known name that was probably meant by an unknown one.
package nearest

import (
	"fmt"
	"slices"
	"strings"
)

// Unknown is the error for a name that is not in a list: it suggests what was
// probably meant, or shows the list.
func Unknown(what, name string, known []string) error {
	near := Names(name, known)
	if len(near) > 0 {
		return fmt.Errorf("unknown %s %q: did you mean %s?", what, name, strings.Join(near, " or "))
	}
	sorted := slices.Sorted(slices.Values(known))
	return fmt.Errorf("unknown %s %q: known are %s", what, name, strings.Join(sorted, ", "))
}

// Names returns up to two known names within a third of name's length in
// edits, or that begin alike.
func Names(name string, known []string) []string {
	type scored struct {
		name  string
		edits int
	}
	var near []scored
	for _, k := range known {
		d := distance(name, k)
		if d <= max(1, len(name)/3) || strings.HasPrefix(k, name) && name != "" {
			near = append(near, scored{k, d})
		}
	}
	slices.SortStableFunc(near, func(a, b scored) int {
		if a.edits != b.edits {
			return a.edits - b.edits
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, s := range near[:min(2, len(near))] {
		out = append(out, s.name)
	}
	return out
}

// distance is the Levenshtein distance in bytes.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			diagonal, row[j] = row[j], min(row[j]+1, row[j-1]+1, diagonal+cost)
		}
	}
	return row[len(b)]
}
