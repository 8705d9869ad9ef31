package cluster

import (
	"cmp"
	"encoding/pem"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"filippo.io/age"
	"filippo.io/age/agessh"
	"golang.org/x/crypto/ssh"

	"github.com/kimage-project/kimage/pkg/nearest"
)

// checker finds everything that is wrong with a file that could be read.
type checker struct {
	*File
	support  Support
	problems []Problem
}

func (c *checker) make(path, format string, args ...any) Problem {
	d := &decoder{}
	// A field that is not there is where its parent is.
	for at := path; ; at = parent(at) {
		if n := c.at[at]; n != nil {
			if at != path {
				copied := *n
				copied.Kind, n = 0, &copied
			}
			d.problem(path, n, format, args...)
			return d.problems[0]
		}
		if at == "" {
			return Problem{Path: path, Message: fmt.Sprintf(format, args...)}
		}
	}
}

func (c *checker) bad(path, format string, args ...any) {
	c.problems = append(c.problems, c.make(path, format, args...))
}

func (c *checker) warn(path, format string, args ...any) {
	c.Warnings = append(c.Warnings, c.make(path, format, args...))
}

func parent(path string) string {
	if i := strings.LastIndexAny(path, ".["); i >= 0 {
		return path[:i]
	}
	return ""
}

// sorted orders the problems as they stand in the file, each once.
func (c *checker) sorted() []Problem {
	slices.SortStableFunc(c.problems, func(a, b Problem) int { return cmp.Compare(a.Line, b.Line) })
	return slices.Compact(c.problems)
}

var (
	dnsLabel    = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)
	dnsName     = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*$`)
	labelValue  = regexp.MustCompile(`^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$`)
	labelName   = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$`)
	uuidPattern = regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$`)
)

func (c *checker) check() {
	x := &c.Cluster
	if x.APIVersion != APIVersion {
		c.bad("apiVersion", "must be %s", APIVersion)
	}
	if x.Kind != Kind {
		c.bad("kind", "must be %s", Kind)
	}
	if n := x.Metadata.Name; !dnsLabel.MatchString(n) || len(n) > 40 {
		c.bad("metadata.name", "name the cluster with at most 40 lower-case letters, digits and dashes")
	}
	c.choices()
	c.nodes()
	c.networks()
	c.endpoint()
	c.passedOn()
	for i, r := range x.Spec.Secrets.EncryptTo {
		if _, err := Recipient(r); err != nil {
			c.bad(fmt.Sprintf("spec.secrets.encryptTo[%d]", i), "not an age recipient (age1... or an SSH public key)") // the cause would quote it
		}
	}
	if names := x.Spec.Platform.names(); len(names) > 1 {
		c.bad("spec.platform", "names %s: choose one", strings.Join(names, " and "))
	}
	c.gce()
}

// Recipient reads one entry of spec.secrets.encryptTo.
func Recipient(s string) (age.Recipient, error) {
	if strings.HasPrefix(s, "ssh-") {
		return agessh.ParseRecipient(s)
	}
	return age.ParseX25519Recipient(s)
}

// choices are what kimage must be able to bake.
func (c *checker) choices() {
	s := &c.Cluster.Spec
	if s.OS == "" {
		c.bad("spec.os", "which operating system? (kimage list os)")
	} else if i := slices.IndexFunc(c.support.OSes, func(o OS) bool { return o.Name == s.OS || slices.Contains(o.Aliases, s.OS) }); i >= 0 {
		c.OS = c.support.OSes[i]
	} else {
		var names []string
		for _, o := range c.support.OSes {
			names = append(append(names, o.Name), o.Aliases...)
		}
		c.bad("spec.os", "%v", nearest.Unknown("operating system", s.OS, names))
	}
	if s.Kubernetes == "" {
		s.Kubernetes = c.support.Kubernetes[0]
	} else if v, ok := matchVersion(s.Kubernetes, c.support.Kubernetes); ok {
		s.Kubernetes = v
	} else {
		c.bad("spec.kubernetes", "%v", nearest.Unknown("Kubernetes version", s.Kubernetes, c.support.Kubernetes))
	}
	choose := func(path string, value *string, what string, known []string) {
		if *value == "" {
			*value = known[0]
		}
		if slices.Contains(known, *value) {
			return
		}
		if why, ok := retired[*value]; ok {
			c.bad(path, "%s", why)
			return
		}
		c.bad(path, "this kimage has no %s of that name: choose %s", what, strings.Join(known, " or "))
	}
	choose("spec.runtime", &s.Runtime, "runtime", c.support.Runtimes)
	choose("spec.network.plugin", &s.Network.Plugin, "network plugin", c.support.Plugins)
	c.versions()
}

// matchVersion finds v among the known versions: exact, without its v, or the
// newest of a minor version.
func matchVersion(v string, known []string) (string, bool) {
	want := "v" + strings.TrimPrefix(v, "v")
	for _, k := range known {
		if k == want || strings.Count(want, ".") == 1 && strings.HasPrefix(k, want+".") {
			return k, true
		}
	}
	return "", false
}

// versions allows what the catalogue has, and says why else not.
func (c *checker) versions() {
	s := c.Cluster.Spec
	have := map[string]string{}
	if c.support.Components != nil {
		have = c.support.Components(s.Kubernetes)
	}
	known := make([]string, 0, len(have))
	for k := range have {
		known = append(known, k)
	}
	for name, v := range s.Versions {
		path := join("spec.versions", name)
		major, minor := majorMinor(v)
		_, k8s := majorMinor(s.Kubernetes)
		switch {
		case name == "containerd" && major == 1 && k8s >= 36:
			c.bad(path, "Kubernetes 1.36 and later cannot work with containerd 1: use containerd 2 (%s), or Kubernetes 1.35", have["containerd"])
		case have[name] == "" && !slices.Contains(known, name):
			c.bad(path, "%v", nearest.Unknown("component", name, known))
		case name == "etcd" && (major < 3 || major == 3 && minor < 5):
			c.bad(path, "kubeadm refuses an etcd before 3.5.24: use %s", have[name])
		case strings.TrimPrefix(v, "v") != strings.TrimPrefix(have[name], "v"):
			c.bad(path, "the catalogue of this kimage has %s %s for Kubernetes %s, and no other: leave this out", name, have[name], s.Kubernetes)
		}
	}
}

func majorMinor(v string) (major, minor int) {
	parts := strings.SplitN(strings.TrimPrefix(v, "v"), ".", 3)
	major, _ = strconv.Atoi(parts[0])
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	return major, minor
}

var roleHints = map[string]string{"control-plane": RoleMaster, "controlplane": RoleMaster, "control_plane": RoleMaster, "manager": RoleMaster, "server": RoleMaster,
	"node": RoleWorker, "agent": RoleWorker, "compute": RoleWorker, "minion": RoleWorker}

func (c *checker) roles(path string, list []string) {
	if len(list) == 0 {
		c.bad(path, "give it at least one of etcd, master, worker")
	}
	for i, r := range list {
		at := fmt.Sprintf("%s[%d]", path, i)
		if slices.Contains(list[:i], r) {
			c.bad(at, "named twice")
		}
		if slices.Contains(roles, r) {
			continue
		}
		if hint, ok := roleHints[strings.ToLower(r)]; ok {
			c.bad(at, "unknown role: did you mean %s?", hint)
		} else {
			c.bad(at, "%v", nearest.Unknown("role", r, roles))
		}
	}
}

// nodes checks machines one by one, and against each other.
func (c *checker) nodes() {
	s := c.Cluster.Spec
	taken := map[string]string{} // kind and value to path
	unique := func(kind, value, path string) {
		if value == "" {
			return
		}
		if first, ok := taken[kind+value]; ok {
			c.bad(path, "%s has this %s already", first, kind)
			return
		}
		taken[kind+value] = path
	}
	etcd, masters := 0, 0
	for i, n := range s.Nodes {
		path := fmt.Sprintf("spec.nodes[%d]", i)
		if !dnsLabel.MatchString(n.Name) {
			c.bad(path+".name", "name the machine with lower-case letters, digits and dashes, at most 63")
		}
		unique("name", n.Name, path+".name")
		c.roles(path+".roles", n.Roles)
		t := Target{Name: n.Name, Roles: slices.Clone(n.Roles), Match: n.Match, path: path}
		if t.Has(RoleEtcd) {
			etcd++
		}
		if t.Has(RoleMaster) {
			masters++
		}
		if len(n.Address) == 0 && (t.Has(RoleEtcd) || t.Has(RoleMaster)) {
			c.bad(path+".address", "machines with etcd or master need a fixed address")
		}
		for j, a := range n.Address {
			at := fmt.Sprintf("%s.address[%d]", path, j)
			if c.at[at] == nil {
				at = path + ".address"
			}
			ip, err := netip.ParseAddr(a)
			if err != nil || ip.Zone() != "" || ip.Is4In6() || ip.IsLoopback() || ip.IsUnspecified() || ip.IsMulticast() {
				c.bad(at, "not a machine's address (such as 172.17.8.101; no prefix length, no host name)")
				continue
			}
			unique("address", ip.String(), at)
			t.Addresses = append(t.Addresses, ip.String())
		}
		if n.Match.MAC != "" {
			if mac, err := net.ParseMAC(n.Match.MAC); err != nil || len(mac) != 6 {
				c.bad(path+".match.mac", "not a MAC address (such as 52:54:00:17:08:01)")
			} else {
				t.Match.MAC = mac.String()
				unique("MAC", t.Match.MAC, path+".match.mac")
			}
		}
		unique("serial number", n.Match.Serial, path+".match.serial")
		if t.Match.UUID = strings.ToLower(n.Match.UUID); t.Match.UUID != "" && !uuidPattern.MatchString(t.Match.UUID) {
			c.bad(path+".match.uuid", "not a UUID (such as 4c4c4544-0042-3510-8052-b4c04f4d3132)")
		}
		unique("UUID", t.Match.UUID, path+".match.uuid")
		t = c.target(t, n.Machine)
		c.machine(t)
		c.Nodes = append(c.Nodes, t)
	}
	for i, p := range s.Pools {
		path := fmt.Sprintf("spec.pools[%d]", i)
		if !dnsLabel.MatchString(p.Name) || len(p.Name) > 50 {
			c.bad(path+".name", "name the pool with lower-case letters, digits and dashes, at most 50")
		}
		unique("name", p.Name, path+".name")
		if len(p.Roles) == 0 {
			p.Roles = []string{RoleWorker}
		}
		c.roles(path+".roles", p.Roles)
		for j, r := range p.Roles {
			if r == RoleEtcd || r == RoleMaster {
				c.bad(fmt.Sprintf("%s.roles[%d]", path, j), "a pool's machines are not known in advance, and etcd and masters must be: list them under spec.nodes")
			}
		}
		if p.Size < 0 || p.Size > 15000 {
			c.bad(path+".size", "give a number from 0 to 15000")
		}
		t := c.target(Target{Name: p.Name, Pool: true, Roles: slices.Clone(p.Roles), Size: p.Size, path: path}, p.Machine)
		c.machine(t)
		c.Pools = append(c.Pools, t)
	}
	if masters == 0 {
		c.bad("spec.nodes", "no machine has the role master: give it to one, or to three")
	}
	c.etcdCount(etcd)
}

func (c *checker) etcdCount(n int) {
	switch {
	case n == 0:
		c.bad("spec.nodes", "no machine has the role etcd: give it to one, three or five")
	case n == 1:
		c.warn("spec.nodes", "one etcd member: to image its machine again is to lose the whole cluster; three survive the loss of one")
	case n == 2:
		c.bad("spec.nodes", "two etcd members lose the cluster when either is lost, which is worse than one: use one, three or five")
	case n > 7:
		c.bad("spec.nodes", "%d etcd members: more than seven only make etcd slower; use three, five or seven", n)
	case n%2 == 0:
		c.warn("spec.nodes", "%d etcd members survive the loss of no more machines than %d do: use an odd number", n, n-1)
	}
}

// machine checks the effective settings of t.
func (c *checker) machine(t Target) {
	m := t.Machine
	at := func(setting string) string {
		for _, s := range t.Settings {
			if s.Path == setting || strings.HasPrefix(s.Path, setting+".") || strings.HasPrefix(setting, s.Path+"[") || strings.HasPrefix(setting, s.Path+".") {
				if rest, ok := strings.CutPrefix(setting, s.Path); ok {
					return s.From + "." + s.Path + rest
				}
				return s.From + "." + setting
			}
		}
		return t.path + ".machine." + setting
	}
	for k, v := range m.Labels {
		c.label(at(join("labels", k)), k, v)
	}
	for i, x := range m.Taints {
		path := at(fmt.Sprintf("taints[%d]", i))
		c.label(path+".key", x.Key, x.Value)
		if !slices.Contains([]string{"NoSchedule", "PreferNoSchedule", "NoExecute"}, x.Effect) {
			c.bad(path+".effect", "must be NoSchedule, PreferNoSchedule or NoExecute")
		}
	}
	c.machineNetwork(t, at)
	if t.Machine.QEMU.CPUs < 0 {
		c.bad(at("qemu.cpus"), "give a number of processors")
	}
	if m := t.Machine.QEMU.MemoryMiB; m < 0 || m > 0 && m < 512 {
		c.bad(at("qemu.memoryMiB"), "give 512 or more")
	}
	c.gceMachine(m.GCE, func(key string) string { return at("gce." + key) })
	if d := m.Disks.Install; d.Path != "" && !strings.HasPrefix(d.Path, "/dev/") {
		c.bad(at("disks.install.path"), "not a path below /dev")
	}
	if m.Disks.Install.MinGiB < 0 {
		c.bad(at("disks.install.minGiB"), "give a number of GiB")
	}
	if o := m.Disks.Install.Overwrite; o != "" && !slices.Contains(overwrites, o) {
		c.bad(at("disks.install.overwrite"), "must be never, kimage or any")
	}
	for i, s := range m.NTP {
		if _, err := netip.ParseAddr(s); err != nil && !dnsName.MatchString(strings.ToLower(s)) {
			c.bad(at(fmt.Sprintf("ntp[%d]", i)), "not a host name or address")
		}
	}
	for name, v := range map[string]string{"http": m.Proxy.HTTP, "https": m.Proxy.HTTPS} {
		if v != "" && !isURL(v) {
			c.bad(at("proxy."+name), "not a URL (such as http://proxy.example:3128)")
		}
	}
	for host, r := range m.Registries {
		if !registryHost.MatchString(host) {
			c.bad(at(join("registries", host)), "not a registry's HOST or HOST:PORT")
		}
		if len(r.Mirrors) == 0 {
			c.bad(at(join("registries", host)), "name at least one mirror: {mirrors: [https://...]}")
		}
		for i, u := range r.Mirrors {
			if !isURL(u) {
				c.bad(at(join("registries", host)+fmt.Sprintf(".mirrors[%d]", i)), "not a URL (such as https://mirror.example)")
			}
		}
	}
	for i, p := range m.TrustedCAs {
		if block, rest := pem.Decode([]byte(p)); block == nil || block.Type != "CERTIFICATE" || strings.TrimSpace(string(rest)) != "" {
			c.bad(at(fmt.Sprintf("trustedCAs[%d]", i)), "not one PEM certificate (-----BEGIN CERTIFICATE-----)")
		}
	}
	for i, k := range m.SSH.AuthorizedKeys {
		if _, _, _, _, err := ssh.ParseAuthorizedKey([]byte(k)); err != nil || strings.ContainsRune(strings.TrimSpace(k), '\n') {
			c.bad(at(fmt.Sprintf("ssh.authorizedKeys[%d]", i)), "not an SSH public key (ssh-ed25519 AAAA...)")
		}
	}
	c.snippet(at("butane"), m.Butane, "ignition", "cloudInit")
	c.snippet(at("cloudInit"), m.CloudInit, "cloud-init", "butane")
}

var registryHost = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?$`)

func isURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && u.Host != "" && (u.Scheme == "http" || u.Scheme == "https") && !strings.ContainsAny(s, " \n\"'\\")
}

func (c *checker) snippet(path, file, firstBoot, other string) {
	if file == "" || c.OS.Name == "" {
		return
	}
	if c.OS.FirstBoot != firstBoot {
		c.bad(path, "%s boots with %s: use %s", c.OS.Name, c.OS.FirstBoot, other)
		return
	}
	if !filepath.IsAbs(file) {
		file = filepath.Join(c.Dir(), file)
	}
	if fi, err := os.Stat(file); err != nil || !fi.Mode().IsRegular() {
		c.bad(path, "there is no such file (relative names begin where the cluster file is)")
	}
}

func (c *checker) label(path, key, value string) {
	prefix, name, ok := strings.Cut(key, "/")
	if !ok {
		prefix, name = "", key
	}
	if ok && (!dnsName.MatchString(prefix) || len(prefix) > 253) || !labelName.MatchString(name) {
		c.bad(path, "not a label's name ([PREFIX/]NAME, letters, digits, - _ .)")
	}
	if !labelValue.MatchString(value) {
		c.bad(path, "not a label's value (at most 63 letters, digits, - _ .)")
	}
}

func zero(s string) string {
	if _, err := netip.ParseAddr(s); err != nil {
		return "0.0.0.0"
	}
	return s
}

// prefix is the node network that holds an address.
func (f *File) prefix(address string) (netip.Prefix, bool) {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return netip.Prefix{}, false
	}
	for _, s := range f.Cluster.Spec.Network.Nodes {
		if p, err := netip.ParsePrefix(s); err == nil && p.Contains(ip) {
			return p, true
		}
	}
	return netip.Prefix{}, false
}

// WithPrefix is address/LENGTH, as its node network says.
func (f *File) WithPrefix(address string) string {
	p, ok := f.prefix(address)
	if !ok {
		return address
	}
	return address + "/" + strconv.Itoa(p.Bits())
}
