package pgp

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

func on(day string) func() time.Time {
	at, err := time.Parse(time.DateOnly, day)
	if err != nil {
		panic(err)
	}
	return func() time.Time { return at }
}

func TestVerify(t *testing.T) {
	vendor, other := need.NewSigner(t, "2025-01-01"), need.NewSigner(t, "2025-01-01")
	print := vendor.Fingerprint
	content := bytes.Repeat([]byte("an image\n"), 100_000)
	const day = "2026-03-01"
	keys := vendor.Keys(day)
	detached := vendor.Sign(day, content)
	armored := vendor.Sign(day, content, "--armor")
	for name, tt := range map[string]struct {
		keys, content, signature []byte
		pinned                   string
		today                    string
		want                     string // error; empty: it verifies
		isKey                    bool
	}{
		"binary":              {keys, content, detached, print, "2026-11-26", "", false},
		"armored":             {keys, content, armored, print, "2026-11-26", "", false},
		"binary keys":         {vendor.GPG(day, nil, "--export"), content, detached, print, "2026-11-26", "", false},
		"tampered":            {keys, append([]byte("X"), content[1:]...), detached, print, "2026-11-26", "not valid", false},
		"truncated":           {keys, content[:len(content)-1], detached, print, "2026-11-26", "not valid", false},
		"truncated signature": {keys, content, detached[:len(detached)-9], print, "2026-11-26", "not valid", false},
		"no signature":        {keys, content, nil, print, "2026-11-26", "not signed", true},
		"a web page":          {keys, content, []byte("<html>not found</html>"), print, "2026-11-26", "not valid", false},
		"another's key":       {keys, content, other.Sign(day, content), print, "2026-11-26", "not signed by a valid key", true},
		"subkey expired":      {keys, content, detached, print, "2027-01-02", "expired", true},
		"made with SHA-1":     {keys, content, vendor.Sign(day, content, "--digest-algo", "SHA1"), print, "2026-11-26", "not valid", false},
		"from the future":     {keys, content, detached, print, "2026-02-01", "yet to come", false},
		"key is not pinned":   {keys, content, detached, other.Fingerprint, "2026-11-26", "none of these OpenPGP keys is " + other.Fingerprint, false},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := ReadKeys(tt.keys, []string{tt.pinned}, on(tt.today))
			var got, judged Signed
			if err == nil {
				got, err = k.Verify(bytes.NewReader(tt.content), tt.signature)
				j := k.Judge(tt.signature)
				for rest := tt.content; len(rest) > 0; {
					n := min(len(rest), 70_001)
					j.Write(rest[:n])
					rest = rest[n:]
				}
				var jerr error
				if judged, jerr = j.Verdict(); judged != got || fmt.Sprint(jerr) != fmt.Sprint(err) {
					t.Errorf("in one piece: %v, %v; in pieces: %v, %v", got, err, judged, jerr)
				}
			}
			if tt.want == "" {
				if err != nil || got.By != print || got.At.Format(time.DateOnly) != day {
					t.Errorf("%v, %v", got, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || errors.Is(err, ErrKey) != tt.isKey {
				t.Errorf("%v", err)
			}
		})
	}
}

func TestCleartext(t *testing.T) {
	vendor := need.NewSigner(t, "2025-01-01")
	print := vendor.Fingerprint
	text := []byte("# SHA512 HASH\nabcd  image\n- dashes\n")
	message := vendor.GPG("2026-03-01", text, "--clearsign")
	k, err := ReadKeys(vendor.Keys("2026-03-01"), []string{print}, on("2026-11-26"))
	if err != nil {
		t.Fatal(err)
	}
	if !IsCleartext(message) || IsCleartext(text) {
		t.Error("what is signed in the clear is not recognised")
	}
	got, by, err := k.Cleartext(message)
	if err != nil || string(got) != string(text) || by.By != print {
		t.Errorf("%q, %v, %v", got, by, err)
	}
	for name, m := range map[string][]byte{
		"tampered":   bytes.Replace(message, []byte("abcd"), []byte("abce"), 1),
		"with more":  append(bytes.Clone(message), "cdef  image\n"...),
		"no message": text,
	} {
		if _, _, err := k.Cleartext(m); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// TestNewerCopy: what a new subkey signs needs a copy of the key that has it.
func TestNewerCopy(t *testing.T) {
	vendor := need.NewSigner(t, "2025-01-01")
	print := vendor.Fingerprint
	old := vendor.Keys("2026-03-01")
	vendor.AddSubkey("2027-01-01")
	content := []byte("a newer image")
	signature := vendor.Sign("2027-02-01", content)
	for name, tt := range map[string]struct {
		keys []byte
		want error
	}{"the old copy": {old, ErrKey}, "the new one": {vendor.Keys("2027-02-01"), nil}} {
		k, err := ReadKeys(tt.keys, []string{print}, on("2027-03-01"))
		if err != nil {
			t.Fatal(err)
		}
		if err := k.Usable(signature); !errors.Is(err, tt.want) {
			t.Errorf("%s: before the content: %v", name, err)
		}
		if _, err := k.Verify(bytes.NewReader(content), signature); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ReadKeys([]byte("no key"), []string{print}, nil); err == nil {
		t.Error("nonsense is read as keys")
	}
}
