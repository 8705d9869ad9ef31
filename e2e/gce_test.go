//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// template takes from the instance template of k8s-01 what the metadata server is to say.
func (c *cloud) template() {
	c.t.Helper()
	for _, at := range c.api.All() {
		if !strings.Contains(at, "/instanceTemplates/demo-k8s-01") {
			continue
		}
		data, err := json.Marshal(c.api.Resource(at))
		if err != nil {
			c.t.Fatal(err)
		}
		var made struct {
			Properties struct {
				Metadata        struct{ Items []struct{ Key, Value string } }
				ServiceAccounts []struct{ Scopes []string }
			}
		}
		if err := json.Unmarshal(data, &made); err != nil {
			c.t.Fatal(err)
		}
		for _, item := range made.Properties.Metadata.Items {
			c.attrs[item.Key] = item.Value
		}
		for _, account := range made.Properties.ServiceAccounts {
			c.scopes = account.Scopes
		}
	}
	if c.attrs["user-data"] == "" {
		c.t.Fatalf("no template of k8s-01 with user data in %q", c.api.All())
	}
}

// trust has the image's root believe the storage's certificate, which no real authority gives.
func (c *cloud) trust(disk string) {
	c.t.Helper()
	var table struct {
		PartitionTable struct {
			SectorSize int64
			Partitions []struct{ Start, Size int64 }
		}
	}
	if err := json.Unmarshal([]byte(need.Judge(c.t, "sh", "-c", "sfdisk --json '"+disk+"' 2>/dev/null")), &table); err != nil {
		c.t.Fatal(err)
	}
	root := table.PartitionTable.Partitions[0]
	for _, p := range table.PartitionTable.Partitions {
		if p.Size > root.Size && !strings.Contains(need.Judge(c.t, "sh", "-c", fmt.Sprintf("blkid -p -O %d -o value -s LABEL %s || true", p.Start*512, disk)), "KIMAGE") {
			root = p
		}
	}
	volume := fmt.Sprintf("%s?offset=%d", disk, root.Start*512)
	all := filepath.Join(c.dir, "ca-certificates.crt")
	need.Judge(c.t, "debugfs", "-R", "dump /etc/ssl/certs/ca-certificates.crt "+all, volume)
	was, err := os.ReadFile(all)
	if err != nil || len(was) == 0 {
		c.t.Fatalf("the image trusts nobody: %v", err)
	}
	if err := os.WriteFile(all, append(was, c.roots...), 0o644); err != nil {
		c.t.Fatal(err)
	}
	need.Judge(c.t, "debugfs", "-w", "-R", "rm /etc/ssl/certs/ca-certificates.crt", volume)
	need.Judge(c.t, "debugfs", "-w", "-R", "write "+all+" /etc/ssl/certs/ca-certificates.crt", volume)
}

// boot runs the instance until the test ends.
func (c *cloud) boot(disk string) {
	c.t.Helper()
	overlay := filepath.Join(c.dir, "disk.qcow2")
	need.Judge(c.t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", disk, overlay, "20G")
	cmd := c.inside(context.Background(), append([]string{"qemu-system-x86_64", "-smp", "2", "-m", "4096", "-display", "none", "-nodefaults", "-no-user-config",
		"-serial", "file:" + c.console, "-device", "virtio-rng-pci", "-smbios", "type=1,manufacturer=Google,product=Google Compute Engine,serial=GoogleCloud-4711",
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,mac=42:01:0a:84:00:02",
		"-device", "virtio-scsi-pci", "-drive", "if=none,id=d,format=qcow2,cache=unsafe,discard=unmap,file=" + overlay, "-device", "scsi-hd,drive=d"}, qemu.Pace()...)...)
	if err := cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if log, err := os.ReadFile(c.console); err == nil && c.t.Failed() {
			c.t.Logf("console:\n%s", lastLines(string(log), 60))
			c.mu.Lock()
			defer c.mu.Unlock()
			c.t.Logf("asked:\n%s", lastLines(strings.Join(c.seen, "\n"), 40))
		}
	})
}

func (c *cloud) ssh(command string) (string, error) {
	out, err := c.inside(c.t.Context(), "ssh", "-q", "-i", c.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=60", c.user+"@"+gceNode, command).CombinedOutput()
	return strings.TrimSpace(string(out)), err
}

// instance bakes the cluster's image and has it pushed, templates made and the archive that
// was uploaded unpacked; the test's own authority is added by trust, and the instance runs.
func (c *cloud) instance(trust func(disk string), build ...string) {
	c.t.Helper()
	c.kimage(append([]string{"build", "-f", "cluster.yaml", "--for", "gce", "--output", "out"}, build...)...)
	archives, err := filepath.Glob(filepath.Join(c.dir, "out/*.tar.gz"))
	if err != nil || len(archives) != 1 {
		c.t.Fatalf("%q, %v", archives, err)
	}
	c.kimage("gce", "push", archives[0])
	c.kimage("gce", "templates")
	c.template()
	need.Judge(c.t, "tar", "-C", c.dir, "-xSzf", archives[0], "disk.raw")
	disk := filepath.Join(c.dir, "disk.raw")
	trust(disk)
	started := time.Now()
	c.boot(disk)
	for end := started.Add(slack * 15 * time.Minute); ; time.Sleep(5 * time.Second) {
		out, err := c.ssh("sudo kimage-agent status --wait ready --timeout 10m")
		if err == nil {
			break
		}
		console, _ := os.ReadFile(c.console)
		if time.Now().After(end) || strings.Contains(string(console), "sulogin(8)") { // nobody will come
			c.t.Fatalf("not Ready: %v\n%s", err, out)
		}
	}
	c.t.Logf("Ready %s after it was switched on", time.Since(started).Round(time.Second))
}

// stub: what lies in metadata only says where the config is.
func (c *cloud) stub(begins string) {
	c.t.Helper()
	if text := c.attrs["user-data"]; !strings.HasPrefix(text, begins) || strings.Contains(text, "PRIVATE") || len(text) > 4<<10 {
		c.t.Errorf("in metadata lies more than a stub: %d bytes", len(text))
	}
}

// asked is what the machine says to a command.
type asked struct{ what, command, want string }

// isInstance: the machine knows where it is, and keeps the metadata server from pods.
func (c *cloud) isInstance(more ...asked) {
	c.t.Helper()
	const ask = `python3 -c 'import socket,sys; socket.create_connection(("` + gceServer + `", int(sys.argv[1])), 5)' `
	for _, tt := range append([]asked{
		{"zone and region", `sudo kubectl --kubeconfig /etc/kubernetes/admin.conf get node k8s-01 -o 'jsonpath={.metadata.labels.topology\.kubernetes\.io/zone} {.metadata.labels.topology\.kubernetes\.io/region}'`, "europe-west1-b europe-west1"},
		{"the machine itself asks", ask + "80 && echo yes", "yes"},
		{"a pod", "sudo sh -c 'ip netns add pod; ip link add veth0 type veth peer name eth0 netns pod; ip addr add 10.99.0.1/24 dev veth0; ip link set veth0 up; ip -n pod addr add 10.99.0.2/24 dev eth0; ip -n pod link set eth0 up; ip -n pod route add default via 10.99.0.1' && ! sudo ip netns exec pod " + ask + "80 2>/dev/null && sudo ip netns exec pod " + ask + "80 2>&1 | tail -n 1 | grep -o -e Permission -e prohibited -e 'No route'", "No route"},
	}, more...) {
		if out, err := c.ssh(tt.command); err != nil || out != tt.want {
			c.t.Errorf("%s: %q, %v", tt.what, out, err)
		}
	}
}

// TestGCE: the archive that kimage gce push uploads and the template's very user data, on an
// instance whose metadata server, storage and network are like Google's: it fetches its
// config, becomes a cluster, and closes the metadata server to pods.
func TestGCE(t *testing.T) {
	enough(t, 2, "make e2e")
	c := newCloud(t, system, user)
	c.instance(c.trust)
	c.stub("#cloud-boothook\n")
	c.isInstance(asked{"the config is for root alone", "stat -c %a /etc/cloud/cloud.cfg.d/99-kimage-config.cfg", "600"})
}

// gceArchive makes of Flatcar's lookalike what its vendor publishes for Compute Engine: the
// OEM partition says so, and disk.raw lies in an archive. It returns both.
func gceArchive(t *testing.T, disk string) (raw string, archived []byte) {
	t.Helper()
	dir := t.TempDir()
	oem := filepath.Join(dir, "oem")
	if err := os.Mkdir(oem, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(oem, "grub.cfg"), []byte("set oem_id=\"gce\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	raw = filepath.Join(dir, "disk.raw")
	volume := filepath.Join(dir, "oem.img")
	first, size := sectors(t, need.Judge(t, "sgdisk", "--info=6", disk))
	need.Judge(t, "cp", "--sparse=always", disk, raw)
	need.Judge(t, "truncate", "-s", fmt.Sprint(size*512), volume)
	need.Judge(t, "mkfs.btrfs", "-q", "-L", "OEM", "--rootdir", oem, volume)
	need.Judge(t, "dd", "if="+volume, "of="+raw, "bs=1M", fmt.Sprintf("seek=%d", first*512), "oflag=seek_bytes", "conv=notrunc", "status=none")
	archive := filepath.Join(dir, "gce.tar.gz")
	need.Judge(t, "tar", "-C", dir, "--format=oldgnu", "--use-compress-program=gzip -1", "-Scf", archive, "disk.raw")
	archived, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	return raw, archived
}

// trustEarly has what the image runs before its root is mounted believe the storage's
// certificate: there Ignition fetches.
func (c *cloud) trustEarly(disk string) {
	c.t.Helper()
	first, _ := sectors(c.t, need.Judge(c.t, "sgdisk", "--info=1", disk))
	esp := fmt.Sprintf("%s@@%d", disk, first*512)
	early := filepath.Join(c.dir, "initrd")
	need.Judge(c.t, "mcopy", "-i", esp, "::/flatcar/initrd", early)
	added := map[string][]byte{
		"etc/ssl/certs/ca-certificates.crt":     c.roots,
		"etc/systemd/journald.conf.d/test.conf": []byte("[Journal]\nForwardToConsole=yes\nTTYPath=/dev/ttyS0\n"), // what Ignition says
	}
	var names strings.Builder
	for _, name := range slices.Sorted(maps.Keys(added)) {
		if err := os.MkdirAll(filepath.Join(c.dir, path.Dir(name)), 0o755); err != nil {
			c.t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.dir, name), added[name], 0o644); err != nil {
			c.t.Fatal(err)
		}
		fmt.Fprintf(&names, "%s\n%s\n", path.Dir(name), name)
	}
	// The kernel takes several archives, of which those that are not compressed begin at
	// multiples of four bytes.
	need.Judge(c.t, "sh", "-c", "cd '"+c.dir+"' && truncate --size=%4 initrd && printf '"+names.String()+"' | cpio --create --format=newc --quiet >>initrd")
	need.Judge(c.t, "mcopy", "-o", "-i", esp, early, "::/flatcar/initrd")
}

// TestGCEFlatcar: as TestGCE, of Flatcar's lookalike, whose config Ignition fetches. Of what
// its vendor has for Compute Engine all that is Flatcar's stays.
func TestGCEFlatcar(t *testing.T) {
	t.Parallel()
	vendors, archive := gceArchive(t, lookalike(t, "flatcar"))
	server := need.NewFlatcarServer(t, "..")
	server.Publish("4800.2.0", need.Day(-1), map[string][]byte{"flatcar_production_gce.tar.gz": archive})
	c := newCloud(t, "flatcar-stable", "core")
	c.env = append(c.env, "KIMAGE_OS_PATH="+server.OSPath)
	c.instance(func(disk string) {
		keepsFlatcars(t, vendors, disk)
		c.trustEarly(disk)
	}, "--mirror", server.Mirror)
	c.stub("{")
	c.isInstance(asked{"the platform, and the mode of the config that Ignition keeps", "grep -o ignition.platform.id=[a-z]* /proc/cmdline; stat -c %a /run/ignition.json", "ignition.platform.id=gcp\n640"},
		asked{"what is Flatcar's", "sudo sh -c '" + flatcarAsks + "'", "overlay" + flatcarSays})
}
