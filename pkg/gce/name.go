package gce

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
)

const (
	maxName = 63 // bytes of a resource's name (RFC 1035)
	maxBase = 58 // of a managed group's baseInstanceName: what it makes of it has five more
)

// name joins parts into the name of a resource. What would be too long ends in a digest
// instead, so that names stay different.
func name(parts ...string) string { return nameUpTo(maxName, parts...) }

func nameUpTo(most int, parts ...string) string {
	full := clean(strings.Join(parts, "-"))
	if full[0] < 'a' || full[0] > 'z' {
		full = "k-" + full
	}
	if len(full) <= most {
		return full
	}
	const digits = 8
	return strings.TrimRight(full[:most-digits-1], "-") + "-" + sum([]byte(full))[:digits]
}

// clean makes of a version or such what may be in a name or a label.
func clean(s string) string {
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-' {
			return r
		}
		return '-'
	}, strings.ToLower(s)), "-")
}

func sum(data []byte) string {
	s := sha256.Sum256(data)
	return hex.EncodeToString(s[:])
}

// digest names what a resource is to be like; it fits in a label.
func digest(v any) (string, error) {
	data, err := json.Marshal(v)
	return sum(data)[:16], err
}
