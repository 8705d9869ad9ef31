// Package progress tells a person how far long work is: numbered stages, and
// bars with rate and time left on a terminal, plain lines otherwise.
//
// A nil *Reporter is valid and silent, so code that reports needs no checks.
package progress

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"
)

// lineEvery is how often a long step says something where there is no terminal.
const lineEvery = 30 * time.Second

// Reporter writes progress to one stream.
type Reporter struct {
	w        io.Writer
	terminal bool
	started  time.Time

	mu    sync.Mutex
	stage int
	total int

	pool *mpb.Progress // of the bars that are shown; nil: none
	bars int
}

// New reports to w; stages is how many there will be.
func New(w io.Writer, stages int) *Reporter {
	r := &Reporter{w: w, total: stages, started: time.Now()}
	if f, ok := w.(*os.File); ok {
		r.terminal = term.IsTerminal(int(f.Fd()))
	}
	return r
}

// Stage begins the next numbered stage.
func (r *Reporter) Stage(format string, args ...any) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.stage++
	fmt.Fprintf(r.w, "[%d/%d] %s\n", r.stage, r.total, fmt.Sprintf(format, args...))
}

// Logf writes one line below the current stage.
func (r *Reporter) Logf(format string, args ...any) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.w, "      %s\n", fmt.Sprintf(format, args...))
}

// Bar shows the progress of total bytes (0: unknown) until Done.
type Bar struct {
	r       *Reporter
	name    string
	total   int64
	started time.Time

	bar *mpb.Bar

	mu       sync.Mutex
	done     int64
	lastLine time.Time
}

// Bar begins a bar, below those that are not ended yet. It must be ended with Done.
func (r *Reporter) Bar(name string, total int64) *Bar {
	if r == nil {
		return nil
	}
	b := &Bar{r: r, name: name, total: total, started: time.Now(), lastLine: time.Now()}
	if r.terminal {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.bars++; r.bars == 1 {
			r.pool = mpb.New(mpb.WithOutput(r.w), mpb.WithWidth(60), mpb.WithRefreshRate(150*time.Millisecond))
		}
		b.bar = r.pool.AddBar(total,
			mpb.BarRemoveOnComplete(),
			mpb.PrependDecorators(decor.Name("      "+name, decor.WCSyncSpaceR)),
			mpb.AppendDecorators(decor.CountersKibiByte("% .0f / % .0f"),
				decor.AverageSpeed(decor.SizeB1024(0), "  % .0f"),
				decor.AverageETA(decor.ET_STYLE_GO, decor.WCSyncSpace)))
	}
	return b
}

// Add says that n more bytes are done.
func (b *Bar) Add(n int64) {
	if b == nil {
		return
	}
	if b.bar != nil {
		b.bar.IncrInt64(n)
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += n
	if time.Since(b.lastLine) < lineEvery {
		return
	}
	b.lastLine = time.Now()
	elapsed := time.Since(b.started).Seconds()
	rate := float64(b.done) / elapsed
	line := fmt.Sprintf("%s: %s at %s/s", b.name, FormatBytes(b.done), FormatBytes(int64(rate)))
	if b.total > b.done && rate > 0 {
		line += fmt.Sprintf(", %s of %s left", time.Duration(float64(b.total-b.done)/rate*1e9).Round(time.Second), FormatBytes(b.total))
	}
	b.r.Logf("%s", line)
}

// Done ends the bar.
func (b *Bar) Done() {
	if b == nil || b.bar == nil {
		return
	}
	b.bar.SetTotal(-1, true)
	b.bar.Abort(true)
	b.r.mu.Lock()
	defer b.r.mu.Unlock()
	if b.r.bars--; b.r.bars == 0 {
		b.r.pool.Wait()
	}
}

// Reader is in, and each byte that is read counts as done.
func (b *Bar) Reader(in io.Reader) io.Reader {
	if b == nil {
		return in
	}
	return counting{in, b}
}

type counting struct {
	in  io.Reader
	bar *Bar
}

func (c counting) Read(p []byte) (int, error) {
	n, err := c.in.Read(p)
	c.bar.Add(int64(n))
	return n, err
}

// Step says now and then that a step of unknown length (a compiler) is still
// going on; end stops it.
func (r *Reporter) Step(name string) (end func()) {
	if r == nil {
		return func() {}
	}
	started, stop, stopped := time.Now(), make(chan struct{}), make(chan struct{})
	every := lineEvery
	if r.terminal {
		every = time.Second
	}
	go func() {
		defer close(stopped)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				d := time.Since(started).Round(time.Second)
				if r.terminal {
					fmt.Fprintf(r.w, "\r\x1b[K      %s … %s", name, d)
				} else {
					r.Logf("%s: still at it after %s", name, d)
				}
			}
		}
	}()
	return func() {
		close(stop)
		<-stopped
		if r.terminal {
			fmt.Fprint(r.w, "\r\x1b[K")
		}
	}
}

// FormatBytes writes a size for people, in powers of 1024.
func FormatBytes(n int64) string {
	const units = "KMGTPE"
	if n < 1024 {
		return fmt.Sprintf("%d B", n)
	}
	v, i := float64(n)/1024, 0
	for v >= 1024 && i < len(units)-1 {
		v, i = v/1024, i+1
	}
	if v < 10 {
		return fmt.Sprintf("%.1f %ciB", v, units[i])
	}
	return fmt.Sprintf("%.0f %ciB", v, units[i])
}
