package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/gce"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestLearn: what the cluster file says counts, and the metadata server adds to it.
func TestLearn(t *testing.T) {
	i := gce.Instance{Name: "demo-workers-x7f2", Zone: "europe-west1-b", Address: "10.0.0.9"}
	for _, tt := range []struct{ node, want nodeconf.Node }{
		{nodeconf.Node{Pool: "workers"}, nodeconf.Node{Pool: "workers", Addresses: []string{"10.0.0.9"}, Labels: map[string]string{"topology.kubernetes.io/zone": "europe-west1-b", "topology.kubernetes.io/region": "europe-west1"}}},
		{nodeconf.Node{Name: "a", Addresses: []string{"10.0.0.1"}, Labels: map[string]string{"topology.kubernetes.io/zone": "rack-1"}},
			nodeconf.Node{Name: "a", Addresses: []string{"10.0.0.1"}, Labels: map[string]string{"topology.kubernetes.io/zone": "rack-1", "topology.kubernetes.io/region": "europe-west1"}}},
	} {
		c := nodeconf.Config{Node: tt.node}
		learn(&c, i)
		if d := cmp.Diff(tt.want, c.Node); d != "" {
			t.Error(d)
		}
	}
}

// TestAskInstance: it is asked until there is an answer, and the same failure is told once.
func TestAskInstance(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, told := 0, []string(nil)
		got, err := askInstance(t.Context(), func(context.Context) (gce.Instance, error) {
			if asked++; asked < 4 {
				return gce.Instance{}, errors.New("no route")
			}
			return gce.Instance{Name: "a"}, nil
		}, func(format string, args ...any) { told = append(told, fmt.Sprintf(format, args...)) })
		if err != nil || got.Name != "a" || asked != 4 {
			t.Errorf("%+v after %d questions, %v", got, asked, err)
		}
		if d := cmp.Diff([]string{"no route; trying again"}, told); d != "" {
			t.Error(d)
		}
	})
}
