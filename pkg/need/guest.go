package need

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"testing"
)

// Guest is a raw disk for a machine that writes a text to its serial port and halts,
// within a second of its start: xor ax, ax; mov ds, ax; mov si, text; lodsb and out
// 0x3f8 until a zero.
func Guest(t testing.TB, text string) string {
	t.Helper()
	Program(t, "qemu-system-x86_64", "qemu-system-x86")
	const sector, signature = 512, "\x55\xaa"
	code := append([]byte{0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x15, 0x7c, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5, 0xf4, 0xeb, 0xfd}, text+"\x00"...)
	room := sector - len(signature) - len(code)
	if room < 0 {
		t.Fatalf("%d bytes of text are too many for a boot sector", len(text))
	}
	file := filepath.Join(t.TempDir(), "guest.raw")
	if err := os.WriteFile(file, append(append(code, make([]byte, room)...), signature...), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// Processes are those whose command line names something, as a directory of the
// test's.
func Processes(t testing.TB, named string) (pids []int) {
	t.Helper()
	all, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		if line, _ := os.ReadFile(f); bytes.Contains(line, []byte(named)) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			pids = append(pids, pid)
		}
	}
	return pids
}
