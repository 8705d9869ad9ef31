package bootstrap

import (
	"testing"

	"github.com/kimage-project/kimage/bootstrap/etcd"
)

// TestEtcdIsSeen: why etcd does not run, or what it lacks, is in the status of
// every machine that has one.
func TestEtcdIsSeen(t *testing.T) {
	const why = "etcd cannot use its data any more: kimage recover"
	waits, runs, stops := etcd.Action{Do: etcd.Wait, Why: why}, etcd.Action{Do: etcd.Keep, Why: "etcd runs; " + why, Note: why}, etcd.Action{Do: etcd.Stop, Why: why}
	well := etcd.Action{Do: etcd.Keep, Why: "etcd runs"}
	for _, c := range []struct {
		name         string
		act          etcd.Action
		only, joined bool
		kube         saying
		want         saying
	}{
		{name: "etcd alone waits", act: waits, only: true, want: saying{PhaseEtcd, why}},
		{name: "etcd alone runs and lacks something", act: runs, only: true, want: saying{PhaseReady, why}},
		{name: "etcd alone has no quorum", act: etcd.Action{Do: etcd.Keep, Note: why, Stuck: true}, only: true, want: saying{PhaseEtcd, why}},
		{name: "etcd alone runs", act: well, only: true, want: saying{PhaseReady, ""}},
		{name: "etcd alone stops", act: stops, only: true, want: saying{PhaseStopped, why}},
		{name: "a blank master's waits", act: waits, kube: saying{PhaseWaiting, "for etcd"}, want: saying{PhaseEtcd, why}},
		{name: "a master's waits", act: waits, joined: true, kube: saying{PhaseReady, ""}, want: saying{PhaseReady, "etcd: " + why}},
		{name: "a master's waits, and so its kubelet", act: waits, joined: true, kube: saying{PhaseWaiting, "for etcd"}, want: saying{PhaseWaiting, "etcd: " + why + "; for etcd"}},
		{name: "a master's runs and lacks something", act: runs, joined: true, kube: saying{PhaseReady, ""}, want: saying{PhaseReady, why}},
		{name: "a master's runs", act: well, joined: true, kube: saying{PhaseReady, ""}, want: saying{PhaseReady, ""}},
		{name: "a master's stops", act: stops, joined: true, kube: saying{PhaseReady, ""}, want: saying{PhaseStopped, why}},
	} {
		if got := overall([parts]saying{partEtcd: etcdSays(c.act, c.only, c.joined), partKube: c.kube}, nil); got != c.want {
			t.Errorf("%s: got %+v", c.name, got)
		}
	}
}

func TestUnitRuns(t *testing.T) {
	for shown, want := range map[string]bool{
		"ActiveState=active\n":               true,
		"ActiveState=activating\nJob=3817\n": true,
		"ActiveState=deactivating\n":         true,
		"ActiveState=inactive\n":             false,
		"Job=0\nActiveState=inactive\n":      false,
		"Job=\nActiveState=failed\n":         false,
		"Job=3817\nActiveState=inactive\n":   true, // systemctl --no-block start has just ended
		"Job=3817\nActiveState=failed\n":     true, // again
	} {
		if got, err := unitRuns(shown); err != nil || got != want {
			t.Errorf("%q: got %v, %v, want %v", shown, got, err, want)
		}
	}
	for _, shown := range []string{"", "Job=3817\n", "ActiveState=maintenance\n"} {
		if got, err := unitRuns(shown); err == nil {
			t.Errorf("%q: got %v, want an error", shown, got)
		}
	}
}
