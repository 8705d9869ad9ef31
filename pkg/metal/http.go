package metal

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"html/template"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/kimage-project/kimage/pkg/install"
)

const (
	imagePath = "/image/frames"
	indexPath = "/image/index"
	seedPath  = "/seed/"

	// FirmwarePath is where loaders are.
	FirmwarePath = "/firmware/"

	maxHelloBytes = 256 << 10 // of a machine with hundreds of disks
	bodyTime      = 30 * time.Second
)

// Handler answers machines, and people with a browser.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /ipxe", s.ipxe)
	mux.HandleFunc("GET /boot/kernel", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, s.config.Image.Kernel) })
	mux.HandleFunc("GET /boot/initrd", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, s.config.Image.Initrd) })
	mux.HandleFunc("GET "+imagePath, func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, s.config.Image.Frames) })
	mux.HandleFunc("GET "+indexPath, func(w http.ResponseWriter, _ *http.Request) { w.Write(s.config.Image.Index) })
	mux.HandleFunc("GET "+FirmwarePath+"{name}", func(w http.ResponseWriter, r *http.Request) {
		http.ServeFileFS(w, r, s.config.Firmware, r.PathValue("name"))
	})
	mux.HandleFunc("GET "+seedPath+"{token}", s.seed)
	mux.HandleFunc("POST "+install.HelloPath, s.hello)
	mux.HandleFunc("POST "+install.ProgressPath, s.told)
	mux.HandleFunc("POST "+install.InstalledPath, s.told)
	mux.HandleFunc("GET /status.json", s.json)
	mux.HandleFunc("GET /{$}", s.page)
	return mux
}

// ipxe answers the loader: who are you, or what you are to boot.
func (s *Server) ipxe(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	q := r.URL.Query()
	if q.Get("mac") == "" {
		w.Write(script("who", s.config.URL, ""))
		return
	}
	mac, err := macOf(q.Get("mac"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	a := asker{mac: mac, uuid: strings.ToLower(q.Get("uuid")), serial: strings.TrimSpace(q.Get("serial"))}
	s.mu.Lock()
	defer s.mu.Unlock()
	m, known := s.find(a)
	if !known {
		s.note("", false, a.mac, "unknown", fmt.Sprintf("UUID %s, serial number %q: add it to the cluster file (match: {mac: %q})", a.uuid, a.serial, a.mac))
		w.Write(script("unknown", s.config.URL, ""))
		return
	}
	remembered, err := s.recall(m.Name)
	if err != nil {
		s.note(m.Name, true, a.mac, "failed", err.Error())
		http.Error(w, "see the server", http.StatusInternalServerError)
		return
	}
	if remembered.State == installed && !remembered.released {
		s.note(m.Name, true, a.mac, "boots its disk", "")
		w.Write(script("disk", s.config.URL, m.Name))
		return
	}
	s.note(m.Name, true, a.mac, "boots the installer", "")
	w.Write(script("install", s.config.URL, m.Name))
}

// macOf reads a hardware address.
func macOf(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("%.40q is no hardware address", text)
	}
	return mac.String(), nil
}

// from makes sure that who asks has the hardware address that it says.
func (s *Server) from(r *http.Request, mac string) error {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return err
	}
	is, err := s.config.Neighbor(at.Addr().Unmap())
	if err != nil {
		return err
	}
	if !strings.EqualFold(is, mac) {
		return fmt.Errorf("%s says that its MAC is %s, and it is %s", at.Addr(), mac, is)
	}
	return nil
}

// body reads what a machine tells.
func body(w http.ResponseWriter, r *http.Request, to any) bool {
	// Not the server's ReadTimeout: that would end long downloads.
	http.NewResponseController(w).SetReadDeadline(time.Now().Add(bodyTime))
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxHelloBytes)).Decode(to); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return false
	}
	return true
}

func (s *Server) hello(w http.ResponseWriter, r *http.Request) {
	var h install.Hello
	if !body(w, r, &h) {
		return
	}
	mac, err := macOf(h.MAC)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	h.MAC, h.UUID = mac, strings.ToLower(h.UUID)
	if err := s.from(r, h.MAC); err != nil {
		s.config.Logf("refused: %v", err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	p, err := s.plan(h)
	if err != nil {
		s.config.Logf("%s: %v", h.MAC, err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(p)
}

func (s *Server) told(w http.ResponseWriter, r *http.Request) {
	var p install.Progress
	if !body(w, r, &p) {
		return
	}
	mac, err := macOf(p.MAC)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	p.MAC = mac
	phases := []string{install.Wiping, install.Writing, install.Configuring, install.Failed}
	if r.URL.Path == install.InstalledPath {
		phases = []string{install.Installed}
	}
	if !slices.Contains(phases, p.Phase) {
		http.Error(w, "that is no phase of an installation", http.StatusBadRequest)
		return
	}
	if err := s.from(r, p.MAC); err != nil {
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	if err := s.progress(p); err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
	}
}

// token is what a machine gets its config by while it is being installed; s.mu is held.
func (s *Server) token(m Machine) string {
	for token, of := range s.seeds {
		if of.Name == m.Name {
			delete(s.seeds, token)
		}
	}
	token := rand.Text()
	s.seeds[token] = m
	return token
}

// seed gives a machine its config, and nobody else.
func (s *Server) seed(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	m, ok := s.seeds[r.PathValue("token")]
	mac := s.records[m.Name].MAC
	s.mu.Unlock()
	if !ok {
		http.NotFound(w, r)
		return
	}
	if err := s.from(r, mac); err != nil {
		s.config.Logf("refused: the config of %s: %v", m.Name, err)
		http.Error(w, err.Error(), http.StatusForbidden)
		return
	}
	data, err := s.config.Seed(r.Context(), m)
	if err != nil {
		s.config.Logf("%s: its config: %v", m.Name, err)
		http.Error(w, "see the server", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/x-tar")
	w.Header().Set("Cache-Control", "no-store")
	w.Write(data)
}

func (s *Server) json(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"apiVersion": "kimage.dev/v1alpha1", "image": s.config.Image.ID, "machines": s.Lines()})
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<meta charset="utf-8"><meta http-equiv="refresh" content="3"><title>kimage serve</title>
<style>body{font:14px sans-serif;margin:2em}td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}</style>
<h1>Machines</h1><p>Image {{.Image}}</p>
<table><tr><th>Machine<th>Roles<th>MAC<th>Phase<th>Since</tr>
{{range .Lines}}<tr><td>{{.Name}}<td>{{range .Roles}}{{.}} {{end}}<td>{{.MAC}}<td>{{.Text}}<td>{{if not .Since.IsZero}}{{.Since.UTC.Format "2006-01-02 15:04:05"}} UTC{{end}}</tr>
{{end}}</table>
`))

func (s *Server) page(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, map[string]any{"Image": s.config.Image.ID, "Lines": s.Lines()}); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes())
}
