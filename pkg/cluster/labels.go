package cluster

import (
	"slices"
	"strings"
)

// SplitLabels tells the labels that a kubelet may give its own Node from those
// that only masters may set: the admission plugin NodeRestriction
// (https://kubernetes.io/docs/reference/access-authn-authz/admission-controllers/#noderestriction)
// keeps the kubernetes.io and k8s.io namespaces but for a few names.
func (t Target) SplitLabels() (own, restricted map[string]string) {
	own, restricted = map[string]string{}, map[string]string{}
	for k, v := range t.Machine.Labels {
		if ownLabel(k) {
			own[k] = v
		} else {
			restricted[k] = v
		}
	}
	if t.Has(RoleWorker) {
		restricted["node-role.kubernetes.io/worker"] = ""
	}
	return own, restricted
}

var ownLabels = []string{"kubernetes.io/hostname", "kubernetes.io/arch", "kubernetes.io/os", "topology.kubernetes.io/region", "topology.kubernetes.io/zone"}

func ownLabel(key string) bool {
	domain, _, ok := strings.Cut(key, "/")
	if !ok || slices.Contains(ownLabels, key) {
		return true
	}
	in := func(d string) bool { return domain == d || strings.HasSuffix(domain, "."+d) }
	return in("kubelet.kubernetes.io") || in("node.kubernetes.io") || !in("kubernetes.io") && !in("k8s.io")
}
