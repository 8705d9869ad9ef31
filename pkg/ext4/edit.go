package ext4

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
	"github.com/kimage-project/kimage/pkg/tree"
)

// Volume is one ext4 filesystem inside an image file.
type Volume struct {
	File        string
	OffsetBytes int64
	UnixTime    int64 // stamped on everything that is written, seconds
}

// device is the name by which e2fsprogs open a filesystem inside a file.
func (v Volume) device() string {
	if v.OffsetBytes == 0 {
		return v.File
	}
	return fmt.Sprintf("%s?offset=%d", v.File, v.OffsetBytes)
}

func (v Volume) superblock() (Superblock, error) {
	f, err := os.Open(v.File)
	if err != nil {
		return Superblock{}, err
	}
	defer f.Close()
	return ReadSuperblock(f, v.OffsetBytes)
}

// Check runs e2fsck -fn: the filesystem must be clean to the last bit.
func (v Volume) Check(ctx context.Context) error {
	out, _, err := run.Both(ctx, run.Cmd{Argv: []string{"e2fsck", "-fn", v.device()}, Env: fakeTime(v.UnixTime)})
	if err != nil {
		return fmt.Errorf("checking the filesystem: %w: %s", err, bytes.TrimSpace(lastLines(out, 5)))
	}
	return nil
}

// Add writes every entry of t into the filesystem: files that exist are
// replaced, directories that exist are kept as they are. Content is staged in
// scratch unless the entry is a host file already.
func (v Volume) Add(ctx context.Context, t *tree.Tree, existing Listing, scratch string) error {
	staging, err := os.MkdirTemp(scratch, "stage")
	if err != nil {
		return err
	}
	defer os.RemoveAll(staging)
	sb, err := v.superblock()
	if err != nil {
		return err
	}
	s := &script{scratch: staging, existing: existing, blockSize: sb.BlockSize, extents: sb.Incompat&incompatExtents != 0}
	if err := s.build(t); err != nil {
		return err
	}
	if err := v.debugfs(ctx, s.buf.Bytes()); err != nil || len(s.large) == 0 {
		return err
	}
	return v.fill(ctx, s.large, sb.BlockSize)
}

// Rename gives a file another name in directories that exist; what is at the
// new name is not replaced.
func (v Volume) Rename(ctx context.Context, from, to string) error {
	old, err := quote(from)
	if err != nil {
		return err
	}
	name, err := quote(to)
	if err != nil {
		return err
	}
	// Neither command counts names.
	return v.debugfs(ctx, fmt.Appendf(nil, "ln %s %s\nunlink %s\n", old, name, old))
}

// debugfs runs a script of commands that write, and fails on any message it prints.
func (v Volume) debugfs(ctx context.Context, script []byte) error {
	stdout, stderr, err := run.Both(ctx, run.Cmd{
		Argv: []string{"debugfs", "-w", "-f", "-", v.device()}, Env: append(fakeTime(v.UnixTime), "DEBUGFS_PAGER=__none__"),
		Stdin: bytes.NewReader(script),
	})
	if err != nil {
		return fmt.Errorf("editing ext4: %w", err)
	}
	if msg := complaint(stdout, stderr); msg != "" {
		return fmt.Errorf("editing ext4: debugfs: %s", msg)
	}
	return nil
}

// complaint finds the first message that is not the echo of a command,
// debugfs's banner or chatter.
func complaint(stdout, stderr []byte) string {
	sc := bufio.NewScanner(bytes.NewReader(stderr))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line != "" && !strings.HasPrefix(line, "debugfs 1.") {
			return line
		}
	}
	sc = bufio.NewScanner(bytes.NewReader(stdout))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if line != "" && !slices.ContainsFunc(chatter, func(p string) bool { return strings.HasPrefix(line, p) }) {
			return line
		}
	}
	return ""
}

// chatter opens the lines that debugfs prints when all is well.
var chatter = []string{"debugfs:", "Allocated inode:", "extent: "}

// linkRoom is what a fresh directory block holds in names, bytes.
const linkRoom = 4000

// commands is a debugfs command file under construction.
type commands struct {
	bytes.Buffer
	dir string // current directory, quoted; empty: the root
}

// name goes to p's directory and returns what p is called there: debugfs looks
// up, and verifies, every directory of every path that it is given.
func (c *commands) name(p string) (string, error) {
	if p == "." {
		return "/", nil
	}
	dir, err := quote(path.Dir(p))
	if err != nil {
		return "", err
	}
	if c.dir != dir {
		fmt.Fprintf(c, "cd %s\n", dir)
		c.dir = dir
	}
	base := path.Base(p)
	if strings.HasPrefix(base, "<") || strings.HasPrefix(base, "-") { // an inode's number, or an option, if nothing is before it
		base = "./" + base
	}
	return quoteText(base)
}

// script is what a tree becomes.
type script struct {
	scratch   string
	existing  Listing
	blockSize int64
	extents   bool // the file system has them
	buf       commands
	staged    int

	directBytes int64        // the size from which on content is written afterwards
	large       []tree.Entry // such files
}

func (s *script) build(t *tree.Tree) error {
	entries := t.Entries()
	s.directBytes = largeBytes
	if len(entries) >= manyFiles {
		s.directBytes = 1
	}
	for _, e := range entries {
		if e.Hard {
			continue
		}
		if err := s.entry(e); err != nil {
			return fmt.Errorf("preparing %s: %w", e.Path, err)
		}
	}
	names := map[string]int{}
	room := map[string]int{}
	for _, e := range entries {
		if !e.Hard {
			continue
		}
		// Unlike write and mkdir, ln does not make a full directory longer.
		dir, need := path.Dir(e.Path), len(path.Base(e.Path))+12
		if room[dir] -= need; room[dir] < 0 {
			q, err := quote(dir)
			if err != nil {
				return err
			}
			fmt.Fprintf(&s.buf, "expand_dir %s\n", q)
			room[dir] = linkRoom - need
		}
		dst, err := quote(e.Path)
		if err != nil {
			return err
		}
		src, err := quote(e.Target)
		if err != nil {
			return err
		}
		fmt.Fprintf(&s.buf, "ln %s %s\n", src, dst)
		names[e.Target]++
	}
	// ln adds a name without counting it.
	targets := make([]string, 0, len(names))
	for p := range names {
		targets = append(targets, p)
	}
	slices.Sort(targets)
	for _, p := range targets {
		q, err := quote(p)
		if err != nil {
			return err
		}
		fmt.Fprintf(&s.buf, "sif %s links_count %d\n", q, names[p]+1)
	}
	return nil
}

func (s *script) entry(e tree.Entry) error {
	p, err := s.buf.name(e.Path)
	if err != nil {
		return err
	}
	old, exists := s.existing[e.Path]
	switch {
	case e.Path == "." || e.Mode.IsDir() && exists && old.IsDir():
		if exists {
			return nil // somebody else's directory keeps its owner and mode
		}
		p = "/"
	case e.Mode.IsDir() && exists:
		return fmt.Errorf("the base has a %s here, not a directory", kind(old))
	case e.Mode.IsDir():
		fmt.Fprintf(&s.buf, "mkdir %s\n", p)
	case exists && old.IsDir():
		return errors.New("the base has a directory here")
	case exists:
		fmt.Fprintf(&s.buf, "rm %s\n", p)
	}
	switch {
	case e.Mode.IsDir():
	case e.Mode.IsRegular() && s.extents && e.Size >= s.directBytes:
		if err := s.reserve(e, p); err != nil {
			return err
		}
	case e.Mode.IsRegular():
		host, err := s.stage(e)
		if err != nil {
			return err
		}
		fmt.Fprintf(&s.buf, "write %s %s\n", host, p)
	case e.Mode&fs.ModeSymlink != 0:
		target, err := quoteText(e.Target)
		if err != nil {
			return err
		}
		fmt.Fprintf(&s.buf, "symlink %s %s\n", p, target)
	case e.Mode&(fs.ModeNamedPipe|fs.ModeDevice) != 0:
		if err := s.node(e); err != nil {
			return err
		}
	default:
		return fmt.Errorf("files of type %v cannot be in an image", e.Mode.Type())
	}
	fmt.Fprintf(&s.buf, "sif %s mode 0%o\n", p, typeBits(e.Mode)|uint32(tree.Perm(e.Mode)))
	if e.UID != 0 {
		fmt.Fprintf(&s.buf, "sif %s uid %d\n", p, e.UID)
	}
	if e.GID != 0 {
		fmt.Fprintf(&s.buf, "sif %s gid %d\n", p, e.GID)
	}
	if !e.ModTime.IsZero() {
		fmt.Fprintf(&s.buf, "sif %s mtime @%d\n", p, e.ModTime.Unix())
	}
	return s.xattrs(e, p)
}

// node makes a pipe or device in the current directory: mknod knows only names.
func (s *script) node(e tree.Entry) error {
	name, err := quoteText(path.Base(e.Path))
	if err != nil {
		return err
	}
	what := fmt.Sprintf("b %d %d", e.Major, e.Minor)
	switch {
	case e.Mode&fs.ModeNamedPipe != 0:
		what = "p"
	case e.Mode&fs.ModeCharDevice != 0:
		what = fmt.Sprintf("c %d %d", e.Major, e.Minor)
	}
	fmt.Fprintf(&s.buf, "mknod %s %s\n", name, what)
	return nil
}

func (s *script) xattrs(e tree.Entry, p string) error {
	names := make([]string, 0, len(e.Xattrs))
	for n := range e.Xattrs {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		host := s.next()
		if err := os.WriteFile(host, []byte(e.Xattrs[n]), 0o600); err != nil {
			return err
		}
		fmt.Fprintf(&s.buf, "ea_set -f %s %s %s\n", host, p, n)
	}
	return nil
}

// stage puts the content of e where debugfs can read it.
func (s *script) stage(e tree.Entry) (string, error) {
	if e.Host != "" && !strings.ContainsAny(e.Host, " \"\n") {
		return e.Host, nil
	}
	r, err := e.Open()
	if err != nil {
		return "", err
	}
	defer r.Close()
	host := s.next()
	f, err := os.OpenFile(host, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	n, err := io.Copy(f, r)
	if err == nil && n != e.Size {
		err = fmt.Errorf("expected %d bytes, got %d", e.Size, n)
	}
	return host, errors.Join(err, f.Close())
}

func (s *script) next() string {
	s.staged++
	return filepath.Join(s.scratch, strconv.Itoa(s.staged))
}

// typeBits are the S_IFMT bits of a mode.
func typeBits(m fs.FileMode) uint32 {
	switch {
	case m.IsDir():
		return 0o040000
	case m&fs.ModeSymlink != 0:
		return 0o120000
	case m&fs.ModeCharDevice != 0:
		return 0o020000
	case m&fs.ModeDevice != 0:
		return 0o060000
	case m&fs.ModeNamedPipe != 0:
		return 0o010000
	}
	return 0o100000
}

// quote makes a path safe as one argument of a debugfs command, rooted at /.
func quote(p string) (string, error) {
	return quoteText("/" + strings.TrimPrefix(path.Clean("/"+p), "/"))
}

// quoteText quotes an argument; debugfs has no escape for a newline.
func quoteText(s string) (string, error) {
	if strings.ContainsAny(s, "\n\r\x00") {
		return "", fmt.Errorf("the name %q has a line break", s)
	}
	if !strings.ContainsAny(s, " \t\"'#;<>") {
		return s, nil
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`, nil
}

func lastLines(b []byte, n int) []byte {
	lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return bytes.Join(lines, []byte("; "))
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m.IsRegular():
		return "file"
	}
	return "special file"
}
