package bootstrap

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/pkg/pki"
)

func TestMetrics(t *testing.T) {
	root := t.TempDir()
	now := time.Now()
	ca, err := pki.NewCA("ca", "test", "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := ca.Issue(pki.Request{CommonName: "x", Client: true}, "ECDSA-P256", now)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string]string{
		"pki/a.crt": string(pair.Cert), "pki/a.key": string(pair.Key), "admin.conf": "users:\n- user:\n    client-certificate-data: " + base64.StdEncoding.EncodeToString(pair.Cert) + "\n",
		"kubelet.conf": "users:\n- user:\n    client-certificate: /var/lib/kubelet/pki/x.pem\n",
	} {
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	m := measures{phase: PhaseReady, phases: map[string]time.Time{PhaseInit: time.Unix(10, 0), PhaseReady: time.Unix(20, 0)}, generation: 2, serial: 7,
		view:         &etcd.View{Members: []etcd.EtcdMember{{ID: "1"}, {ID: "2"}, {ID: "3", Learner: true}}},
		certificates: certificateEnds(root, []string{"/pki/*", "/*.conf"})}
	var b strings.Builder
	m.write(&b)
	for _, want := range []string{
		"kimage_phase{phase=\"ready\"} 1\n", "kimage_phase_start_timestamp_seconds{phase=\"init\"} 10\n", "kimage_roster_generation 2\n", "kimage_roster_serial 7\n",
		"kimage_etcd_members{kind=\"voter\"} 2\n", "kimage_etcd_members{kind=\"learner\"} 1\n",
		"kimage_certificate_expiry_timestamp_seconds{file=\"/admin.conf\"} ", "kimage_certificate_expiry_timestamp_seconds{file=\"/pki/a.crt\"} ",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if n := len(m.certificates); n != 2 {
		t.Errorf("%d certificates: %v", n, m.certificates)
	}
}
