package seed

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestWrite(t *testing.T) {
	files := map[string][]byte{"user-data": bytes.Repeat([]byte("x"), 100_000), "meta-data": []byte("instance-id: a\n"), "network-config": []byte("version: 2\n")}
	var volumes [][]byte
	for _, name := range []string{"one", "two"} {
		volume := filepath.Join(t.TempDir(), "seed "+name+".iso")
		if err := Write(t.Context(), volume, files); err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(volume)
		if err != nil {
			t.Fatal(err)
		}
		volumes = append(volumes, data)
		if fi, err := os.Stat(volume); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", fi.Mode(), err)
		}
		// Foreign readers: blkid for the label, isoinfo's like for the names.
		if out, err := exec.Command("blkid", "-p", "-o", "export", volume).Output(); err != nil || !strings.Contains(string(out), "LABEL=CIDATA\n") || !strings.Contains(string(out), "TYPE=iso9660\n") {
			t.Errorf("blkid: %v\n%s", err, out)
		}
		for file, want := range files {
			to := filepath.Join(t.TempDir(), file)
			if out, err := exec.Command("xorriso", "-osirrox", "on", "-indev", volume, "-extract", "/"+file, to).CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if got, err := os.ReadFile(to); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes, %v", file, len(got), err)
			}
		}
	}
	if !bytes.Equal(volumes[0], volumes[1]) {
		t.Error("two volumes of the same files differ")
	}
	if err := Write(t.Context(), filepath.Join(t.TempDir(), "none", "seed"), files); err == nil {
		t.Error("a volume was written where it cannot be")
	}
}
