package kube

import (
	"errors"
	"testing"

	"github.com/kimage-project/kimage/pkg/run"
)

// TestCrictlReason: of what crictl 1.36 writes when it cannot pull, the reason is shown.
func TestCrictlReason(t *testing.T) {
	const log = `time="2026-11-26T10:50:57Z" level=warning msg="Config \"/etc/crictl.yaml\" does not exist, trying next: \"/usr/bin/crictl.yaml\""
E1126 10:50:58.049669   31407 remote_image.go:250] "PullImage from image service failed" err="rpc error: code = Unknown desc = failed to pull" image="registry.k8s.io/kube-proxy:v1.36.5"
time="2026-11-26T10:50:58Z" level=fatal msg="pulling image: failed to pull and unpack image \"registry.k8s.io/kube-proxy:v1.36.5\": connect: network is unreachable"
`
	for stderr, want := range map[string]string{
		log:                        `crictl: pulling image: failed to pull and unpack image "registry.k8s.io/kube-proxy:v1.36.5": connect: network is unreachable`,
		"error: no such program\n": "crictl: no such program",
	} {
		err := &run.Error{Argv: []string{"/usr/bin/crictl"}, Stderr: stderr, Err: errors.New("exit status 1")}
		if got := crictlReason(err).Error(); got != want {
			t.Errorf("%q, not %q", got, want)
		}
	}
	if err := errors.New("signal: killed"); crictlReason(err) != err {
		t.Error("an error that is not the program's is changed")
	}
}
