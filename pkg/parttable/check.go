package parttable

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Check compares everything that a disk of sizeBytes has of its table: of a GPT the
// protective entry of sector 0, both copies with their checksums, and the copies
// with each other; of an MBR, that its partitions lie on the disk, side by side. Its
// errors name the copy.
func Check(r io.ReaderAt, sizeBytes int64) error {
	if sizeBytes < 68*SectorBytes {
		return fmt.Errorf("a disk of %d bytes: %w", sizeBytes, ErrNone)
	}
	last := uint64(sizeBytes/SectorBytes) - 1
	var wrong []error
	for _, c := range []struct {
		what string
		lba  uint64
	}{{"the primary copy", 1}, {"the backup copy", last}} {
		if _, err := validateAt(r, c.lba, last); err != nil {
			wrong = append(wrong, fmt.Errorf("%s: %w", c.what, err))
		}
	}
	if len(wrong) > 0 && errors.Is(wrong[0], ErrNone) && !hasProtective(r) {
		return checkMBR(r, sizeBytes)
	}
	if len(wrong) == 0 {
		wrong = append(wrong, compareCopies(r, last))
	}
	return errors.Join(append(wrong, checkProtective(r))...)
}

// compareCopies compares two copies of which each is good: what is in their headers
// but for the places that each has of its own (UEFI 2.10, 5.3.2), and the entries.
func compareCopies(r io.ReaderAt, last uint64) error {
	le := binary.LittleEndian
	var headers, arrays [2][]byte
	for i, lba := range []uint64{1, last} {
		h := make([]byte, SectorBytes)
		if _, err := r.ReadAt(h, int64(lba)*SectorBytes); err != nil {
			return err
		}
		if other := le.Uint64(h[32:]); other != []uint64{last, 1}[i] {
			return fmt.Errorf("the header at sector %d says that the other copy is at %d", lba, other)
		}
		arrays[i] = make([]byte, le.Uint32(h[80:])*entrySize)
		if _, err := r.ReadAt(arrays[i], int64(le.Uint64(h[72:]))*SectorBytes); err != nil {
			return err
		}
		clear(h[16:20]) // checksum
		clear(h[24:40]) // this and the other header
		clear(h[72:80]) // the entries
		headers[i] = h
	}
	if !bytes.Equal(headers[0], headers[1]) || !bytes.Equal(arrays[0], arrays[1]) {
		return errors.New("the two copies differ")
	}
	return nil
}

// checkProtective finds the entry that keeps systems which know no GPT away.
func checkProtective(r io.ReaderAt) error {
	if !hasProtective(r) {
		return errors.New("sector 0 has no protective entry")
	}
	return nil
}

func hasProtective(r io.ReaderAt) bool {
	b := make([]byte, SectorBytes)
	if _, err := r.ReadAt(b, 0); err != nil || b[510] != 0x55 || b[511] != 0xAA {
		return false
	}
	for e := 446; e < 510; e += 16 {
		if b[e+4] == protective {
			return true
		}
	}
	return false
}
