package kube

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/semver"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/pki"
	"github.com/kimage-project/kimage/pkg/run"
)

// A cluster gets another Kubernetes by machines whose images have it: no machine
// is changed in place. The version of the cluster is that in kubeadm-config, and
// the first master of a newer image raises it. It also brings along what kubeadm
// made for all machines. None of them may have a way out, so a pod must find its
// image on the machine where it starts:
//
//	kube-proxy, flannel   before that master joins. Machines keep the pods that
//	                      they have (OnDelete); new machines have the new image,
//	                      and one of an older image fetches it before it joins.
//	CoreDNS               after it is Ready, and only to machines of its version,
//	                      by their label.
//
// What a person gave an image of another name is left alone.

// versionLabel on a Node is the Kubernetes version of its machine's image.
const versionLabel = "kimage.dev/kubernetes"

// kubeletSkew is by how many minor versions a kubelet may be older than the API
// servers (https://kubernetes.io/releases/version-skew-policy/).
const kubeletSkew = 3

const kubeadmConfigPath = "/api/v1/namespaces/kube-system/configmaps/kubeadm-config"

// newer says whether a is a later version than b.
func newer(a, b string) bool { return semver.Compare(a, b) > 0 }

// misfit says why a machine of this image may not join or found anew the cluster
// that there is; empty: it may.
func (s State) misfit() string {
	own, theirs := s.Kubernetes, s.ClusterVersion
	switch {
	case theirs == "":
		return ""
	case s.Master && newer(theirs, own):
		return fmt.Sprintf("the cluster's Kubernetes is %s and this image's %s, and a control plane never goes back: boot this master with an image of %s or newer", theirs, own, theirs)
	case s.Master && minor(own) > minor(theirs)+1:
		return fmt.Sprintf("the cluster's Kubernetes is %s and this image's %s, more than one minor version ahead: first boot the masters with an image of 1.%d", theirs, own, minor(theirs)+1)
	case !s.Master && newer(own, theirs):
		return fmt.Sprintf("the masters' Kubernetes is %s and this image's %s, and a worker may not be newer: boot the masters with the new image first", theirs, own)
	case !s.Master && minor(own)+kubeletSkew < minor(theirs):
		return fmt.Sprintf("the masters' Kubernetes is %s and this image's %s, and a worker may be %d minor versions older: boot it with a newer image", theirs, own, kubeletSkew)
	}
	return ""
}

// configVersion finds the version in a ClusterConfiguration, also amid other bytes.
var configVersion = regexp.MustCompile(`(?m)^kubernetesVersion: "?(v[0-9][0-9A-Za-z.+-]*)"?$`)

// kubeadmConfig is the ConfigMap.
type kubeadmConfig struct {
	Metadata struct {
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
	Data map[string]string `json:"data"`
}

func (c kubeadmConfig) version() string { return versionIn(c.Data["ClusterConfiguration"]) }

func versionIn(text string) string {
	if m := configVersion.FindStringSubmatch(text); m != nil {
		return m[1]
	}
	return ""
}

// bringAlong raises the cluster's version to this image's, if it is lower, and
// returns it. What is told to all is written last: after a crash all of it is done
// again.
func (n *Node) bringAlong(ctx context.Context, c *kubeapi.Client) (version string, err error) {
	own := n.Node.Image.Kubernetes
	var config kubeadmConfig
	if err := c.Get(ctx, kubeadmConfigPath, nil, &config); err != nil {
		return "", fmt.Errorf("reading the cluster's version: %w", err)
	}
	theirs := config.version()
	if theirs == "" || !newer(own, theirs) {
		return theirs, nil
	}
	var nodes struct{ Items []kubeapi.Object }
	if err := c.Get(ctx, "/api/v1/nodes", nil, &nodes); err != nil {
		return "", fmt.Errorf("reading the machines' versions: %w", err)
	}
	if why := leftBehind(own, n.Name, nodes.Items); why != "" {
		return "", errors.New(why)
	}
	n.Logf("bringing the cluster from Kubernetes %s to %s", theirs, own)
	images, err := n.kubeadmImages(ctx)
	if err != nil {
		return "", err
	}
	if err := n.setImages(ctx, c, proxySet.path(), images, onDelete); err != nil {
		return "", err
	}
	if n.Node.Image.Plugin == "flannel" {
		if images, err = n.networkImages(); err != nil {
			return "", err
		}
		if err := n.setImages(ctx, c, flannelSet.path(), images, onDelete); err != nil {
			return "", err
		}
	}
	text := configVersion.ReplaceAllString(config.Data["ClusterConfiguration"], "kubernetesVersion: "+own)
	return own, c.Merge(ctx, kubeadmConfigPath, object{"metadata": object{"resourceVersion": config.Metadata.ResourceVersion}, "data": object{"ClusterConfiguration": text}})
}

// leftBehind names a machine that may not be in one cluster with API servers of
// version own; empty: there is none. The machine itself is about to be another.
func leftBehind(own, itself string, nodes []kubeapi.Object) string {
	for _, o := range nodes {
		name, kubelet := kubeapi.Text(o, "metadata", "name"), kubeapi.Text(o, "status", "nodeInfo", "kubeletVersion")
		if name == itself || minor(kubelet) == 0 {
			continue
		}
		labels, _ := kubeapi.Field(o, "metadata", "labels").(kubeapi.Object)
		if _, master := labels["node-role.kubernetes.io/control-plane"]; master && minor(own) > minor(kubelet)+1 {
			return fmt.Sprintf("the master %s runs %s, more than one minor version behind this image's %s: image it again first", name, kubelet, own)
		}
		if minor(own) > minor(kubelet)+kubeletSkew {
			return fmt.Sprintf("%s runs %s, more than %d minor versions behind this image's %s: image it again first", name, kubelet, kubeletSkew, own)
		}
	}
	return ""
}

// followDNS moves CoreDNS to this image's version, on machines that have it.
func (n *Node) followDNS(ctx context.Context, c *kubeapi.Client) error {
	images, err := n.kubeadmImages(ctx)
	if err != nil {
		return err
	}
	return n.setImages(ctx, c, "/apis/apps/v1/namespaces/kube-system/deployments/coredns", images, func(o kubeapi.Object) (object, bool) {
		terms, _ := kubeapi.Field(o, "spec", "template", "spec", "affinity", "nodeAffinity", requiredAffinity, "nodeSelectorTerms").([]any)
		terms, moved := toVersion(terms, n.Node.Image.Kubernetes)
		return object{"template": object{"spec": object{"affinity": object{"nodeAffinity": object{requiredAffinity: object{"nodeSelectorTerms": terms}}}}}}, moved
	})
}

const requiredAffinity = "requiredDuringSchedulingIgnoredDuringExecution"

// toVersion adds to each term of an affinity, of which a person may have made some,
// that the machine's image has the version. moved: another version was wanted.
func toVersion(terms []any, version string) (out []any, moved bool) {
	if len(terms) == 0 {
		terms = []any{kubeapi.Object{}}
	}
	for _, x := range terms {
		term, _ := x.(kubeapi.Object)
		expressions := []any{object{"key": versionLabel, "operator": "In", "values": []any{version}}}
		old, _ := term["matchExpressions"].([]any)
		for _, e := range old {
			if expression, _ := e.(kubeapi.Object); kubeapi.Text(expression, "key") != versionLabel {
				expressions = append(expressions, e)
			} else if values, _ := expression["values"].([]any); len(values) != 1 || values[0] != version {
				moved = true
			}
		}
		term = maps.Clone(term)
		if term == nil {
			term = kubeapi.Object{}
		}
		term["matchExpressions"] = expressions
		out = append(out, term)
	}
	return out, moved
}

// daemonSet is one that runs on every machine.
type daemonSet struct{ namespace, name string }

var (
	proxySet   = daemonSet{"kube-system", "kube-proxy"}
	flannelSet = daemonSet{"kube-flannel", "kube-flannel-ds"}
)

func (d daemonSet) path() string {
	return "/apis/apps/v1/namespaces/" + d.namespace + "/daemonsets/" + d.name
}

// onDelete keeps the pods that there are when their template changes.
func onDelete(kubeapi.Object) (object, bool) {
	return object{"updateStrategy": object{"type": "OnDelete", "rollingUpdate": nil}}, false
}

// setImages gives the containers of a workload those of images that have the name
// of theirs, and the workload what also returns, a merge patch of its spec, if one
// of them is another than before, or also says that it must. A workload that is not
// there is nobody's business.
func (n *Node) setImages(ctx context.Context, c *kubeapi.Client, path string, images []string, also func(kubeapi.Object) (spec object, must bool)) error {
	var o kubeapi.Object
	if err := c.Get(ctx, path, nil, &o); kubeapi.Is(err, 404) {
		return nil
	} else if err != nil {
		return fmt.Errorf("reading what is to be brought along: %w", err)
	}
	pod := object{}
	spec, changed := also(o)
	for list, containers := range containersOf(o) {
		for _, x := range containers {
			container, _ := x.(kubeapi.Object)
			old := kubeapi.Text(container, "image")
			if i := slices.IndexFunc(images, func(i string) bool { return repository(i) == repository(old) }); i >= 0 && images[i] != old {
				container["image"], changed = images[i], true
			}
		}
		pod[list] = containers
	}
	if !changed {
		return nil
	}
	spec = merge(spec, object{"template": object{"spec": pod}})
	if err := c.Merge(ctx, path, object{"metadata": object{"resourceVersion": kubeapi.Text(o, "metadata", "resourceVersion")}, "spec": spec}); err != nil {
		return fmt.Errorf("bringing %s along: %w", kubeapi.Text(o, "metadata", "name"), err)
	}
	return nil
}

// containersOf are a workload's lists of containers, by their names in a pod's spec.
func containersOf(o kubeapi.Object) map[string][]any {
	all := map[string][]any{}
	for _, list := range []string{"containers", "initContainers"} {
		if containers, ok := kubeapi.Field(o, "spec", "template", "spec", list).([]any); ok {
			all[list] = containers
		}
	}
	return all
}

// repository is an image's name without tag and digest.
func repository(image string) string {
	image, _, _ = strings.Cut(image, "@")
	if i := strings.LastIndex(image, ":"); i > strings.LastIndex(image, "/") {
		return image[:i]
	}
	return image
}

// kubeadmImages are those that this image's kubeadm would use.
func (n *Node) kubeadmImages(ctx context.Context) ([]string, error) {
	config, err := documents(n.clusterConfig())
	if err != nil {
		return nil, err
	}
	const file = ownDir + "/images.yaml"
	if err := n.write(file, config, 0o600); err != nil {
		return nil, err
	}
	defer n.remove(file)
	var out strings.Builder
	if err := n.Run(ctx, run.Cmd{Argv: []string{"kubeadm", "config", "images", "list", "--config", n.path(file)}, Stdout: &out}); err != nil {
		return nil, fmt.Errorf("asking kubeadm for its images: %w", err)
	}
	return strings.Fields(out.String()), nil
}

// networkImages are those of the network plugin's manifest in this image.
func (n *Node) networkImages() ([]string, error) {
	file := n.path(manifestDir + "/" + n.Node.Image.Plugin + ".yaml")
	manifest, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	objects, err := kubeapi.Objects(manifest)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	var images []string
	for _, o := range objects {
		for _, containers := range containersOf(o) {
			for _, x := range containers {
				container, _ := x.(kubeapi.Object)
				images = append(images, kubeapi.Text(container, "image"))
			}
		}
	}
	return images, nil
}

// caClient talks to the cluster as an administrator, by a certificate that is
// never written: a master that has not joined yet has no other, but the CA.
func (n *Node) caClient() (*kubeapi.Client, error) {
	ca, err := n.clusterCA()
	if err != nil {
		return nil, err
	}
	pair, err := ca.Issue(pki.Request{CommonName: "kimage:" + n.Name, Organization: []string{"system:masters"}, Client: true, NotAfter: n.Now().Add(time.Hour)}, pki.DefaultAlgorithm, n.Now())
	if err != nil {
		return nil, err
	}
	return kubeapi.New(kubeapi.Config{Server: "https://" + n.API, CA: ca.Cert, Cert: pair.Cert, Key: pair.Key, Timeout: probeTimeout,
		Changed: func(method, path string) { n.tellChanged(method + " " + path) }})
}

// clusterCA is the authority that first boot gave to this master.
func (n *Node) clusterCA() (ca pki.Pair, err error) {
	for ending, into := range map[string]*[]byte{".crt": &ca.Cert, ".key": &ca.Key} {
		if *into, err = os.ReadFile(n.pki(nodeconf.ClusterCA + ending)); err != nil {
			return ca, fmt.Errorf("reading what first boot wrote (give the machine its config again: kimage config): %w", err)
		}
	}
	return ca, nil
}
