// Package pgp verifies OpenPGP signatures by keys that are pinned by the fingerprint of
// their primary key.
//
// A signing key of a vendor is a subkey that expires and is replaced; what stays is the
// primary key, which vouches for each of them. So a newer copy of a key can be taken from
// anywhere: only keys whose primary one is pinned are read from it. The packets are read
// by ProtonMail's go-crypto; a signature by a key that has expired or was revoked counts
// as none, and so does one made with MD5 or SHA-1.
package pgp

import (
	"bytes"
	"crypto"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// ErrKey says that none of the keys made a signature, or that the one that did is not
// valid now: a newer copy of the keys may help. Any other error of a verification does not
// depend on the keys.
var ErrKey = errors.New("not signed by a valid key of the vendor")

// Keys are public keys.
type Keys struct {
	entities openpgp.EntityList
	now      func() time.Time
}

// Signed is what a signature says.
type Signed struct {
	By string    // fingerprint of the primary key, upper case
	At time.Time // when
}

// ReadKeys reads the keys in data, armored or binary, whose primary keys are pinned;
// others are left out. At least one must be there. now is the clock by which keys
// expire; nil: the machine's.
func ReadKeys(data []byte, pinned []string, now func() time.Time) (*Keys, error) {
	all, err := readAll(data)
	if err != nil {
		return nil, fmt.Errorf("reading OpenPGP keys: %w", err)
	}
	k := &Keys{now: now}
	if now == nil {
		k.now = time.Now
	}
	for _, e := range all {
		if slices.Contains(pinned, fingerprint(e)) {
			k.entities = append(k.entities, e)
		}
	}
	if len(k.entities) == 0 {
		return nil, fmt.Errorf("none of these OpenPGP keys is %s", strings.Join(pinned, " or "))
	}
	return k, nil
}

// readAll reads keys in one binary or several armored blocks.
func readAll(data []byte) (all openpgp.EntityList, err error) {
	begin := []byte("-----BEGIN PGP")
	if !bytes.Contains(data, begin) {
		return openpgp.ReadKeyRing(bytes.NewReader(data))
	}
	for rest := data; ; {
		at := bytes.Index(rest, begin)
		if at < 0 {
			return all, nil
		}
		rest = rest[at:]
		some, err := openpgp.ReadArmoredKeyRing(bytes.NewReader(rest))
		if err != nil {
			return nil, err
		}
		all, rest = append(all, some...), rest[len(begin):]
	}
}

func fingerprint(e *openpgp.Entity) string {
	return strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
}

// weak are hashes for which another content with the same signature can be made.
var weak = []crypto.Hash{crypto.MD5, crypto.SHA1, crypto.RIPEMD160}

func (k *Keys) config() *packet.Config { return &packet.Config{Time: k.now} }

// Verify verifies a detached signature, armored or binary, of what it reads.
func (k *Keys) Verify(signed io.Reader, signature []byte) (Signed, error) {
	raw, err := dearmor(signature)
	if err != nil {
		return Signed{}, err
	}
	sig, signer, err := openpgp.VerifyDetachedSignature(k.entities, signed, bytes.NewReader(raw), k.config())
	return k.result(sig, signer, err)
}

// makers returns the packet of a detached signature and those of the keys that it names
// as its maker.
func (k *Keys) makers(signature []byte) (*packet.Signature, []openpgp.Key, error) {
	raw, err := dearmor(signature)
	if err != nil {
		return nil, nil, err
	}
	p, err := packet.Read(bytes.NewReader(raw))
	if err != nil {
		return nil, nil, fmt.Errorf("the signature is not valid: %w", err)
	}
	sig, ok := p.(*packet.Signature)
	if !ok || sig.IssuerKeyId == nil {
		return nil, nil, errors.New("the signature is not valid: it names no maker")
	}
	keys := k.entities.KeysByIdUsage(*sig.IssuerKeyId, packet.KeyFlagSign)
	if len(keys) == 0 {
		return nil, nil, fmt.Errorf("%w: its maker is %X", ErrKey, *sig.IssuerKeyId)
	}
	return sig, keys, nil
}

// Usable says whether a detached signature names one of the keys as its maker, and that
// key is valid now: what can be known before the content is.
func (k *Keys) Usable(signature []byte) error {
	_, keys, err := k.makers(signature)
	if err != nil {
		return err
	}
	for _, key := range keys {
		now := k.now()
		switch {
		case key.Revoked(now) || key.Entity.Revoked(now):
			err = fmt.Errorf("%w: its key was revoked", ErrKey)
		case key.PublicKey.KeyExpired(key.SelfSignature, now) || expired(key.Entity, now):
			err = fmt.Errorf("%w: its key has expired", ErrKey)
		default:
			return nil
		}
	}
	return err
}

// expired says whether the primary key has.
func expired(e *openpgp.Entity, now time.Time) bool {
	id := e.PrimaryIdentity()
	return id == nil || e.PrimaryKey.KeyExpired(id.SelfSignature, now)
}

// Sign says whether there is a key that is valid now and signs.
func (k *Keys) Sign() bool {
	return slices.ContainsFunc(k.entities, func(e *openpgp.Entity) bool {
		_, ok := e.SigningKey(k.now())
		return ok
	})
}

// Claims returns who made a detached signature and when, by its own word: for a signature
// that was verified before.
func (k *Keys) Claims(signature []byte) (Signed, error) {
	sig, keys, err := k.makers(signature)
	if err != nil {
		return Signed{}, err
	}
	return Signed{By: fingerprint(keys[0].Entity), At: sig.CreationTime.UTC()}, nil
}

// Cleartext verifies a message that is signed in the clear and returns its text.
func (k *Keys) Cleartext(message []byte) ([]byte, Signed, error) {
	block, rest := clearsign.Decode(message)
	if block == nil || len(bytes.TrimSpace(rest)) > 0 {
		return nil, Signed{}, errors.New("this is not a message signed in the clear")
	}
	raw, err := io.ReadAll(block.ArmoredSignature.Body)
	if err != nil {
		return nil, Signed{}, fmt.Errorf("reading the signature: %w", err)
	}
	sig, signer, err := openpgp.VerifyDetachedSignature(k.entities, bytes.NewReader(block.Bytes), bytes.NewReader(raw), k.config())
	s, err := k.result(sig, signer, err)
	return append(block.Plaintext, '\n'), s, err // the last line's end belongs to the armor
}

// IsCleartext says whether data is signed in the clear.
func IsCleartext(data []byte) bool {
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN PGP SIGNED MESSAGE-----"))
}

func (k *Keys) result(sig *packet.Signature, signer *openpgp.Entity, err error) (Signed, error) {
	switch {
	case errors.Is(err, pgperrors.ErrUnknownIssuer), errors.Is(err, pgperrors.ErrKeyExpired), errors.Is(err, pgperrors.ErrKeyRevoked):
		return Signed{}, fmt.Errorf("%w: %s", ErrKey, strings.TrimPrefix(err.Error(), "openpgp: "))
	case errors.Is(err, pgperrors.ErrSignatureExpired):
		return Signed{}, errors.New("the signature has expired, or is yet to come: is this machine's clock right?")
	case err != nil:
		return Signed{}, fmt.Errorf("the signature is not valid: %s", strings.TrimPrefix(err.Error(), "openpgp: "))
	case slices.Contains(weak, sig.Hash):
		return Signed{}, fmt.Errorf("the signature is not valid: it was made with %s", sig.Hash)
	}
	return Signed{By: fingerprint(signer), At: sig.CreationTime.UTC()}, nil
}

// dearmor returns the packets of a signature.
func dearmor(signature []byte) ([]byte, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(signature), []byte("-----BEGIN PGP SIGNATURE-----")) {
		return signature, nil
	}
	block, err := armor.Decode(bytes.NewReader(signature))
	if err != nil {
		return nil, fmt.Errorf("reading the signature: %w", err)
	}
	data, err := io.ReadAll(block.Body)
	if err != nil {
		return nil, fmt.Errorf("reading the signature: %w", err)
	}
	return data, nil
}

// Judge verifies a detached signature of what is written to it.
type Judge struct {
	w    *io.PipeWriter
	done chan struct{}
	got  Signed
	err  error
}

// Judge begins the verification of a detached signature.
func (k *Keys) Judge(signature []byte) *Judge {
	r, w := io.Pipe()
	j := &Judge{w: w, done: make(chan struct{})}
	go func() {
		defer close(j.done)
		j.got, j.err = k.Verify(r, signature)
		r.CloseWithError(errors.New("the signature was judged before the end")) // nothing to wait for
	}()
	return j
}

// Write takes the next bytes of what is signed. It never fails: Verdict does.
func (j *Judge) Write(b []byte) (int, error) {
	j.w.Write(b)
	return len(b), nil
}

// Verdict is to be asked for once, after the last byte.
func (j *Judge) Verdict() (Signed, error) {
	j.w.Close()
	<-j.done
	return j.got, j.err
}

// Close ends a verification whose verdict nobody wants.
func (j *Judge) Close() error {
	j.w.CloseWithError(io.ErrUnexpectedEOF)
	<-j.done
	return nil
}
