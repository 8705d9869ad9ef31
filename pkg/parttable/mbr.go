package parttable

import (
	"fmt"
	"io"
	"slices"
	"strconv"

	"github.com/diskfs/go-diskfs/partition/mbr"

	"github.com/kimage-project/kimage/pkg/ext4"
)

const (
	// maxMBR is the last sector that 32 bits reach.
	maxMBR     = 1<<32 - 1
	maxPrimary = 4
	protective = 0xEE // the type of the entry that stands before a GPT
	// What stands for a place that cylinder, head and sector do not reach.
	chsHead, chsSector, chsCylinder = 0xFE, 0xFF, 0xFF
)

// readMBR reads the primary partitions. A boot sector ends like an MBR: entries that cannot
// be partitions say that it is none.
func readMBR(r io.ReaderAt, sizeBytes int64) (*Table, error) {
	if sizeBytes < 2*SectorBytes {
		return nil, fmt.Errorf("a disk of %d bytes: %w", sizeBytes, ErrNone)
	}
	raw, err := mbr.Read(&file{r: r, size: sizeBytes}, SectorBytes, SectorBytes)
	if err != nil {
		return nil, ErrNone
	}
	t := &Table{Scheme: MBR, DiskGUID: raw.UUID(), Entries: maxPrimary, mbr: raw}
	for i, p := range raw.Partitions {
		switch {
		case p.Type == mbr.Empty:
			continue
		case p.Type == protective || p.Start == 0 || p.Size == 0:
			return nil, ErrNone
		}
		q := Partition{Number: i + 1, TypeGUID: fmt.Sprintf("0x%02x", byte(p.Type)), FirstLBA: uint64(p.Start), LastLBA: uint64(p.Start) + uint64(p.Size) - 1}
		sb, err := ext4.ReadSuperblock(r, q.OffsetBytes())
		if err == nil {
			q.Name = sb.Label
		}
		t.Partitions = append(t.Partitions, q)
	}
	if len(t.Partitions) == 0 {
		return nil, ErrNone
	}
	return t, nil
}

// writeMBR changes the entries that are new or longer, and no other byte of the sector.
func (t *Table) writeMBR(f ReaderWriterAt, sizeBytes int64) error {
	raw := *t.mbr
	raw.Partitions = slices.Clone(raw.Partitions)
	for _, p := range t.Partitions {
		kind, err := strconv.ParseUint(p.TypeGUID, 0, 8)
		if err != nil {
			return fmt.Errorf("writing partition table: partition %d has type %s, which is none of an MBR", p.Number, p.TypeGUID)
		}
		e := *raw.Partitions[p.Number-1]
		start, size := uint32(p.FirstLBA), uint32(p.LastLBA-p.FirstLBA+1)
		if e.Type == mbr.Empty {
			e.StartHead, e.StartSector, e.StartCylinder = chsHead, chsSector, chsCylinder
		}
		if e.Start != start || e.Size != size {
			e.EndHead, e.EndSector, e.EndCylinder = chsHead, chsSector, chsCylinder
		}
		e.Type, e.Start, e.Size = mbr.Type(kind), start, size
		raw.Partitions[p.Number-1] = &e
	}
	if err := raw.Write(&file{r: f, w: f, size: sizeBytes}, sizeBytes); err != nil {
		return fmt.Errorf("writing partition table: %w", err)
	}
	t.mbr = &raw
	return nil
}

// checkMBR is Check where there is no GPT.
func checkMBR(r io.ReaderAt, sizeBytes int64) error {
	t, err := readMBR(r, sizeBytes)
	if err != nil {
		return err
	}
	return t.check(sizeBytes)
}
