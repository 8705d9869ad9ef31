package kube

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/kimage-project/kimage/pkg/atomicfile"
	"github.com/kimage-project/kimage/pkg/pki"
)

const (
	// kubeletCertificateFile is the link that kubelet.conf names, and under which
	// the kubelet keeps what it renews.
	kubeletCertificateFile = kubeletDir + "/pki/kubelet-client-current.pem"
	// kubeletLifetime is that of kubeadm's own.
	kubeletLifetime = 365 * 24 * time.Hour
)

// certify makes the kubelet's client certificate anew, after its end. A machine
// cannot join its cluster again where all of its masters were off for so long:
// nobody runs an API server before its kubelet does. A master has the authority
// that issued the old one.
func (n *Node) certify() error {
	ca, err := n.clusterCA()
	if err != nil {
		return err
	}
	authority, err := pki.ParseCerts(ca.Cert)
	if err != nil {
		return fmt.Errorf("reading the cluster's CA: %w", err)
	}
	if end := authority[0].NotAfter; n.Now().After(end) {
		return fmt.Errorf("the cluster's CA ended at %s: check the clock", end.UTC().Format(time.RFC3339))
	}
	// Valid from the CA's beginning, as kubeadm's are: if it was the clock that was
	// wrong, the certificate is good after it was set.
	pair, err := ca.Issue(pki.Request{CommonName: nodeUser + n.Name, Organization: []string{"system:nodes"}, Client: true,
		NotBefore: authority[0].NotBefore, NotAfter: n.Now().Add(kubeletLifetime)}, pki.DefaultAlgorithm, n.Now())
	if err != nil {
		return err
	}
	// A name as the kubelet itself makes them.
	name := n.Now().UTC().Format("kubelet-client-2006-01-02-15-04-05.pem")
	if err := n.write(kubeletDir+"/pki/"+name, append(pair.Cert, pair.Key...), 0o600); err != nil {
		return err
	}
	link := n.path(kubeletCertificateFile)
	tmp := link + ".new"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := errors.Join(os.Symlink(name, tmp), os.Rename(tmp, link), atomicfile.SyncDir(filepath.Dir(link))); err != nil {
		return err
	}
	n.tellChanged("certify")
	if n.kubeletCertificate().useless(n.Now()) {
		return fmt.Errorf("%s does not name %s, where the kubelet's new certificate is: change it by hand", n.path(kubeletConf), kubeletCertificateFile)
	}
	n.Logf("the kubelet's certificate had ended: it has another one")
	return nil
}
