package bootstrap

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/parttable"
	"github.com/kimage-project/kimage/pkg/run"
)

// Check is one thing that must hold on a node.
type Check struct {
	OK     bool   `json:"ok"`
	Detail string `json:"detail"` // what was seen; if not OK, what to do
}

// Status is what kimage-agent status shows.
type Status struct {
	APIVersion string `json:"apiVersion"`
	ImageID    string `json:"imageID"`
	OS         string `json:"os"`
	Kubernetes string `json:"kubernetes"`
	Merged     Check  `json:"payloadMerged"`
	Verified   Check  `json:"payloadVerified"`
	Grown      Check  `json:"dataGrown"`
	Runtime    Check  `json:"runtimeAnswers"`
	Images     Check  `json:"imagesPresent"`
	// Node is where the agent is with making this machine a part of its cluster;
	// null: first boot told it nothing, so nobody does.
	Node *Phase `json:"node"`
	OK   bool   `json:"ok"` // all of the above; with a node: it is ready
}

// Observe looks at the node; it changes nothing.
func Observe(ctx context.Context) Status {
	s := Status{APIVersion: "kimage.dev/v1alpha1"}
	m, err := readManifest()
	s.Merged = check(err, "systemd-sysext has merged "+manifestFile)
	s.ImageID, s.OS, s.Kubernetes = m.ImageID, m.OS, m.Kubernetes
	s.Verified = verified()
	s.Grown = grown()
	if etcdAlone() {
		s.Runtime = Check{true, "not started: a machine of etcd alone runs no containers"}
		s.Images = s.Runtime
	} else if s.Runtime = runtimeAnswers(ctx); !s.Runtime.OK {
		s.Images = Check{false, "the runtime does not answer"}
	} else {
		s.Images = imagesPresent(ctx, m)
	}
	joined := true
	if told() {
		if s.Node, err = readPhase(); err != nil || s.Node == nil {
			s.Node = &Phase{Phase: PhaseWaiting, Why: "the agent has told nothing yet (journalctl -u kimage-agent)"}
		}
		joined = s.Node.Phase == PhaseReady
	}
	s.OK = joined && s.ImageID != "" && s.Merged.OK && s.Verified.OK && s.Grown.OK && s.Runtime.OK && s.Images.OK
	return s
}

// told says whether first boot told this machine what it is.
func told() bool { return exists(nodeconf.File) }

// etcdAlone says whether this machine has no kubelet, by what containerd.service
// goes by.
func etcdAlone() bool {
	return told() && !exists(filepath.Join(nodeconf.PKIDir, nodeconf.ClusterCA+".crt"))
}

func check(err error, good string) Check {
	if err != nil {
		return Check{false, err.Error()}
	}
	return Check{true, good}
}

// verified looks for the verity device of the root hash that is baked into the
// root file system; what does not match it cannot have been read.
func verified() Check {
	data, err := os.ReadFile(rootHashFile)
	if os.IsNotExist(err) {
		return Check{exists("/etc/kimage/payload.sha256") && exists("/run/kimage/verified"), "plain squashfs, compared with its digest at boot"}
	}
	if err != nil {
		return check(err, "")
	}
	hash := strings.TrimSpace(string(data))
	names, err := filepath.Glob("/sys/class/block/dm-*/dm/name")
	if err != nil {
		return check(err, "")
	}
	for _, n := range names {
		name, err := os.ReadFile(n)
		if err == nil && strings.TrimSpace(string(name)) == hash+"-verity" {
			if !exists("/run/kimage/verified") {
				return Check{false, "dm-verity is active, but the payload was not read in full: see journalctl -u kimage-verify"}
			}
			return Check{true, "dm-verity, root hash " + hash}
		}
	}
	return Check{false, "no dm-verity device has the root hash " + hash + ": see journalctl -u systemd-sysext -u kimage-verify"}
}

func grown() Check {
	d, err := findData()
	if err != nil {
		return check(err, "")
	}
	disk, err := os.Open("/dev/" + d.disk)
	if err != nil {
		return check(err, "")
	}
	defer disk.Close()
	size, err := diskBytes(d.disk)
	if err != nil {
		return check(err, "")
	}
	table, err := parttable.Read(disk, size)
	if err != nil {
		return check(err, "")
	}
	p, ok := table.FindName(partition)
	if !ok {
		return Check{false, "the partition table has no " + partition}
	}
	free := int64(table.LastUsableLBA(size)) - int64(p.LastLBA)
	fsBytes, err := filesystemBytes(d)
	if err != nil {
		return check(err, "")
	}
	// ext4's own tables are not counted by statfs: up to 3 %.
	if free*parttable.SectorBytes >= growthWorthBytes+(1<<20) || fsBytes < p.SizeBytes()/100*95-(128<<20) {
		return Check{false, fmt.Sprintf("the partition has %d bytes, its file system %d, the disk %d: see journalctl -u kimage-grow", p.SizeBytes(), fsBytes, size)}
	}
	return Check{true, fmt.Sprintf("/dev/%s has %d MiB, to the end of the disk", d.partition, p.SizeBytes()>>20)}
}

func runtimeAnswers(ctx context.Context) Check {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"crictl", "--runtime-endpoint", "unix://" + socket, "version"}})
	if err != nil {
		return check(err, "")
	}
	info := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if k, v, ok := strings.Cut(line, ":"); ok {
			info[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	return Check{info["RuntimeName"] != "", info["RuntimeName"] + " " + info["RuntimeVersion"]}
}
