package cluster

// retired says of what people still ask for since when it cannot work, and
// what took its place.
var retired = map[string]string{
	"rkt": "rkt was archived in 2020, and its rktlet spoke a CRI older than v1, the only one the kubelet speaks since Kubernetes 1.26: " +
		"use containerd or cri-o",
	"hypercontainer": "HyperContainer's frakti spoke a CRI older than v1, the only one the kubelet speaks since Kubernetes 1.26, and is retired: " +
		"Kata Containers took its place, as a RuntimeClass of containerd",
	"frakti": "frakti spoke a CRI older than v1, the only one the kubelet speaks since Kubernetes 1.26, and is retired: " +
		"Kata Containers took its place, as a RuntimeClass of containerd",
	"virtlet": "Virtlet needs CRI v1alpha2 and dockershim; Kubernetes dropped them with 1.26 and 1.24, and Virtlet is abandoned: " +
		"KubeVirt took its place",
	"infranetes": "infranetes was a prototype for a CRI older than v1, the only one the kubelet speaks since Kubernetes 1.26: " +
		"Cluster API or KubeVirt took its place, on containerd",
	"dockershim": "dockershim was removed with Kubernetes 1.24: cri-dockerd took its place; containerd needs neither",
}
