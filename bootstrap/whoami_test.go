package bootstrap

import (
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestWrong: a machine goes on only when it, its image and its disk are those
// of its config, and says what else is the matter.
func TestWrong(t *testing.T) {
	conf := func(m nodeconf.Match) nodeconf.Config {
		return nodeconf.Config{Cluster: nodeconf.Cluster{UID: "c1"}, Node: nodeconf.Node{Name: "a", Roles: []string{"etcd"}, Addresses: []string{"10.0.0.1"}, Match: m},
			Image: nodeconf.Image{OS: "debian-13", Kubernetes: "v1.37.2", Runtime: "containerd", Plugin: "flannel"}}
	}
	right := machine{uuid: "4c4c4544-0042", serial: "7x1", macs: []string{"00:00:00:00:00:00", "52:54:00:17:08:01"}, id: "m1"}
	image := Manifest{ImageID: "0123456789ab", OS: "debian-13", Kubernetes: "v1.37.2", Runtime: "containerd", Network: "flannel"}
	with := func(change func(*Manifest)) Manifest {
		m := image
		change(&m)
		return m
	}
	for _, test := range []struct {
		name  string
		match nodeconf.Match
		image Manifest
		owner *Owner
		want  string
	}{
		{"nothing to compare", nodeconf.Match{}, image, nil, ""},
		{"all as told", nodeconf.Match{MAC: "52:54:00:17:08:01", Serial: "7X1", UUID: "4C4C4544-0042"}, image, &Owner{"c1", "a", "m1", "10.0.0.1"}, ""},
		{"another card", nodeconf.Match{MAC: "52:54:00:17:08:02"}, image, nil, "whose card is 52:54:00:17:08:02"},
		{"another serial", nodeconf.Match{Serial: "8"}, image, nil, "correct match.serial"},
		{"another UUID", nodeconf.Match{UUID: "5"}, image, nil, "correct match.uuid"},
		{"another Kubernetes", nodeconf.Match{}, with(func(m *Manifest) { m.Kubernetes = "v1.36.5" }), nil, "wants the Kubernetes v1.37.2, and this image (0123456789ab) has v1.36.5: bake"},
		{"another plugin", nodeconf.Match{}, with(func(m *Manifest) { m.Network = "none" }), nil, "network plugin flannel"},
		{"another system", nodeconf.Match{}, with(func(m *Manifest) { m.OS = "debian-12" }), nil, "operating system debian-13"},
		{"another cluster's disk", nodeconf.Match{}, image, &Owner{"c2", "a", "m1", ""}, "another cluster (c2, not c1)"},
		{"another node's disk", nodeconf.Match{}, image, &Owner{"c1", "b", "m1", ""}, "the state of b"},
		{"a disk of before addresses were kept", nodeconf.Match{}, image, &Owner{"c1", "a", "m1", ""}, ""},
		{"another address", nodeconf.Match{}, image, &Owner{"c1", "a", "m1", "10.0.0.9"}, "the state of a at 10.0.0.9, and the config says 10.0.0.1: image the machine again"},
		{"a cloned disk", nodeconf.Match{}, image, &Owner{"c1", "a", "m2", ""}, "cloned or moved"},
	} {
		got := wrong(conf(test.match), "a", right, test.image, test.owner)
		if test.want == "" && got != "" || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q", test.name, got)
		}
	}
}

func TestPhases(t *testing.T) {
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	var lines []string
	p := phases{node: "a", now: func() time.Time { return now }, file: t.TempDir() + "/run/phase.json",
		logf: func(format string, _ ...any) { lines = append(lines, format) }}
	p.set(partKube, PhaseEtcd, "asking b")
	p.set(partKube, PhaseEtcd, "asking b") // nothing new
	now = now.Add(time.Minute)
	p.set(partKube, PhaseEtcd, "asking c") // the phase began a minute ago
	if p.last.Since != now.Add(-time.Minute) || p.last.Why != "asking c" {
		t.Errorf("%+v", p.last)
	}
	p.set(partKube, PhaseReady, "")
	if p.last.Since != now || len(lines) != 4 {
		t.Errorf("%+v, %q", p.last, lines)
	}
}

// TestClockFloor: an old config in a new image, and a new one in an old image.
func TestClockFloor(t *testing.T) {
	day := func(n int) time.Time { return time.Date(2026, 11, n, 0, 0, 0, 0, time.UTC) }
	for _, tt := range []struct {
		issued, image, want time.Time
		what                string
	}{{day(2), day(9), day(9), "the image's"}, {day(9), day(2), day(9), "the config's"}, {day(9), time.Time{}, day(9), "the config's"}} {
		a := &Agent{image: Manifest{NotBefore: tt.image}}
		a.conf.Cluster.Issued = tt.issued
		if floor, what := a.clockFloor(); !floor.Equal(tt.want) || what != tt.what {
			t.Errorf("%v, %v: %s, %s", tt.issued, tt.image, floor, what)
		}
	}
}
