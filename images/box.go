package images

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"text/template"
	"time"

	"github.com/kimage-project/kimage/pkg/qcow2"
	"github.com/kimage-project/kimage/pkg/vmdk"
)

// Formats that are a Vagrant box, by the box's provider
// (https://developer.hashicorp.com/vagrant/docs/boxes/format).
const (
	boxLibvirt    = "vagrant-libvirt"
	boxVirtualBox = "vagrant-virtualbox"
)

// boxDiskGiB is the disk of a VirtualBox machine, which grows no later than that:
// what it does not use takes no room.
const boxDiskGiB = 20

// writeBox writes the raw disk as a Vagrant box. progress is told how much of the disk
// is done.
func (b *Builder) writeBox(ctx context.Context, out, raw *os.File, format string, progress func(int64)) error {
	scratch, err := b.cache.Scratch()
	if err != nil {
		return err
	}
	defer scratch.Remove()
	fi, err := raw.Stat()
	if err != nil {
		return err
	}
	if format == boxVirtualBox {
		return b.virtualBox(ctx, out, raw, scratch.Path, fi.Size(), progress)
	}
	disk, err := os.Create(filepath.Join(scratch.Path, "box.img"))
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := qcow2.Write(ctx, disk, raw, progress); err != nil {
		return err
	}
	const gib = 1 << 30
	meta := map[string]any{"provider": "libvirt", "format": "qcow2", "virtual_size": (fi.Size() + gib - 1) / gib, "architecture": b.config.Arch}
	return box(ctx, out, meta, disk)
}

// virtualBox writes a box whose disk is a stream-optimized VMDK, which is what OVF takes.
func (b *Builder) virtualBox(ctx context.Context, out, raw *os.File, scratch string, size int64, progress func(int64)) error {
	capacity := max(size, boxDiskGiB<<30)
	disk, err := os.Create(filepath.Join(scratch, "box-disk001.vmdk"))
	if err != nil {
		return err
	}
	defer disk.Close()
	if err := vmdk.Write(ctx, disk, raw, capacity, filepath.Base(disk.Name()), func(n int64) {
		n = min(n, size) // what was grown is not the image's
		size -= n
		progress(n)
	}); err != nil {
		return err
	}
	fi, err := disk.Stat()
	if err != nil {
		return err
	}
	var ovf bytes.Buffer
	if err := ovfTemplate.Execute(&ovf, map[string]any{"Name": b.name, "FileBytes": fi.Size(), "CapacityBytes": capacity}); err != nil {
		return err
	}
	meta := map[string]any{"provider": "virtualbox", "architecture": b.config.Arch}
	return box(ctx, out, meta, disk, boxFile{"box.ovf", ovf.Bytes()})
}

// boxFile is one of the small files in a box.
type boxFile struct {
	name    string
	content []byte
}

// box writes the archive: what Vagrant reads first, then what belongs to the disk,
// then the disk.
func box(ctx context.Context, out *os.File, meta map[string]any, disk *os.File, more ...boxFile) error {
	about, err := json.Marshal(meta)
	if err != nil {
		return err
	}
	w := tar.NewWriter(out)
	header := func(name string, size int64) error {
		return w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: size, ModTime: time.Unix(unixTime, 0), Format: tar.FormatGNU})
	}
	// A box needs a Vagrantfile; what ours says is the same for every machine of it.
	files := append([]boxFile{{"metadata.json", about}, {"Vagrantfile", []byte(boxVagrantfile)}}, more...)
	for _, f := range files {
		if err := header(f.name, int64(len(f.content))); err != nil {
			return err
		}
		if _, err := w.Write(f.content); err != nil {
			return err
		}
	}
	fi, err := disk.Stat()
	if err != nil {
		return err
	}
	if err := header(filepath.Base(disk.Name()), fi.Size()); err != nil {
		return err
	}
	if _, err := disk.Seek(0, io.SeekStart); err != nil {
		return err
	}
	if _, err := io.Copy(w, contextReader{ctx, disk}); err != nil {
		return err
	}
	return w.Close()
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	io.Reader
}

func (r contextReader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, err
	}
	return r.Reader.Read(p)
}

const boxVagrantfile = `Vagrant.configure("2") do |config|
  # Images have no shared folder's drivers.
  config.vm.synced_folder ".", "/vagrant", disabled: true
  config.vm.base_mac = "525400B00700"
  config.vm.provider :virtualbox do |v|
    v.check_guest_additions = false
    v.functional_vboxsf = false
  end
end
`

// ovfTemplate is a machine for VirtualBox by OVF 1 (DMTF DSP0243); what Vagrant is told
// of processors and memory comes over it.
var ovfTemplate = template.Must(template.New("box.ovf").Parse(`<?xml version="1.0" encoding="UTF-8"?>
<Envelope ovf:version="1.0" xml:lang="en-US" xmlns="http://schemas.dmtf.org/ovf/envelope/1" xmlns:ovf="http://schemas.dmtf.org/ovf/envelope/1" xmlns:rasd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_ResourceAllocationSettingData" xmlns:vssd="http://schemas.dmtf.org/wbem/wscim/1/cim-schema/2/CIM_VirtualSystemSettingData" xmlns:vbox="http://www.virtualbox.org/ovf/machine">
  <References>
    <File ovf:href="box-disk001.vmdk" ovf:id="file1" ovf:size="{{.FileBytes}}"/>
  </References>
  <DiskSection>
    <Info>Virtual disks</Info>
    <Disk ovf:capacity="{{.CapacityBytes}}" ovf:capacityAllocationUnits="byte" ovf:diskId="disk1" ovf:fileRef="file1" ovf:format="http://www.vmware.com/interfaces/specifications/vmdk.html#streamOptimized"/>
  </DiskSection>
  <NetworkSection>
    <Info>Networks</Info>
    <Network ovf:name="NAT"><Description>The way out</Description></Network>
  </NetworkSection>
  <VirtualSystem ovf:id="{{.Name}}">
    <Info>A node image</Info>
    <OperatingSystemSection ovf:id="101">
      <Info>Operating system</Info>
      <Description>Linux26_64</Description>
      <vbox:OSType ovf:required="false">Linux26_64</vbox:OSType>
    </OperatingSystemSection>
    <VirtualHardwareSection>
      <Info>Hardware</Info>
      <System>
        <vssd:ElementName>Virtual Hardware Family</vssd:ElementName>
        <vssd:InstanceID>0</vssd:InstanceID>
        <vssd:VirtualSystemIdentifier>{{.Name}}</vssd:VirtualSystemIdentifier>
        <vssd:VirtualSystemType>virtualbox-2.2</vssd:VirtualSystemType>
      </System>
      <Item>
        <rasd:Caption>2 virtual CPUs</rasd:Caption>
        <rasd:Description>Processors</rasd:Description>
        <rasd:ElementName>2 virtual CPUs</rasd:ElementName>
        <rasd:InstanceID>1</rasd:InstanceID>
        <rasd:ResourceType>3</rasd:ResourceType>
        <rasd:VirtualQuantity>2</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:AllocationUnits>MegaBytes</rasd:AllocationUnits>
        <rasd:Caption>2560 MB of memory</rasd:Caption>
        <rasd:Description>Memory</rasd:Description>
        <rasd:ElementName>2560 MB of memory</rasd:ElementName>
        <rasd:InstanceID>2</rasd:InstanceID>
        <rasd:ResourceType>4</rasd:ResourceType>
        <rasd:VirtualQuantity>2560</rasd:VirtualQuantity>
      </Item>
      <Item>
        <rasd:Address>0</rasd:Address>
        <rasd:Caption>sataController0</rasd:Caption>
        <rasd:Description>SATA Controller</rasd:Description>
        <rasd:ElementName>sataController0</rasd:ElementName>
        <rasd:InstanceID>3</rasd:InstanceID>
        <rasd:ResourceSubType>AHCI</rasd:ResourceSubType>
        <rasd:ResourceType>20</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AddressOnParent>0</rasd:AddressOnParent>
        <rasd:Caption>disk1</rasd:Caption>
        <rasd:Description>Disk Image</rasd:Description>
        <rasd:ElementName>disk1</rasd:ElementName>
        <rasd:HostResource>/disk/disk1</rasd:HostResource>
        <rasd:InstanceID>4</rasd:InstanceID>
        <rasd:Parent>3</rasd:Parent>
        <rasd:ResourceType>17</rasd:ResourceType>
      </Item>
      <Item>
        <rasd:AutomaticAllocation>true</rasd:AutomaticAllocation>
        <rasd:Caption>Ethernet adapter on 'NAT'</rasd:Caption>
        <rasd:Connection>NAT</rasd:Connection>
        <rasd:ElementName>Ethernet adapter on 'NAT'</rasd:ElementName>
        <rasd:InstanceID>5</rasd:InstanceID>
        <rasd:ResourceSubType>virtio</rasd:ResourceSubType>
        <rasd:ResourceType>10</rasd:ResourceType>
      </Item>
    </VirtualHardwareSection>
  </VirtualSystem>
</Envelope>
`))
