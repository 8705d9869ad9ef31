package cluster

// Port is one port that must be open between machines.
type Port struct {
	To       string `json:"to"`   // role, or "all"
	From     string `json:"from"` // roles, or "people"
	Protocol string `json:"protocol"`
	Port     string `json:"port"` // number or range
	What     string `json:"what"`
}

// Ports of the agents.
const (
	AgentPort  = 7444 // of etcd members: founding
	ReportPort = 7443 // of masters: reports of all machines
)

// Ports are what a firewall between the machines must let through. Ports that
// are used on loopback only (7445, 7446, 7448, 2381, 10248, 10249) are not among them.
func (f *File) Ports() []Port {
	ports := []Port{
		{"etcd", "etcd", "tcp", "2380", "etcd, between members"},
		{"etcd", "etcd, master", "tcp", "2379", "etcd, clients"},
		{"etcd", "etcd", "tcp", "7444", "agents, founding etcd"},
		{"master", "all, people", "tcp", "7443", "agents, reports; kimage status"},
		{"worker", "master", "tcp", "7443", "agents, the list of masters for a worker that finds none"},
		{"master", "master, worker, people", "tcp", "6443", "Kubernetes API"},
		{"master, worker", "master", "tcp", "10250", "kubelet"},
		{"worker", "people", "tcp, udp", "30000-32767", "NodePort services"},
	}
	if f.Cluster.Spec.Network.Plugin == "flannel" && f.Cluster.Spec.Network.Options["backend"] != "host-gw" {
		ports = append(ports, Port{"master, worker", "master, worker", "udp", "8472", "flannel, VXLAN"})
	}
	for _, t := range f.Targets() {
		if len(t.Machine.SSH.AuthorizedKeys) > 0 {
			return append(ports, Port{"all", "people", "tcp", "22", "SSH"})
		}
	}
	return ports
}
