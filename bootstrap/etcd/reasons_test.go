package etcd

import (
	"context"
	"crypto/x509"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// TestReasons has three blank machines ask each other over TLS while something
// is wrong, and compares what each of them says.
func TestReasons(t *testing.T) {
	ours, theirs := newAuthority(t, "ours"), newAuthority(t, "theirs")
	for _, c := range []struct {
		name   string
		ahead  map[string]time.Duration // of the machine's clock
		other  string                   // has another cluster's authority
		off    string                   // does not listen
		absent string                   // does not listen and is not looked at
		stop   string                   // machines that stop
		want   map[string]string
	}{
		{name: "all is well", want: map[string]string{"b": "waits for the proposal of a"}},
		{name: "a clock is ahead", ahead: map[string]time.Duration{"b": 3 * time.Hour}, stop: "b", want: map[string]string{
			"a": "", "b": "this machine's clock is wrong: that of a, c is 3h0m0s behind", "c": "the clock of b is 3h0m0s ahead of this machine's: set it there"}},
		{name: "a clock is years ahead", ahead: map[string]time.Duration{"b": 30 * 365 * 24 * time.Hour}, stop: "b", want: map[string]string{
			"b": "this machine's clock is wrong", "c": "b (it refuses this machine's certificate (tls: bad certificate): its clock is wrong"}},
		{name: "two clocks, and nobody else", ahead: map[string]time.Duration{"b": 3 * time.Hour}, absent: "c", stop: "ab", want: map[string]string{
			"a": "the clock of b is 3h0m0s ahead of this machine's: set the one of the two that is wrong", "b": "the clock of a is 3h0m0s behind"}},
		{name: "a certificate of another CA", other: "c", want: map[string]string{
			"a": "c (its certificate is of another cluster's authority", "b": "c (its certificate is of another cluster's authority", "c": "a (its certificate is of another cluster's authority"}},
		{name: "a machine that is off", off: "c", want: map[string]string{"a": "c (connection refused", "b": "c (connection refused"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newSim(t, 1, 3)
			s.faults = false
			ports, trusts := map[string]string{}, map[string]*trust{}
			for _, m := range s.machines {
				ca, now := ours, func() time.Time { return time.Now().Add(c.ahead[m.name]) }
				if m.name == c.other {
					ca = theirs
				}
				m.facts.Roster = &s.rosters[0]
				s.boot(m)
				m.agent.cfg.Now = now
				if err := m.agent.member.renew(m.agent.member.observe()); err != nil {
					t.Fatal(err)
				}
				trusts[m.name] = identity(t, ca, ca, m.name, now, time.Time{})
				server := httptest.NewUnstartedServer(m.agent.handler())
				server.TLS = trusts[m.name].config(x509.ExtKeyUsageClientAuth, func(string) error { return nil })
				server.StartTLS()
				defer server.Close()
				if m.name == c.off || m.name == c.absent {
					server.Close()
				}
				_, ports[m.name], _ = net.SplitHostPort(server.Listener.Addr().String())
			}
			for _, m := range s.machines {
				m.agent.ask = func(ctx context.Context, to nodeconf.Member, q Question) (Status, error) {
					port, err := net.LookupPort("tcp", ports[to.Name])
					if err != nil {
						return Status{}, err
					}
					to.PeerURL = "https://127.0.0.1:2380"
					return newClient(trusts[m.name], "uid", port, 5*time.Second).ask(ctx, to, q)
				}
				if m.name == c.absent {
					continue
				}
				m.agent.askAll(t.Context(), false)
				got := Decide(m.agent.observe(t.Context()))
				if stops := strings.Contains(c.stop, m.name); stops != (got.Do == Stop) {
					t.Errorf("%s does %s (%s)", m.name, got.Do, got.Why)
				}
				if !strings.Contains(got.Why, c.want[m.name]) {
					t.Errorf("%s says %q, want %q", m.name, got.Why, c.want[m.name])
				}
			}
		})
	}
}
