package ext4

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/kimage-project/kimage/pkg/run"
)

// features is what a filesystem made by kimage has, whatever the builder's
// /etc/mke2fs.conf says: everything here is understood by every kernel and
// e2fsck of the operating systems that are baked.
const features = "none,has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg," +
	"sparse_super,large_file,huge_file,dir_nlink,extra_isize,metadata_csum"

// mke2fsConf keeps the builder's own configuration out.
const mke2fsConf = "[defaults]\n\tblocksize = 4096\n\tinode_size = 256\n\tinode_ratio = 16384\n\tenable_periodic_fsck = 0\n"

// MakeConfig describes a new, empty filesystem.
type MakeConfig struct {
	File             string // image file, long enough already
	OffsetBytes      int64  // where the filesystem starts in File
	SizeBytes        int64  // multiple of 4096
	Label            string
	UUID             string // also seeds the directory hash
	JournalMiB       int    // 0: 64
	ReservedPercent  int    // blocks that only the reserved user may fill
	BytesPerInode    int    // 0: 16384
	ReservedUID      int    // who may use the reserved blocks besides CAP_SYS_RESOURCE
	UnixTime         int64  // every timestamp in the filesystem, seconds
	ScratchDirectory string // for the private mke2fs.conf
}

// Make writes an empty filesystem.
func Make(ctx context.Context, c MakeConfig) error {
	conf := filepath.Join(c.ScratchDirectory, "mke2fs.conf")
	if err := os.WriteFile(conf, []byte(mke2fsConf), 0o644); err != nil {
		return fmt.Errorf("writing %s: %w", conf, err)
	}
	journal, ratio := c.JournalMiB, c.BytesPerInode
	if journal == 0 {
		journal = 64
	}
	if ratio == 0 {
		ratio = 16384
	}
	argv := []string{"mke2fs", "-q", "-F", "-t", "ext4", "-O", features,
		"-b", "4096", "-I", "256", "-i", strconv.Itoa(ratio), "-J", "size=" + strconv.Itoa(journal),
		"-m", strconv.Itoa(c.ReservedPercent), "-L", c.Label, "-U", c.UUID,
		"-E", fmt.Sprintf("offset=%d,hash_seed=%s,lazy_itable_init=1,lazy_journal_init=1,nodiscard,root_owner=0:0", c.OffsetBytes, c.UUID),
		c.File, fmt.Sprintf("%dk", c.SizeBytes/1024)}
	if err := run.Run(ctx, run.Cmd{Argv: argv, Env: append(fakeTime(c.UnixTime), "MKE2FS_CONFIG="+conf)}); err != nil {
		return fmt.Errorf("making ext4 filesystem %s: %w", c.Label, err)
	}
	if c.ReservedUID == 0 {
		return nil
	}
	v := Volume{File: c.File, OffsetBytes: c.OffsetBytes, UnixTime: c.UnixTime}
	return v.debugfs(ctx, fmt.Appendf(nil, "ssv def_resuid %d\nssv def_resgid %d\n", c.ReservedUID, c.ReservedUID))
}

// fakeTime makes e2fsprogs use one time for everything that it stamps.
func fakeTime(unix int64) []string {
	return []string{"E2FSPROGS_FAKE_TIME=" + strconv.FormatInt(unix, 10)}
}

var versionSaid = regexp.MustCompile(`^mke2fs ([0-9][0-9a-zA-Z.~-]*) `)

// Version is that of e2fsprogs, as 1.47.0: another one may give the same files other blocks.
func Version(ctx context.Context) (string, error) {
	_, said, err := run.Both(ctx, run.Cmd{Argv: []string{"mke2fs", "-V"}})
	if err != nil {
		return "", err
	}
	m := versionSaid.FindSubmatch(said)
	if m == nil {
		return "", fmt.Errorf("mke2fs -V says %q, which has no version", said)
	}
	return string(m[1]), nil
}
