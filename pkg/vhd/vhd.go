// Package vhd writes and finds what makes a raw disk a fixed VHD: 512 bytes behind it
// (Microsoft, "Virtual Hard Disk Image Format Specification", 1.0).
package vhd

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
)

// FooterBytes is a footer's length.
const FooterBytes = 512

// Align is what Azure wants a disk to be a multiple of.
const Align = 1 << 20

const (
	featureReserved = 2
	formatVersion   = 0x00010000
	noDynamicHeader = 0xffffffffffffffff
	typeFixed       = 2
)

// Footer is that of a fixed disk of size bytes. seed decides its unique ID. It says that
// Windows made it: for other makers some readers go by the geometry, which cannot say
// every size.
func Footer(size int64, seed string) []byte {
	f := make([]byte, FooterBytes)
	copy(f, "conectix")
	binary.BigEndian.PutUint32(f[8:], featureReserved)
	binary.BigEndian.PutUint32(f[12:], formatVersion)
	binary.BigEndian.PutUint64(f[16:], noDynamicHeader)
	// f[24:28], seconds since 2000, stays zero: images have no time.
	copy(f[28:], "win ")
	binary.BigEndian.PutUint32(f[32:], 0x000a0000)
	copy(f[36:], "Wi2k")
	binary.BigEndian.PutUint64(f[40:], uint64(size))
	binary.BigEndian.PutUint64(f[48:], uint64(size))
	c, h, s := geometry(size / 512)
	binary.BigEndian.PutUint16(f[56:], uint16(c))
	f[58], f[59] = byte(h), byte(s)
	binary.BigEndian.PutUint32(f[60:], typeFixed)
	id := sha256.Sum256([]byte("kimage vhd " + seed))
	copy(f[68:84], id[:16])
	f[74], f[76] = f[74]&0x0f|0x80, f[76]&0x3f|0x80 // RFC 9562, version 8
	var sum uint32
	for _, b := range f {
		sum += uint32(b)
	}
	binary.BigEndian.PutUint32(f[64:], ^sum)
	return f
}

// DiskBytes is the length of the disk in a file of fileBytes: all of the file, or, if it is
// a fixed VHD, what lies before its footer. Another kind of VHD is an error.
func DiskBytes(r io.ReaderAt, fileBytes int64) (diskBytes int64, isVHD bool, err error) {
	if fileBytes < FooterBytes {
		return fileBytes, false, nil
	}
	foot := make([]byte, FooterBytes)
	if _, err := r.ReadAt(foot, fileBytes-FooterBytes); err != nil {
		return 0, false, err
	}
	if string(foot[:8]) != "conectix" {
		return fileBytes, false, nil
	}
	if kind := binary.BigEndian.Uint32(foot[60:]); kind != typeFixed {
		return 0, false, fmt.Errorf("it is a VHD of type %d, and only fixed ones can be read: qemu-img convert makes a raw image of it", kind)
	}
	return fileBytes - FooterBytes, true, nil
}

// geometry is the specification's, of its appendix.
func geometry(sectors int64) (cylinders, heads, perTrack int64) {
	const most = 65535 * 16 * 255
	sectors = min(sectors, most)
	var tracks int64
	if sectors >= 65535*16*63 {
		perTrack, heads = 255, 16
		tracks = sectors / perTrack
	} else {
		perTrack = 17
		tracks = sectors / perTrack
		heads = max(4, (tracks+1023)/1024)
		if tracks >= heads*1024 || heads > 16 {
			perTrack, heads = 31, 16
			tracks = sectors / perTrack
		}
		if tracks >= heads*1024 {
			perTrack, heads = 63, 16
			tracks = sectors / perTrack
		}
	}
	return tracks / heads, heads, perTrack
}
