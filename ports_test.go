package kimage

import (
	"testing"

	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/cluster"
)

// TestPorts: a firewall is told of the ports on which the agents listen.
func TestPorts(t *testing.T) {
	if etcd.AgentPort != cluster.AgentPort || report.Port != cluster.ReportPort {
		t.Errorf("the agents listen on %d and %d, and cluster ports says %d and %d", etcd.AgentPort, report.Port, cluster.AgentPort, cluster.ReportPort)
	}
}
