//go:build chaos

package etcd

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
	"github.com/kimage-project/kimage/pkg/run"
)

// writer is a client of etcd that writes all the time, to any member, and notes
// what was acknowledged.
type writer struct {
	Endpoints []string // HOST:PORT
	PKI       string   // of a machine
	Acked     string   // file, a key on each line
}

const writerVariable = "KIMAGE_CHAOS_WRITER"

func (w writer) run(ctx context.Context) error {
	out, err := os.OpenFile(w.Acked, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer out.Close()
	var all []*gateway
	for _, e := range w.Endpoints {
		host, _, _ := strings.Cut(e, ":")
		g, err := newGateway(w.PKI, host, "https://"+e, "", time.Second)
		if err != nil {
			return err
		}
		all = append(all, g)
	}
	for i := 0; ctx.Err() == nil; i++ {
		key := fmt.Sprintf("/written/%08d", i)
		if made, err := all[i%len(all)].create(ctx, key, i, 0); err == nil && made {
			fmt.Fprintln(out, key)
			time.Sleep(20 * time.Millisecond)
		}
	}
	return nil
}

// write starts the client.
func (c *chaos) write() {
	ns := c.ns + "w"
	c.connect(ns, "w0", "10.99.0.100")
	dir := c.t.TempDir()
	w := writer{PKI: filepath.Join(c.machines[0].Dir, "pki"), Acked: filepath.Join(dir, "acked")}
	for _, m := range c.machines {
		w.Endpoints = append(w.Endpoints, fmt.Sprint(m.Address, ":", ClientPort))
	}
	data, err := json.Marshal(w)
	c.must(err)
	cmd := exec.Command("ip", "netns", "exec", ns, os.Args[0])
	cmd.Env = append(os.Environ(), writerVariable+"="+string(data))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.must(cmd.Start())
	c.acked = w.Acked
	c.t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		c.ip("netns", "delete", ns)
	})
}

// written says how many acknowledged writes there are, and fails if a member lacks
// one.
func (c *chaos) written() int {
	f, err := os.Open(c.acked)
	c.must(err)
	defer f.Close()
	var keys []string
	for lines := bufio.NewScanner(f); lines.Scan(); {
		keys = append(keys, lines.Text())
	}
	for _, m := range c.members() {
		ask := func(args ...string) []byte {
			for end := time.Now().Add(time.Minute); ; time.Sleep(200 * time.Millisecond) {
				out, err := c.ctl(m, args...)
				if err == nil {
					return out
				}
				if time.Now().After(end) {
					c.t.Fatalf("%s does not answer: %v", m.Name, err)
				}
			}
		}
		ask("get", "--consistency=l", "/written/") // by that it has caught up
		there := map[string]bool{}
		for line := range strings.Lines(string(ask("get", "--consistency=s", "--prefix", "--keys-only", "/written/"))) {
			there[strings.TrimSpace(line)] = true
		}
		for _, k := range keys {
			if !there[k] {
				c.t.Errorf("the acknowledged write %s is not in the data of %s", k, m.Name)
				break
			}
		}
	}
	return len(keys)
}

// ctl runs etcdctl at a machine's own etcd.
func (c *chaos) ctl(m *chaosMachine, args ...string) ([]byte, error) {
	pki := func(name string) string { return filepath.Join(m.Dir, "pki", name) }
	return run.Output(c.t.Context(), run.Cmd{Argv: append([]string{"ip", "netns", "exec", m.ns, c.etcdctl, "--endpoints=https://" + m.Address + ":2379",
		"--cacert=" + pki(nodeconf.EtcdCA+".crt"), "--cert=" + pki(nodeconf.EtcdAgent+".crt"), "--key=" + pki(nodeconf.EtcdAgent+".key"), "--command-timeout=3s"}, args...)})
}
