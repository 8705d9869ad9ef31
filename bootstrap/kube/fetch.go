package kube

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"time"

	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/run"
)

// fetchBudget is for the images that a worker of an older image lacks.
const fetchBudget = 15 * time.Minute

// fetchImages has the runtime pull what runs on every machine, for a worker whose
// image is older than the cluster and so lacks it. Without, the worker would be a
// Ready Node that no Service reaches: better it says what it lacks, and waits.
func (n *Node) fetchImages(ctx context.Context) error {
	c, err := n.tokenClient()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, fetchBudget)
	defer cancel()
	for _, d := range []daemonSet{proxySet, flannelSet} {
		var o kubeapi.Object
		switch err := c.Get(ctx, d.path(), nil, &o); {
		case kubeapi.Is(err, 404):
			continue
		case kubeapi.Is(err, 403): // the masters are of an older kimage
			n.Logf("the cluster does not let this machine ask which image %s has on new machines: it may lack it", d.name)
			continue
		case err != nil:
			return fmt.Errorf("asking which image %s has on new machines: %w", d.name, err)
		}
		for _, containers := range containersOf(o) {
			for _, x := range containers {
				container, _ := x.(kubeapi.Object)
				if err := n.fetch(ctx, kubeapi.Text(container, "image")); err != nil {
					return fmt.Errorf("the cluster's %s runs %s, which this machine's image (Kubernetes %s) has not, and it cannot be pulled: boot this machine with an image of the masters' Kubernetes, or give it a way to the registry: %w",
						d.name, kubeapi.Text(container, "image"), n.Node.Image.Kubernetes, crictlReason(err))
				}
			}
		}
	}
	return nil
}

// fetch pulls an image that the runtime does not have.
func (n *Node) fetch(ctx context.Context, image string) error {
	crictl := []string{"crictl", "--runtime-endpoint", "unix://" + criSocket, "--timeout", "60s"}
	if n.Run(ctx, run.Cmd{Argv: append(crictl, "inspecti", "--quiet", image)}) == nil {
		return nil
	}
	n.Logf("pulling %s: this machine's image is older than the cluster", image)
	return n.Run(ctx, run.Cmd{Argv: append(crictl, "pull", image)})
}

// fatalLine is the last of crictl's: the others are a log of the same.
var fatalLine = regexp.MustCompile(`(?m)^time=\S+ level=fatal msg=("(?:[^"\\]|\\.)*")`)

func crictlReason(err error) error {
	var e *run.Error
	if !errors.As(err, &e) {
		return err
	}
	if m := fatalLine.FindStringSubmatch(e.Stderr); m != nil {
		if words, bad := strconv.Unquote(m[1]); bad == nil {
			return &programError{words, e}
		}
	}
	return reason(err)
}
