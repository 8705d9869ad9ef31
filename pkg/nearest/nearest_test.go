package nearest

import (
	"slices"
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	known := []string{"debian-12", "debian-13", "debian-stable", "trixie", "bookworm"}
	for _, c := range []struct {
		name string
		want []string
	}{
		{"debian-14", []string{"debian-12", "debian-13"}},
		{"debian-1", []string{"debian-12", "debian-13"}},
		{"trixi", []string{"trixie"}},
		{"bookwrom", []string{"bookworm"}},
		{"deb", []string{"debian-12", "debian-13"}},
		{"plan9", nil},
		{"", nil},
	} {
		if got := Names(c.name, known); !slices.Equal(got, c.want) {
			t.Errorf("%q: got %v, want %v", c.name, got, c.want)
		}
	}
	if err := Unknown("system", "plan9", known); !strings.Contains(err.Error(), "bookworm, debian-12") {
		t.Errorf("no sorted list in %v", err)
	}
}
