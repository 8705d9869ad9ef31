package ddi

import (
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/kimage-project/kimage/pkg/parttable"
)

// Image is an image that is read.
type Image struct {
	Data *io.SectionReader // the file system
	Tree *io.SectionReader // its hash tree, from its superblock on
	// RootHash is what the partitions' GUIDs say, in lower-case hex.
	RootHash string
}

// Open finds the parts of an image of sizeBytes. Its table is not compared with the
// copy at its end, see parttable.Check, and no hash with anything, see verity.Check.
func Open(r io.ReaderAt, sizeBytes int64) (*Image, error) {
	table, err := parttable.Read(r, sizeBytes)
	if err != nil {
		return nil, fmt.Errorf("reading a discoverable image: %w", err)
	}
	im := &Image{}
	var halves [2]string
	for _, p := range table.Partitions {
		part := io.NewSectionReader(r, p.OffsetBytes(), p.SizeBytes())
		for _, t := range types {
			switch p.TypeGUID {
			case t.root:
				im.Data, halves[0] = part, p.GUID
			case t.verity:
				im.Tree, halves[1] = part, p.GUID
			}
		}
	}
	if im.Data == nil || im.Tree == nil {
		return nil, fmt.Errorf("reading a discoverable image: %d partitions, and not both of a root file system and its hash tree", len(table.Partitions))
	}
	im.RootHash = strings.ToLower(strings.ReplaceAll(halves[0]+halves[1], "-", ""))
	if b, err := hex.DecodeString(im.RootHash); err != nil || len(b) != 32 {
		return nil, fmt.Errorf("reading a discoverable image: its partitions' GUIDs are no root hash: %s", im.RootHash)
	}
	return im, nil
}
