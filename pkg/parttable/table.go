// Package parttable reads and edits partition tables in image files and on disks: GUID
// partition tables, and the older ones in the master boot record.
//
// The bytes are read and written by go-diskfs; in front of it stands a strict
// check of everything it would trust (sizes, checksums, bounds, overlaps), so
// that a hostile or damaged table is an error, never a panic. Nothing that is
// in a table is lost by editing it: numbers, GUIDs, types, names, attributes,
// the disk's GUID and the boot code in sector 0 stay. Sectors have 512 bytes;
// data is never moved.
package parttable

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/diskfs/go-diskfs/partition/gpt"
	"github.com/diskfs/go-diskfs/partition/mbr"
)

// SectorBytes is the only logical sector size that is supported.
const SectorBytes = 512

// arraySectors is what the usual 128 entries of 128 bytes take.
const arraySectors = 32

// ErrNone says that a disk has no partition table: no GPT, neither at its start nor at its
// end, and no MBR with partitions.
var ErrNone = errors.New("no partition table")

// The schemes.
const (
	GPT = "GPT"
	MBR = "MBR"
)

// Types that a partition for Linux has.
const (
	linuxGPT = "0FC63DAF-8483-4772-8E79-3D69D8477DE4"
	linuxMBR = "0x83"
)

// Partition is one entry. An MBR has less: its Name is the label of the ext4 file system in
// it, its TypeGUID one byte ("0x83"), and it has no GUID.
type Partition struct {
	Number            int // from 1
	Name              string
	TypeGUID, GUID    string // upper case
	FirstLBA, LastLBA uint64 // inclusive
	Attributes        uint64
}

// OffsetBytes is where the partition starts.
func (p Partition) OffsetBytes() int64 { return int64(p.FirstLBA) * SectorBytes }

// SizeBytes is how long it is.
func (p Partition) SizeBytes() int64 { return int64(p.LastLBA-p.FirstLBA+1) * SectorBytes }

// Table is a partition table.
type Table struct {
	Scheme     string      // GPT or MBR
	DiskGUID   string      // of an MBR, its 32 bits
	Partitions []Partition // by number; of an MBR, the primary ones
	FromBackup bool        // the GPT at the disk's start was damaged
	Entries    int         // slots in the table

	raw *gpt.Table
	mbr *mbr.Table
}

// New returns an empty GPT for a fresh disk.
func New(diskGUID string) *Table { return &Table{Scheme: GPT, DiskGUID: diskGUID, Entries: 128} }

// Read reads the table of a disk of sizeBytes.
func Read(r io.ReaderAt, sizeBytes int64) (*Table, error) {
	t, err := readGPT(r, sizeBytes)
	if errors.Is(err, ErrNone) {
		t, err = readMBR(r, sizeBytes)
	}
	if err != nil {
		return nil, err
	}
	if err := t.check(sizeBytes); err != nil {
		return nil, err
	}
	return t, nil
}

func readGPT(r io.ReaderAt, sizeBytes int64) (*Table, error) {
	entries, fromBackup, err := validate(r, sizeBytes)
	if err != nil {
		return nil, err
	}
	// Where the first copy is damaged, go-diskfs, which checks less, must not take it.
	raw, err := gpt.Read(&file{r: r, size: sizeBytes, hidePrimary: fromBackup}, SectorBytes, SectorBytes)
	if err != nil {
		return nil, fmt.Errorf("reading partition table: %w", err)
	}
	t := &Table{Scheme: GPT, DiskGUID: strings.ToUpper(raw.GUID), FromBackup: fromBackup, Entries: entries, raw: raw}
	for _, p := range raw.Partitions {
		if p == nil || p.Type == gpt.Unused {
			continue
		}
		t.Partitions = append(t.Partitions, Partition{Number: p.Index, Name: p.Name, TypeGUID: strings.ToUpper(string(p.Type)),
			GUID: strings.ToUpper(p.GUID), FirstLBA: p.Start, LastLBA: p.End, Attributes: p.Attributes})
	}
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return a.Number - b.Number })
	return t, nil
}

// LinuxType is the TypeGUID of partitions for Linux.
func (t *Table) LinuxType() string {
	if t.Scheme == MBR {
		return linuxMBR
	}
	return linuxGPT
}

// check finds entries that overlap or lie outside the disk.
func (t *Table) check(sizeBytes int64) error {
	byStart := slices.Clone(t.Partitions)
	slices.SortFunc(byStart, func(a, b Partition) int {
		if a.FirstLBA < b.FirstLBA {
			return -1
		}
		return 1
	})
	for i, p := range byStart {
		if p.FirstLBA < t.firstUsable() || p.LastLBA < p.FirstLBA || p.LastLBA >= uint64(sizeBytes/SectorBytes) {
			return fmt.Errorf("partition %d (sectors %d to %d) does not lie on the disk of %d sectors", p.Number, p.FirstLBA, p.LastLBA, sizeBytes/SectorBytes)
		}
		if i > 0 && p.FirstLBA <= byStart[i-1].LastLBA {
			return fmt.Errorf("partitions %d and %d overlap", byStart[i-1].Number, p.Number)
		}
	}
	return nil
}

// FindName returns the partition of that name.
func (t *Table) FindName(name string) (Partition, bool) {
	i := slices.IndexFunc(t.Partitions, func(p Partition) bool { return p.Name == name })
	if i < 0 {
		return Partition{}, false
	}
	return t.Partitions[i], true
}

// LastLBA is the last sector that belongs to a partition; 0 if there is none.
func (t *Table) LastLBA() uint64 {
	var last uint64
	for _, p := range t.Partitions {
		last = max(last, p.LastLBA)
	}
	return last
}

// Add puts p into the table; Number 0 takes the lowest free one.
func (t *Table) Add(p Partition) (Partition, error) {
	if p.Number == 0 {
		for p.Number = 1; slices.ContainsFunc(t.Partitions, func(q Partition) bool { return q.Number == p.Number }); {
			p.Number++
		}
	}
	if p.Number > t.Entries {
		return p, fmt.Errorf("adding partition %s: the %s has room for %d only", p.Name, t.Scheme, t.Entries)
	}
	for _, q := range t.Partitions {
		if q.Number == p.Number {
			return p, fmt.Errorf("adding partition %s: number %d is taken by %s", p.Name, p.Number, q.Name)
		}
		if p.FirstLBA <= q.LastLBA && q.FirstLBA <= p.LastLBA {
			return p, fmt.Errorf("adding partition %s: sectors %d to %d overlap with %s", p.Name, p.FirstLBA, p.LastLBA, q.Name)
		}
	}
	if t.Scheme == GPT {
		p.TypeGUID, p.GUID = strings.ToUpper(p.TypeGUID), strings.ToUpper(p.GUID)
	} else {
		p.GUID, p.Attributes = "", 0
	}
	t.Partitions = append(t.Partitions, p)
	slices.SortFunc(t.Partitions, func(a, b Partition) int { return a.Number - b.Number })
	return p, nil
}

// Grow moves the end of partition number to lastLBA.
func (t *Table) Grow(number int, lastLBA uint64) error {
	for i, p := range t.Partitions {
		if p.Number != number {
			continue
		}
		if lastLBA < p.LastLBA {
			return fmt.Errorf("growing partition %d: sector %d lies before its end %d", number, lastLBA, p.LastLBA)
		}
		for _, q := range t.Partitions {
			if q.Number != number && q.FirstLBA > p.FirstLBA && q.FirstLBA <= lastLBA {
				return fmt.Errorf("growing partition %d: partition %d is in the way", number, q.Number)
			}
		}
		t.Partitions[i].LastLBA = lastLBA
		return nil
	}
	return fmt.Errorf("growing partition %d: no such partition", number)
}

// firstUsable is the first sector that is not the table's.
func (t *Table) firstUsable() uint64 {
	if t.Scheme == MBR {
		return 1
	}
	return 2
}

// LastUsableLBA is the last sector a partition may have on a disk of sizeBytes.
func (t *Table) LastUsableLBA(sizeBytes int64) uint64 {
	if t.Scheme == MBR {
		return min(uint64(sizeBytes/SectorBytes)-1, maxMBR)
	}
	return uint64(sizeBytes/SectorBytes) - 1 - arraySectors - 1
}

// ReaderWriterAt is what a table is written to.
type ReaderWriterAt interface {
	io.ReaderAt
	io.WriterAt
}

// Write writes the table, of a GPT both copies; the second one goes to the end of
// the disk of sizeBytes, wherever it was before. Boot code is kept, and so is a
// hybrid MBR, except that the protective entry covers the new size.
func (t *Table) Write(f ReaderWriterAt, sizeBytes int64) error {
	if err := t.check(sizeBytes); err != nil {
		return fmt.Errorf("writing partition table: %w", err)
	}
	if last, usable := t.LastLBA(), t.LastUsableLBA(sizeBytes); last > usable {
		return fmt.Errorf("writing partition table: the last partition ends at sector %d, the last usable one is %d", last, usable)
	}
	if t.Scheme == MBR {
		return t.writeMBR(f, sizeBytes)
	}
	raw := t.raw
	if raw == nil {
		raw = &gpt.Table{LogicalSectorSize: SectorBytes, PhysicalSectorSize: SectorBytes, GUID: t.DiskGUID, ProtectiveMBR: true}
	}
	raw.Partitions = nil
	for _, p := range t.Partitions {
		raw.Partitions = append(raw.Partitions, &gpt.Partition{Index: p.Number, Start: p.FirstLBA, End: p.LastLBA,
			Type: gpt.Type(p.TypeGUID), Name: p.Name, GUID: p.GUID, Attributes: p.Attributes})
	}
	if t.raw != nil {
		if err := raw.Repair(uint64(sizeBytes)); err != nil {
			return fmt.Errorf("writing partition table: %w", err)
		}
	}
	if err := raw.Write(&file{r: f, w: f, size: sizeBytes}, sizeBytes); err != nil {
		return fmt.Errorf("writing partition table: %w", err)
	}
	t.raw = raw
	return fixProtective(f, sizeBytes)
}

// DeriveGUID makes a GUID out of words, the same one every time (RFC 9562, version 8).
func DeriveGUID(seed ...string) string {
	h := sha256.New()
	for _, s := range seed {
		fmt.Fprintf(h, "%d:%s;", len(s), s)
	}
	b := h.Sum(nil)[:16]
	b[6] = b[6]&0x0f | 0x80
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%X-%X-%X-%X-%X", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}
