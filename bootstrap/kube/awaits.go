package kube

// What a machine waits for, in a word for people who ask where the time went.
const (
	AwaitsNothing = ""
	AwaitsRuntime = "runtime" // the container runtime
	AwaitsEtcd    = "etcd"
	AwaitsOthers  = "other machines"
	AwaitsRetry   = "retry" // the pause after a kubeadm that failed
)

// Awaits says what is waited for if a was decided on s.
func (s State) Awaits(a Action) string {
	switch {
	case a.Verb != Wait:
		return AwaitsNothing
	case s.Done == nil && !s.Runtime:
		return AwaitsRuntime
	case s.Done == nil && s.Failures > 0 && s.Now.Before(s.FailedAt.Add(backoff(s.Failures))):
		return AwaitsRetry
	case s.Done == nil && s.Master && s.Etcd != Yes:
		return AwaitsEtcd
	}
	return AwaitsOthers
}
