package images

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/kimage-project/kimage/pkg/progress"
)

// String is the difference for people: - is in A alone, + in B alone, ~ in both and not
// the same. Digests are shortened.
func (d *Difference) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 8, 2, ' ', 0)
	for i, s := range []DiffSide{d.A, d.B} {
		fmt.Fprintf(w, "%s %s\t%s\timageID %s\n", []string{"-", "+"}[i], s.File, s.Name, s.ImageID)
	}
	w.Flush()
	var parts []string
	section(&b, &parts, "option", "options", d.Options, func(x, _ *string) string { return *x })
	section(&b, &parts, "field of the base", "base", d.Base, func(x, _ *string) string { return *x })
	section(&b, &parts, "package", "packages of the base", d.Packages, func(x, _ *string) string { return *x })
	section(&b, &parts, "component", "components", d.Components, (*ComponentState).text)
	section(&b, &parts, "container image", "container images", d.Images, (*ImageState).text)
	section(&b, &parts, "file", "files of the payload", d.Files, (*FileState).text)
	section(&b, &parts, "partition", "partitions", d.Partitions, (*PartitionState).text)
	for _, n := range d.NotCompared {
		fmt.Fprintf(&b, "\nnot compared: %s\n", n)
	}
	if d.Same {
		return b.String() + "\nthe same: options, base, packages, components, container images, payload, partitions\n"
	}
	return b.String() + "\ndifferent: " + strings.Join(parts, ", ") + "\n"
}

// section lists one kind of changes, and adds their number to parts.
func section[T any](w io.Writer, parts *[]string, one, title string, list []Change[T], text func(x, other *T) string) {
	if len(list) == 0 {
		return
	}
	*parts = append(*parts, count(len(list), one))
	fmt.Fprintf(w, "\n%s\n", title)
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, c := range list {
		switch {
		case c.A == nil:
			fmt.Fprintf(t, "  + %s\t%s\n", c.Name, text(c.B, nil))
		case c.B == nil:
			fmt.Fprintf(t, "  - %s\t%s\n", c.Name, text(c.A, nil))
		default:
			fmt.Fprintf(t, "  ~ %s\t%s\t->  %s\n", c.Name, text(c.A, c.B), text(c.B, c.A))
		}
	}
	t.Flush()
}

func (s *ComponentState) text(other *ComponentState) string {
	if other == nil || other.Version != s.Version {
		return s.Version
	}
	return s.Version + " from " + s.Origin + ", verified by " + s.VerifiedBy
}

func (s *ImageState) text(*ImageState) string { return s.Tag + " " + short(s.Digest) }

func (s *FileState) text(other *FileState) string {
	out := ""
	if other != nil && other.Mode != s.Mode {
		out = s.Mode + " "
	}
	if s.Target != "" {
		return out + "a link to " + s.Target
	}
	var size int64
	if other != nil {
		size = other.SizeBytes
	}
	return out + sizeBeside(s.SizeBytes, size) + " " + short(s.SHA256)
}

func (s *PartitionState) text(other *PartitionState) string {
	var o PartitionState
	if other != nil {
		o = *other
	}
	out := fmt.Sprintf("number %d, %s at %s", s.Number, sizeBeside(s.SizeBytes, o.SizeBytes), sizeBeside(s.OffsetBytes, o.OffsetBytes))
	if s.Filesystem != "" {
		out += ", " + s.Filesystem
	}
	if other != nil && o.Type != s.Type {
		out += ", type " + s.Type
	}
	return out
}

// sizeBeside writes a size for people, unless another one that is not the same would
// read the same.
func sizeBeside(n, other int64) string {
	if n != other && progress.FormatBytes(n) == progress.FormatBytes(other) {
		return fmt.Sprintf("%d bytes", n)
	}
	return progress.FormatBytes(n)
}

// short is enough of a digest to tell it from another one.
func short(digest string) string {
	const enough = 12
	digest = strings.TrimPrefix(digest, "sha256:")
	return digest[:min(enough, len(digest))]
}
