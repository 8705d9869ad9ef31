package kube

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/pkg/kubeapi"
)

// TestToVersion: a version is added to what a person wants, and takes the place of
// another version.
func TestToVersion(t *testing.T) {
	wants := func(version string, more ...any) any {
		return object{"matchExpressions": append([]any{object{"key": versionLabel, "operator": "In", "values": []any{version}}}, more...)}
	}
	infra := object{"key": "role", "operator": "In", "values": []any{"infra"}}
	for name, tt := range map[string]struct {
		terms, want []any
		moved       bool
	}{
		"none":             {nil, []any{wants("v1.37.2")}, false},
		"the same":         {[]any{wants("v1.37.2")}, []any{wants("v1.37.2")}, false},
		"another":          {[]any{wants("v1.36.5")}, []any{wants("v1.37.2")}, true},
		"a person's":       {[]any{object{"matchExpressions": []any{infra}}}, []any{wants("v1.37.2", infra)}, false},
		"both, and fields": {[]any{wants("v1.36.5", infra), object{"matchFields": []any{"x"}}}, []any{wants("v1.37.2", infra), object{"matchFields": []any{"x"}, "matchExpressions": wants("v1.37.2").(object)["matchExpressions"]}}, true},
	} {
		got, moved := toVersion(tt.terms, "v1.37.2")
		if d := cmp.Diff(tt.want, got); d != "" || moved != tt.moved {
			t.Errorf("%s: moved %t\n%s", name, moved, d)
		}
	}
}

func TestLeftBehind(t *testing.T) {
	node := func(name, version string, master bool) kubeapi.Object {
		labels := object{}
		if master {
			labels["node-role.kubernetes.io/control-plane"] = ""
		}
		return kubeapi.Object{"metadata": object{"name": name, "labels": labels}, "status": object{"nodeInfo": object{"kubeletVersion": version}}}
	}
	for want, nodes := range map[string][]kubeapi.Object{
		"": {node("m1", "v1.36.5", true), node("m2", "v1.30.0", true), node("w1", "v1.34.0", false), node("w2", "", false)},
		"the master m1 runs v1.35.8, more than one minor": {node("m1", "v1.35.8", true)},
		"w1 runs v1.33.9, more than 3 minor":              {node("w1", "v1.33.9", false)},
	} {
		if got := leftBehind("v1.37.2", "m2", nodes); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestConfigVersion(t *testing.T) {
	for text, want := range map[string]string{
		"kind: ClusterConfiguration\nkubernetesVersion: v1.37.2\nnetworking: {}\n": "v1.37.2",
		"k8s\x00\x12\x99kind: x\nkubernetesVersion: \"v1.36.5\"\n\x1a\x00":         "v1.36.5",
		"other: v1.2.3\n": "",
	} {
		if got := versionIn(text); got != want {
			t.Errorf("%q: %q", text, got)
		}
	}
	for image, want := range map[string]string{"registry.k8s.io/kube-proxy:v1.37.2": "registry.k8s.io/kube-proxy", "localhost:5000/x": "localhost:5000/x", "a/b:1@sha256:cd": "a/b"} {
		if got := repository(image); got != want {
			t.Errorf("%s: %s", image, got)
		}
	}
}
