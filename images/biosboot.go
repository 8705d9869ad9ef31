package images

import (
	"encoding/binary"
	"fmt"
	"os"
	"time"
)

// Offsets inside GRUB's boot.img and the first sector of core.img (diskboot),
// from GRUB's include/grub/i386/pc/boot.h.
const (
	bootKernelSector = 0x5c  // 8 bytes: LBA of core.img
	bootDriveCheck   = 0x66  // 2 bytes: replaced by NOPs, as grub-install does for hard disks
	bootCodeBytes    = 440   // what follows belongs to the partition table
	blocklistStart   = 0x1f4 // 8 bytes LBA, 2 bytes length in sectors, 2 bytes segment
)

// writeBIOSBoot puts GRUB's boot sector into the MBR and its core image into
// the BIOS boot partition.
func writeBIOSBoot(disk *os.File, boot bootFiles) error {
	img, err := os.ReadFile(boot.bootImg)
	if err != nil {
		return fmt.Errorf("reading GRUB's boot.img: %w", err)
	}
	core, err := os.ReadFile(boot.coreImg)
	if err != nil {
		return fmt.Errorf("reading GRUB's core image: %w", err)
	}
	if len(img) != sectorBytes || len(core) < 2*sectorBytes {
		return fmt.Errorf("BUG: GRUB made a boot.img of %d and a core image of %d bytes", len(img), len(core))
	}
	sectors := (len(core) + sectorBytes - 1) / sectorBytes
	if room := biosLast - biosFirst + 1; sectors > room {
		return fmt.Errorf("GRUB's core image has %d sectors, the BIOS boot partition %d", sectors, room)
	}
	binary.LittleEndian.PutUint64(img[bootKernelSector:], biosFirst)
	img[bootDriveCheck], img[bootDriveCheck+1] = 0x90, 0x90
	binary.LittleEndian.PutUint64(core[blocklistStart:], biosFirst+1)
	binary.LittleEndian.PutUint16(core[blocklistStart+8:], uint16(sectors-1))
	if _, err := disk.WriteAt(img[:bootCodeBytes], 0); err != nil {
		return err
	}
	_, err = disk.WriteAt(core, biosFirst*sectorBytes)
	return err
}

func fixedTime(unix int64) time.Time { return time.Unix(unix, 0) }
