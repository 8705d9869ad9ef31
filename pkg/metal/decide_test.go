package metal

import (
	"strings"
	"testing"

	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/install"
)

const gib = 1 << 30

// TestDecide: the table above decide, and what no disk may be written for.
func TestDecide(t *testing.T) {
	empty := install.Disk{Name: "vda", SizeBytes: 20 * gib, SectorBytes: 512, Content: install.Empty}
	with := func(change func(*install.Disk)) install.Disk {
		d := empty
		change(&d)
		return d
	}
	half := with(func(d *install.Disk) { d.Content, d.Unfinished = install.Kimage, true })
	own := with(func(d *install.Disk) { d.Content, d.Cluster, d.Node = install.Kimage, "ours", "k8s-01" })
	another := with(func(d *install.Disk) { d.Content, d.Cluster, d.Node = install.Kimage, "ours", "k8s-02" })
	elsewhere := with(func(d *install.Disk) { d.Content, d.Cluster, d.Node = install.Kimage, "theirs", "k8s-01" })
	silent := with(func(d *install.Disk) { d.Content, d.What = install.Kimage, "no state" })
	foreign := with(func(d *install.Disk) { d.Content, d.What = install.Other, "an ext4 file system" })
	small := with(func(d *install.Disk) { d.SizeBytes = 2 * gib })
	large := with(func(d *install.Disk) { d.SectorBytes = 4096 })
	second := with(func(d *install.Disk) { d.Name, d.Serial, d.Model = "vdb", "S2", "Fast Disk 9" })
	fresh, before, half1, released := record{}, record{State: installed}, record{State: writing}, record{State: installed, released: true}
	rule := func(i cluster.Install) cluster.Install { return i }
	anything := rule(cluster.Install{Overwrite: cluster.OverwriteAny})
	never := rule(cluster.Install{Overwrite: cluster.OverwriteNever})
	for _, tt := range []struct {
		name   string
		rule   cluster.Install
		r      record
		disks  []install.Disk
		action string
		says   string // the disk that is written, or part of the reason
	}{
		{"a first installation", cluster.Install{}, fresh, []install.Disk{empty}, install.Write, "vda"},
		{"power cut while it was written", cluster.Install{}, half1, []install.Disk{half}, install.Write, "vda"},
		{"cut before anything was written", cluster.Install{}, half1, []install.Disk{empty}, install.Write, "vda"},
		{"installed, and half written", cluster.Install{}, before, []install.Disk{half}, install.Stop, "vda is half written"},
		{"released, half written", cluster.Install{}, released, []install.Disk{half}, install.Write, "vda"},
		{"its data is on another disk", cluster.Install{Serial: "S2"}, fresh, []install.Disk{own, second}, install.Stop, "vda has the machine's data"},
		{"the same, released", cluster.Install{Serial: "S2"}, released, []install.Disk{own, second}, install.Stop, "vda has the machine's data"},
		{"written, and not told", cluster.Install{}, half1, []install.Disk{own}, install.Local, ""},
		{"written, not told, and never booted", cluster.Install{}, half1, []install.Disk{silent}, install.Local, ""},
		{"kimage's, nobody's", cluster.Install{}, fresh, []install.Disk{silent}, install.Stop, "did not say whose"},
		{"installed", cluster.Install{}, before, []install.Disk{own}, install.Local, ""},
		{"installed, and the server forgot", cluster.Install{}, fresh, []install.Disk{own}, install.Local, ""},
		{"installed, overwrite any", anything, before, []install.Disk{own}, install.Local, ""},
		{"released", cluster.Install{}, released, []install.Disk{own}, install.Write, "vda"},
		{"released, another's data", cluster.Install{}, released, []install.Disk{elsewhere}, install.Stop, "not of k8s-01"},
		{"released, another's data, told", anything, released, []install.Disk{another}, install.Write, "vda"},
		{"released, never", never, released, []install.Disk{own}, install.Stop, "overwrite: never"},
		{"released, foreign", cluster.Install{}, released, []install.Disk{foreign}, install.Stop, "holds an ext4 file system"},
		{"another node's disk", cluster.Install{}, fresh, []install.Disk{another}, install.Stop, "k8s-02 of cluster ours: kimage replace k8s-01"},
		{"another cluster's disk", anything, fresh, []install.Disk{elsewhere}, install.Stop, "cluster theirs"},
		{"a new disk in an installed machine", cluster.Install{}, before, []install.Disk{empty}, install.Stop, "kimage replace k8s-01"},
		{"the same, released", cluster.Install{}, released, []install.Disk{empty}, install.Write, "vda"},
		{"foreign data", cluster.Install{}, fresh, []install.Disk{foreign}, install.Stop, "holds an ext4 file system"},
		{"foreign data, told", anything, fresh, []install.Disk{foreign}, install.Write, "vda"},
		{"foreign data, told, installed before", anything, before, []install.Disk{foreign}, install.Stop, "is another now"},
		{"too small", cluster.Install{}, fresh, []install.Disk{small}, install.Stop, "needs"},
		{"large sectors", cluster.Install{}, fresh, []install.Disk{large}, install.Stop, "4096"},
		{"none", cluster.Install{}, fresh, nil, install.Stop, "there is none"},
		{"two", cluster.Install{}, fresh, []install.Disk{empty, second}, install.Stop, "2 disks fit"},
		{"two, one is kimage's", cluster.Install{}, released, []install.Disk{second, own}, install.Write, "vda"},
		{"by serial number", cluster.Install{Serial: "S2"}, fresh, []install.Disk{empty, second}, install.Write, "vdb"},
		{"by model", cluster.Install{Model: "Fast"}, fresh, []install.Disk{empty, second}, install.Write, "vdb"},
		{"by path", cluster.Install{Path: "/dev/vda"}, fresh, []install.Disk{empty, second}, install.Write, "vda"},
		{"by size", cluster.Install{MinGiB: 21}, fresh, []install.Disk{empty, second}, install.Stop, "no disk fits"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := decide(Machine{Name: "k8s-01", Disk: tt.rule}, tt.r, install.Hello{Disks: tt.disks}, Config{ClusterUID: "ours", Image: Image{DiskBytes: 8 * gib}})
			said := p.Reason
			if p.Action == install.Write {
				said = p.Disk
			}
			if p.Action != tt.action || !strings.Contains(said, tt.says) {
				t.Errorf("%s: %s, want %s: %s", p.Action, said, tt.action, tt.says)
			}
		})
	}
}
