package netboot

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// systemIPXE is where Debian's package ipxe puts its programs.
const systemIPXE = "/usr/lib/ipxe"

// Firmwares are iPXE's programs in a directory, by the kind of client that they are for.
// As an fs.FS it has them and nothing else: for Config.Files, and for http.FileServerFS.
type Firmwares struct {
	dir   string
	files map[string]string // names, by kind
}

// programs are iPXE's, the better first. snponly uses the driver that the firmware has
// loaded it with, and so works with every card; ipxe.efi brings its own.
var programs = []struct {
	kind  string
	names []string
	must  bool
}{
	{"x86 BIOS", []string{"undionly.kpxe"}, true},
	{"x64 UEFI", []string{"snponly.efi", "ipxe-snponly-x86_64.efi", "ipxe.efi", "ipxe-x86_64.efi"}, true},
	{"arm64 UEFI", []string{"snponly-arm64.efi", "ipxe-snponly-arm64.efi", "arm64-efi/snponly.efi", "ipxe-arm64.efi", "arm64-efi/ipxe.efi"}, false},
}

// FindFirmwares finds iPXE's programs. dir empty: those of the system's package. That for
// arm64 may be missing: Debian 12's package has none.
func FindFirmwares(dir string) (*Firmwares, error) {
	f := &Firmwares{dir: dir, files: map[string]string{}}
	if dir == "" {
		f.dir = systemIPXE
	}
	for _, p := range programs {
		for _, name := range p.names {
			if info, err := os.Stat(filepath.Join(f.dir, name)); err == nil && info.Mode().IsRegular() {
				f.files[p.kind] = name
				break
			}
		}
		if f.files[p.kind] == "" && p.must {
			if dir == "" {
				return nil, fmt.Errorf("no %s in %s, which %s machines boot: apt-get install ipxe", p.names[0], f.dir, p.kind)
			}
			return nil, fmt.Errorf("no %s in %s, which %s machines boot: Debian's package ipxe has it in %s", p.names[0], f.dir, p.kind, systemIPXE)
		}
	}
	return f, nil
}

// For is the name of the program that a client loads before it can fetch an URL. Without
// ok there is none for it.
func (f *Firmwares) For(c Client) (name string, ok bool) {
	kind := ""
	switch c.Arch {
	case archBIOS:
		kind = "x86 BIOS"
	case archX64, archEBC, archHTTPX64:
		kind = "x64 UEFI"
	case archARM64, archHTTPARM64:
		kind = "arm64 UEFI"
	}
	name = f.files[kind]
	return name, name != ""
}

// Open opens a program.
func (f *Firmwares) Open(name string) (fs.File, error) {
	for _, known := range f.files {
		if name == known {
			return os.Open(filepath.Join(f.dir, name)) // a link of the package, to /boot
		}
	}
	return nil, &fs.PathError{Op: "open", Path: name, Err: errors.Join(fs.ErrNotExist)}
}
