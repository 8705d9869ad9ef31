package doctor

import (
	"strings"
	"testing"
)

func TestCheckNamesProgramAndPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	needs := []Need{{Program: "no-such-tool", Package: "tool-package"}, {File: "/no/such/file", Package: "file-package"}, {File: "/etc/passwd", Package: "base-passwd"}}
	err := Check(needs)
	if err == nil {
		t.Fatal("nothing is missing")
	}
	for _, want := range []string{"no-such-tool", "/no/such/file", "apt-get install tool-package file-package"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %q", want, err)
		}
	}
	if strings.Contains(err.Error(), "passwd") {
		t.Errorf("what is there is reported missing: %v", err)
	}
}
