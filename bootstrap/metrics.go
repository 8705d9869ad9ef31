package bootstrap

import (
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"github.com/kimage-project/kimage/bootstrap/etcd"
	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// metricsListen serves what a monitoring system reads, in Prometheus' text
// format, to this machine alone.
const metricsListen = "127.0.0.1:7448"

// certificateFiles are those that end: issued by the operator, by kubeadm, and by
// the cluster for the kubelet. Kubeconfigs have theirs inside.
var certificateFiles = []string{nodeconf.PKIDir + "/*.crt", "/etc/kubernetes/pki/*.crt", "/etc/kubernetes/pki/etcd/*.crt",
	"/var/lib/kubelet/pki/kubelet-client-current.pem", "/etc/kubernetes/*.conf"}

// measures is what is measured at one moment.
type measures struct {
	phase        string
	phases       map[string]time.Time // when each phase last began
	generation   int
	serial       int
	view         *etcd.View           // nil: not known on this machine
	certificates map[string]time.Time // the ends, by file
	image        Manifest
}

// serveMetrics answers until ctx ends.
func (a *Agent) serveMetrics(ctx context.Context, view func() *etcd.View) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, _ *http.Request) {
		r := a.rosters.highest()
		m := measures{generation: r.Generation, serial: r.Serial, view: view(), certificates: certificateEnds("/", certificateFiles), image: a.image}
		m.phase, m.phases = a.phase.began()
		w.Header().Set("Content-Type", "text/plain; version=0.0.4")
		m.write(w)
	})
	server := &http.Server{Addr: metricsListen, Handler: mux, ReadTimeout: 10 * time.Second, WriteTimeout: time.Minute}
	context.AfterFunc(ctx, func() { server.Close() })
	return server.ListenAndServe()
}

func (m measures) write(w io.Writer) {
	gauge := func(name, help string) {
		fmt.Fprintf(w, "# HELP kimage_%s %s\n# TYPE kimage_%s gauge\n", name, help, name)
	}
	gauge("image_info", "The image that this machine runs.")
	fmt.Fprintf(w, "kimage_image_info{image_id=%q,kubernetes=%q} 1\n", m.image.ImageID, m.image.Kubernetes)
	gauge("phase", "1 for the phase that this machine is in.")
	fmt.Fprintf(w, "kimage_phase{phase=%q} 1\n", m.phase)
	gauge("phase_start_timestamp_seconds", "When each phase last began.")
	for _, name := range slices.Sorted(maps.Keys(m.phases)) {
		fmt.Fprintf(w, "kimage_phase_start_timestamp_seconds{phase=%q} %d\n", name, m.phases[name].Unix())
	}
	gauge("roster_generation", "Generation of the highest roster on this machine.")
	fmt.Fprintf(w, "kimage_roster_generation %d\n", m.generation)
	gauge("roster_serial", "Serial of the highest roster on this machine.")
	fmt.Fprintf(w, "kimage_roster_serial %d\n", m.serial)
	if m.view != nil {
		voters, learners := 0, 0
		for _, member := range m.view.Members {
			if member.Learner {
				learners++
			} else {
				voters++
			}
		}
		gauge("etcd_members", "Members of etcd by kind, as a quorum last said.")
		fmt.Fprintf(w, "kimage_etcd_members{kind=\"voter\"} %d\nkimage_etcd_members{kind=\"learner\"} %d\n", voters, learners)
	}
	gauge("certificate_expiry_timestamp_seconds", "When the first certificate in a file ends.")
	for _, file := range slices.Sorted(maps.Keys(m.certificates)) {
		fmt.Fprintf(w, "kimage_certificate_expiry_timestamp_seconds{file=%q} %d\n", file, m.certificates[file].Unix())
	}
}

var embedded = regexp.MustCompile(`(?m)client-certificate-data: *(\S+)`)

// certificateEnds reads when the certificates below root end. What is no
// certificate, as a kubeconfig that names a file, is left out.
func certificateEnds(root string, patterns []string) map[string]time.Time {
	ends := map[string]time.Time{}
	for _, pattern := range patterns {
		files, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			if m := embedded.FindSubmatch(data); m != nil {
				if data, err = base64.StdEncoding.DecodeString(string(m[1])); err != nil {
					continue
				}
			}
			for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
				cert, err := x509.ParseCertificate(block.Bytes)
				if block.Type != "CERTIFICATE" || err != nil {
					continue
				}
				name := filepath.Join("/", file[len(filepath.Clean(root)):])
				if end, ok := ends[name]; !ok || cert.NotAfter.Before(end) {
					ends[name] = cert.NotAfter
				}
			}
		}
	}
	return ends
}
