// Package seed writes the small volumes from which a machine reads its
// configuration at first boot: cloud-init's NoCloud, an ISO 9660 file system
// labelled CIDATA, with xorriso. The same files give the same bytes.
package seed

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

const label = "CIDATA"

// epoch is when everything on a volume says it was made, seconds.
const epoch = "1700000000"

// Write makes volume, which must not exist, with the files (name to content). It
// may hold secrets: its mode is 0600.
func Write(ctx context.Context, volume string, files map[string][]byte) error {
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
		if err := os.Chtimes(host, time.Unix(0, 0), time.Unix(0, 0)); err != nil {
			return err
		}
	}
	if err := os.Chtimes(dir, time.Unix(0, 0), time.Unix(0, 0)); err != nil { // the volume's root
		return err
	}
	out, err := os.OpenFile(volume, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	// -r: root's, readable by all on the volume, whoever made it.
	if err := run.Run(ctx, run.Cmd{Argv: []string{"xorriso", "-as", "mkisofs", "-quiet", "-r", "-J", "-V", label, "-o", volume, dir}, Env: []string{"SOURCE_DATE_EPOCH=" + epoch}}); err != nil {
		os.Remove(volume)
		return fmt.Errorf("making seed %s: %w", volume, err)
	}
	return nil
}
