package kube

import (
	"strings"
	"testing"
	"time"
)

func TestDecide(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	ago := func(d time.Duration) time.Time { return now.Add(-d) }
	done := &Done{ClusterUID: "uid-1", Node: "k8s-01"}
	worker := func(change func(*State)) State {
		s := State{Now: now, Name: "w1", Runtime: true, API: APIReady, APISince: ago(time.Hour), Kubernetes: "v1.37.2", Token: Yes, NodeReady: No}
		change(&s)
		return s
	}
	master := func(change func(*State)) State {
		return worker(func(s *State) {
			s.Name, s.Master, s.Etcd, s.Initialised = "m1", true, Yes, No
			change(s)
		})
	}
	for _, tt := range []struct {
		name  string
		state State
		want  Action // Why: a part of it
	}{
		// Joined.
		{"joined", worker(func(s *State) { s.Done, s.Certificate = done, Certificate{Until: now.Add(time.Hour)} }), Action{Verb: Keep}},
		{"joined, runtime down", worker(func(s *State) { s.Done, s.Certificate, s.Runtime = done, Certificate{Until: now.Add(time.Hour)}, false }), Action{Verb: Keep}},
		{"joined, no API", master(func(s *State) { s.Done, s.Certificate, s.API = done, Certificate{Until: now.Add(time.Hour)}, APISilent }), Action{Verb: Keep}},
		{"of another cluster", worker(func(s *State) { s.DoneProblem = "this disk joined another" }), Action{Verb: Stop, Why: "this disk joined another"}},
		{"certificate cannot be read now", worker(func(s *State) { s.Done = done }), Action{Verb: Keep}},
		{"certificate lost", worker(func(s *State) { s.Done, s.Certificate.Missing = done, true }), Action{Verb: Clean, Forget: true, Why: "lost its certificate"}},
		{"certificate ended", worker(func(s *State) { s.Done, s.Certificate.Until = done, ago(time.Hour) }), Action{Verb: Clean, Forget: true, Why: "ended at 2026-11-25T11:00:00Z"}},
		{"certificate ended, or the clock is wrong", worker(func(s *State) { s.Done, s.Certificate.Until, s.API = done, ago(time.Hour), APISilent }), Action{Verb: Wait, Why: "check the clock"}},
		{"certificate ended, token not known", worker(func(s *State) { s.Done, s.Certificate.Until, s.Token = done, ago(time.Hour), No }), Action{Verb: Wait, Why: "accepts this machine's token"}},
		{"a master's certificate ended, as all masters' did", master(func(s *State) { s.Done, s.Certificate.Until, s.API = done, ago(time.Hour), APISilent }), Action{Verb: Certify, Why: "ended at 2026-11-25T11:00:00Z"}},
		{"a master's certificate ended, as a wrong clock says", master(func(s *State) { s.Done, s.Certificate.Until, s.Clock = done, ago(time.Hour), "set it" }), Action{Verb: Stop, Why: "set it"}},
		{"a master's certificate lost", master(func(s *State) { s.Done, s.Certificate.Missing = done, true }), Action{Verb: Clean, Forget: true, Why: "lost its certificate"}},
		{"certificate ended, as a wrong clock says", worker(func(s *State) { s.Done, s.Certificate.Until, s.Clock = done, ago(time.Hour), "set it" }), Action{Verb: Stop, Why: "set it"}},
		// Before anything else.
		{"a wrong clock", worker(func(s *State) { s.Clock = "set it" }), Action{Verb: Stop, Why: "set it"}},
		{"a wrong clock, joined", worker(func(s *State) {
			s.Done, s.Certificate, s.Clock = done, Certificate{Until: now.Add(time.Hour)}, "set it"
		}), Action{Verb: Keep}},
		{"no runtime", worker(func(s *State) { s.Runtime = false }), Action{Verb: Wait, Why: "container runtime"}},
		{"debris", worker(func(s *State) { s.Debris = true }), Action{Verb: Clean, Why: "did not succeed"}},
		{"debris, own API server half made", master(func(s *State) { s.Debris, s.Etcd = true, Unknown }), Action{Verb: Clean, Why: "did not succeed"}},
		{"debris is cleaned without a pause", worker(func(s *State) { s.Debris, s.Failures, s.FailedAt = true, 3, now }), Action{Verb: Clean, Why: "did not succeed"}},
		{"just failed", worker(func(s *State) { s.Failures, s.FailedAt, s.Failure = 1, ago(9*time.Second), "kubeadm: x" }), Action{Verb: Wait, Why: "kubeadm: x; trying again at 12:00:01"}},
		{"failed a while ago", worker(func(s *State) { s.Failures, s.FailedAt, s.Failure = 1, ago(10*time.Second), "kubeadm: x" }), Action{Verb: Join}},
		{"failed for ever", worker(func(s *State) { s.Failures, s.FailedAt = 1000, ago(119*time.Second) }), Action{Verb: Wait}},
		{"failed for ever, and again", worker(func(s *State) { s.Failures, s.FailedAt = 1000, ago(120*time.Second) }), Action{Verb: Join}},
		// Workers.
		{"worker joins", worker(func(*State) {}), Action{Verb: Join}},
		{"worker, silent", worker(func(s *State) { s.API, s.APIDetail = APISilent, "10.0.0.1:6443: connection refused" }), Action{Verb: Wait, Why: "no API server answers (10.0.0.1:6443: connection refused)"}},
		{"worker, starting", worker(func(s *State) { s.API = APIStarting }), Action{Verb: Wait, Why: "starting"}},
		{"worker, token not known", worker(func(s *State) { s.Token = No }), Action{Verb: Wait, Why: "do not know this machine's token"}},
		{"worker, no answer about the token", worker(func(s *State) { s.Token = Unknown }), Action{Verb: Wait, Why: "does not say"}},
		{"worker, a Ready Node of its name", worker(func(s *State) { s.NodeReady = Yes }), Action{Verb: Wait, Why: "a Ready Node w1 exists"}},
		{"worker, no answer about the Node", worker(func(s *State) { s.NodeReady = Unknown }), Action{Verb: Wait, Why: "Node w1"}},
		{"worker, newer", worker(func(s *State) { s.ClusterVersion = "v1.36.5" }), Action{Verb: Wait, Why: "boot the masters with the new image first"}},
		{"worker, older", worker(func(s *State) { s.Kubernetes = "v1.36.5" }), Action{Verb: Join}},
		{"worker, newer patch", worker(func(s *State) { s.ClusterVersion = "v1.37.1" }), Action{Verb: Wait, Why: "boot the masters with the new image first"}},
		{"worker, as old as may be", worker(func(s *State) { s.ClusterVersion = "v1.40.0" }), Action{Verb: Join}},
		{"worker, older than the masters", worker(func(s *State) { s.ClusterVersion, s.RaisedTo = "v1.38.1", "v1.38.1" }), Action{Verb: Join, Fetch: true}},
		{"worker, the first newer master is not up yet", worker(func(s *State) { s.ClusterVersion, s.RaisedTo = "v1.37.2", "v1.37.3" }), Action{Verb: Join, Fetch: true}},
		{"worker, of the masters' version", worker(func(s *State) { s.ClusterVersion, s.RaisedTo = "v1.37.2", "v1.37.2" }), Action{Verb: Join}},
		{"worker, too old", worker(func(s *State) { s.ClusterVersion = "v1.41.0" }), Action{Verb: Wait, Why: "3 minor versions older"}},
		// Masters.
		{"master, newer patch", master(func(s *State) { s.ClusterVersion = "v1.37.1" }), Action{Verb: Join, Raise: true}},
		{"master, newer minor", master(func(s *State) { s.ClusterVersion = "v1.36.10" }), Action{Verb: Join, Raise: true}},
		{"master, two minors newer", master(func(s *State) { s.ClusterVersion = "v1.35.8" }), Action{Verb: Wait, Why: "first boot the masters with an image of 1.36"}},
		{"master, older patch", master(func(s *State) { s.ClusterVersion = "v1.37.10" }), Action{Verb: Wait, Why: "never goes back: boot this master with an image of v1.37.10 or newer"}},
		{"master, of the cluster's version", master(func(s *State) { s.ClusterVersion = "v1.37.2" }), Action{Verb: Join}},
		{"master joins", master(func(*State) {}), Action{Verb: Join}},
		{"master, no etcd", master(func(s *State) { s.Etcd, s.EtcdDetail = Unknown, "timed out" }), Action{Verb: Wait, Why: "etcd does not answer: timed out"}},
		{"master, token not known", master(func(s *State) { s.Token = No }), Action{Verb: Wait, Why: "token"}},
		{"master, silent", master(func(s *State) { s.API = APISilent }), Action{Verb: Init}},
		{"master, silent, initialised before", master(func(s *State) { s.API, s.Initialised, s.ClusterVersion = APISilent, Yes, "v1.37.2" }), Action{Verb: Init, Again: true}},
		{"master, silent, initialised before by an older image", master(func(s *State) { s.API, s.Initialised, s.ClusterVersion = APISilent, Yes, "v1.36.5" }), Action{Verb: Init, Again: true}},
		{"master, silent, initialised before by a much older image", master(func(s *State) { s.API, s.Initialised, s.ClusterVersion = APISilent, Yes, "v1.35.8" }), Action{Verb: Wait, Why: "first boot the masters with an image of 1.36"}},
		{"master, silent, initialised before by a newer image", master(func(s *State) { s.API, s.Initialised, s.ClusterVersion = APISilent, Yes, "v1.37.3" }), Action{Verb: Wait, Why: "boot this master with an image of v1.37.3 or newer"}},
		{"master, silent, initialised before, who knows by what", master(func(s *State) { s.API, s.Initialised = APISilent, Yes }), Action{Verb: Wait, Why: "kubernetesVersion of the ConfigMap"}},
		{"master, silent, etcd does not say", master(func(s *State) { s.API, s.Initialised = APISilent, Unknown }), Action{Verb: Wait, Why: "initialised"}},
		{"master, silent for a moment", master(func(s *State) { s.API, s.APISince = APISilent, ago(19*time.Second) }), Action{Verb: Wait, Why: "making sure"}},
		{"master, all others refuse", master(func(s *State) { s.API, s.APISince, s.APIRefused = APISilent, now, true }), Action{Verb: Init}},
		{"master, all others refuse for a moment, initialised before", master(func(s *State) { s.API, s.APISince, s.APIRefused, s.Initialised = APISilent, now, true, Yes }), Action{Verb: Wait, Why: "making sure"}},
		{"master, all others refuse, etcd does not say", master(func(s *State) { s.API, s.APISince, s.APIRefused, s.Initialised = APISilent, now, true, Unknown }), Action{Verb: Wait, Why: "making sure"}},
		{"master, another starts", master(func(s *State) { s.API, s.APISince = APIStarting, ago(19*time.Minute) }), Action{Verb: Wait, Why: "another master's"}},
		{"master, another starts for ever", master(func(s *State) { s.API, s.APISince = APIStarting, ago(20*time.Minute) }), Action{Verb: Init}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := Decide(tt.state)
			if got.Verb != tt.want.Verb || got.Again != tt.want.Again || got.Forget != tt.want.Forget || got.Raise != tt.want.Raise || !strings.Contains(got.Why, tt.want.Why) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if (got.Verb == Wait || got.Verb == Stop) && got.Why == "" {
				t.Error("it does not say why")
			}
		})
	}
}

func TestBackoff(t *testing.T) {
	for failures, want := range map[int]time.Duration{1: 10 * time.Second, 2: 20 * time.Second, 3: 40 * time.Second, 4: 80 * time.Second, 5: 2 * time.Minute, 1 << 20: 2 * time.Minute} {
		if got := backoff(failures); got != want {
			t.Errorf("backoff(%d) = %s, want %s", failures, got, want)
		}
	}
}
