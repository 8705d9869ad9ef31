package images

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/cache"
)

// BenchmarkFormats writes a baked image, $KIMAGE_BENCH_IMAGE, as every format, beside
// qemu-img convert to the same (GNU tar and zstd where qemu-img has no such format). "ratio"
// is kimage's time divided by theirs.
func BenchmarkFormats(b *testing.B) {
	image := os.Getenv("KIMAGE_BENCH_IMAGE")
	if image == "" {
		b.Skip("set KIMAGE_BENCH_IMAGE to a raw image: make bench-formats bakes one")
	}
	raw, err := os.Open(image)
	if err != nil {
		b.Fatal(err)
	}
	defer raw.Close()
	fi, err := raw.Stat()
	if err != nil {
		b.Fatal(err)
	}
	c, err := cache.Open(b.TempDir(), nil)
	if err != nil {
		b.Fatal(err)
	}
	builder := &Builder{config: Config{Arch: "amd64"}, name: "node", cache: c}
	for format, argv := range map[string][]string{
		formatZstd:    {"sh", "-c", `zstd -q -f -T0 "$1" -o "$2"`, "sh"},
		formatQcow2:   {"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"},
		formatGCE:     {"sh", "-c", `tar --format=oldgnu -Sczf "$2" -C "$(dirname "$1")" "$(basename "$1")"`, "sh"},
		formatVHD:     {"qemu-img", "convert", "-f", "raw", "-O", "vpc", "-o", "subformat=fixed,force_size"},
		formatVMDK:    {"qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized,adapter_type=lsilogic"},
		boxLibvirt:    {"qemu-img", "convert", "-f", "raw", "-O", "qcow2", "-c", "-o", "compression_type=zstd"},
		boxVirtualBox: {"qemu-img", "convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized,adapter_type=lsilogic"},
	} {
		b.Run(format, func(b *testing.B) {
			var ours, theirs time.Duration
			for b.Loop() {
				dir := b.TempDir()
				started := time.Now()
				out, err := os.Create(filepath.Join(dir, "ours"))
				if err != nil {
					b.Fatal(err)
				}
				if err := builder.write(b.Context(), out, raw, fi.Size(), format, func(int64) {}); err != nil {
					b.Fatal(err)
				}
				if err := out.Close(); err != nil {
					b.Fatal(err)
				}
				ours += time.Since(started)
				started = time.Now()
				args := append(argv[1:len(argv):len(argv)], image, filepath.Join(dir, "theirs"))
				if out, err := exec.Command(argv[0], args...).CombinedOutput(); err != nil {
					b.Fatalf("%v: %v\n%s", args, err, out)
				}
				theirs += time.Since(started)
				os.RemoveAll(dir)
			}
			b.ReportMetric(ours.Seconds()/float64(b.N), "s-kimage")
			b.ReportMetric(theirs.Seconds()/float64(b.N), "s-theirs")
			b.ReportMetric(ours.Seconds()/theirs.Seconds(), "ratio")
			b.ReportMetric(0, "ns/op")
		})
	}
}
