package timeline

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"time"
)

// record is one line that a unit wrote, or that systemd wrote of it.
type record struct {
	at            time.Duration
	clock         time.Time // as the machine's clock was
	unit, message string
	started       bool // systemd says that the unit was
}

// JournalFields are those of every record that is read.
const JournalFields = "MESSAGE,_SYSTEMD_UNIT,MESSAGE_ID,UNIT"

// startedID is SD_MESSAGE_UNIT_STARTED, sd-messages.h.
const startedID = "39f53479d3a045ac8e11786248231fbf"

// parseJournal reads what journalctl -o json prints (systemd's "Journal JSON
// Format").
func parseJournal(data []byte) (out []record, err error) {
	for dec := json.NewDecoder(bytes.NewReader(data)); ; {
		var j struct {
			At      string          `json:"__MONOTONIC_TIMESTAMP"`
			Clock   string          `json:"__REALTIME_TIMESTAMP"`
			Unit    string          `json:"_SYSTEMD_UNIT"`
			Message json.RawMessage `json:"MESSAGE"`
			ID      string          `json:"MESSAGE_ID"`
			Of      string          `json:"UNIT"`
		}
		if err := dec.Decode(&j); errors.Is(err, io.EOF) {
			return out, nil
		} else if err != nil {
			return nil, fmt.Errorf("reading the journal: %w", err)
		}
		us, err := strconv.ParseInt(j.At, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading the journal: a record without its time: %w", err)
		}
		clock, err := strconv.ParseInt(j.Clock, 10, 64)
		if err != nil {
			return nil, fmt.Errorf("reading the journal: a record without its time: %w", err)
		}
		r := record{at: time.Duration(us) * time.Microsecond, clock: time.UnixMicro(clock), unit: j.Unit, message: text(j.Message)}
		if j.ID == startedID {
			r.unit, r.started = j.Of, true
		}
		out = append(out, r)
	}
}

// ReadyAt is what the clock showed when the agent, of whose lines agent is the
// journal, told the first Ready; zero: it has not yet.
func ReadyAt(agent []byte) (time.Time, error) {
	records, err := parseJournal(agent)
	for _, r := range records {
		if m := phaseLine.FindStringSubmatch(r.message); m != nil && m[1] == phaseReady {
			return r.clock, err
		}
	}
	return time.Time{}, err
}

// text is a string, or the bytes of one that is not UTF-8 or not printable; a
// field that is too long to be printed is null.
func text(message json.RawMessage) string {
	var s string
	if json.Unmarshal(message, &s) == nil {
		return s
	}
	var numbers []uint16
	if json.Unmarshal(message, &numbers) != nil {
		return ""
	}
	b := make([]byte, len(numbers))
	for i, n := range numbers {
		b[i] = byte(n)
	}
	return string(b)
}
