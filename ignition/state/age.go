package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
	"filippo.io/age/agessh"
)

func encrypt(data []byte, recipients []age.Recipient) ([]byte, error) {
	var b bytes.Buffer
	w, err := age.Encrypt(&b, recipients...)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	err = w.Close()
	return b.Bytes(), err
}

func decrypt(data []byte, identities []age.Identity) ([]byte, error) {
	if len(identities) == 0 {
		return nil, errors.New("it is encrypted: name the file with your age identity (--identity FILE or $KIMAGE_AGE_IDENTITY)")
	}
	r, err := age.Decrypt(bytes.NewReader(data), identities...)
	if err != nil {
		return nil, fmt.Errorf("decrypting (is it encrypted for another identity, or damaged?): %w", err)
	}
	return io.ReadAll(r)
}

// readIdentities reads age identities, or an SSH private key without passphrase.
func readIdentities(file string) ([]age.Identity, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("age identity: %w", err)
	}
	if identities, err := age.ParseIdentities(bytes.NewReader(data)); err == nil {
		return identities, nil
	}
	identity, err := agessh.ParseIdentity(data)
	if err != nil {
		return nil, fmt.Errorf("%s holds neither an age identity nor an SSH key without passphrase", file) // the cause could quote it
	}
	return []age.Identity{identity}, nil
}
