package cluster

import (
	"fmt"
	"strings"
)

// Topologies are the shapes that New prints.
var Topologies = []string{"1", "3", "6", "8"}

// topology lists the roles of the machines of each shape.
var topology = map[string][]string{
	"1": {"etcd, master, worker"},
	"3": {"etcd, master, worker", "etcd, master, worker", "etcd, worker"},
	"6": {"master, worker", "master, worker", "worker", "etcd", "etcd", "etcd"},
	"8": {"master", "master", "worker", "worker", "worker", "etcd", "etcd", "etcd"},
}

var topologyTitle = map[string]string{
	"1": "One machine that does everything.",
	"3": "Three machines: all of them etcd members and workers, two of them masters.",
	"6": "Six machines: two masters that are workers, one worker, three etcd members.",
	"8": "Eight machines: two masters, three workers, three etcd members.",
}

// SchemaFile is the name that New's first line gives the JSON Schema.
const SchemaFile = "cluster.schema.json"

// New prints a cluster file to begin with.
func New(shape, name, os, kubernetes string) (string, error) {
	machines, ok := topology[shape]
	if !ok {
		return "", fmt.Errorf("unknown topology %q: choose %s", shape, strings.Join(Topologies, ", "))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# yaml-language-server: $schema=%s\n# (kimage cluster schema > %s)\n", SchemaFile, SchemaFile)
	fmt.Fprintf(&b, "# %s\n", topologyTitle[shape])
	fmt.Fprintf(&b, `apiVersion: %s
kind: %s
metadata: {name: %s}
spec:
  kubernetes: %s
  os: %s
  runtime: containerd
  network:
    plugin: flannel
    pods: [10.244.0.0/16]
    services: [10.96.0.0/12]
    nodes: [172.17.8.0/24]
  machine:
    ssh: {authorizedKeys: []}    # who may log in; nobody as it is
  nodes:
`, APIVersion, Kind, name, kubernetes, os)
	for i, roles := range machines {
		fmt.Fprintf(&b, "  - name: k8s-%02d\n    roles: [%s]\n    address: 172.17.8.%d\n    match: {mac: \"52:54:00:17:08:%02d\"}\n", i+1, roles, 101+i, i+1)
	}
	return b.String(), nil
}
