package bootstrap

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/bootstrap/peer"
	"github.com/kimage-project/kimage/pkg/need"
)

func TestOverall(t *testing.T) {
	for _, c := range []struct {
		name                string
		machine, etcd, kube saying
		cause               string
		want                saying
	}{
		{name: "nothing yet", want: saying{phase: PhaseWaiting}},
		{name: "a cause, and nothing yet", cause: "no link", want: saying{PhaseWaiting, "no link"}},
		{name: "the wrong image", machine: saying{PhaseStopped, "wrong image"}, cause: "no link", want: saying{PhaseStopped, "wrong image; no link"}},
		{name: "a clock that two parts complain of", kube: saying{PhaseStopped, "the clock is wrong"}, cause: "the clock is wrong", want: saying{PhaseStopped, "the clock is wrong"}},
		{name: "founding", etcd: saying{PhaseEtcd, "asking b"}, kube: saying{PhaseWaiting, "etcd does not answer"}, want: saying{PhaseEtcd, "asking b"}},
		{name: "founding without a link", etcd: saying{PhaseEtcd, "asking b"}, cause: "no link", want: saying{PhaseEtcd, "no link; asking b"}},
		{name: "etcd runs", kube: saying{PhaseWaiting, "for an API server"}, want: saying{PhaseWaiting, "for an API server"}},
		{name: "etcd stopped under a Node", etcd: saying{PhaseStopped, "no KIMAGE"}, kube: saying{PhaseReady, ""}, want: saying{PhaseStopped, "no KIMAGE"}},
		{name: "ready, and the disk is full", kube: saying{PhaseReady, ""}, cause: "disk full", want: saying{PhaseReady, "disk full"}},
		{name: "initialising", etcd: saying{PhaseEtcd, "x"}, kube: saying{PhaseInit, "no API server answers"}, want: saying{PhaseInit, "no API server answers"}},
	} {
		if got := overall([parts]saying{c.machine, c.etcd, c.kube}, []string{"", c.cause}); got != c.want {
			t.Errorf("%s: got %+v", c.name, got)
		}
	}
}

func TestPhasesAreHeard(t *testing.T) {
	p := phases{now: time.Now, file: filepath.Join(t.TempDir(), "phase.json"), logf: func(string, ...any) {}}
	heard := p.listen()
	has := func() bool {
		select {
		case <-heard:
			return true
		default:
			return false
		}
	}
	p.because("")
	if has() || p.current().Phase != "" {
		t.Errorf("nothing has begun, and %+v is told", p.current())
	}
	p.because("no link")
	if !has() || p.current() != (Phase{Phase: PhaseWaiting, Since: p.current().Since, Why: "no link"}) {
		t.Errorf("got %+v", p.current())
	}
	p.because("no link")
	if has() {
		t.Error("the same is told twice")
	}
}

// TestDiskFull fills a real file system.
func TestDiskFull(t *testing.T) {
	need.Root(t, "a mount")
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=8m,nr_inodes=200"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	look := func() string {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		return full(dir, st)
	}
	if got := look(); got != "" {
		t.Errorf("empty: got %q", got)
	}
	file := filepath.Join(dir, "a")
	if err := os.WriteFile(file, make([]byte, 7<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := look(); got != "" {
		t.Errorf("12 %% are free: got %q", got)
	}
	if err := os.WriteFile(file, make([]byte, 8<<20), 0o600); err != nil && !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	if got := look(); !strings.HasPrefix(got, "disk full: 0% (0 MiB) of "+dir+" are free: remove") {
		t.Errorf("full: got %q", got)
	}
	os.Remove(file)
	for i := 0; ; i++ {
		if err := os.WriteFile(filepath.Join(dir, strings.Repeat("x", i+1)), nil, 0o600); err != nil {
			break
		}
	}
	if got := look(); !strings.Contains(got, "inodes") {
		t.Errorf("no inode: got %q", got)
	}
}

func TestSeen(t *testing.T) {
	var s seen
	clock := func(ahead time.Duration) *peer.Clock { return &peer.Clock{Name: "m1", Ahead: ahead} }
	s.noteClock("m1", byReport, clock(time.Hour))
	s.noteClock("m1", byEtcd, clock(time.Hour))
	if why := s.clockWrong(); !strings.Contains(why, "the clock of m1 is 1h0m0s ahead") {
		t.Errorf("a machine that was asked twice: %q", why)
	}
	s.noteClock("m1", byReport, nil)
	s.noteClock("m1", byEtcd, clock(0))
	if why := s.clockWrong(); why != "" {
		t.Errorf("got %q", why)
	}
	s.noteRefusal("m2", "no")
	s.noteRefusal("m1", "never")
	s.noteRefusal("m2", "")
	if got := strings.Join(s.refusals(), "; "); got != "m1: never" {
		t.Errorf("got %q", got)
	}
}

// operator signs rosters of a test's cluster.
type operator struct {
	key     ed25519.PrivateKey
	cluster nodeconf.Cluster
	peers   nodeconf.Peers
}

func newOperator() operator {
	key := ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize))
	return operator{key: key, cluster: nodeconf.Cluster{Name: "demo", UID: "uid-1", RosterKey: base64.StdEncoding.EncodeToString(key.Public().(ed25519.PublicKey))}}
}

func (o operator) roster(t *testing.T, serial int, masters ...nodeconf.Master) nodeconf.SignedRoster {
	t.Helper()
	s, err := nodeconf.Roster{ClusterUID: o.cluster.UID, Generation: 1, Serial: serial, Founding: []string{"e1"}, Members: []nodeconf.Member{{Name: "e1", PeerURL: "https://127.0.0.9:2380"}},
		Masters: masters, Peers: o.peers}.Sign(o.key)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func writeJSON(t *testing.T, file string, value any) {
	t.Helper()
	data, err := json.Marshal(value)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o755)
	}
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func TestRosters(t *testing.T) {
	o := newOperator()
	dir := t.TempDir()
	var said []string
	r := newRosters(o.cluster, func(format string, args ...any) { said = append(said, format) })
	r.files = []string{filepath.Join(dir, "told.json"), filepath.Join(dir, "state", "kept.json")}
	serial := func() int { return r.highest().Serial }
	if serial() != 0 {
		t.Error("a roster of nothing")
	}
	writeJSON(t, r.files[0], o.roster(t, 2))
	if serial() != 2 {
		t.Errorf("first boot's: got %d", serial())
	}
	r.take(o.roster(t, 3), "m1")
	r.take(o.roster(t, 3), "m1")
	if serial() != 2 || exists(r.files[1]) || len(said) != 1 {
		t.Errorf("a disk that is not the machine's own was written, or it was said %d times", len(said))
	}
	r.mayWrite = func() error { return nil }
	r.take(o.roster(t, 3), "m1")
	if serial() != 3 {
		t.Errorf("a newer one: got %d", serial())
	}
	r.take(o.roster(t, 1), "m1")
	forged := o.roster(t, 9)
	forged.Signature = make([]byte, ed25519.SignatureSize)
	r.take(forged, "m1")
	other := o
	other.cluster.UID = "uid-2"
	r.take(other.roster(t, 9), "m1")
	r.take(o.roster(t, 3, nodeconf.Master{Name: "evil", Address: "127.0.0.1"}), "m1")
	if serial() != 3 || len(r.highest().Masters) != 0 {
		t.Errorf("an older one, a forged one, another cluster's or a contradiction was taken: %+v", r.highest().Roster)
	}
	var offered []nodeconf.SignedRoster
	r.offer = func(s nodeconf.SignedRoster) { offered = append(offered, s) }
	r.take(forged, "m1")
	r.take(o.roster(t, 4), "m1")
	if serial() != 3 || len(offered) != 1 || offered[0].Digest() != o.roster(t, 4).Digest() {
		t.Errorf("who keeps the file was offered %d", len(offered))
	}
}
