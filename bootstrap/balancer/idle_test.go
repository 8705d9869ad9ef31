package balancer

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/pkg/need"
)

// idleEnv makes the test program a master's balancers: "CA FILE\nAPI SERVERS\nMEMBERS OF ETCD".
const idleEnv = "KIMAGE_TEST_BALANCERS"

func TestMain(m *testing.M) {
	if told := os.Getenv(idleEnv); told != "" {
		fmt.Fprintln(os.Stderr, idleBalancers(strings.Split(told, "\n")))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// idleBalancers prints where it listens, and never returns but with an error.
func idleBalancers(told []string) error {
	config, err := clientTLS(told[0], "", "")
	if err != nil {
		return err
	}
	api, etcd := strings.Fields(told[1]), strings.Fields(told[2])
	for _, s := range []struct {
		Config
		addrs []string
	}{
		{Config{Path: "/readyz"}, api},
		{Config{Path: "/readyz", First: etcd[0], CutUnready: true}, etcd},
	} {
		s.Listen, s.Seed, s.TLS = "127.0.0.1:0", "m1", func() *tls.Config { return config }
		b, err := New(s.Config)
		if err != nil {
			return err
		}
		b.quiet()
		b.Set(s.addrs)
		fmt.Println("LISTENS", b.Addr())
		go b.Run(context.Background())
	}
	select {}
}

// TestIdle: what a master's balancers take while nothing happens, each with one
// connection, in a process of their own as on a node.
func TestIdle(t *testing.T) {
	const limit = 0.2 // a quiet virtual machine pays for each time that it wakes up: up to twice what a busy one does
	ca := newCA(t)
	var told []string
	for network := range 2 {
		var group []*server
		for i := range 3 {
			s := serve(t, ca, fmt.Sprintf("127.0.%d.%d:0", network+1, i+1))
			s.delay.Store(int64(time.Millisecond)) // as a read of etcd takes
			group = append(group, s)
		}
		told = append(told, strings.Join(addrs(group...), " "))
	}
	file := filepath.Join(t.TempDir(), "ca.crt")
	if err := os.WriteFile(file, ca.Cert, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", idleEnv+"="+file+"\n"+strings.Join(told, "\n"))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	for range told {
		var addr string
		for addr == "" && lines.Scan() {
			fmt.Sscanf(lines.Text(), "LISTENS %s", &addr)
		}
		if addr == "" {
			t.Fatal("the balancers do not listen")
		}
		conn, err := tls.Dial("tcp", addr, trust(ca))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	time.Sleep(2 * time.Second) // all have been asked
	need.Idle(t, cmd.Process.Pid, limit, 10*time.Second)
}
