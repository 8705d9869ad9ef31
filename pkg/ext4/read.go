package ext4

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// Listing says which of the paths that were asked for exist, and as what.
type Listing map[string]fs.FileMode

// Inode is what a path names.
type Inode struct {
	Mode      fs.FileMode // type and permissions
	UID, GID  int
	SizeBytes int64
	Target    string // symbolic link: its text
}

// Stat looks up paths (relative to the root). Paths that do not exist are left
// out; a path below a symbolic link counts as what the link leads to, because
// debugfs follows links on the way.
func (v Volume) Stat(ctx context.Context, paths []string) (Listing, error) {
	found, err := v.inodes(ctx, paths)
	if err != nil {
		return nil, err
	}
	listing := Listing{}
	for p, n := range found {
		listing[p] = n.Mode
	}
	return listing, nil
}

// Inodes is Stat with all that is known of each.
func (v Volume) Inodes(ctx context.Context, paths []string) (map[string]Inode, error) {
	found, err := v.inodes(ctx, paths)
	if err != nil {
		return nil, err
	}
	for p, n := range found {
		// Only a short link's text is in its inode; that of others is their content.
		if n.Mode&fs.ModeSymlink == 0 || n.Target != "" {
			continue
		}
		if n.Target, err = v.readLink(ctx, p, n.SizeBytes); err != nil {
			return nil, err
		}
		found[p] = n
	}
	return found, nil
}

func (v Volume) readLink(ctx context.Context, p string, sizeBytes int64) (string, error) {
	const longest = 4096 // PATH_MAX
	if sizeBytes > longest {
		return "", fmt.Errorf("reading %s from ext4: a link of %d bytes is not possible", p, sizeBytes)
	}
	f, err := v.open(ctx, p, sizeBytes)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.NewSectionReader(f, 0, sizeBytes))
	return string(text), err
}

func (v Volume) inodes(ctx context.Context, paths []string) (map[string]Inode, error) {
	var script bytes.Buffer
	for _, p := range paths {
		q, err := quote(p)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&script, "stat %s\n", q)
	}
	out, _, err := run.Both(ctx, run.Cmd{Argv: []string{"debugfs", "-f", "-", v.device()}, Stdin: &script})
	if err != nil {
		return nil, fmt.Errorf("reading ext4: %w", err)
	}
	found := map[string]Inode{}
	current := "" // the path that the lines are about
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if p, ok := strings.CutPrefix(line, "debugfs: stat "); ok {
			current = relative(p)
		}
		if current == "" {
			continue
		}
		n, known := found[current]
		switch i := strings.Index(line, "Type: "); {
		case !known && i >= 0 && strings.HasPrefix(line, "Inode:"):
			f := strings.Fields(line[i:])
			if len(f) < 2 {
				continue
			}
			n.Mode = typeMode(f[1]) | fs.FileMode(field(line, "Mode:", 8))&fs.ModePerm
		case known && strings.HasPrefix(line, "User:"):
			n.UID, n.GID, n.SizeBytes = int(field(line, "User:", 10)), int(field(line, "Group:", 10)), field(line, "Size:", 10)
		case known && strings.HasPrefix(line, "Fast link dest: "):
			n.Target = strings.TrimSuffix(strings.TrimPrefix(line, `Fast link dest: "`), `"`)
		default:
			continue
		}
		found[current] = n
	}
	return found, nil
}

// typeMode is what debugfs calls a type.
func typeMode(name string) fs.FileMode {
	switch name {
	case "directory":
		return fs.ModeDir
	case "symlink":
		return fs.ModeSymlink
	case "regular":
		return 0
	}
	return fs.ModeIrregular
}

// field is the number behind a word of a line; 0 if there is none.
func field(line, word string, base int) int64 {
	_, after, _ := strings.Cut(line, word)
	f := strings.Fields(after)
	if len(f) == 0 {
		return 0
	}
	n, err := strconv.ParseInt(f[0], base, 64)
	if err != nil {
		return 0
	}
	return n
}

// StatTree looks up what of a tree's paths the filesystem has already.
func (v Volume) StatTree(ctx context.Context, paths []string) (Listing, error) {
	return v.Stat(ctx, slices.Compact(slices.Sorted(slices.Values(paths))))
}

// ReadFile returns the content of a small file; a missing one is fs.ErrNotExist.
func (v Volume) ReadFile(ctx context.Context, p string) ([]byte, error) {
	q, err := quote(p)
	if err != nil {
		return nil, err
	}
	out, stderr, err := run.Both(ctx, run.Cmd{Argv: []string{"debugfs", "-R", "cat " + q, v.device()}})
	if err != nil {
		return nil, fmt.Errorf("reading %s from ext4: %w", p, err)
	}
	switch msg := complaint(nil, stderr); {
	case strings.Contains(msg, "File not found"):
		return nil, fmt.Errorf("reading %s from ext4: %w", p, fs.ErrNotExist)
	case msg != "":
		return nil, fmt.Errorf("reading %s from ext4: debugfs: %s", p, msg)
	}
	return out, nil
}

// Dump copies a file out of the filesystem to the host path.
func (v Volume) Dump(ctx context.Context, p, host string) error {
	q, err := quote(p)
	if err != nil {
		return err
	}
	h, err := quoteText(host)
	if err != nil {
		return err
	}
	_, stderr, err := run.Both(ctx, run.Cmd{Argv: []string{"debugfs", "-R", "dump " + q + " " + h, v.device()}})
	if err != nil {
		return fmt.Errorf("reading %s from ext4: %w", p, err)
	}
	if msg := complaint(nil, stderr); msg != "" {
		return fmt.Errorf("reading %s from ext4: debugfs: %s", p, msg)
	}
	return nil
}

func relative(p string) string {
	p = strings.Trim(p, `"`)
	if p = strings.TrimPrefix(path.Clean("/"+p), "/"); p != "" {
		return p
	}
	return "."
}
