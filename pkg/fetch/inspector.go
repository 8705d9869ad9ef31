package fetch

import (
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"os"
	"strings"
)

// inspector computes a file's digests and has it judged while it is written, so that a
// large one is not read again when it is complete. What lies there from an earlier run is
// read before more is written.
type inspector struct {
	request Request
	file    *os.File
	bytes   int64 // seen so far, from the start
	hashes  []hash.Hash
	judge   Judge
	to      io.Writer
}

// begin starts over.
func (i *inspector) begin() {
	i.close()
	i.bytes, i.hashes = 0, []hash.Hash{sha256.New(), sha512.New()}
	to := []io.Writer{}
	for n, want := range []string{i.request.SHA256, i.request.SHA512} {
		if want != "" {
			to = append(to, i.hashes[n])
		}
	}
	if i.request.Judge != nil {
		i.judge = i.request.Judge()
		to = append(to, i.judge)
	}
	i.to = io.MultiWriter(to...)
}

func (i *inspector) close() {
	if i.judge != nil {
		i.judge.Close()
		i.judge = nil
	}
}

// write sees what was appended to the file.
func (i *inspector) write(b []byte) {
	i.to.Write(b) // neither a hash nor a judge fails before the end
	i.bytes += int64(len(b))
}

// catchUp sees what the file has that was not written by this run, or begins again where it
// was cut.
func (i *inspector) catchUp() error {
	fi, err := i.file.Stat()
	if err != nil {
		return err
	}
	if fi.Size() < i.bytes {
		i.begin()
	}
	n, err := io.Copy(i.to, io.NewSectionReader(i.file, i.bytes, fi.Size()-i.bytes))
	i.bytes += n
	return err
}

// verdict says what is wrong with the whole file.
func (i *inspector) verdict() error {
	if err := i.catchUp(); err != nil {
		return err
	}
	for n, want := range []string{i.request.SHA256, i.request.SHA512} {
		if got := hex.EncodeToString(i.hashes[n].Sum(nil)); want != "" && got != strings.ToLower(want) {
			return fmt.Errorf("the content does not match its checksum (got %s…, want %s…)", got[:16], strings.ToLower(want)[:min(16, len(want))])
		}
	}
	if i.judge == nil {
		return nil
	}
	judge := i.judge
	i.judge = nil
	return judge.Verdict()
}
