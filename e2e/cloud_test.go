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
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
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
	env     []string // of kimage, besides this program's own

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
	cmd.Dir, cmd.Env = c.dir, append(os.Environ(), c.env...)
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
	c.env = c.api.Operator()
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
