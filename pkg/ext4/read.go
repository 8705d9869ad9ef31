package ext4

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// Listing says which of the paths that were asked for exist, and as what.
type Listing map[string]fs.FileMode

// Stat looks up paths (relative to the root). Paths that do not exist are left
// out; a path below a symbolic link counts as what the link leads to, because
// debugfs follows links on the way.
func (v Volume) Stat(ctx context.Context, paths []string) (Listing, error) {
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
	listing := Listing{}
	current := ""
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if p, ok := strings.CutPrefix(line, "debugfs: stat "); ok {
			current = relative(p)
		}
		i := strings.Index(line, "Type: ")
		if current == "" || i < 0 || !strings.HasPrefix(line, "Inode:") {
			continue
		}
		f := strings.Fields(line[i:])
		if len(f) < 2 {
			continue
		}
		mode := fs.FileMode(0)
		switch f[1] {
		case "directory":
			mode = fs.ModeDir
		case "symlink":
			mode = fs.ModeSymlink
		case "regular":
		default:
			mode = fs.ModeIrregular
		}
		if j := strings.Index(line, "Mode:"); j >= 0 {
			if m := strings.Fields(line[j+5:]); len(m) > 0 {
				if perm, err := strconv.ParseUint(m[0], 8, 32); err == nil {
					mode |= fs.FileMode(perm) & fs.ModePerm
				}
			}
		}
		listing[current] = mode
		current = ""
	}
	return listing, nil
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
	for line := range strings.SplitSeq(string(stderr), "\n") {
		if strings.Contains(line, "File not found") {
			return nil, fmt.Errorf("reading %s from ext4: %w", p, fs.ErrNotExist)
		}
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
