// Package seed writes the small volumes from which a machine reads its
// configuration at first boot: cloud-init's NoCloud, a FAT file system labelled
// CIDATA.
package seed

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/kimage-project/kimage/pkg/run"
)

const (
	label     = "CIDATA"
	sizeBytes = 4 << 20
)

// Write makes volume, which must not exist, with the files (name to content).
func Write(ctx context.Context, volume string, files map[string][]byte) error {
	f, err := os.OpenFile(volume, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := f.Truncate(sizeBytes); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := run.Run(ctx, run.Cmd{Argv: []string{"mkfs.vfat", "--invariant", "-n", label, volume}}); err != nil {
		return fmt.Errorf("making seed %s: %w", volume, err)
	}
	dir, err := os.MkdirTemp(filepath.Dir(volume), ".seed")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	for _, name := range slices.Sorted(maps.Keys(files)) {
		host := filepath.Join(dir, name)
		if err := os.WriteFile(host, files[name], 0o600); err != nil {
			return err
		}
		if err := run.Run(ctx, run.Cmd{Argv: []string{"mcopy", "-i", volume, host, "::/" + name}, Env: []string{"MTOOLS_SKIP_CHECK=1"}}); err != nil {
			return fmt.Errorf("making seed %s: %w", volume, err)
		}
	}
	return nil
}
