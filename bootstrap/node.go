// Package bootstrap is the on-node agent.
//
// It makes a node of the disk that kimage baked: it applies what a merged system
// extension cannot apply by itself, puts Kubernetes' state on the data
// partition, grows that partition, imports the container images, and says
// whether all of it is true. Where first boot left a node config, it makes the
// machine a part of its cluster: etcd is founded (package etcd), kubeadm is run
// and helped (package kube), and balancers lead to both (package balancer).
//
// Every operation observes first and may be repeated at any time.
package bootstrap

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/parttable"
)

// Places on a node.
const (
	Data         = "/var/lib/kimage" // where the partition KIMAGE is mounted
	manifestFile = "/usr/share/kimage/manifest.json"
	rootHashFile = "/run/extensions/kimage.roothash" // linked by activation
	socket       = "/run/containerd/containerd.sock"
	partition    = "KIMAGE"
)

// Manifest is what the agent reads of the image's manifest.
type Manifest struct {
	ImageID    string `json:"imageID"`
	OS         string `json:"os"`
	Kubernetes string `json:"kubernetes"`
	Runtime    string `json:"runtime"`
	Network    string `json:"network"`
	// NotBefore is a time before which the image cannot have been made.
	NotBefore time.Time `json:"notBefore"`
	Images    []Image   `json:"images"`
}

// Image is a container image of the node image.
type Image struct {
	Ref    string `json:"ref"`
	Digest string `json:"digest"`
	Role   string `json:"role"` // of the only machines that run it; empty: all that run containers
}

func readManifest() (Manifest, error) {
	var m Manifest
	data, err := os.ReadFile(manifestFile)
	if err != nil {
		return m, fmt.Errorf("the payload is not merged: %w", err)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("reading %s: %w", manifestFile, err)
	}
	return m, nil
}

// mount is one line of /proc/self/mountinfo.
type mount struct {
	device string // MAJOR:MINOR
	root   string // path inside the file system
	point  string
	fstype string
	shared bool
}

// mounts reads /proc/self/mountinfo; of two mounts on one point the later one
// is on top.
func mounts() ([]mount, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	return parseMounts(data), nil
}

func parseMounts(data []byte) []mount {
	var all []mount
	for sc := bufio.NewScanner(bytes.NewReader(data)); sc.Scan(); {
		before, after, ok := strings.Cut(sc.Text(), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !ok || len(f) < 6 || len(g) < 1 {
			continue
		}
		all = append(all, mount{device: f[2], root: unescape(f[3]), point: unescape(f[4]), fstype: g[0],
			shared: slices.ContainsFunc(f[6:], func(s string) bool { return strings.HasPrefix(s, "shared:") })})
	}
	return all
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// mountAt returns the topmost mount on point.
func mountAt(all []mount, point string) (mount, bool) {
	for i := len(all) - 1; i >= 0; i-- {
		if all[i].point == point {
			return all[i], true
		}
	}
	return mount{}, false
}

// dataDevice is the partition KIMAGE as mounted.
type dataDevice struct {
	partition string // name below /dev
	disk      string // name below /dev
	number    int    // partition number
}

func findData() (dataDevice, error) {
	all, err := mounts()
	if err != nil {
		return dataDevice{}, err
	}
	m, ok := mountAt(all, Data)
	if !ok {
		return dataDevice{}, fmt.Errorf("%s is not mounted: see journalctl -u kimage-activate", Data)
	}
	sys, err := filepath.EvalSymlinks("/sys/dev/block/" + m.device)
	if err != nil {
		return dataDevice{}, err
	}
	uevent, err := readPairs(filepath.Join(sys, "uevent"))
	if err != nil {
		return dataDevice{}, err
	}
	disk := filepath.Base(filepath.Dir(sys))
	if name, err := partitionName(uevent, disk); err != nil {
		return dataDevice{}, err
	} else if name != partition {
		return dataDevice{}, fmt.Errorf("what is mounted on %s is not the partition %s", Data, partition)
	}
	n, err := strconv.Atoi(uevent["PARTN"])
	if err != nil {
		return dataDevice{}, fmt.Errorf("%s/uevent: %w", sys, err)
	}
	return dataDevice{partition: uevent["DEVNAME"], disk: disk, number: n}, nil
}

// partitionName is the name that the partition has in its disk's table, or where tables have
// no names (MBR) the label of its ext4.
func partitionName(uevent map[string]string, disk string) (string, error) {
	if name := uevent["PARTNAME"]; name != "" {
		return name, nil
	}
	size, err := diskBytes(disk)
	if err != nil {
		return "", err
	}
	f, err := os.Open("/dev/" + disk)
	if err != nil {
		return "", err
	}
	defer f.Close()
	table, err := parttable.Read(f, size)
	if err != nil {
		return "", fmt.Errorf("%s: %w", f.Name(), err)
	}
	for _, p := range table.Partitions {
		if table.Scheme == parttable.MBR && strconv.Itoa(p.Number) == uevent["PARTN"] {
			return p.Name, nil
		}
	}
	return "", nil
}

// readPairs reads lines of NAME=value.
func readPairs(name string) (map[string]string, error) { return readPairsBy(name, "=") }

func readPairsBy(name, separator string) (map[string]string, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(string(data)) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), separator); ok {
			out[k] = v
		}
	}
	return out, nil
}

func exists(p string) bool {
	_, err := os.Lstat(p)
	return !errors.Is(err, os.ErrNotExist)
}
