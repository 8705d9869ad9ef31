package gcetest

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"os"
	"path/filepath"
)

// Operator is the environment, in the form "key=value", of a process that asks this server
// with a service account's credentials, until the test ends.
func (s *Server) Operator() []string {
	s.t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{"type": "service_account", "project_id": s.Project, "private_key_id": "1", "client_email": "operator@" + s.Project + ".iam.gserviceaccount.com", "client_id": "1",
		"token_uri": s.URL + "/token", "private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	if err != nil {
		s.t.Fatal(err)
	}
	file := filepath.Join(s.t.TempDir(), "account.json")
	if err := os.WriteFile(file, account, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return []string{"GOOGLE_APPLICATION_CREDENTIALS=" + file, "KIMAGE_GCE_ENDPOINT=" + s.URL}
}
