//go:build chaos

package etcd

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Types of a log's records, as in etcd's wal.go, and of its entries.
const (
	recordMetadata = 1
	recordEntry    = 2 // Entry{1: type, 2: term, 3: index, 4: data}
	recordState    = 3 // HardState{1: term, 2: vote, 3: commit}
	recordSum      = 4
	recordSnapshot = 5 // Snapshot{1: index, 2: term, 3: ConfState{1: voters, 2: learners, 3: voters of a joint change}}

	entryChange   = 1 // ConfChange{2: type, 3: member, 4: context}
	entryChangeV2 = 2 // ConfChangeV2{1: transition, 2: changes}

	changeAdd, changeRemove, changeUpdate, changeAddLearner = 0, 1, 2, 3
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// readUsed reads what is used of a log file, which is longer than that.
func readUsed(path string) (all []byte, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r := bufio.NewReaderSize(f, 1<<18)
	for {
		head, err := r.Peek(8)
		if err != nil {
			return all, nil
		}
		length := binary.LittleEndian.Uint64(head)
		size := 8 + length&(1<<56-1)
		if length>>63 != 0 {
			size += length >> 56 & 7
		}
		if size == 8 || size > 64<<20 {
			return all, nil
		}
		frame := make([]byte, size)
		if _, err := io.ReadFull(r, frame); err != nil {
			return all, nil
		}
		all = append(all, frame...)
	}
}

// logOf are the records of a data directory's log, up to one that is torn or
// damaged.
func logOf(dir string) (all []walRecord, err error) {
	files, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("no log in %s", dir)
	}
	slices.Sort(files)
	sum := uint32(0)
	for _, file := range files {
		data, err := readUsed(file)
		if err != nil {
			return nil, err
		}
		for r := range walRecords(data) {
			if r.number[1] == recordSum {
				if sum != 0 && sum != uint32(r.number[2]) {
					return all, nil
				}
				sum = uint32(r.number[2])
				continue
			}
			if sum = crc32.Update(sum, castagnoli, r.bytes[3]); sum != uint32(r.number[2]) {
				return all, nil
			}
			all = append(all, r)
		}
	}
	return all, nil
}

// repeated are the numbers of a repeated field, packed or not.
func repeated(data []byte, field uint64) (all []uint64) {
	for len(data) > 0 {
		key, n := binary.Uvarint(data)
		v, m := binary.Uvarint(data[max(n, 0):])
		if n <= 0 || m <= 0 {
			return all
		}
		data = data[n+m:]
		switch {
		case key&7 != 2 && key>>3 == field:
			all = append(all, v)
		case key&7 == 2:
			part := data[:min(v, uint64(len(data)))]
			for data = data[len(part):]; len(part) > 0 && key>>3 == field; {
				v, n := binary.Uvarint(part)
				if n <= 0 {
					return all
				}
				all, part = append(all, v), part[n:]
			}
		}
	}
	return all
}

// members are the IDs of a configuration, and whether each votes.
type members map[uint64]bool

func (m members) String() string {
	var all []string
	for _, id := range slices.Sorted(maps.Keys(m)) {
		all = append(all, fmt.Sprintf("%x:%t", id, m[id]))
	}
	return strings.Join(all, " ")
}

// history is what the logs of one cluster say, whichever member has written it.
type history struct {
	entries map[uint64]uint32   // by index: a sum of term, type and data
	configs map[uint64]string   // by the index of a change: the members after it
	urls    map[uint64][]string // of members, as the changes tell
}

func newHistory() *history {
	return &history{map[uint64]uint32{}, map[uint64]string{}, map[uint64][]string{}}
}

// read reads a data directory: the committed changes of members, each of which must
// be of one member. What others have at the same index must be the same.
func (h *history) read(dir string) error {
	log, err := logOf(dir)
	if err != nil {
		return err
	}
	entries, snapshots := map[uint64]message{}, map[uint64]message{}
	commit := uint64(0)
	for _, r := range log {
		m := protobuf(r.bytes[3])
		switch r.number[1] {
		case recordEntry:
			for i := m.number[3]; ; i++ { // what follows was not committed
				if _, ok := entries[i]; !ok {
					break
				}
				delete(entries, i)
			}
			entries[m.number[3]] = m
		case recordState:
			commit = max(commit, m.number[3])
		case recordSnapshot:
			if m.number[1] > 0 && len(m.bytes[3]) > 0 {
				snapshots[m.number[1]] = m
			}
		}
	}
	for i, e := range entries {
		if i > commit {
			continue
		}
		sum := crc32.Update(uint32(e.number[2])<<2|uint32(e.number[1]), castagnoli, e.bytes[4])
		if old, ok := h.entries[i]; ok && old != sum {
			return fmt.Errorf("entry %d in %s is not that of others", i, dir)
		}
		h.entries[i] = sum
	}
	return h.replay(dir, entries, snapshots, commit)
}

// replay follows the changes from the beginning, or from where a snapshot was sent.
func (h *history) replay(dir string, entries, snapshots map[uint64]message, commit uint64) error {
	now, removed := members{}, map[uint64]bool{}
	known := entries[1].number != nil
	for i := uint64(1); i <= commit; i++ {
		e, ok := entries[i]
		if !ok {
			known = false
		} else if known {
			next, err := h.apply(now, removed, e)
			if err != nil {
				return fmt.Errorf("entry %d in %s: %w", i, dir, err)
			}
			if err := oneApart(now, next); err != nil {
				return fmt.Errorf("entry %d in %s: %w", i, dir, err)
			}
			if now = next; e.number[1] != 0 {
				if old, ok := h.configs[i]; ok && old != now.String() {
					return fmt.Errorf("after entry %d in %s the members are %s, and for others %s", i, dir, now, old)
				}
				h.configs[i] = now.String()
			}
		}
		if s, ok := snapshots[i]; ok {
			state := members{}
			for _, id := range repeated(s.bytes[3], 1) {
				state[id] = true
			}
			for _, id := range repeated(s.bytes[3], 2) {
				state[id] = false
			}
			if len(repeated(s.bytes[3], 3)) > 0 {
				return fmt.Errorf("the snapshot at %d in %s is within a joint change", i, dir)
			}
			if known && state.String() != now.String() {
				return fmt.Errorf("the snapshot at %d in %s has the members %s, and its log %s", i, dir, state, now)
			}
			now, known = state, true
		}
	}
	return nil
}

// apply is what etcd makes of a committed entry: of a change that has become
// impossible, nothing.
func (h *history) apply(now members, removed map[uint64]bool, e message) (members, error) {
	switch e.number[1] {
	case 0:
		return now, nil
	case entryChange:
	case entryChangeV2:
		return nil, errors.New("it changes more than one member")
	default:
		return nil, fmt.Errorf("BUG: an entry of type %d", e.number[1])
	}
	c := protobuf(e.bytes[4])
	id := c.number[3]
	var context struct {
		PeerURLs  []string `json:"peerURLs"`
		IsPromote bool     `json:"isPromote"`
	}
	if len(c.bytes[4]) > 0 {
		if err := json.Unmarshal(c.bytes[4], &context); err != nil {
			return nil, err
		}
	}
	votes, there := now[id]
	next := maps.Clone(now)
	switch kind := c.number[2]; {
	case kind == changeRemove && there:
		delete(next, id)
		removed[id] = true
	case kind == changeAdd && context.IsPromote:
		if there && !votes {
			next[id] = true
		}
	case kind == changeAdd || kind == changeAddLearner:
		taken := there || removed[id]
		for other, v := range now {
			taken = taken || kind == changeAddLearner && !v
			for _, u := range h.urls[other] {
				taken = taken || slices.Contains(context.PeerURLs, u)
			}
		}
		if h.urls[id] = context.PeerURLs; !taken {
			next[id] = kind == changeAdd
		}
	case kind == changeUpdate:
		h.urls[id] = context.PeerURLs
	}
	return next, nil
}

// oneApart says whether at most one member differs.
func oneApart(a, b members) error {
	differ := map[uint64]bool{}
	for _, pair := range [][2]members{{a, b}, {b, a}} {
		for id, votes := range pair[0] {
			if other, ok := pair[1][id]; !ok || other != votes {
				differ[id] = true
			}
		}
	}
	if len(differ) > 1 {
		return fmt.Errorf("members %s become %s at once", a, b)
	}
	return nil
}

// putLog writes the log of a data directory, as etcd does.
type putLog struct {
	data []byte
	sum  uint32
}

// field is a field of a message: a number, or bytes.
type field struct {
	key   uint64
	value any
}

func encode(fields ...field) (out []byte) {
	for _, f := range fields {
		switch v := f.value.(type) {
		case int:
			out = binary.AppendUvarint(binary.AppendUvarint(out, f.key<<3), uint64(v))
		case []byte:
			out = append(binary.AppendUvarint(binary.AppendUvarint(out, f.key<<3|2), uint64(len(v))), v...)
		}
	}
	return out
}

func (l *putLog) put(kind int, data []byte) {
	l.sum = crc32.Update(l.sum, castagnoli, data)
	record := encode(field{1, kind}, field{2, int(l.sum)}, field{3, data})
	pad := (8 - len(record)%8) % 8
	length := uint64(len(record))
	if pad > 0 {
		length |= uint64(0x80|pad) << 56
	}
	l.data = append(append(binary.LittleEndian.AppendUint64(l.data, length), record...), make([]byte, pad)...)
}

func (l *putLog) entry(index, kind int, data []byte) {
	l.put(recordEntry, encode(field{1, kind}, field{2, 1}, field{3, index}, field{4, data}))
}

func (l *putLog) change(index, kind, id int, context string) {
	l.entry(index, entryChange, encode(field{1, 9}, field{2, kind}, field{3, id}, field{4, []byte(context)}))
}

func (l *putLog) commit(index int) {
	l.put(recordState, encode(field{1, 1}, field{2, 1}, field{3, index}))
}

func (l *putLog) snapshot(index int, voters ...int) {
	var state []field
	for _, v := range voters {
		state = append(state, field{1, v})
	}
	l.put(recordSnapshot, encode(field{1, index}, field{2, 1}, field{3, encode(state...)}))
}

// TestHistory: what the checker must see in logs, on logs that no etcd would write.
func TestHistory(t *testing.T) {
	url := func(n int) string { return fmt.Sprintf(`{"peerURLs":["https://10.0.0.%d:2380"]}`, n) }
	founded := func(l *putLog) {
		for i := 1; i <= 3; i++ {
			l.change(i, changeAdd, i, url(i))
		}
		l.commit(3)
		l.snapshot(3, 1, 2, 3)
	}
	replaces := func(l *putLog) {
		founded(l)
		l.change(4, changeRemove, 3, "")
		l.change(5, changeAddLearner, 4, url(3))
		l.change(6, changeAddLearner, 5, url(3)) // another had the same thought: etcd makes nothing of it
		l.entry(7, 0, []byte("a write"))
		l.change(8, changeAdd, 4, `{"peerURLs":["https://10.0.0.3:2380"],"isPromote":true}`)
		l.commit(8)
	}
	for _, c := range []struct {
		name    string
		first   func(l *putLog)
		second  func(l *putLog) // of another member; nil: there is none
		changes int
		want    string
	}{
		{name: "founded", first: founded, second: founded, changes: 3},
		{name: "replaced", first: replaces, second: founded, changes: 7},
		{name: "joined by a snapshot", first: replaces, second: func(l *putLog) { l.snapshot(8, 1, 2, 4); l.entry(9, 0, nil); l.commit(9) }, changes: 7},
		{name: "joined by another snapshot", first: replaces, second: func(l *putLog) {
			l.snapshot(8, 1, 2, 5)
			l.change(9, changeRemove, 5, "")
			l.commit(9)
		}, changes: 8},
		{name: "not committed", first: replaces, second: func(l *putLog) { founded(l); l.change(4, changeRemove, 2, "") }, changes: 7},
		{name: "overwritten before it was committed", first: replaces, second: func(l *putLog) {
			founded(l)
			l.change(4, changeRemove, 2, "")
			l.change(4, changeRemove, 3, "")
			l.commit(4)
		}, changes: 7},
		{name: "two changes at once", first: func(l *putLog) {
			founded(l)
			l.entry(4, entryChangeV2, encode(field{2, encode(field{1, changeRemove}, field{2, 2})}, field{2, encode(field{1, changeRemove}, field{2, 3})}))
			l.commit(4)
		}, want: "more than one member"},
		{name: "another change in the same place", first: replaces, second: func(l *putLog) {
			founded(l)
			l.change(4, changeRemove, 2, "")
			l.commit(4)
		}, want: "entry 4 in .* is not that of others"},
		{name: "another write in the same place", first: replaces, second: func(l *putLog) {
			replaces(l)
			l.entry(7, 0, []byte("another"))
			l.commit(7)
		}, want: "is not that of others"},
		{name: "a snapshot of other members", first: func(l *putLog) { founded(l); l.entry(4, 0, nil); l.commit(4); l.snapshot(4, 1, 2) }, want: "and its log 1:true 2:true 3:true"},
		{name: "other members by the same changes", first: func(l *putLog) { founded(l); l.change(4, changeRemove, 3, ""); l.commit(4) },
			second: func(l *putLog) { l.snapshot(3, 1, 2, 4); l.change(4, changeRemove, 3, ""); l.commit(4) }, want: "and for others 1:true 2:true"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := newHistory()
			var err error
			for _, write := range []func(*putLog){c.first, c.second} {
				if write == nil {
					continue
				}
				l, dir := &putLog{}, t.TempDir()
				l.put(recordMetadata, encode(field{1, 1}, field{2, 1}))
				write(l)
				file := filepath.Join(dir, "member", "wal", "0.wal")
				if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(file, append(l.data, make([]byte, 4096)...), 0o600); err != nil {
					t.Fatal(err)
				}
				if err = h.read(dir); err != nil {
					break
				}
			}
			if c.want == "" && (err != nil || len(h.configs) != c.changes) {
				t.Errorf("got %v, changes %v", err, h.configs)
			}
			if c.want != "" && (err == nil || !regexp.MustCompile(c.want).MatchString(err.Error())) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}
