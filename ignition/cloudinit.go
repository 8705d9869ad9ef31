package ignition

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// cloudConfig is the first line of user-data.
const cloudConfig = "#cloud-config\n"

type writeFile struct {
	Path        string `yaml:"path"`
	Permissions string `yaml:"permissions"`
	Encoding    string `yaml:"encoding,omitempty"`
	Content     string `yaml:"content"`
}

// cloudInit renders a plan as the files of cloud-init's NoCloud.
func (g *Generator) cloudInit(p *plan) (map[string][]byte, error) {
	t := p.target
	user := map[string]any{
		"ssh_pwauth": false,
		// Neither works without a route, nor on a read-only /usr.
		"package_update": false, "package_upgrade": false,
	}
	meta := map[string]any{"instance-id": "kimage-" + g.state.UID + "-" + t.Name}
	if !t.Pool {
		user["hostname"], meta["local-hostname"] = t.Name, t.Name
	} else {
		meta["instance-id"] = "kimage-" + g.state.UID + "-pool-" + t.Name
	}
	if keys := keys(t); len(keys) > 0 {
		user["ssh_authorized_keys"] = keys
	}
	if ntp := t.Machine.NTP; len(ntp) > 0 {
		user["ntp"] = map[string]any{"enabled": true, "servers": ntp}
	}
	if cas := t.Machine.TrustedCAs; len(cas) > 0 {
		user["ca_certs"] = map[string]any{"trusted": cas}
	}
	var files []any
	for _, f := range p.files {
		w := writeFile{Path: f.path, Permissions: fmt.Sprintf("0%o", f.mode), Content: string(f.content)}
		if !utf8.Valid(f.content) {
			w.Encoding, w.Content = "b64", base64.StdEncoding.EncodeToString(f.content)
		}
		files = append(files, w)
	}
	user["write_files"] = files
	if boot := g.bootCommands(p); len(boot) > 0 {
		user["bootcmd"] = boot
	}
	if run := g.runCommands(p); len(run) > 0 {
		user["runcmd"] = run
	}
	if s := t.Machine.CloudInit; s != "" {
		if err := g.mergeCloudInit(user, s, t.Machine.Override); err != nil {
			return nil, fmt.Errorf("snippet %s: %w", s, err)
		}
	}
	out := map[string][]byte{}
	for name, v := range map[string]any{"user-data": user, "meta-data": meta, "network-config": g.networkConfig(t)} {
		data, err := encodeYAML(v)
		if err != nil {
			return nil, err
		}
		if name == "user-data" {
			data = append([]byte(cloudConfig), data...)
		}
		out[name] = data
	}
	return out, nil
}

func encodeYAML(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), enc.Close()
}

// bootCommands run early at every boot.
func (g *Generator) bootCommands(p *plan) (out [][]string) {
	for _, u := range p.units {
		if u.mask {
			out = append(out, []string{"systemctl", "mask", "--now", u.name})
		}
	}
	if !g.os.EditableRoot && g.os.SELinux {
		out = append(out, []string{"sh", "-c", "setenforce 0 || true"})
	}
	return out
}

// runCommands run once, at the end of first boot: activation that came by
// cloud-init was too late for this boot's units, so it is started by hand. At
// later boots systemd finds it in time.
func (g *Generator) runCommands(p *plan) (out [][]string) {
	for _, l := range p.links {
		out = append(out, []string{"mkdir", "-p", l.path[:strings.LastIndex(l.path, "/")]}, []string{"ln", "-sfn", l.target, l.path})
	}
	if len(p.links) > 0 {
		out = append(out, []string{"systemctl", "daemon-reload"}, []string{"systemctl", "start", "kimage-activate.service"},
			[]string{"systemctl", "restart", "systemd-sysext.service"}, []string{"systemctl", "--no-block", "start", "kimage-start.service"})
	}
	return out
}

// mergeCloudInit lays a person's cloud-config over user: mappings merge, lists
// are appended to, and what kimage says counts unless it is overridden.
func (g *Generator) mergeCloudInit(user map[string]any, name string, override []string) error {
	data, _, err := g.snippet(name)
	if err != nil {
		return err
	}
	if !bytes.HasPrefix(data, []byte(strings.TrimSpace(cloudConfig))) {
		return errors.New("its first line must be #cloud-config")
	}
	var theirs map[string]any
	if err := yaml.Unmarshal(data, &theirs); err != nil {
		return err
	}
	for _, key := range slices.Sorted(maps.Keys(theirs)) {
		mine, exists := user[key]
		if !exists {
			user[key] = theirs[key]
			continue
		}
		list, ok := theirs[key].([]any)
		switch {
		case key == "write_files" && ok:
			if user[key], err = mergeFiles(mine.([]any), list, override); err != nil {
				return err
			}
		case ok && asList(mine) != nil:
			user[key] = append(asList(mine), list...)
		case slices.Contains(override, key):
			user[key] = theirs[key]
		default:
			return fmt.Errorf("it sets %s, which kimage sets: leave that out, or name it under machine.override", key)
		}
	}
	return nil
}

func asList(v any) (out []any) {
	switch x := v.(type) {
	case []any:
		return slices.Clone(x)
	case []string:
		for _, s := range x {
			out = append(out, s)
		}
	case [][]string:
		for _, s := range x {
			out = append(out, s)
		}
	}
	return out
}

func mergeFiles(mine, theirs []any, override []string) ([]any, error) {
	out := slices.Clone(mine)
	for _, t := range theirs {
		entry, _ := t.(map[string]any)
		path, _ := entry["path"].(string)
		if path == "" {
			return nil, errors.New("write_files has an entry without a path")
		}
		i := slices.IndexFunc(out, func(m any) bool { w, ok := m.(writeFile); return ok && w.Path == path })
		if i >= 0 {
			if !slices.Contains(override, path) {
				return nil, fmt.Errorf("it replaces %s of kimage's: leave that out, or name it under machine.override", path)
			}
			out = slices.Delete(out, i, i+1)
		}
		out = append(out, t)
	}
	return out, nil
}
