package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/kimage-project/kimage/pkg/install"
)

// settleWithin is how long disks are waited for: a controller may start them one by one.
const settleWithin = 30 * time.Second

// settle waits until no disk appeared for a while.
func (i *installer) settle(ctx context.Context) {
	var before []string
	for began, quiet := time.Now(), 0; quiet < 3 && time.Since(began) < settleWithin; quiet++ {
		i.modules.load(ctx) // it has worked a moment ago
		now := disks("/sys")
		if len(now) == 0 || !slices.Equal(now, before) {
			quiet = -1
		}
		before = now
		time.Sleep(roundPause)
	}
}

// install writes the image and the node's config.
func (i *installer) install(ctx context.Context, hello install.Hello, plan install.Plan) error {
	n := slices.IndexFunc(hello.Disks, func(d install.Disk) bool { return d.Name == plan.Disk })
	if n < 0 {
		return fmt.Errorf("the server chose the disk %q, which this machine did not tell it of", plan.Disk)
	}
	told := hello.Disks[n]
	i.screen.say("kimage: this machine becomes %s, on disk %s: %s", plan.Node, told.Name, strings.TrimSpace(fmt.Sprintf("%s %d GiB", told.Model, told.SizeBytes>>30)))
	r := i.startReports(ctx)
	defer r.stop()
	index, err := i.client.Index(ctx, plan)
	if err != nil {
		return err
	}
	r.tell(install.Progress{Phase: install.Wiping, Total: index.DiskBytes})
	var config []byte
	if plan.Seed != "" {
		// Before anything is written: a config that is missing shall not cost the disk.
		if config, err = i.client.Get(ctx, plan.Seed); err != nil {
			return err
		}
	}
	if err := i.writeDisk(ctx, told, plan, index, config, r); err != nil {
		return fmt.Errorf("disk %s: %w", told.Name, err)
	}
	done := install.Progress{MAC: i.set.mac, Phase: install.Installed, Done: index.DiskBytes, Total: index.DiskBytes}
	r.stop()
	for {
		err := i.client.Installed(ctx, done)
		if err == nil {
			return nil
		}
		if errors.Is(err, install.ErrNotAsked) {
			i.screen.say("kimage: installed, and %v", err)
			return nil // it will not do it again: kimage's data is on the disk
		}
		// The server would install it again.
		i.screen.say("kimage: installed; the server has to hear of it: %v", err)
		time.Sleep(againAfter)
	}
}

// writeDisk writes a disk, if it still is what the server was told. It boots only when all
// is on it, the node's config as well: see install.Unfinished.
func (i *installer) writeDisk(ctx context.Context, told install.Disk, plan install.Plan, index install.Index, config []byte, r *reports) error {
	if now, err := describeDisk("/sys", "/dev", told.Name); err != nil {
		return err
	} else if what := changed(told, now); what != "" {
		return fmt.Errorf("it is not what it was a moment ago (%s): nothing was written", what)
	}
	// Nobody mounts it, and no RAID takes it, while it is open like this.
	file := filepath.Join("/dev", told.Name)
	disk, err := os.OpenFile(file, os.O_RDWR|os.O_EXCL, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	unfinished, err := install.WriteImage(ctx, disk, index, i.client.Fetch(plan.Image), r.tell)
	if err != nil {
		return err
	}
	// A partition of it can be mounted only when the disk is not one's alone.
	if err := disk.Close(); err != nil {
		return err
	}
	if disk, err = os.OpenFile(file, os.O_RDWR, 0); err != nil {
		return err
	}
	defer disk.Close()
	if config != nil {
		r.tell(install.Progress{Phase: install.Configuring, Done: index.DiskBytes, Total: index.DiskBytes})
		if err := i.place(ctx, disk, told.Name, unfinished, plan.SeedTo, config); err != nil {
			return fmt.Errorf("writing the config of the node: %w", err)
		}
	}
	return unfinished.Finish(disk)
}

// changed says what of a disk is not as it was told; empty: nothing.
func changed(told, now install.Disk) string {
	if reflect.DeepEqual(told, now) {
		return ""
	}
	return fmt.Sprintf("%s %s, now %s %s", told.Content, told.What, now.Content, now.What)
}

// reports tell the server and the screen how far the installation is.
type reports struct {
	i    *installer
	end  context.CancelFunc
	over chan struct{}

	mu     sync.Mutex
	latest install.Progress
	told   string // the error that was said last
}

func (i *installer) startReports(ctx context.Context) *reports {
	ctx, cancel := context.WithCancel(ctx)
	r := &reports{i: i, end: cancel, over: make(chan struct{})}
	go func() {
		defer close(r.over)
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for before := (install.Progress{}); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			r.mu.Lock()
			p := r.latest
			r.mu.Unlock()
			if p.Phase == "" {
				continue
			}
			i.screen.line("kimage: " + progressText(p, before))
			before = p
			p.MAC = i.set.mac
			i.client.Progress(ctx, p) // lost ones do not matter: there are more
		}
	}()
	return r
}

// tell is what install.WriteImage calls.
func (r *reports) tell(p install.Progress) {
	r.mu.Lock()
	r.latest = p
	news := p.Error != "" && p.Error != r.told
	if news {
		r.told = p.Error
	}
	r.mu.Unlock()
	if news {
		r.i.screen.say("kimage: %s; it goes on when it can", p.Error)
	}
}

func (r *reports) stop() {
	r.end()
	<-r.over
}

func progressText(p, before install.Progress) string {
	s := p.Phase
	if p.Phase == install.Writing && p.Total > 0 {
		s += fmt.Sprintf(" %d of %d MiB (%d %%)", p.Done>>20, p.Total>>20, p.Done*100/p.Total)
		if before.Phase == p.Phase {
			s += fmt.Sprintf(", %d MiB/s", int64(float64((p.Done-before.Done)>>20)/reportEvery.Seconds()))
		}
	}
	if p.Error != "" {
		s += ": " + p.Error
	}
	return s
}
