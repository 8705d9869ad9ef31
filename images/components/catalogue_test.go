package components

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

func minor(version string) string { return version[:strings.LastIndex(version, ".")] }

func TestVersions(t *testing.T) {
	versions, err := Versions()
	if err != nil {
		t.Fatal(err)
	}
	for i := 1; i < len(versions); i++ {
		var a, b [3]int
		for j, v := range []*[3]int{&a, &b} {
			if _, err := fmt.Sscanf(versions[i-1+j], "v%d.%d.%d", &v[0], &v[1], &v[2]); err != nil {
				t.Fatal(err)
			}
		}
		if slices.Compare(a[:], b[:]) <= 0 {
			t.Errorf("%v: the newest is not first", versions)
		}
	}
	for _, want := range []string{"v1.35", "v1.36", "v1.37"} {
		if !slices.ContainsFunc(versions, func(v string) bool { return minor(v) == want }) {
			t.Errorf("no version of %s in %v", want, versions)
		}
	}
}

func TestRow(t *testing.T) {
	c, err := load()
	if err != nil {
		t.Fatal(err)
	}
	newest := c.Kubernetes[0]["version"]
	for version, want := range map[string]string{"": newest, newest: newest, strings.TrimPrefix(newest, "v"): newest,
		minor(newest): newest, strings.TrimPrefix(minor(newest), "v"): newest, "v1.3": "", "1": "", "v1.37.": "", "latest": ""} {
		row, ok := c.row(version)
		if ok != (want != "") || ok && row["version"] != want {
			t.Errorf("%q gives %v, want %q", version, row["version"], want)
		}
	}
}

// TestEverythingIsNamed: no recipe of any version names a column that its row
// lacks, and everything has a checksum.
func TestEverythingIsNamed(t *testing.T) {
	versions, err := Versions()
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range versions {
		downloads, images, err := Downloads(v, "flannel", "amd64")
		if err != nil {
			t.Fatal(err)
		}
		if len(downloads) < 8 || len(images) < 7 {
			t.Errorf("%s: %d downloads, %d images", v, len(downloads), len(images))
		}
		for _, d := range downloads {
			if text := d.URL + d.Checksum + strings.Join(d.Members, " "); strings.ContainsAny(text, "{}") || !strings.HasPrefix(d.URL, "https://") || d.Checksum == "" || d.Checksum == d.URL {
				t.Errorf("%s: %+v", v, d)
			}
		}
		for _, ref := range images {
			if strings.ContainsAny(ref, "{}") || strings.HasSuffix(ref, ":") {
				t.Errorf("%s: image %s", v, ref)
			}
		}
		if without, _, err := Downloads(v, "none", "amd64"); err != nil || len(without) != len(downloads)-1 {
			t.Errorf("%s without a network plugin: %d downloads, %v", v, len(without), err)
		}
	}
}

func TestExpand(t *testing.T) {
	r := row{"version": "v1.37.2", "pause": "3.10.2"}
	if got, want := r.expand("{url}|{version}|{V}|{arch}|0.{minor}.{patch}|{pause}", "v2.4.2", "amd64", "https://x/y"), "https://x/y|v2.4.2|2.4.2|amd64|0.37.2|3.10.2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestEtcdModule(t *testing.T) {
	for version, want := range map[string]string{"v3.7.0-0": "v3.7.0", "v3.6.14": "v3.6.14"} {
		if got := etcdModule(version); got != want {
			t.Errorf("%s: got %s, want %s", version, got, want)
		}
	}
}

// TestDate: machines take it for a time that has passed.
func TestDate(t *testing.T) {
	if date, err := Date(); err != nil || date.Year() < 2026 || date.After(time.Now()) {
		t.Errorf("%s, %v", date, err)
	}
}
