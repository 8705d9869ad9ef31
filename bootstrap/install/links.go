package install

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
)

// links are the names below /dev/disk that udev gives a disk when a system runs on it, so
// that the cluster file can name it by them (systemd's rules.d/60-persistent-storage.rules):
// of virtio, NVMe, SCSI and ATA disks. A kind that is not here has none.
func links(sys, name string) (all []string) {
	dir := filepath.Join(sys, "block", name)
	device := dir + "/device"
	id := func(format string, parts ...string) {
		args := make([]any, len(parts))
		for i, p := range parts {
			if args[i] = udevName(p); p == "" {
				return
			}
		}
		all = append(all, "/dev/disk/by-id/"+fmt.Sprintf(format, args...))
	}
	ata, ataModel, ataSerial := identify(device)
	switch wwid := text(dir + "/wwid"); {
	case strings.HasPrefix(name, "vd"):
		id("virtio-%s", text(dir+"/serial"))
	case strings.HasPrefix(name, "nvme"):
		id("nvme-%s", wwid)
		id("nvme-%s_%s", text(device+"/model"), text(device+"/serial"))
	case ata:
		id("ata-%s_%s", ataModel, ataSerial)
	}
	if naa, ok := strings.CutPrefix(text(device+"/wwid"), "naa."); ok {
		id("wwn-0x%s", naa)
		if !ata {
			id("scsi-3%s", naa)
		}
	}
	for _, p := range byPath(dir) {
		all = append(all, "/dev/disk/by-path/"+p)
	}
	return all
}

// serial is the disk's serial number, as its label has it.
func serial(dir string) string {
	if _, _, s := identify(dir + "/device"); s != "" {
		return s
	}
	for _, file := range []string{"/serial", "/device/serial"} {
		if s := text(dir + file); s != "" {
			return s
		}
	}
	const head = 4 // of page 80 (SPC-4, 7.8.15): its number and length
	if page, err := os.ReadFile(dir + "/device/vpd_pg80"); err == nil && len(page) > head {
		return strings.Trim(string(page[head:]), " \x00")
	}
	return ""
}

// identify reads what an ATA disk behind SCSI says of itself: page 89 (SAT, ATA Information)
// has the 512 bytes of IDENTIFY DEVICE, whose words are big-endian text.
func identify(device string) (ata bool, model, serial string) {
	const at, size = 60, 512
	page, err := os.ReadFile(device + "/vpd_pg89")
	if err != nil || len(page) < at+size {
		return false, "", ""
	}
	words := func(first, n int) string {
		b := make([]byte, 2*n)
		for i := range n {
			b[2*i], b[2*i+1] = page[at+2*(first+i)+1], page[at+2*(first+i)]
		}
		return strings.Trim(string(b), " \x00")
	}
	return true, words(27, 20), words(10, 10)
}

var blanks = regexp.MustCompile(`\s+`)

// udevName replaces what udev replaces in names: runs of blanks by one _, and each byte
// that is not safe.
func udevName(s string) string {
	s = blanks.ReplaceAllString(strings.TrimSpace(s), "_")
	return strings.Map(func(r rune) rune {
		if r > 127 || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("#+-.:=@_/", r) {
			return r
		}
		return '_'
	}, s)
}

var (
	pciAddress = regexp.MustCompile(`/([0-9a-f]{4,}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])/`)
	nvmeName   = regexp.MustCompile(`^nvme\d+n(\d+)$`)
	ataPort    = regexp.MustCompile(`^(.*/(ata\d+))/host\d+/`)
)

// byPath names the disk by where it is plugged in.
func byPath(dir string) []string {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return nil
	}
	found := pciAddress.FindAllStringSubmatch(strings.ReplaceAll(real, "/", "//"), -1)
	if found == nil {
		return nil
	}
	pci := "pci-" + found[len(found)-1][1]
	switch m := ataPort.FindStringSubmatch(real); {
	case strings.Contains(real, "/virtio"):
		if strings.HasPrefix(filepath.Base(dir), "vd") {
			return []string{pci, "virtio-" + pci}
		}
	case nvmeName.MatchString(filepath.Base(dir)):
		return []string{pci + "-nvme-" + nvmeName.FindStringSubmatch(filepath.Base(dir))[1]}
	case m != nil:
		if port := text(filepath.Join(m[1], "ata_port", m[2], "port_no")); port != "" {
			return []string{pci + "-ata-" + port}
		}
	}
	return nil
}
