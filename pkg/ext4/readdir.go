package ext4

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// DirEntry is a name in a directory.
type DirEntry struct {
	Name      string
	Number    int64 // of the inode: names of one file share it
	Directory bool
	SizeBytes int64 // of a regular file, otherwise 0
}

// ReadDirs lists what is in directories, by their paths as given; "." and ".." are left out.
func (v Volume) ReadDirs(ctx context.Context, paths []string) (map[string][]DirEntry, error) {
	var script bytes.Buffer
	for _, p := range paths {
		q, err := quote(p)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&script, "ls -p %s\n", q)
	}
	out, stderr, err := run.Both(ctx, run.Cmd{Argv: []string{"debugfs", "-f", "-", v.device()}, Stdin: &script, Env: []string{"DEBUGFS_PAGER=__none__"}})
	if err != nil {
		return nil, fmt.Errorf("reading ext4: %w", err)
	}
	if msg := complaint(nil, stderr); msg != "" {
		if strings.Contains(msg, "File not found") {
			return nil, fmt.Errorf("reading ext4: %s: %w", msg, fs.ErrNotExist)
		}
		return nil, fmt.Errorf("reading ext4: debugfs: %s", msg)
	}
	listed, current := map[string][]DirEntry{}, -1
	sc := bufio.NewScanner(bytes.NewReader(out))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if strings.HasPrefix(sc.Text(), "debugfs: ls ") {
			current++
			continue
		}
		// /number/mode/uid/gid/name/size/ or, if it has no size of its own, //
		f := strings.Split(sc.Text(), "/")
		if len(f) != 8 || current < 0 || current >= len(paths) || f[5] == "." || f[5] == ".." {
			continue
		}
		number, err1 := strconv.ParseInt(f[1], 10, 64)
		mode, err2 := strconv.ParseUint(f[2], 8, 32)
		if err1 != nil || err2 != nil {
			return nil, fmt.Errorf("reading ext4: unexpected entry of /%s: %s", paths[current], sc.Text())
		}
		if number == 0 { // room that nothing uses
			continue
		}
		e := DirEntry{Name: f[5], Number: number}
		switch uint32(mode) & 0o170000 {
		case typeBits(fs.ModeDir):
			e.Directory = true
		case typeBits(0):
			if e.SizeBytes, err = strconv.ParseInt(f[6], 10, 64); err != nil {
				return nil, fmt.Errorf("reading ext4: unexpected entry of /%s: %s", paths[current], sc.Text())
			}
		}
		listed[paths[current]] = append(listed[paths[current]], e)
	}
	return listed, sc.Err()
}
