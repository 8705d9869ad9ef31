package kubeapi

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/pkg/pki"
)

// serve answers "METHOD PATH" from a table and notes what was asked.
func serve(t *testing.T, answers map[string]string) (*Client, *[]string) {
	t.Helper()
	var asked []string
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		asked = append(asked, strings.TrimSpace(strings.Join([]string{r.Method, r.URL.String(), r.Header.Get("Content-Type"), string(body)}, " ")))
		if r.Header.Get("Authorization") != "Bearer secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		answer, ok := answers[r.Method+" "+r.URL.Path]
		if !ok {
			w.WriteHeader(http.StatusNotFound)
			io.WriteString(w, `{"kind":"Status","status":"Failure","message":"there is none","reason":"NotFound","code":404}`)
			return
		}
		io.WriteString(w, answer)
	}))
	t.Cleanup(s.Close)
	c, err := New(Config{Server: s.URL + "/", CA: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), Token: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, &asked
}

func TestGet(t *testing.T) {
	c, _ := serve(t, map[string]string{"GET /api/v1/nodes/a": `{"metadata":{"name":"a"}}`, "GET /readyz": "ok", "GET /broken": "{"})
	var o Object
	if err := c.Get(t.Context(), "/api/v1/nodes/a", nil, &o); err != nil || Text(o, "metadata", "name") != "a" {
		t.Errorf("got %v, %v", o, err)
	}
	var s string
	if err := c.Get(t.Context(), "/readyz", nil, &s); err != nil || s != "ok" {
		t.Errorf("got %q, %v", s, err)
	}
	if err := c.Get(t.Context(), "/api/v1/nodes/b", nil, &o); !Is(err, 404) || !strings.Contains(err.Error(), "there is none") {
		t.Errorf("got %v", err)
	}
	if err := c.Get(t.Context(), "/broken", nil, &o); err == nil || !strings.Contains(err.Error(), "GET /broken") {
		t.Errorf("got %v", err)
	}
	c.token = "other"
	if err := c.Get(t.Context(), "/readyz", nil, nil); !Is(err, 401) {
		t.Errorf("got %v", err)
	}
}

func TestApply(t *testing.T) {
	c, asked := serve(t, map[string]string{
		"GET /api/v1":                `{"resources":[{"name":"namespaces","kind":"Namespace"},{"name":"pods","kind":"Pod","namespaced":true},{"name":"pods/status","kind":"Pod","namespaced":true}]}`,
		"GET /apis/apps/v1":          `{"resources":[{"name":"daemonsets","kind":"DaemonSet","namespaced":true}]}`,
		"PATCH /api/v1/namespaces/x": `{}`,
		"PATCH /apis/apps/v1/namespaces/default/daemonsets/d": `{}`,
		"PATCH /apis/apps/v1/namespaces/x/daemonsets/d":       `{}`,
	})
	objects, err := Objects([]byte("# comment\n---\napiVersion: v1\nkind: Namespace\nmetadata: {name: x}\n---\n---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: d}\n" +
		"---\napiVersion: apps/v1\nkind: DaemonSet\nmetadata: {name: d, namespace: x}\n"))
	if err != nil || len(objects) != 3 {
		t.Fatalf("%d objects, %v", len(objects), err)
	}
	for _, o := range objects {
		if err := c.Apply(t.Context(), o); err != nil {
			t.Fatal(err)
		}
	}
	const patch = "?fieldManager=kimage&force=true application/apply-patch+yaml "
	want := []string{
		"GET /api/v1", "PATCH /api/v1/namespaces/x" + patch + `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"x"}}`,
		"GET /apis/apps/v1", "PATCH /apis/apps/v1/namespaces/default/daemonsets/d" + patch + `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"d"}}`,
		"PATCH /apis/apps/v1/namespaces/x/daemonsets/d" + patch + `{"apiVersion":"apps/v1","kind":"DaemonSet","metadata":{"name":"d","namespace":"x"}}`,
	}
	if d := cmp.Diff(want, *asked); d != "" {
		t.Error(d)
	}
	if err := c.Apply(t.Context(), Object{"apiVersion": "v1", "kind": "Nothing", "metadata": map[string]any{"name": "x"}}); err == nil || !strings.Contains(err.Error(), "knows no Nothing") {
		t.Errorf("got %v", err)
	}
	if err := c.Apply(t.Context(), Object{"kind": "Pod"}); err == nil {
		t.Error("an object without a name was applied")
	}
}

func TestDelete(t *testing.T) {
	c, asked := serve(t, map[string]string{"DELETE /api/v1/nodes/a": `{}`})
	if err := c.Delete(t.Context(), "/api/v1/nodes/a", "u1"); err != nil {
		t.Error(err)
	}
	if err := c.Delete(t.Context(), "/api/v1/nodes/b", ""); err != nil {
		t.Errorf("what is not there is deleted: %v", err)
	}
	if err := c.DeleteNow(t.Context(), "/api/v1/nodes/a", "u2"); err != nil {
		t.Error(err)
	}
	want := []string{`DELETE /api/v1/nodes/a application/json {"apiVersion":"v1","kind":"DeleteOptions","preconditions":{"uid":"u1"}}`,
		`DELETE /api/v1/nodes/b application/json {"apiVersion":"v1","kind":"DeleteOptions"}`,
		`DELETE /api/v1/nodes/a application/json {"apiVersion":"v1","gracePeriodSeconds":0,"kind":"DeleteOptions","preconditions":{"uid":"u2"}}`}
	if d := cmp.Diff(want, *asked); d != "" {
		t.Error(d)
	}
}

func TestKubeconfig(t *testing.T) {
	ca, err := pki.NewCA("ca", "test", "ECDSA-P256", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "pair.pem"), append(ca.Cert, ca.Key...), 0o600); err != nil {
		t.Fatal(err)
	}
	conf := func(user string) map[string]any {
		return map[string]any{"apiVersion": "v1", "kind": "Config", "current-context": "b@a",
			"clusters": []any{map[string]any{"name": "x", "cluster": map[string]any{"server": "https://no"}},
				map[string]any{"name": "a", "cluster": map[string]any{"server": "https://yes:6443", "certificate-authority-data": base64.StdEncoding.EncodeToString(ca.Cert)}}},
			"users": []any{map[string]any{"name": "b", "user": map[string]any{"client-certificate": "pair.pem", "client-key": filepath.Join(dir, "pair.pem")}},
				map[string]any{"name": "t", "user": map[string]any{"token": "secret"}}},
			"contexts": []any{map[string]any{"name": "b@a", "context": map[string]any{"cluster": "a", "user": user}}}}
	}
	for _, tt := range []struct {
		user string
		want Config
	}{
		{"b", Config{Server: "https://yes:6443", CA: ca.Cert, Cert: append(ca.Cert, ca.Key...), Key: append(ca.Cert, ca.Key...)}},
		{"t", Config{Server: "https://yes:6443", CA: ca.Cert, Token: "secret"}},
	} {
		data, err := json.Marshal(conf(tt.user))
		if err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(dir, "conf")
		if err := os.WriteFile(file, data, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadKubeconfig(file)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, got); d != "" {
			t.Error(d)
		}
		if _, err := New(got); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"current-context: x", "- a", "current-context: a\ncontexts: [{name: a, context: {cluster: c}}]"} {
		file := filepath.Join(dir, "bad")
		os.WriteFile(file, []byte(bad), 0o600)
		if _, err := ReadKubeconfig(file); err == nil || !strings.Contains(err.Error(), file) {
			t.Errorf("%q: got %v", bad, err)
		}
	}
}
