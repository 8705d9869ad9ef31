//go:build e2e

package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/pkg/gce/gcetest"
	"github.com/kimage-project/kimage/pkg/need"
)

const (
	gceRouter  = "10.132.0.1"
	gceNode    = "10.132.0.2"
	gceServer  = "169.254.169.254"
	gceStorage = "storage.googleapis.com"
	gceToken   = "ya29.token-of-the-instance"
)

const gceCluster = `apiVersion: kimage.dev/v1alpha1
kind: Cluster
metadata: {name: demo}
spec:
  os: %s
  platform:
    gce:
      project: my-project
      zone: europe-west1-b
      bucket: my-bucket
      sources: [203.0.113.0/24]
      serviceAccounts: {etcd: e@my-project.iam.gserviceaccount.com, master: m@my-project.iam.gserviceaccount.com, worker: w@my-project.iam.gserviceaccount.com}
  network: {nodes: [10.132.0.0/24]}
  machine: {ssh: {authorizedKeys: [%q]}}
  nodes:
  - {name: k8s-01, roles: [etcd, master, worker], address: ` + gceNode + `}
`

// cloud is a project on Compute Engine with one instance, as far as this computer can be
// that: its network, its metadata server, its storage.
type cloud struct {
	t       *testing.T
	ns, dir string
	user    string // who logs in
	key     string
	api     *gcetest.Server
	attrs   map[string]string // of the instance
	scopes  []string          // of its service account
	roots   []byte            // PEM of whom the storage's certificate is from
	console string

	mu   sync.Mutex
	seen []string // what the instance has asked, and the answers' statuses
}

// noted has what the instance asks be told if the test fails.
func (c *cloud) noted(answer http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		status := &statusWriter{w, http.StatusOK}
		answer(status, r)
		c.mu.Lock()
		defer c.mu.Unlock()
		c.seen = append(c.seen, fmt.Sprintf("%s %s%s: %d", r.Method, r.Host, r.URL, status.code))
	})
}

type statusWriter struct {
	http.ResponseWriter
	code int
}

func (w *statusWriter) WriteHeader(code int) {
	w.code = code
	w.ResponseWriter.WriteHeader(code)
}

func (c *cloud) inside(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", c.ns}, argv...)...)
	cmd.Dir = c.dir
	return cmd
}

// listen is net.Listen on the cloud's network.
func (c *cloud) listen(address string) net.Listener {
	c.t.Helper()
	type result struct {
		net.Listener
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with it
		fd, err := unix.Open("/run/netns/"+c.ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			done <- result{nil, err}
			return
		}
		defer unix.Close(fd)
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			done <- result{nil, err}
			return
		}
		ln, err := net.Listen("tcp", address)
		done <- result{ln, err}
	}()
	r := <-done
	if r.err != nil {
		c.t.Fatal(r.err)
	}
	c.t.Cleanup(func() { r.Close() })
	return r.Listener
}

// kimage runs the program on this computer's side.
func (c *cloud) kimage(args ...string) string {
	c.t.Helper()
	program, err := filepath.Abs("../bin/kimage")
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.Command(program, args...)
	cmd.Dir = c.dir
	out, err := cmd.CombinedOutput()
	if err != nil {
		c.t.Fatalf("kimage %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newCloud is a project whose cluster file wants an operating system, on which user logs in.
func newCloud(t *testing.T, system, user string) *cloud {
	t.Helper()
	need.Root(t, "a network namespace")
	need.Program(t, "dnsmasq", "dnsmasq-base")
	c := &cloud{t: t, ns: fmt.Sprintf("kimage-cloud-%d", os.Getpid()), dir: t.TempDir(), user: user, api: gcetest.New(t), attrs: map[string]string{}}
	key := newKey(t)
	c.key, c.console = filepath.Join(c.dir, "key"), filepath.Join(c.dir, "console.log")
	if err := os.WriteFile(c.key, key.PEM, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.dir, "cluster.yaml"), fmt.Appendf(nil, gceCluster, system, key.Public), 0o644); err != nil {
		t.Fatal(err)
	}
	c.api.Operator()
	need.Judge(t, "ip", "netns", "add", c.ns)
	t.Cleanup(func() { need.Judge(t, "ip", "netns", "del", c.ns) })
	script := "ip link set lo up; ip tuntap add tap0 mode tap; ip addr add " + gceRouter + "/24 dev tap0; ip addr add " + gceServer + "/32 dev tap0; ip link set tap0 up"
	if out, err := c.inside(t.Context(), "sh", "-ec", script).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	cmd := c.inside(context.Background(), "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--pid-file=", "--user=root", "--interface=tap0", "--bind-interfaces", "--no-resolv", "--no-hosts",
		"--dhcp-leasefile="+filepath.Join(c.dir, "leases"), "--dhcp-range=10.132.0.0,static", "--dhcp-host=42:01:0a:84:00:02,"+gceNode, "--dhcp-option=option:router,"+gceRouter, "--dhcp-option=option:dns-server,"+gceServer,
		"--address=/"+gceStorage+"/"+gceRouter, "--address=/metadata.google.internal/"+gceServer)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	metadata := c.listen(gceServer + ":80")
	go http.Serve(metadata, c.noted(c.metadata))
	go http.Serve(tls.NewListener(c.listen(gceRouter+":443"), &tls.Config{Certificates: []tls.Certificate{c.certificate()}}), c.noted(c.storage))
	return c
}

func (c *cloud) certificate() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		c.t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "storage of the test"}, NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		DNSNames: []string{gceStorage}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		c.t.Fatal(err)
	}
	c.roots = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// metadata answers as Google's server does: a tree of keys, where directories end in / and
// are lists of their keys, or one JSON object if it is asked for recursively.
func (c *cloud) metadata(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Metadata-Flavor") != "Google" {
		http.Error(w, "Missing Metadata-Flavor:Google header.", http.StatusForbidden)
		return
	}
	attributes := map[string]any{}
	for k, v := range c.attrs {
		attributes[k] = v
	}
	var at any = map[string]any{
		"instance": map[string]any{"id": json.Number("4711"), "name": "demo-k8s-01", "hostname": "demo-k8s-01.europe-west1-b.c.my-project.internal", "zone": "projects/1/zones/europe-west1-b",
			"attributes":        attributes,
			"networkInterfaces": []any{map[string]any{"ip": gceNode, "mac": "42:01:0a:84:00:02"}},
			"service-accounts":  map[string]any{"default": map[string]any{"scopes": strings.Join(c.scopes, "\n") + "\n", "token": map[string]any{"access_token": gceToken, "expires_in": json.Number("3600"), "token_type": "Bearer"}}}},
		"project": map[string]any{"project-id": "my-project", "attributes": map[string]any{}},
	}
	asked, ok := strings.CutPrefix(r.URL.Path, "/computeMetadata/v1/")
	for _, key := range strings.FieldsFunc(asked, func(x rune) bool { return x == '/' }) {
		var dir map[string]any
		if dir, ok = at.(map[string]any); ok {
			at, ok = dir[key]
		}
		if !ok {
			break
		}
	}
	if !ok {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Metadata-Flavor", "Google")
	dir, isDir := at.(map[string]any)
	switch {
	case isDir && (strings.EqualFold(r.URL.Query().Get("recursive"), "true") || path.Base(asked) == "token"):
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(at)
	case isDir:
		for k, v := range dir {
			if _, deeper := v.(map[string]any); deeper {
				k += "/"
			}
			fmt.Fprintln(w, k)
		}
	default:
		fmt.Fprint(w, at)
	}
}

// storage gives the bucket's objects to the instance's service account.
func (c *cloud) storage(w http.ResponseWriter, r *http.Request) {
	if r.Header.Get("Authorization") != "Bearer "+gceToken {
		http.Error(w, "Anonymous caller does not have storage.objects.get access", http.StatusUnauthorized)
		return
	}
	bucket, name, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	data := c.api.Object(bucket, name)
	if data == nil {
		http.NotFound(w, r)
		return
	}
	w.Write(data)
}

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
	cmd := c.inside(context.Background(), "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "4096", "-display", "none", "-nodefaults", "-no-user-config",
		"-serial", "file:"+c.console, "-device", "virtio-rng-pci", "-smbios", "type=1,manufacturer=Google,product=Google Compute Engine,serial=GoogleCloud-4711",
		"-netdev", "tap,id=n,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=n,mac=42:01:0a:84:00:02",
		"-device", "virtio-scsi-pci", "-drive", "if=none,id=d,format=qcow2,cache=unsafe,discard=unmap,file="+overlay, "-device", "scsi-hd,drive=d")
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
	out, err := c.inside(c.t.Context(), "ssh", "-q", "-i", c.key, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", c.user+"@"+gceNode, command).CombinedOutput()
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
	for end := started.Add(15 * time.Minute); ; time.Sleep(5 * time.Second) {
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
	vendors, archive := gceArchive(t, lookalike(t, "flatcar"))
	server := need.NewFlatcarServer(t, "..")
	server.Publish("4800.2.0", need.Day(-1), map[string][]byte{"flatcar_production_gce.tar.gz": archive})
	t.Setenv("KIMAGE_OS_PATH", server.OSPath)
	c := newCloud(t, "flatcar-stable", "core")
	c.instance(func(disk string) {
		keepsFlatcars(t, vendors, disk)
		c.trustEarly(disk)
	}, "--mirror", server.Mirror)
	c.stub("{")
	c.isInstance(asked{"the platform, and the mode of the config that Ignition keeps", "grep -o ignition.platform.id=[a-z]* /proc/cmdline; stat -c %a /run/ignition.json", "ignition.platform.id=gcp\n640"},
		asked{"what is Flatcar's", "sudo sh -c '" + flatcarAsks + "'", "overlay" + flatcarSays})
}
