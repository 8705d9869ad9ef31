package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/run"
)

// modules loads the drivers of the hardware that there is, as udev would.
type modules struct {
	sys   string
	tried map[string]bool
}

const (
	modprobe = "/sbin/modprobe"
	atOnce   = 100 // aliases on a command line
	// settleRounds without anything new: a bus takes a moment to find what is on it.
	settleRounds = 3
	roundPause   = 300 * time.Millisecond
)

// unwanted are graphics and sound: not needed, and a graphics driver without its firmware
// makes the console dark.
var unwanted = regexp.MustCompile(`^pci:.*bc0[34]`)

// load loads until nothing new is found.
func (m *modules) load(ctx context.Context) error {
	for quiet := 0; quiet < settleRounds; {
		fresh, err := m.fresh()
		if err != nil {
			return err
		}
		if len(fresh) == 0 {
			quiet++
			time.Sleep(roundPause)
			continue
		}
		quiet = 0
		for some := range slices.Chunk(fresh, atOnce) {
			if err := probe(ctx, some...); err != nil {
				return err
			}
		}
	}
	return nil
}

// fresh are the aliases that were not tried yet.
func (m *modules) fresh() (out []string, err error) {
	if m.tried == nil {
		m.tried = map[string]bool{}
	}
	err = filepath.WalkDir(filepath.Join(m.sys, "devices"), func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if d.Name() != "modalias" || d.IsDir() {
			return nil
		}
		data, _ := os.ReadFile(p)
		alias := strings.TrimSpace(string(data))
		if alias != "" && !m.tried[alias] && !unwanted.MatchString(alias) {
			m.tried[alias] = true
			out = append(out, alias)
		}
		return nil
	})
	return out, err
}

// probe loads the modules of aliases. Those that have none, or are built in, are none of
// our business.
func probe(ctx context.Context, aliases ...string) error {
	err := run.Run(ctx, run.Cmd{Argv: append([]string{modprobe, "-abq", "--"}, aliases...)})
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the initramfs has no %s: %w", modprobe, err)
	}
	return nil
}
