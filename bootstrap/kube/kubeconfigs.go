package kube

import (
	"fmt"
	"os"
	"syscall"

	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// kubeconfigs are those that were read. Reading them again at every look would
// be half of what a machine that is Ready does.
type kubeconfigs map[string]struct {
	as   string // of the files that it came from
	conf kubeapi.Config
}

// kubeconfig reads a kubeconfig if it is another than when it was last read, or
// the kubelet's certificate is, which it may name.
func (n *Node) kubeconfig(file string) (kubeapi.Config, error) {
	as := fingerprint(n.path(file)) + fingerprint(n.path(kubeletCertificateFile))
	if known, ok := n.kubeconfigs[file]; ok && known.as == as {
		return known.conf, nil
	}
	delete(n.kubeconfigs, file)
	conf, err := kubeapi.ReadKubeconfig(n.path(file))
	if err != nil {
		return conf, err
	}
	if n.kubeconfigs == nil {
		n.kubeconfigs = kubeconfigs{}
	}
	known := n.kubeconfigs[file]
	known.as, known.conf = as, conf
	n.kubeconfigs[file] = known
	return conf, nil
}

// fingerprint differs after a rename over the file, and after a change in place.
func fingerprint(file string) string {
	fi, err := os.Stat(file)
	if err != nil {
		return "none "
	}
	inode := uint64(0)
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		inode = st.Ino
	}
	return fmt.Sprint(inode, fi.Size(), fi.ModTime().UnixNano(), " ")
}
