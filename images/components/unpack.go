package components

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/kimage-project/kimage/pkg/cache"
	"github.com/kimage-project/kimage/pkg/decompress"
	"github.com/kimage-project/kimage/pkg/run"
)

// unpack takes the wanted members out of a verified download. files maps a
// member of the tar archive ("" the download itself) to its place in the payload.
func (r *resolver) unpack(ctx context.Context, local, sum string, files map[string]string) ([]File, error) {
	members := slices.Sorted(maps.Keys(files))
	entry, _, err := r.Cache.Dir(ctx, "unpacked", cache.Key(append([]string{"unpacked-1", sum}, members...)...), func(ctx context.Context, dir string) error {
		if err := r.Cache.Verify(ctx, filepath.Dir(local)); err != nil {
			return err
		}
		if len(members) == 1 && members[0] == "" {
			return copyFile(filepath.Join(dir, "0"), local)
		}
		return extract(local, dir, members)
	})
	if err != nil {
		return nil, err
	}
	var out []File
	for i, m := range members {
		f, err := r.file(entry, fmt.Sprint(i), files[m])
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeFile(to, in)
}

func writeFile(to string, content io.Reader) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, content)
	return errors.Join(err, f.Close())
}

// extract writes the members of a compressed tar archive to dir/INDEX.
func extract(archive, dir string, members []string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	z, err := decompress.Reader(f)
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Base(archive), err)
	}
	defer z.Close()
	found := 0
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("unpacking %s: %w", filepath.Base(archive), err)
		}
		i := slices.Index(members, strings.TrimPrefix(path.Clean("/"+h.Name), "/"))
		if i < 0 || h.Typeflag != tar.TypeReg {
			continue
		}
		if err := writeFile(filepath.Join(dir, fmt.Sprint(i)), tr); err != nil {
			return err
		}
		found++
	}
	if found != len(members) {
		return fmt.Errorf("%s has %d of the %d files that were expected (%s)", filepath.Base(archive), found, len(members), strings.Join(members, ", "))
	}
	return nil
}

// compiler names the C compiler, whose version is part of a cgo program's bytes.
func compiler(ctx context.Context) string {
	out, err := run.Output(ctx, run.Cmd{Argv: []string{"gcc", "--version"}})
	if err != nil {
		return "unknown"
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line
}
