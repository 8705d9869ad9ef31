package initrd

import (
	"bytes"
	"fmt"
)

// An initramfs is archives one after the other, packed or not, each from a multiple of four
// bytes on, with zeros between them; what a later one has replaces what an earlier one had
// (Documentation/driver-api/early-userspace/buffer-format.rst).

// Behind is what follows an initramfs of so many bytes so that the agent is its /init: an
// archive with it, and with the directories that it needs before it can make any.
func Behind(initrdBytes int64, agent []byte) []byte {
	var b bytes.Buffer
	for _, dir := range []string{"dev", "proc", "sys", "tmp"} {
		entry(&b, dir, 0o040755, nil)
	}
	entry(&b, "init", 0o100755, agent)
	entry(&b, "TRAILER!!!", 0, nil)
	return append(make([]byte, -initrdBytes&3), b.Bytes()...)
}

// entry writes one file in the "newc" format: a header of hexadecimal numbers, the name with
// a zero, and the content, each padded to four bytes. All is root's, and has no time.
func entry(b *bytes.Buffer, name string, mode uint32, content []byte) {
	const inode, links = 0, 1
	fmt.Fprintf(b, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name)+1, 0)
	b.WriteString(name + "\x00")
	align(b)
	b.Write(content)
	align(b)
}

func align(b *bytes.Buffer) {
	for b.Len()%4 != 0 {
		b.WriteByte(0)
	}
}
