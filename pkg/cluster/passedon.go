package cluster

import (
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/nearest"
	"github.com/kimage-project/kimage/pkg/pki"
)

// Fields of kubeadm's ClusterConfiguration v1beta4
// (https://kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4/): those
// that people may set, and those that kimage sets, with where to say it instead.
var (
	kubeadmFields = []string{"apiServer", "controllerManager", "scheduler", "dns", "proxy", "imageRepository", "featureGates",
		"encryptionAlgorithm", "certificateValidityPeriod", "caCertificateValidityPeriod"}
	kubeadmOwned = map[string]string{
		"apiVersion": "leave it out", "kind": "leave it out",
		"kubernetesVersion": "use spec.kubernetes", "controlPlaneEndpoint": "nodes have a balancer of their own; for people outside use spec.api.endpoint",
		"networking": "use spec.network", "etcd": "list machines with the role etcd", "certificatesDir": "leave it out", "clusterName": "use metadata.name",
	}
	kubeadmOwnedBelow = map[string]string{
		"apiServer.certSANs": "use spec.api.certSANs",
	}
	// ownedArgs of the API server and the controller manager.
	ownedArgs = map[string]string{
		"advertise-address": "it is the node's address", "etcd-servers": "list machines with the role etcd", "encryption-provider-config": "Secrets are encrypted already",
		"service-cluster-ip-range": "use spec.network.services", "cluster-cidr": "use spec.network.pods", "secure-port": "it is 6443",
		"tls-cert-file": "kubeadm makes it", "client-ca-file": "kubeadm sets it", "enable-bootstrap-token-auth": "machines join with it",
	}
	kubeletOwned = map[string]string{
		"apiVersion": "leave it out", "kind": "leave it out",
		"cgroupDriver": "the image's runtime uses systemd's", "clusterDNS": "it follows spec.network.services", "clusterDomain": "use spec.network.dnsDomain",
		"containerRuntimeEndpoint": "it follows spec.runtime", "staticPodPath": "kubeadm sets it", "rotateCertificates": "kubeadm sets it", "authentication": "kubeadm sets it",
		"authorization": "kubeadm sets it", "volumePluginDir": "/usr is read-only; the image has a writable one",
	}
)

var encryptionAlgorithms = []string{"ECDSA-P256", "RSA-2048", "RSA-3072", "RSA-4096"}

// passedOn checks what goes to kubeadm and the kubelet.
func (c *checker) passedOn() {
	s := c.Cluster.Spec
	for _, k := range slices.Sorted(maps.Keys(s.Kubeadm)) {
		path := join("spec.kubeadm", k)
		if why, ok := kubeadmOwned[k]; ok {
			c.bad(path, "kimage sets this: %s", why)
		} else if !slices.Contains(kubeadmFields, k) {
			c.bad(path, "%v", nearest.Unknown("field of kubeadm's ClusterConfiguration v1beta4", k, kubeadmFields))
		}
		below, _ := s.Kubeadm[k].(map[string]any)
		for b := range below {
			if why, ok := kubeadmOwnedBelow[k+"."+b]; ok {
				c.bad(join(path, b), "kimage sets this: %s", why)
			}
		}
		c.extraArgs(path, below["extraArgs"])
	}
	if a, ok := s.Kubeadm["encryptionAlgorithm"]; ok {
		if text, _ := a.(string); !slices.Contains(encryptionAlgorithms, text) {
			c.bad("spec.kubeadm.encryptionAlgorithm", "choose %s", strings.Join(encryptionAlgorithms, ", "))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(s.Kubelet)) {
		if why, ok := kubeletOwned[k]; ok {
			c.bad(join("spec.kubelet", k), "kimage sets this: %s", why)
		}
	}
}

func (c *checker) extraArgs(path string, args any) {
	if args == nil {
		return
	}
	list, ok := args.([]any)
	if !ok {
		c.bad(path+".extraArgs", "v1beta4 wants a list of {name, value}")
		return
	}
	for i, a := range list {
		at := path + ".extraArgs[" + strconv.Itoa(i) + "]"
		arg, _ := a.(map[string]any)
		name, _ := arg["name"].(string)
		_, text := arg["value"].(string)
		if name == "" || !text || len(arg) != 2 {
			c.bad(at, "v1beta4 wants {name: ..., value: \"...\"}")
		} else if why, ok := ownedArgs[name]; ok {
			c.bad(at+".name", "kimage sets this: %s", why)
		}
	}
}

// KeyAlgorithm is how private keys of the cluster are made: kubeadm's
// encryptionAlgorithm.
func (c Cluster) KeyAlgorithm() string {
	if a, ok := c.Spec.Kubeadm["encryptionAlgorithm"].(string); ok {
		return a
	}
	return pki.DefaultAlgorithm
}

// endpoint checks how people outside reach the API server.
func (c *checker) endpoint() {
	api := &c.Cluster.Spec.API
	if api.Endpoint != "" {
		host, port, err := net.SplitHostPort(api.Endpoint)
		if err != nil {
			host, port = strings.Trim(api.Endpoint, "[]"), "6443"
		}
		if n, err := strconv.Atoi(port); !isHost(host) || err != nil || n < 1 || n > 65535 {
			c.bad("spec.api.endpoint", "not HOST or HOST:PORT")
		} else {
			api.Endpoint = net.JoinHostPort(host, port)
		}
	}
	for i, s := range api.CertSANs {
		if !isHost(strings.TrimPrefix(s, "*.")) {
			c.bad("spec.api.certSANs["+strconv.Itoa(i)+"]", "not a host name or address")
		}
	}
}

func isHost(s string) bool {
	if _, err := netip.ParseAddr(s); err == nil {
		return true
	}
	return len(s) <= 253 && dnsName.MatchString(s) && !onlyDigits(s)
}

func onlyDigits(s string) bool { return strings.Trim(s, "0123456789.") == "" }
