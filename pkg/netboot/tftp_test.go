package netboot

import (
	"bytes"
	"errors"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// noise is a file's content, the same for every run.
func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{})
	r.Read(b)
	return b
}

// TestTFTP: foreign clients get every byte.
func TestTFTP(t *testing.T) {
	w := newWire(t)
	need.Program(t, "tftp", "tftp-hpa")
	need.Program(t, "curl", "curl")
	files := fstest.MapFS{}
	for name, size := range map[string]int{"empty": 0, "block": 512, "blocks": 1468 * 3, "odd": 100_001, "wraps": 65536*512 + 7, "dir/undionly.kpxe": 74213} {
		files[name] = &fstest.MapFile{Data: noise(size)}
	}
	w.serve(Config{Files: files})
	h := w.host("52:54:00:17:08:01")
	h.must("ip", "address", "add", "10.77.0.3/24", "dev", "eth0")
	out := filepath.Join(t.TempDir(), "out")
	for _, tt := range []struct {
		file string
		argv []string
	}{
		{"odd", []string{"tftp", "-m", "binary", "10.77.0.1", "-c", "get", "odd", out}},
		{"wraps", []string{"tftp", "-m", "binary", "10.77.0.1", "-c", "get", "wraps", out}},
		{"empty", []string{"curl", "-sS", "-o", out, "tftp://10.77.0.1/empty"}},
		{"block", []string{"curl", "-sS", "-o", out, "tftp://10.77.0.1/block"}},
		{"odd", []string{"curl", "-sS", "-o", out, "--tftp-no-options", "tftp://10.77.0.1/odd"}},
		{"odd", []string{"curl", "-sS", "-o", out, "--tftp-blksize", "8", "tftp://10.77.0.1/odd"}},
		{"blocks", []string{"curl", "-sS", "-o", out, "--tftp-blksize", "1468", "tftp://10.77.0.1/blocks"}},
		{"odd", []string{"curl", "-sS", "-o", out, "--tftp-blksize", "65464", "tftp://10.77.0.1/odd"}},
		{"dir/undionly.kpxe", []string{"curl", "-sS", "-o", out, "tftp://10.77.0.1//dir/undionly.kpxe"}},
	} {
		os.WriteFile(out, []byte("old"), 0o600)
		h.must(tt.argv...)
		if got, err := os.ReadFile(out); err != nil || !bytes.Equal(got, files[tt.file].Data) {
			t.Errorf("%v: got %d bytes, %v, want %d", tt.argv, len(got), err, len(files[tt.file].Data))
		}
	}
	for _, argv := range [][]string{
		{"curl", "-sS", "-o", out, "tftp://10.77.0.1/missing"},
		{"curl", "-sS", "-o", out, "tftp://10.77.0.1/dir"},
		{"curl", "-sS", "-T", "/etc/hostname", "tftp://10.77.0.1/written"},
	} {
		if said, err := h.command(argv...).CombinedOutput(); err == nil {
			t.Errorf("%v: no error: %s", argv, said)
		}
	}
}

// TestTFTPSize: a ROM asks for the size, ends that, and asks again; UEFI asks for a window.
func TestTFTPSize(t *testing.T) {
	w := newWire(t)
	data := noise(3000)
	said, _ := w.serve(Config{Files: fstest.MapFS{"rom": &fstest.MapFile{Data: data}}})
	h := w.host("52:54:00:17:08:01")
	h.must("ip", "address", "add", "10.77.0.3/24", "dev", "eth0")
	ask := func() (*net.UDPConn, string, *net.UDPAddr) {
		c := h.udp("10.77.0.3")
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.WriteTo([]byte("\x00\x01rom\x00octet\x00tsize\x000\x00blksize\x001468\x00windowsize\x004\x00"), &net.UDPAddr{IP: wireAddress.AsSlice(), Port: tftpPort}); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2000)
		n, from, err := c.ReadFromUDP(b)
		if err != nil {
			t.Fatal(err)
		}
		return c, string(b[:n]), from
	}
	c, oack, from := ask()
	if !strings.HasPrefix(oack, "\x00\x06") || !strings.Contains(oack, "\x00tsize\x003000\x00"[1:]) || !strings.Contains(oack, "blksize\x001468\x00") || strings.Contains(oack, "window") {
		t.Errorf("the options agreed to are %q", oack)
	}
	c.WriteTo([]byte("\x00\x05\x00\x08no\x00"), from)
	c, _, from = ask()
	var got []byte
	for block := byte(0); ; block++ {
		c.WriteTo([]byte{0, 4, 0, block}, from)
		b := make([]byte, 2000)
		n, _, err := c.ReadFromUDP(b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, b[4:n]...)
		if n < 4+1468 {
			c.WriteTo([]byte{0, 4, 0, block + 1}, from)
			break
		}
	}
	if !bytes.Equal(got, data) {
		t.Errorf("got %d bytes", len(got))
	}
	said.wait(t, "TFTP: rom, 3000 bytes")
	if strings.Count(said.String(), "rom") != 1 {
		t.Errorf("the server complains: %s", said)
	}
}

// outside is a directory with links that lead out of it.
func outside(t testing.TB) fs.FS {
	t.Helper()
	top := t.TempDir()
	dir := filepath.Join(top, "dir")
	if err := errors.Join(os.Mkdir(dir, 0o755), os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600), os.WriteFile(filepath.Join(dir, "file"), []byte("file"), 0o600),
		os.Symlink("../secret", filepath.Join(dir, "up")), os.Symlink(filepath.Join(top, "secret"), filepath.Join(dir, "absolute")), os.Symlink("..", filepath.Join(dir, "parent")), os.Symlink("file", filepath.Join(dir, "inside"))); err != nil {
		t.Fatal(err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root.FS()
}

func TestNamesStayInside(t *testing.T) {
	files := outside(t)
	for _, name := range []string{"file", "/file", `\file`, "file\xff", "//./file", "../file", "inside", "/a/../file"} {
		f, size, err := open(files, name)
		if err != nil || size != 4 {
			t.Errorf("%q: %v", name, err)
			continue
		}
		f.Close()
	}
	for _, name := range []string{"", "/", ".", "up", "absolute", "parent/secret", "parent", "../secret", "/etc/passwd", `..\secret`, "file/", "a\x00b", strings.Repeat("../", 50) + "etc/passwd"} {
		if f, _, err := open(files, name); err == nil && name != "file/" {
			t.Errorf("%q opens", name)
			f.Close()
		}
	}
	if _, _, err := open(nil, "file"); err == nil {
		t.Error("a file of nothing opens")
	}
}

func FuzzTFTP(f *testing.F) {
	files := outside(f)
	for _, s := range []string{"file", "/file", `..\..\secret`, "up", "parent/secret", "\xff", "a//b/../../..", "inside\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, asked string) {
		name := fileName(asked)
		if strings.HasPrefix(name, "/") || name == ".." || strings.HasPrefix(name, "../") || strings.Contains(name, "/../") {
			t.Errorf("%q becomes %q", asked, name)
		}
		file, _, err := open(files, asked)
		if err != nil {
			return
		}
		defer file.Close()
		b := make([]byte, 10)
		if n, _ := file.Read(b); string(b[:n]) != "file" {
			t.Errorf("%q has %q", asked, b[:n])
		}
	})
}
