package install_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/kimage-project/kimage/pkg/install"
)

// TestNotAsked: a server that knows nothing of an installation is told from one that has
// another reason to refuse, which may pass.
func TestNotAsked(t *testing.T) {
	for status, want := range map[int]bool{http.StatusConflict: true, http.StatusInternalServerError: false, http.StatusForbidden: false} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", status) }))
		client, err := install.NewClient(server.URL)
		if err != nil {
			t.Fatal(err)
		}
		err = client.Installed(t.Context(), install.Progress{MAC: "52:54:00:17:08:01", Phase: install.Installed})
		server.Close()
		if err == nil || errors.Is(err, install.ErrNotAsked) != want {
			t.Errorf("status %d: %v", status, err)
		}
	}
}
