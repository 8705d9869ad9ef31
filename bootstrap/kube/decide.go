package kube

import (
	"fmt"
	"time"
)

// Verb is what to do next.
type Verb string

// Verbs.
const (
	Wait  Verb = "wait"  // for what Why says
	Clean Verb = "clean" // undo a kubeadm that did not succeed
	Init  Verb = "init"  // kubeadm init
	Join  Verb = "join"  // kubeadm join
	Keep  Verb = "keep"  // joined: masters keep what others join by; workers rest
	Stop  Verb = "stop"  // a person must act

	// Certify: masters make their kubelet's certificate anew.
	Certify Verb = "certify"
)

// Action is one thing to do.
type Action struct {
	Verb   Verb
	Why    string // for status: what is waited for, and what to do about it
	Again  bool   // Init: over a cluster that was initialised before
	Forget bool   // Clean: the machine had joined, and must join again
	Raise  bool   // Join: the cluster comes to this image's Kubernetes first
	Fetch  bool   // Join: what runs on every machine is newer than this image, and is fetched first
}

const (
	// silentFor is how long no API server answers before a master initialises:
	// longer than a balancer needs to change backends.
	silentFor = 20 * time.Second
	// startingFor is how long another's API server may be starting before it
	// counts as one that never will.
	startingFor = 20 * time.Minute
)

// Decide says what to do about what was observed. It is pure: same state, same action.
func Decide(s State) Action {
	switch {
	case s.DoneProblem != "":
		return Action{Verb: Stop, Why: s.DoneProblem}
	case s.Done != nil && !s.Certificate.useless(s.Now):
		return Action{Verb: Keep}
	case s.Clock != "":
		return Action{Verb: Stop, Why: s.Clock}
	case s.Done != nil:
		return decideRejoin(s)
	case !s.Runtime:
		return wait("the container runtime does not answer (journalctl -u containerd)")
	case s.Debris:
		return Action{Verb: Clean, Why: "cleaning up after a kubeadm that did not succeed"}
	case s.Failures > 0 && s.Now.Before(s.FailedAt.Add(backoff(s.Failures))):
		return wait("%s; trying again at %s", s.Failure, s.FailedAt.Add(backoff(s.Failures)).UTC().Format(time.TimeOnly))
	case s.Master:
		return decideMaster(s)
	}
	return decideWorker(s)
}

// decideRejoin is for a Node whose kubelet cannot show who it is any more: the
// machine was off for too long, or somebody removed the certificate. Joining
// again begins with a reset, so it waits until the cluster, by a certificate
// that is valid on this machine's clock, accepts this machine's token: a clock
// that is wrong must not undo a cluster. A master needs none of that.
func decideRejoin(s State) Action {
	why := "the kubelet's certificate ended at " + s.Certificate.Until.UTC().Format(time.RFC3339)
	switch {
	case s.Certificate.Missing:
		why = "the kubelet has lost its certificate"
	case s.Master:
		return Action{Verb: Certify, Why: why}
	}
	if s.API != APIReady || s.Token != Yes {
		return wait("%s, and no API server of another machine accepts this machine's token (%s): check the clock", why, s.APIDetail)
	}
	return Action{Verb: Clean, Forget: true, Why: why + ": joining again"}
}

func decideMaster(s State) Action {
	switch {
	case s.starting():
		return wait("another master's API server is starting (%s)", s.APIDetail)
	case s.Etcd != Yes:
		return wait("etcd does not answer: %s", s.EtcdDetail)
	case s.API == APIReady:
		return decideJoin(s)
	case s.Now.Before(s.APISince.Add(silentFor)) && !s.certainlyNew():
		return wait("making sure that no API server answers (%s)", s.APIDetail)
	case s.Initialised == Unknown:
		return wait("etcd does not say whether this cluster was initialised: %s", s.EtcdDetail)
	case s.Initialised == Yes && s.ClusterVersion == "":
		return wait("etcd does not say with which Kubernetes this cluster was initialised (kubernetesVersion of the ConfigMap kubeadm-config in kube-system): %s", s.EtcdDetail)
	case s.misfit() != "":
		return wait("%s", s.misfit())
	}
	return Action{Verb: Init, Again: s.Initialised == Yes, Why: "no API server answers"}
}

// certainlyNew says whether nobody can have an API server: no cluster was ever
// initialised, says etcd, and every other master's machine is up and has nothing
// on that port. Silence proves less: a machine may be slow, or cut off.
func (s State) certainlyNew() bool { return s.Initialised == No && s.APIRefused }

func decideWorker(s State) Action {
	switch s.API {
	case APIReady:
		return decideJoin(s)
	case APIStarting:
		return wait("the API server is starting (%s)", s.APIDetail)
	}
	return wait("no API server answers (%s)", s.APIDetail)
}

// decideJoin is for those to whom an API server answers.
func decideJoin(s State) Action {
	switch {
	case s.Token == No:
		return wait("the masters do not know this machine's token: they are still starting, or it was revoked, or their config is older than this machine's")
	case s.Token == Unknown:
		return wait("the API server does not say whether it knows this machine's token (%s)", s.APIDetail)
	case s.misfit() != "":
		return wait("%s", s.misfit())
	case s.NodeReady == Yes:
		return wait("a Ready Node %s exists: until the cluster notices that it is gone, or there are two machines of this name", s.Name)
	case s.NodeReady == Unknown:
		return wait("the API server does not say whether a Node %s exists", s.Name)
	}
	return Action{Verb: Join, Why: "an API server answers",
		Raise: s.Master && s.ClusterVersion != "" && newer(s.Kubernetes, s.ClusterVersion),
		Fetch: !s.Master && newer(s.RaisedTo, s.Kubernetes)}
}

func wait(format string, args ...any) Action {
	return Action{Verb: Wait, Why: fmt.Sprintf(format, args...)}
}

// backoff is the pause after the nth failure in a row: from ten seconds to two
// minutes.
func backoff(failures int) time.Duration {
	d := 5 * time.Second << min(failures, 8)
	return min(d, 2*time.Minute)
}
