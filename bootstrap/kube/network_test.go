package kube

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// TestFlannel fits the manifest that images carry to three clusters.
func TestFlannel(t *testing.T) {
	v6 := single().Network
	v6.Pods, v6.Nodes = []string{"fd00:10:244::/48"}, []string{"fd00:17:8::/64"}
	v6first := dual().Network
	v6first.Nodes = []string{"fd00:17:8::/64", "172.17.8.0/22"}
	options := single().Network
	options.Options = map[string]string{"backend": "host-gw", "mtu": "1400"}
	for _, tt := range []struct {
		name    string
		network nodeconf.Network
		conf    string
		command string
	}{
		{"IPv4", single().Network, `{"Network":"10.244.0.0/16","EnableIPv4":true,"Backend":{"Type":"vxlan"}}`, "--iface=$(HOST_IP)"},
		{"IPv6", v6, `{"EnableIPv4":false,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}`, "--iface=$(HOST_IP)"},
		{"both", v6first, `{"Network":"10.244.0.0/16","EnableIPv4":true,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}`,
			`--iface-regex=^(fd00:17:8:|172\.17\.)`},
		{"both, no node networks", dual().Network, `{"Network":"10.244.0.0/16","EnableIPv4":true,"EnableIPv6":true,"IPv6Network":"fd00:10:244::/48","Backend":{"Type":"vxlan"}}`, "--kube-subnet-mgr"},
		{"options", options, `{"Network":"10.244.0.0/16","EnableIPv4":true,"Backend":{"MTU":1400,"Type":"host-gw"}}`, "--iface=$(HOST_IP)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			objects := manifest(t)
			if err := flannel(objects, tt.network); err != nil {
				t.Fatal(err)
			}
			found := 0
			for _, o := range objects {
				if got := kubeapi.Text(o, "data", "net-conf.json"); got != "" {
					found++
					if got != tt.conf {
						t.Errorf("net-conf.json is\n%s, want\n%s", got, tt.conf)
					}
				}
				if list, ok := kubeapi.Field(o, "spec", "template", "spec", "containers").([]any); ok {
					found++
					command := list[0].(kubeapi.Object)["command"].([]any)
					if got := command[len(command)-1]; got != tt.command {
						t.Errorf("the command ends with %s, want %s", got, tt.command)
					}
					env := fmt.Sprint(list[0].(kubeapi.Object)["env"])
					for _, want := range []string{"name:KUBERNETES_SERVICE_HOST value:127.0.0.1", "name:KUBERNETES_SERVICE_PORT value:7445", "name:HOST_IP", "name:POD_NAME "} {
						if !strings.Contains(env, want) {
							t.Errorf("no %s in %s", want, env)
						}
					}
				}
			}
			if found != 2 {
				t.Errorf("%d of 2 objects were found", found)
			}
		})
	}
}

func manifest(t *testing.T) []kubeapi.Object {
	t.Helper()
	data, err := os.ReadFile("../../images/files/payload/flannel.yaml")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := kubeapi.Objects([]byte(strings.ReplaceAll(string(data), "@FLANNEL@", "ghcr.io/flannel-io/flannel:v0.28.9")))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func TestFlannelRefuses(t *testing.T) {
	if err := flannel(manifest(t)[:3], single().Network); err == nil {
		t.Error("a manifest without configuration was accepted")
	}
	bad := single().Network
	bad.Options = map[string]string{"mtu": "x"}
	if err := flannel(manifest(t), bad); err == nil {
		t.Error("an MTU of x was accepted")
	}
}

func TestAddressPattern(t *testing.T) {
	for _, tt := range []struct{ prefix, want string }{
		{"172.17.8.0/24", `172\.17\.8\.`}, {"172.16.0.0/12", `172\.`}, {"10.0.0.1/32", `10\.0\.0\.`}, {"0.0.0.0/0", ""},
		{"fd00:17:8::/64", "fd00:17:8:"}, {"fd00::/64", "fd00:"}, {"2001:db8:1:2::/64", "2001:db8:1:2:"}, {"2001:db8::/44", "2001:db8:"},
	} {
		p := netip.MustParsePrefix(tt.prefix)
		got := addressPattern(p)
		if got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.prefix, got, tt.want)
		}
		if a := p.Addr().Next().String(); p.Bits() < 32 && !regexp.MustCompile("^("+got+")").MatchString(a) {
			t.Errorf("%s: %s does not match %s", tt.prefix, got, a)
		}
	}
}

func TestWantedLabels(t *testing.T) {
	peers := nodeconf.Peers{
		Nodes: []nodeconf.Peer{{Name: "w1", Labels: map[string]string{"node-role.kubernetes.io/worker": "", "x": "1"}}, {Name: "workers-0123456789"}},
		Pools: []nodeconf.Peer{{Name: "workers", Labels: map[string]string{"node-role.kubernetes.io/worker": ""}}},
	}
	for _, tt := range []struct {
		node metadata
		want int
	}{
		{metadata{Name: "w1"}, 2},
		{metadata{Name: "w1", Labels: map[string]string{"x": "2", "node-role.kubernetes.io/worker": ""}}, 1},
		{metadata{Name: "w1", Labels: map[string]string{"x": "1", "node-role.kubernetes.io/worker": ""}}, 0},
		{metadata{Name: "workers-aaaaaaaaaa"}, 1},
		{metadata{Name: "workers-0123456789"}, 0},
		{metadata{Name: "workers-x"}, 0},
		{metadata{Name: "demo-workers-x7f2"}, 1},  // an instance of Compute Engine
		{metadata{Name: "other-workers-x7f2"}, 0}, // another cluster's
		{metadata{Name: "demo-workers-x7f2a"}, 0},
		{metadata{Name: "m9"}, 0},
	} {
		if got := missingLabels(tt.node, "demo", peers); len(got) != tt.want {
			t.Errorf("%+v lacks %v, want %d", tt.node, got, tt.want)
		}
	}
}
