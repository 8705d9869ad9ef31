package kube

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/pki"
)

// object is a YAML mapping; its keys are written sorted.
type object = map[string]any

const kubeadmAPI = "kubeadm.k8s.io/v1beta4"

// settings are the user's own, passed on.
type settings struct{ kubeadm, kubelet object }

func userSettings(c nodeconf.Config) (s settings, err error) {
	for _, x := range []struct {
		name string
		from *nodeconf.Raw
		to   *object
	}{{"kubeadm", c.Kubeadm, &s.kubeadm}, {"kubelet", c.Kubelet, &s.kubelet}} {
		if x.from == nil {
			continue
		}
		if err := json.Unmarshal(*x.from, x.to); err != nil {
			return s, fmt.Errorf("reading %s of node.json (make it again with kimage config): %w", x.name, err)
		}
	}
	return s, nil
}

// timeouts suit a machine that emulates its processor: kubeadm's own are for
// those ten times as fast. Init waits for its API server to come up once by
// kubernetesAPICall, before the health check that has that purpose.
func timeouts() object {
	return object{"controlPlaneComponentHealthCheck": "15m0s", "kubernetesAPICall": "15m0s", "etcdAPICall": "5m0s",
		"kubeletHealthCheck": "10m0s", "tlsBootstrap": "15m0s", "discovery": "10m0s"}
}

// skippedOnce are phases of init that have no use here: nobody joins by a
// printed command, and certificates come with first boot.
var skippedOnce = []string{"show-join-command", "upload-certs"}

// skippedAgain are those that would overwrite what people may have changed
// since a cluster was first initialised. upload-config is among them because
// kubeadm notes skipped addons there as disabled.
var skippedAgain = []string{"addon", "bootstrap-token", "upload-config"}

// initConfig is what kubeadm init reads. again: the cluster was initialised before.
func (n *Node) initConfig(again bool, token string) ([]byte, error) {
	skip := slices.Clone(skippedOnce)
	if again {
		skip = append(skip, skippedAgain...)
	}
	slices.Sort(skip)
	init := object{"apiVersion": kubeadmAPI, "kind": "InitConfiguration",
		"localAPIEndpoint": object{"advertiseAddress": n.Addresses[0]},
		"nodeRegistration": n.registration(),
		"timeouts":         timeouts(), "skipPhases": skip,
		"patches": object{"directory": n.path(patchesDir)},
		// Without one, kubeadm makes a token of a group whose every request is
		// approved automatically.
		"bootstrapTokens": []any{object{"token": token, "ttl": "0s", "usages": []string{"authentication"},
			"groups": []string{JoinGroup, tokenGroup(false, n.Name)}, "description": tokenDescription(false, n.Name)}},
	}
	return documents(init, n.clusterConfig(), n.kubeletConfig(), n.proxyConfig())
}

// joinConfig is what kubeadm join reads.
func (n *Node) joinConfig() ([]byte, error) {
	join := object{"apiVersion": kubeadmAPI, "kind": "JoinConfiguration",
		"discovery":        object{"file": object{"kubeConfigPath": n.path(discoveryFile)}},
		"nodeRegistration": n.registration(), "timeouts": timeouts()}
	if n.master() {
		join["patches"] = object{"directory": n.path(patchesDir)}
		join["controlPlane"] = object{"localAPIEndpoint": object{"advertiseAddress": n.Addresses[0]}}
	}
	return documents(join)
}

// registration is what a machine says of its own Node.
func (n *Node) registration() object {
	labels := maps.Clone(n.Node.Node.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[versionLabel] = n.Node.Image.Kubernetes
	var list []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		list = append(list, k+"="+labels[k])
	}
	args := []any{object{"name": "node-ip", "value": strings.Join(n.Addresses, ",")}, object{"name": "node-labels", "value": strings.Join(list, ",")}}
	taints := []any{} // an absent list is not an empty one: kubeadm would taint every master
	if n.master() && !n.Node.Node.Has(nodeconf.RoleWorker) {
		taints = append(taints, object{"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"})
	}
	for _, t := range n.Node.Node.Taints {
		taint := object{"key": t.Key, "effect": t.Effect}
		if t.Value != "" {
			taint["value"] = t.Value
		}
		taints = append(taints, taint)
	}
	return object{"name": n.Name, "criSocket": "unix://" + criSocket, "kubeletExtraArgs": args, "taints": taints,
		// Nothing is fetched: an image that is missing is said at once.
		"imagePullPolicy":       "IfNotPresent",
		"ignorePreflightErrors": n.IgnoreChecks}
}

// clusterConfig is the ClusterConfiguration: the same on every master.
func (n *Node) clusterConfig() object {
	c := n.Node
	own := object{"apiVersion": kubeadmAPI, "kind": "ClusterConfiguration",
		"clusterName":          c.Cluster.Name,
		"kubernetesVersion":    c.Image.Kubernetes,
		"controlPlaneEndpoint": n.API,
		"certificatesDir":      n.path(kubernetesDir + "/pki"),
		"networking": object{"podSubnet": strings.Join(c.Network.Pods, ","), "serviceSubnet": strings.Join(c.Network.Services, ","),
			"dnsDomain": c.Network.DNSDomain},
		"etcd": object{"external": object{"endpoints": []string{"https://" + n.Etcd},
			"caFile":   n.path(kubernetesDir + "/pki/etcd/ca.crt"),
			"certFile": n.path(kubernetesDir + "/pki/apiserver-etcd-client.crt"),
			"keyFile":  n.path(kubernetesDir + "/pki/apiserver-etcd-client.key")}},
		"apiServer": object{
			"certSANs":  n.certSANs(),
			"extraArgs": []any{object{"name": "encryption-provider-config", "value": n.path(encryptFile)}},
			"extraVolumes": []any{object{"name": "kimage-encryption", "hostPath": n.path(encryptFile), "mountPath": n.path(encryptFile),
				"pathType": "File", "readOnly": true}}},
	}
	// As first boot's own keys are. A handshake by kubeadm's default, RSA-2048, costs
	// an API server thirty times as much, and at boot they are most of its work.
	if _, ok := n.settings.kubeadm["encryptionAlgorithm"]; !ok {
		own["encryptionAlgorithm"] = pki.DefaultAlgorithm
	}
	if minor(c.Image.Kubernetes) <= 35 {
		// Until then kubeadm mounts a directory for these plugins, below /usr if
		// it is told no other, and makes it: on a read-only /usr it cannot.
		own["controllerManager"] = object{"extraArgs": []any{object{"name": "flex-volume-plugin-dir", "value": pluginDir}}}
	}
	return merge(n.settings.kubeadm, own)
}

// certSANs are the names of every API server's certificate besides those that
// kubeadm adds itself.
func (n *Node) certSANs() []string {
	all := append(n.masterNames(), "127.0.0.1")
	if host, _, err := net.SplitHostPort(n.Node.API.Endpoint); err == nil {
		all = append(all, host)
	}
	all = append(all, n.Node.API.CertSANs...)
	slices.Sort(all)
	return slices.Compact(all)
}

// kubeletConfig is the KubeletConfiguration of all machines.
func (n *Node) kubeletConfig() object {
	own := object{"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"cgroupDriver": "systemd", "clusterDomain": n.Node.Network.DNSDomain,
		"volumePluginDir": pluginDir}
	if dns := n.Node.Network.DNS; len(dns) > 0 {
		own["clusterDNS"] = dns[:1] // kubeadm's service has one address
	}
	user := n.settings.kubelet
	if _, ok := user["resolvConf"]; !ok {
		own["resolvConf"] = n.path(resolvFile)
	}
	return merge(user, own)
}

func (n *Node) proxyConfig() object {
	return object{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
		"clusterCIDR": strings.Join(n.Node.Network.Pods, ",")}
}

// merge is user's settings under kimage's own: mappings merge, lists append
// (the user's last), and of two values kimage's wins.
func merge(user, own object) object {
	out := maps.Clone(user)
	if out == nil {
		out = object{}
	}
	for k, v := range own {
		switch v := v.(type) {
		case object:
			below, _ := out[k].(object)
			out[k] = merge(below, v)
		case []any:
			more, _ := out[k].([]any)
			out[k] = append(slices.Clone(v), more...)
		case []string:
			all := slices.Clone(v)
			more, _ := out[k].([]any)
			for _, m := range more {
				if s, ok := m.(string); ok && !slices.Contains(all, s) {
					all = append(all, s)
				}
			}
			out[k] = all
		default:
			out[k] = v
		}
	}
	return out
}

// documents writes YAML documents one after the other.
func documents(list ...object) ([]byte, error) {
	var b bytes.Buffer
	for i, o := range list {
		if i > 0 {
			b.WriteString("---\n")
		}
		enc := yaml.NewEncoder(&b)
		enc.SetIndent(2)
		if err := enc.Encode(o); err != nil {
			return nil, fmt.Errorf("writing kubeadm's configuration: %w", err)
		}
		if err := enc.Close(); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}
