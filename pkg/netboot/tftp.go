package netboot

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net/netip"
	"path"
	"strings"
	"time"

	"github.com/pin/tftp/v3"
)

const (
	transfers   = 64   // that run at once; iPXE's program takes a second
	blockBytes  = 1468 // what fits into a frame of 1500 bytes, whatever this end could do
	tftpTimeout = 2 * time.Second
)

// newTFTP serves Config.Files for reading. It agrees to blksize and tsize; a window
// (RFC 7440), which UEFI asks for, is not agreed to, and then it does without.
func (s *Server) newTFTP() *tftp.Server {
	t := tftp.NewServer(s.read, nil)
	t.SetBlockSize(blockBytes)
	t.SetTimeout(tftpTimeout)
	return t
}

// read serves one file. Errors are told to the machine, so they are short: a few bytes
// with a forged sender must not make many.
func (s *Server) read(asked string, to io.ReaderFrom) error {
	transfer := to.(tftp.OutgoingTransfer)
	peer := transfer.RemoteAddr()
	from, _ := netip.AddrFromSlice(peer.IP)
	if !s.near(from.Unmap()) {
		return errors.New("not here")
	}
	select {
	case s.loading <- struct{}{}:
		defer func() { <-s.loading }()
	default:
		return errors.New("busy")
	}
	f, size, err := open(s.cfg.Files, asked)
	if err != nil {
		s.cfg.Logf("%s: TFTP: %q: %v", from, asked, err)
		return errors.New("not found")
	}
	defer f.Close()
	transfer.SetSize(size)
	n, err := to.ReadFrom(&ended{f, s.ends})
	switch {
	case err == nil:
		s.cfg.Logf("%s: TFTP: %s, %d bytes", from, asked, n)
	case n == 0 && strings.Contains(err.Error(), "sending block 0"):
		// A ROM asks for the size first, ends the transfer, and begins another.
	default:
		s.cfg.Logf("%s: TFTP: %s, after %d of %d bytes: %v", from, asked, n, size, err)
	}
	return nil
}

// ended reads until a context ends.
type ended struct {
	io.Reader
	ctx context.Context
}

func (e *ended) Read(p []byte) (int, error) {
	if e.ctx.Err() != nil {
		return 0, errors.New("the server ends")
	}
	return e.Reader.Read(p)
}

// open opens a regular file by the name that a machine asks for.
func open(files fs.FS, asked string) (fs.File, int64, error) {
	if files == nil {
		return nil, 0, fs.ErrNotExist
	}
	f, err := files.Open(fileName(asked))
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = errors.New("not a regular file")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}

// fileName is the name in Config.Files: some firmware asks for /name, some for \name, and
// some read the option's end (255) as a part of it. What leads out of Files stays inside,
// or is not valid, which an fs.FS refuses.
func fileName(asked string) string {
	name := strings.ReplaceAll(strings.TrimRight(asked, "\xff"), `\`, "/")
	return strings.TrimPrefix(path.Clean("/"+name), "/")
}
