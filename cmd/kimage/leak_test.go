package main

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestNoSecretIsTold: whatever is run and however it fails, no private key and
// no token is printed, or written outside of state and configs.
func TestNoSecretIsTold(t *testing.T) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	for _, encrypted := range []bool{false, true} {
		dir := newClusterDir(t, "--topology", "3", "--os", "debian-13")
		outside := t.TempDir()
		identity := filepath.Join(t.TempDir(), "identity")
		if err := os.WriteFile(identity, []byte(id.String()+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		if encrypted {
			replaceIn(t, filepath.Join(dir, "cluster.yaml"), "  machine:\n", "  secrets: {encryptTo: ["+id.Recipient().String()+"]}\n  machine:\n")
		}
		var told bytes.Buffer
		do := func(args ...string) {
			cmd := command(args...)
			cmd.Dir = dir
			cmd.Env = append(cmd.Env, "HOME="+outside, "TMPDIR="+outside, "KIMAGE_AGE_IDENTITY="+identity, "KIMAGE_CACHE="+filepath.Join(outside, "cache"))
			cmd.Stdout, cmd.Stderr = &told, &told
			fmt.Fprintf(&told, "$ %s\n", strings.Join(args, " "))
			if err := cmd.Run(); err != nil {
				if _, ok := err.(*exec.ExitError); !ok {
					t.Fatal(err)
				}
			}
		}
		secrets := filepath.Join(dir, "cluster.secrets")
		do("config", "--seed")
		known := privateOf(t, secrets, id) // before harm is done to them
		all := func() {
			for _, args := range [][]string{{"config"}, {"config", "--seed", "--json"}, {"config", "--diff"}, {"config", "--for", "aws"}, {"config", "-o", "/proc/x"}, {"config", "-o", "cluster.yaml"},
				{"secrets", "show"}, {"secrets", "show", "--json"}, {"secrets", "rotate", "ca"}, {"secrets", "encrypt"}, {"cluster", "check"}, {"cluster", "show", "k8s-01"}, {"cluster", "show", "k8s-01", "--json"}, {"cluster", "ports"},
				{"build", "-f", "cluster.yaml", "--offline", "--base", "/none"}, {"doctor"}, {"list"}, {"config", "--identity", "/none"}, {"config", "--identity", filepath.Join(secrets, "ca.key")}} {
				do(args...)
			}
		}
		all()
		for _, rotate := range []string{"join", "etcd", "kubeconfig"} {
			do("secrets", "rotate", rotate)
			known = append(known, privateOf(t, secrets, id)...)
		}
		all()
		// Every file of the state damaged in turn: the error must not quote it.
		entries, err := os.ReadDir(secrets)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			file := filepath.Join(secrets, e.Name())
			if e.IsDir() {
				continue
			}
			whole, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			for _, bad := range [][]byte{whole[:len(whole)/2], append(bytes.Clone(whole[5:]), "x"...), {}} {
				if err := os.WriteFile(file, bad, 0o600); err != nil {
					t.Fatal(err)
				}
				do("config")
				do("secrets", "show")
			}
			if err := os.WriteFile(file, whole, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		// A private key where a public one belongs.
		replaceIn(t, filepath.Join(dir, "cluster.yaml"), "authorizedKeys: []", "authorizedKeys: [\""+strings.ReplaceAll(string(known[0]), "\n", "\\n")+"\"]")
		all()
		haystack := told.Bytes()
		err = filepath.WalkDir(outside, func(p string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			data, err := os.ReadFile(p)
			haystack = append(haystack, data...)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		state, err := os.ReadFile(filepath.Join(dir, "cluster.state"))
		if err != nil {
			t.Fatal(err)
		}
		haystack = append(haystack, state...)
		if len(known) < 30 || told.Len() < 10000 {
			t.Fatalf("only %d secrets were looked for in %d bytes", len(known), told.Len())
		}
		for _, s := range known {
			for _, form := range needles(s) {
				if i := bytes.Index(haystack, form); i >= 0 {
					t.Fatalf("a secret is told (encrypted: %t): ...%s...", encrypted, haystack[max(0, i-200):i])
				}
			}
		}
	}
}

// privateOf is every private key and token of a state.
func privateOf(t *testing.T, secrets string, id *age.X25519Identity) (out [][]byte) {
	t.Helper()
	err := filepath.WalkDir(secrets, func(p string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		if strings.HasSuffix(p, ".age") {
			r, err := age.Decrypt(bytes.NewReader(data), id)
			if err != nil {
				return err
			}
			var b bytes.Buffer
			if _, err := b.ReadFrom(r); err != nil {
				return err
			}
			data = b.Bytes()
		}
		name := strings.TrimSuffix(filepath.Base(p), ".age")
		if strings.HasSuffix(name, ".key") {
			out = append(out, data)
		}
		if name == nodeconf.JoinKey {
			for _, machine := range []string{"k8s-01", "k8s-02", "k8s-03"} {
				out = append(out, []byte(nodeconf.Token(bytes.TrimSpace(data), false, machine)))
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// needles are the forms in which a secret could be told: as it is, the body of
// its PEM, and base64 at each of the three alignments.
func needles(secret []byte) (out [][]byte) {
	text := bytes.TrimSpace(secret)
	if lines := bytes.Split(text, []byte("\n")); len(lines) > 2 {
		text = lines[1]
	}
	out = append(out, text)
	for skip := range 3 {
		n := (len(text) - skip) / 3 * 3
		out = append(out, []byte(base64.StdEncoding.EncodeToString(text[skip:skip+n])))
	}
	return out
}
