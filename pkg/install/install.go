// Package install is how a machine without a system gets one over HTTP: what it and the
// server say to each other, and the writing of the image.
//
//	machine                              server
//	POST /v1/hello     Hello       ->    Plan
//	GET  IMAGE         Range       ->    zstd frames, one per chunk (see Index)
//	POST /v1/progress  Progress    ->
//	GET  SEED                      ->    a tar of the node's first-boot config
//	POST /v1/installed Progress    ->
//
// The server decides; the machine looks again before it writes, and writes only to the disk
// that the plan names, if that still holds what it told of it.
package install

// Where the server answers.
const (
	HelloPath     = "/v1/hello"
	ProgressPath  = "/v1/progress"
	InstalledPath = "/v1/installed"
)

// Hello is what a machine tells of itself.
type Hello struct {
	MAC       string `json:"mac"`    // of the card that it booted from: 52:54:00:17:08:01
	UUID      string `json:"uuid"`   // SMBIOS', lower case
	Serial    string `json:"serial"` // SMBIOS'
	MemoryMiB int    `json:"memoryMiB"`
	Disks     []Disk `json:"disks"`
}

// What a disk holds.
const (
	Empty  = "empty"  // zeros at both ends, or a partition table without partitions, and no signature that is known
	Kimage = "kimage" // a partition KIMAGE, or what an installation left half-way
	Other  = "other"  // anything else: a file system, partitions, RAID, LVM
)

// Disk is a whole disk that could be written to.
type Disk struct {
	Name        string   `json:"name"`  // the kernel's: vda
	Paths       []string `json:"paths"` // its names below /dev/disk, if any
	Model       string   `json:"model"`
	Serial      string   `json:"serial"`
	SizeBytes   int64    `json:"sizeBytes"`
	SectorBytes int      `json:"sectorBytes"` // logical
	Content     string   `json:"content"`
	Cluster     string   `json:"cluster,omitempty"`    // of kimage's: the UID of the cluster whose state it holds
	Node        string   `json:"node,omitempty"`       // and its node
	Unfinished  bool     `json:"unfinished,omitempty"` // an installation that ended half-way
	What        string   `json:"what,omitempty"`       // of another's: what was found, for people
}

// What a machine is to do.
const (
	Write = "install" // write the image
	Wait  = "wait"    // ask again later
	Local = "boot"    // nothing: boot the disk
	Stop  = "stop"    // say the reason and wait for a person; asked again every minute
)

// Plan is the server's answer.
type Plan struct {
	Action string `json:"action"`
	Reason string `json:"reason,omitempty"` // why not, and what to do about it
	Node   string `json:"node,omitempty"`
	Disk   string `json:"disk,omitempty"`   // Disk.Name
	Image  string `json:"image,omitempty"`  // URL of the frames
	Index  string `json:"index,omitempty"`  // URL of the Index
	SHA256 string `json:"sha256,omitempty"` // of the Index, as it is served
	Seed   string `json:"seed,omitempty"`   // URL
	SeedTo Place  `json:"seedTo,omitzero"`  // where the config goes
}

// Place is a directory in a file system of the image.
type Place struct {
	Partition int    `json:"partition"` // number
	Type      string `json:"type"`      // of the file system: ext4, btrfs
	Directory string `json:"directory"`
}

// Progress is told every few seconds, and once when all is done.
type Progress struct {
	MAC   string `json:"mac"`
	Phase string `json:"phase"` // wiping, writing, configuring, installed, or failed
	Done  int64  `json:"done"`  // bytes of the disk
	Total int64  `json:"total"`
	Error string `json:"error,omitempty"`
}

// Index says where the chunks of an image are. Each but the last has ChunkBytes of the
// disk; in the file their frames follow one another.
type Index struct {
	DiskBytes  int64   `json:"diskBytes"`
	ChunkBytes int64   `json:"chunkBytes"`
	Chunks     []Chunk `json:"chunks"`
}

// Chunk is one chunk. A chunk of zeros has no bytes in the file.
type Chunk struct {
	Packed int64  `json:"packed"`           // bytes of its frame; 0: it is zeros
	SHA256 string `json:"sha256,omitempty"` // of the unpacked bytes
}
