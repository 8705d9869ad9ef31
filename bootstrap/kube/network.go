package kube

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// noNetwork is recorded for a cluster that wants no plugin.
const noNetwork = "none"

// applyNetwork applies the manifest of the network plugin that is in the image,
// and returns the plugin's name.
func (n *Node) applyNetwork(ctx context.Context, c *kubeapi.Client) (string, error) {
	plugin := n.Node.Image.Plugin
	if plugin == "" || plugin == noNetwork {
		return noNetwork, nil
	}
	file := n.path(manifestDir + "/" + plugin + ".yaml")
	manifest, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("the image has no manifest of %s (bake one with that network plugin): %w", plugin, err)
	}
	objects, err := kubeapi.Objects(manifest)
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	if plugin == "flannel" {
		if err := flannel(objects, n.Node.Network); err != nil {
			return "", fmt.Errorf("%s: %w", file, err)
		}
	}
	for _, o := range objects {
		if err := c.Apply(ctx, o); err != nil {
			return "", err
		}
	}
	return plugin, nil
}

// flannel fits flannel's manifest to the cluster's networks: its configuration,
// and the interface it uses.
func flannel(objects []kubeapi.Object, network nodeconf.Network) error {
	conf, err := flannelConf(network)
	if err != nil {
		return err
	}
	configured, started := false, false
	for _, o := range objects {
		switch kubeapi.Text(o, "kind") {
		case "ConfigMap":
			if data, ok := kubeapi.Field(o, "data").(kubeapi.Object); ok && data["net-conf.json"] != nil {
				data["net-conf.json"], configured = conf, true
			}
		case "DaemonSet":
			spec, _ := kubeapi.Field(o, "spec", "template", "spec").(kubeapi.Object)
			list, _ := spec["containers"].([]any)
			for _, c := range list {
				container, _ := c.(kubeapi.Object)
				if kubeapi.Text(container, "name") != "kube-flannel" {
					continue
				}
				command, _ := container["command"].([]any)
				env, _ := container["env"].([]any)
				container["command"] = append(command, flannelInterface(network)...)
				container["env"] = append(append(env, object{"name": "HOST_IP", "valueFrom": object{"fieldRef": object{"fieldPath": "status.hostIP"}}}), balanced()...)
				started = true
			}
		}
	}
	if !configured || !started {
		return fmt.Errorf("the manifest has no net-conf.json or no container kube-flannel")
	}
	return nil
}

// balanced makes a program on the host's network find the API server at the
// node's balancer. The address of the Service kubernetes would need kube-proxy,
// and a route: on a machine without a default route there is none to it.
func balanced() []any {
	host, port, _ := strings.Cut(APIEndpoint, ":")
	return []any{object{"name": "KUBERNETES_SERVICE_HOST", "value": host}, object{"name": "KUBERNETES_SERVICE_PORT", "value": port}}
}

// flannelConf is flannel's net-conf.json
// (https://github.com/flannel-io/flannel/blob/master/Documentation/configuration.md).
func flannelConf(network nodeconf.Network) (string, error) {
	conf := struct {
		Network     string         `json:",omitempty"`
		EnableIPv4  bool           // true when absent
		EnableIPv6  bool           `json:",omitempty"`
		IPv6Network string         `json:",omitempty"`
		Backend     map[string]any // Type, MTU
	}{Backend: map[string]any{"Type": "vxlan"}}
	for _, pods := range network.Pods {
		p, err := netip.ParsePrefix(pods)
		if err != nil {
			return "", err
		}
		if p.Addr().Is4() {
			conf.EnableIPv4, conf.Network = true, pods
		} else {
			conf.EnableIPv6, conf.IPv6Network = true, pods
		}
	}
	if b := network.Options["backend"]; b != "" {
		conf.Backend["Type"] = b
	}
	if m := network.Options["mtu"]; m != "" {
		mtu, err := strconv.Atoi(m)
		if err != nil {
			return "", fmt.Errorf("the option mtu: %w", err)
		}
		conf.Backend["MTU"] = mtu
	}
	data, err := json.Marshal(conf)
	return string(data), err
}

// flannelInterface makes flannel use the interface of the Node's address,
// whatever other cards a machine has.
//
// flannel looks up one address only: of two families it can find the IPv4 one,
// and ends itself when it is given the IPv6 one. Where a pod's host address is
// IPv6 first, it is told the node networks instead.
func flannelInterface(network nodeconf.Network) []any {
	dual := len(network.Pods) > 1
	if !dual || strings.Contains(network.Pods[0], ".") {
		return []any{"--iface=$(HOST_IP)"}
	}
	if len(network.Nodes) == 0 {
		return nil
	}
	var alternatives []string
	for _, s := range network.Nodes {
		if p, err := netip.ParsePrefix(s); err == nil {
			alternatives = append(alternatives, addressPattern(p))
		}
	}
	return []any{"--iface-regex=^(" + strings.Join(alternatives, "|") + ")"}
}

// addressPattern matches the beginning of every address in p, as text: the
// whole bytes of an IPv4 prefix, the groups of an IPv6 prefix before the first
// that is zero and may be written "::".
func addressPattern(p netip.Prefix) string {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		var s strings.Builder
		for i := range min(p.Bits()/8, 3) {
			fmt.Fprintf(&s, "%d.", b[i])
		}
		return regexp.QuoteMeta(s.String())
	}
	b := p.Addr().As16()
	var s strings.Builder
	for i := 0; i+1 < p.Bits()/8; i += 2 {
		group := int(b[i])<<8 | int(b[i+1])
		if group == 0 {
			break
		}
		fmt.Fprintf(&s, "%x:", group)
	}
	return regexp.QuoteMeta(s.String())
}
