//go:build e2e

package e2e

import (
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/qemu"
)

// flatcarRoom is a room whose machines become Flatcar's lookalike: they are installed by what
// its vendor publishes for PXE, and get their Ignition config on the OEM partition.
func flatcarRoom(t *testing.T, serve ...string) *room {
	t.Helper()
	enough(t, 2, "make e2e-all")
	allAsked(t)
	server := flatcarServer(t, lookalike(t, "flatcar"))
	t.Setenv("KIMAGE_OS_PATH", server.OSPath)
	t.Setenv("KIMAGE_MIRROR", server.Mirror)
	// The lookalike has one image for all platforms, and QEMU's is the smallest.
	baked := bakeOnto(t, nil, "--os", "flatcar-stable", "--for", "qemu", "--mirror", server.Mirror)
	return newRoomOf(t, "", "flatcar-stable", "core", baked, serve...)
}

// isFlatcar: it runs from the disk, Flatcar's way, by the config on the OEM partition, which
// nobody but root reads.
func (m *metalMachine) isFlatcar() {
	m.t.Helper()
	const want = "/dev/vda9 ext4\nverified\n600 root\nwell"
	if out := m.ssh("findmnt -no SOURCE,FSTYPE /; sudo veritysetup status usr | grep -o verified; sudo mount -o ro LABEL=OEM /mnt && sudo stat -c '%a %U' /mnt/config.ign; sudo umount /mnt; sudo kimage-agent status >/dev/null && echo well"); out != want {
		m.t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// TestServeFlatcar: as TestServe, of Flatcar's lookalike.
func TestServeFlatcar(t *testing.T) {
	m := flatcarRoom(t, "--dhcp-range", "192.168.77.101-192.168.77.150").machine(1, qemu.BIOS)
	m.installs()
	m.isFlatcar()
	m.powerCycles(2)
	m.replaces()
}

// TestServeFlatcarUEFI: by UEFI, beside another DHCP server; its power fails while the disk is
// written.
func TestServeFlatcarUEFI(t *testing.T) {
	m := flatcarRoom(t).machine(1, qemu.UEFI)
	m.on()
	m.awaitPhase("installing", 8*time.Minute)
	m.off()
	m.installs()
	m.isFlatcar()
}
