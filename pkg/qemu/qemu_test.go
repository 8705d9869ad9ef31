package qemu

import (
	"cmp"
	"slices"
	"strings"
	"testing"
)

func TestArgv(t *testing.T) {
	for _, c := range []struct {
		name      string
		config    Config
		want, not []string
	}{
		{"defaults", Config{}, []string{"-accel tcg,thread=multi", "-smp 1", "-m 1024", "if=virtio,format=qcow2", "hostfwd=tcp:127.0.0.1:2222-:22", "-display none"}, []string{"pflash", "restrict", "format=raw", "stream", "-uuid", "-no-reboot"}},
		{"size", Config{CPUs: 3, MemoryMiB: 4096}, []string{"-smp 3", "-m 4096"}, nil},
		{"small", Config{MemoryMiB: 512}, []string{"-m 512"}, nil},
		{"second card", Config{LAN: "/vm/lan/a", LANMAC: "52:54:00:17:08:01"}, []string{"addr.path=/vm/lan/a", "netdev=lan,bus=pcie.0,addr=0x11,mac=52:54:00:17:08:01", "addr=0x10,mac=" + MAC}, nil},
		{"UUID", Config{UUID: "5"}, []string{"-uuid 5"}, nil},
		{"serial number", Config{Serial: "7,X"}, []string{"-smbios type=1,serial=7,,X"}, nil},
		{"paced", Config{Paced: true}, []string{"-accel tcg,thread=single -icount shift=0,sleep=on", "-cpu max,erms=off"}, []string{"multi", "-cpu max "}},
		{"KVM needs no pace", Config{Accel: "kvm", Paced: true}, []string{"-accel kvm -cpu max "}, []string{"icount", "erms"}},
		{"KVM", Config{Accel: "kvm"}, []string{"-accel kvm"}, []string{"tcg"}},
		{"UEFI", Config{Firmware: UEFI}, []string{"if=pflash,format=raw,readonly=on,file=" + ovmfCode, "if=pflash,format=raw,file=/vm/node/vars.fd"}, nil},
		{"no way out", Config{Isolated: true}, []string{"restrict=on,hostfwd="}, nil},
		{"forwarded", Config{Forward: []int{6443}}, []string{"hostfwd=tcp:127.0.0.1:3333-:6443"}, nil},
		{"written through", Config{Cache: "writeback", Sockets: "/s"}, []string{"path=/s/node.console,", "unix:/s/node.qmp,"}, []string{"unsafe"}},
		{"second disk", Config{Second: "/vm/b", NoReboot: true}, []string{"file=/vm/b,if=virtio,format=raw,cache=unsafe", "-no-reboot"}, []string{"readonly"}},
		{"seed", Config{Seed: "/vm/seed"}, []string{"file=/vm/seed,if=virtio,format=raw,readonly=on"}, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.config.Dir = "/vm/node"
			m := &Machine{c: c.config, SSHPort: 2222, Ports: map[int]int{6443: 3333}}
			got := strings.Join(m.argv(), " ")
			for _, w := range append(c.want, "-name node", "file=/vm/node/disk.qcow2", "logfile=/vm/node/console.log", "cache="+cmp.Or(c.config.Cache, "unsafe")) {
				if !strings.Contains(got, w) {
					t.Errorf("no %q in %s", w, got)
				}
			}
			if slices.ContainsFunc(c.not, func(n string) bool { return strings.Contains(got, n) }) {
				t.Errorf("one of %q in %s", c.not, got)
			}
		})
	}
}
