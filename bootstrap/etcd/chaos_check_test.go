//go:build chaos

package etcd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// walRecord is a Record{1: type, 2: crc, 3: data} of a log.
type walRecord struct {
	message
	end int // where its data ends in the file, which is where the record does
}

// walRecords are the records of a log file: frames of an 8-byte length, which has
// the length of the padding in its first byte, and a Record.
func walRecords(data []byte) iter.Seq[walRecord] {
	return func(yield func(walRecord) bool) {
		for at := uint64(0); at+8 <= uint64(len(data)); {
			length := binary.LittleEndian.Uint64(data[at:])
			size, pad := length&(1<<56-1), uint64(0)
			if length>>63 != 0 {
				pad = length >> 56 & 7
			}
			end := at + 8 + size
			if size == 0 || end+pad > uint64(len(data)) || !yield(walRecord{protobuf(data[at+8 : end]), int(end)}) {
				return
			}
			at = end + pad
		}
	}
}

// walIDs reads member and cluster ID from the first log file of a data directory:
// the record of type 1 holds Metadata{1: NodeID, 2: ClusterID}.
func walIDs(dir string) (member, cluster uint64, err error) {
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		return 0, 0, fmt.Errorf("no log in %s", dir)
	}
	slices.Sort(logs)
	data, err := readUsed(logs[0])
	if err != nil {
		return 0, 0, err
	}
	for record := range walRecords(data) {
		if record.number[1] == recordMetadata {
			meta := protobuf(record.bytes[3])
			return meta.number[1], meta.number[2], nil
		}
	}
	return 0, 0, fmt.Errorf("no metadata in %s", logs[0])
}

// message is a protobuf message of numbers and bytes.
type message struct {
	number map[int]uint64
	bytes  map[int][]byte
}

func protobuf(data []byte) message {
	m := message{map[int]uint64{}, map[int][]byte{}}
	for len(data) > 0 {
		key, n := binary.Uvarint(data)
		if n <= 0 {
			break
		}
		data = data[n:]
		v, n := binary.Uvarint(data)
		if n <= 0 {
			break
		}
		data = data[n:]
		if key&7 == 2 {
			if v > uint64(len(data)) {
				break
			}
			m.bytes[int(key>>3)], data = data[:v], data[v:]
		} else {
			m.number[int(key>>3)] = v
		}
	}
	return m
}

// checker remembers every data directory that was ever seen.
type checker struct {
	incarnation map[uint64]string   // of a member ID
	member      map[string]uint64   // of an incarnation
	history     map[uint64]*history // of a cluster
	seen        int
}

// dataOf are a machine's data directories, also those that were set aside.
func dataOf(m *chaosMachine) (all []string) {
	entries, _ := filepath.Glob(filepath.Join(m.state(), dataDir, "*"))
	if m.away {
		entries, _ = filepath.Glob(filepath.Join(m.Dir, "disk.away", "state", dataDir, "*"))
	}
	for _, dir := range entries {
		// Without a log it is what an etcd leaves that found nothing there, see TestEtcdMakesNoData.
		if log, _ := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal")); len(log) > 0 && !strings.HasSuffix(dir, partial) {
			all = append(all, dir)
		}
	}
	return all
}

// each has do read all data directories, each under the name that it has at that moment.
func each(machines []*chaosMachine, do func(m *chaosMachine, dir string) error) error {
	for _, m := range machines {
		for all := dataOf(m); len(all) > 0; all = all[1:] {
			err := do(m, all[0])
			if _, gone := os.Stat(all[0]); err != nil && errors.Is(gone, fs.ErrNotExist) {
				all = append(all[:1:1], dataOf(m)...) // it was set aside while it was read
				continue
			}
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads the logs of all machines: who were members after each change must
// differ from before by one, and be the same to all.
func (c *checker) read(machines []*chaosMachine) error {
	return each(machines, func(m *chaosMachine, dir string) error {
		_, cluster, err := walIDs(dir)
		if err != nil {
			return err
		}
		if c.history[cluster] == nil {
			c.history[cluster] = newHistory()
		}
		if err := c.history[cluster].read(dir); err != nil {
			return fmt.Errorf("cluster %x: %w", cluster, err)
		}
		return nil
	})
}

// changes is how many changes of members the logs hold.
func (c *checker) changes() (n int) {
	for _, h := range c.history {
		n += len(h.configs)
	}
	return n
}

// look reads the data of all machines: one cluster ID among those that are
// there, and no member ID in two incarnations, whenever they were.
func (c *checker) look(machines []*chaosMachine) error {
	clusters := map[uint64][]string{}
	err := each(machines, func(m *chaosMachine, dir string) error {
		name := strings.TrimPrefix(filepath.Base(dir), asideHead)
		member, cluster, err := walIDs(dir)
		if err != nil {
			return fmt.Errorf("data of %s: %w", m.Name, err)
		}
		if o := c.incarnation[member]; o != "" && o != name {
			return fmt.Errorf("S2: member ID %x of incarnations %s and %s", member, o, name)
		}
		if o, ok := c.member[name]; ok && o != member {
			return fmt.Errorf("S2: incarnation %s with member IDs %x and %x", name, o, member)
		}
		if _, ok := c.member[name]; !ok {
			c.seen++
		}
		c.incarnation[member], c.member[name] = name, member
		clusters[cluster] = append(clusters[cluster], m.Name)
		return nil
	})
	if err == nil && len(clusters) > 1 {
		return fmt.Errorf("S1: data of several clusters: %x", clusters)
	}
	return err
}
