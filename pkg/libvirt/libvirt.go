// Package libvirt knows what the virtual machines of a libvirt daemon can reach on this
// computer.
package libvirt

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/doctor"
	"github.com/kimage-project/kimage/pkg/run"
)

// hypervisors are the accounts that libvirt's virtual machines run as, by distribution.
var hypervisors = []string{"libvirt-qemu", "qemu"}

// hypervisor is the account of this computer's; empty: there is none, and machines run
// as root.
func hypervisor() string {
	for _, name := range hypervisors {
		if _, err := user.Lookup(name); err == nil {
			return name
		}
	}
	return ""
}

// CheckReach says whether libvirt's virtual machines get as far as dir. The directories
// above it are the user's, and are not changed: the error names the remedy.
func CheckReach(ctx context.Context, dir string) error {
	who := hypervisor()
	if who == "" {
		return nil
	}
	if err := doctor.Check(doctor.Libvirt); err != nil {
		return err
	}
	may := regexp.MustCompile(`(?m)^user:` + who + `:..x(\s+#effective:..x)?$`)
	var shut []string
	for d := filepath.Dir(dir); ; d = filepath.Dir(d) {
		fi, err := os.Stat(d)
		if err != nil {
			return err
		}
		if fi.Mode()&1 == 0 {
			acl, err := run.Output(ctx, run.Cmd{Argv: []string{"getfacl", "-cp", "--", d}})
			if err != nil {
				return err
			}
			if !may.Match(acl) {
				shut = append(shut, d)
			}
		}
		if d == filepath.Dir(d) {
			break
		}
	}
	if shut == nil {
		return nil
	}
	return fmt.Errorf("libvirt's machines, which run as %s, cannot reach %s: setfacl -m u:%s:x %s", who, dir, who, strings.Join(shut, " "))
}

// LetRead lets libvirt's virtual machines read files below dir, which are nobody else's
// business: for them alone, by access control lists.
func LetRead(ctx context.Context, dir string, files []string) error {
	who := hypervisor()
	if who == "" || len(files) == 0 {
		return nil
	}
	enter := map[string]bool{}
	for _, file := range files {
		for d := filepath.Dir(file); strings.HasPrefix(d, dir); d = filepath.Dir(d) {
			enter[d] = true
		}
	}
	grant := func(right string, names ...string) error {
		return run.Run(ctx, run.Cmd{Argv: append([]string{"setfacl", "-m", "u:" + who + ":" + right, "--"}, names...)})
	}
	return errors.Join(grant("x", slices.Collect(maps.Keys(enter))...), grant("r", files...))
}
