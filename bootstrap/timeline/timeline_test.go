package timeline

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite testdata/*.svg")

// captured are the facts of a machine of topology 1 at Ready, of one boot in
// e2e's TestTopology1 (KIMAGE_E2E_KEEP): of etcd and containerd the records that the
// picture is made of, and of units those that it can show.
func captured(t *testing.T) Facts {
	t.Helper()
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join("testdata/topology1", name))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	return Facts{Node: "k8s-01 of demo", Image: "Image 0123456789ab: debian-13, Kubernetes v1.37.2, containerd, flannel",
		Manager: read("manager"), Units: read("units"), Agent: read("agent.json"), Others: read("others.json"), Now: time.Hour}
}

func TestGolden(t *testing.T) {
	svg, err := SVG(captured(t))
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/topology1.svg"
	if *update {
		if err := os.WriteFile(golden, svg, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(want), string(svg)); d != "" {
		t.Errorf("another picture (look at it, then go test -update): %s", d)
	}
}

// TestLegible: the picture fits on a screen, and no words go over its edge or
// over those of the next column.
func TestLegible(t *testing.T) {
	c, err := newChart(captured(t))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for _, g := range c.groups {
		rows += len(g.rows)
		if len(g.rows) == 0 {
			t.Errorf("no row of %s", g.name)
		}
	}
	if rows > 48 {
		t.Errorf("%d rows", rows)
	}
	for _, w := range texts(t, c.draw()) {
		left, right := w.x, w.x+textWidth(w.words, w.size())
		if w.Anchor == "end" {
			left, right = w.x-(right-left), w.x
		}
		if w.Anchor == "middle" {
			left, right = w.x-(right-w.x)/2, w.x+(right-w.x)/2
		}
		if left < 0 || right > width {
			t.Errorf("from %.0f to %.0f: %s", left, right, w.words)
		}
		if w.x == nameX && right > axisX {
			t.Errorf("a name runs into the bars: %s", w.words)
		}
	}
}

type words struct {
	Class  string `xml:"class,attr"`
	X      string `xml:"x,attr"`
	Y      string `xml:"y,attr"`
	Anchor string `xml:"text-anchor,attr"`
	words  string
	x      float64
}

func (w words) size() float64 {
	switch w.Class {
	case "t":
		return 20
	case "n":
		return 13
	case "v", "a":
		return 11
	}
	return 12
}

// texts are the words in a picture, which must be XML.
func texts(t *testing.T, svg []byte) (out []words) {
	t.Helper()
	for dec := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := dec.Token()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, svg)
		}
		start, ok := token.(xml.StartElement)
		if !ok || start.Name.Local != "text" {
			continue
		}
		var e struct {
			words
			Text string `xml:",chardata"`
		}
		if err := dec.DecodeElement(&e, &start); err != nil {
			t.Fatal(err)
		}
		e.words.words = e.Text
		if e.words.x, err = strconv.ParseFloat(e.X, 64); err != nil {
			t.Fatal(err)
		}
		out = append(out, e.words)
	}
}

func names(list []words) (out []string) {
	for _, w := range list {
		out = append(out, w.words)
	}
	return out
}

// journal makes records of lines of "SECONDS MESSAGE".
func journal(t *testing.T, unit, lines string) []byte {
	t.Helper()
	var b bytes.Buffer
	for line := range strings.Lines(strings.TrimLeft(lines, "\n")) {
		at, message, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		s, err := strconv.ParseFloat(at, 64)
		if err != nil {
			t.Fatal(err)
		}
		us := strconv.FormatFloat(s*1e6, 'f', 0, 64)
		if err := json.NewEncoder(&b).Encode(map[string]string{"__MONOTONIC_TIMESTAMP": us, "__REALTIME_TIMESTAMP": "1764106" + fmt.Sprintf("%09s", us), "_SYSTEMD_UNIT": unit, "MESSAGE": message}); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

const manager1 = "FirmwareTimestampMonotonic=0\nLoaderTimestampMonotonic=0\nInitRDTimestampMonotonic=0\nUserspaceTimestampMonotonic=5000000\nFinishTimestampMonotonic=20000000\n"

func chartOf(t *testing.T, f Facts) chart {
	t.Helper()
	if f.Manager == nil {
		f.Manager = []byte(manager1)
	}
	c, err := newChart(f)
	if err != nil {
		t.Fatal(err)
	}
	texts(t, c.draw()) // it is XML
	return c
}

// shown is a group's rows as text.
func shown(c chart, name string) (out []string) {
	i := slices.IndexFunc(c.groups, func(g group) bool { return g.name == name })
	for _, r := range c.groups[i].rows {
		s := r.name + ":"
		for _, b := range r.bars {
			s += fmt.Sprintf(" %g-%g", b.from.Seconds(), b.to.Seconds())
		}
		if r.text != "" {
			s += " " + r.text
		}
		out = append(out, s)
	}
	return out
}

func check(t *testing.T, got []string, want ...string) {
	t.Helper()
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestPhases(t *testing.T) {
	c := chartOf(t, Facts{Now: time.Hour, Agent: journal(t, "kimage-agent.service", `
10 phase etcd
10 etcd: this machine has no data
10.1 etcd: renew: this machine has no data
11 etcd: all founding members answer
11.1 etcd: hold: all founding members answer
12 etcd: found: all founding members hold the same record
15 phase waiting, after 5s of etcd
15 waiting: images are imported
16 etcd: start: there is data
25 waiting: no API server answers
25.5 phase etcd, after 10.5s of waiting
26 phase waiting, after 500ms of etcd
26 waiting: images are imported
30 phase init, after 4s of waiting
50 phase joined, after 20s of init
60 phase ready, after 10s of joined
60.1 ready: 50.1s after the agent's start: kubeadm 20.0s, own 30.1s
70 phase joined, after 10s of ready
70.1 ready: 70.1s after the agent's start: of another life
`)})
	check(t, shown(c, "agent"), "etcd: 10-11 this machine has no data", "etcd: 11-15 25.5-26 all founding members answer", "waiting: 15-25.5 26-30 images are imported",
		"init: 30-50", "joined: 50-60", "ready: 60-60")
	check(t, shown(c, "etcd"), "founding: 10.1-16 renew, hold, found")
	if want := "this machine: Ready 60.0 s after the kernel's start"; c.title != want {
		t.Errorf("%q, not %q", c.title, want)
	}
	if want := "Ready 50.1s after the agent's start: kubeadm 20.0s, own 30.1s"; !slices.Contains(c.notes, want) {
		t.Errorf("%q lack %q", c.notes, want)
	}
}

func TestKubeadm(t *testing.T) {
	c := chartOf(t, Facts{Now: time.Hour, Agent: journal(t, "kimage-agent.service", `
10 phase init
12 kubeadm init: [init] Using Kubernetes version: v1.37.2
12 kubeadm init: [preflight] Running pre-flight checks
13 kubeadm init: [WARNING Hostname]: hostname "a" could not be reached
20 kubeadm init: [kubelet-start] Writing kubelet configuration
21 kubeadm init: [patches] Applied patch
22 kubeadm init: [kubelet-start] Starting the kubelet
30 kubeadm init: error: timed out
31 phase waiting, after 21s of init
40 kubeadm reset: [reset] Deleting
41 kubeadm reset: [preflight] Running pre-flight checks
45 phase init, after 14s of waiting
46 kubeadm init: [preflight] Running pre-flight checks
47 kubeadm init: [kubelet-start] Starting the kubelet
48 etcd: keep: etcd runs
50 kubeadm init: [upload-config] Storing
50.1 kubeadm init: [kubelet] Creating
50.2 kubeadm init: [addons] Applied
55 provisioned 3 tokens
100 phase ready, after 55s of init
`)})
	check(t, shown(c, "kubeadm"), "[init]: 12-12", "[preflight]: 12-20 46-47", "[kubelet-start]: 20-31 47-50", "kubeadm reset: 40-45",
		"[upload-config]: 50-50.1 50.1-50.2 with [kubelet]", "[addons]: 50.2-55")
}

func TestUnits(t *testing.T) {
	units := `Type=oneshot
Id=kimage-grow.service
InactiveExitTimestampMonotonic=10000000
ActiveEnterTimestampMonotonic=12000000

Id=fast.service
InactiveExitTimestampMonotonic=6000000
ActiveEnterTimestampMonotonic=6100000

Id=once.service
InactiveExitTimestampMonotonic=6000000
ActiveEnterTimestampMonotonic=0
InactiveEnterTimestampMonotonic=9000000

Type=ext4
Id=slow.mount
InactiveExitTimestampMonotonic=5500000
ActiveEnterTimestampMonotonic=7000000

Id=never.service
InactiveExitTimestampMonotonic=0

Type=exec
Id=kubelet.service
InactiveExitTimestampMonotonic=30000000
ActiveEnterTimestampMonotonic=30000000
ActiveExitTimestampMonotonic=29000000

Id=late.service
InactiveExitTimestampMonotonic=60000000
ActiveEnterTimestampMonotonic=90000000

Id=multi-user.target
InactiveExitTimestampMonotonic=20000000
ActiveEnterTimestampMonotonic=20000000
`
	const started = `{"__MONOTONIC_TIMESTAMP":"%d","__REALTIME_TIMESTAMP":"1","_SYSTEMD_UNIT":"init.scope","MESSAGE":"Started kubelet.service","MESSAGE_ID":"` + startedID + `","UNIT":"kubelet.service"}`
	c := chartOf(t, Facts{Now: time.Hour, Units: []byte(units), Others: fmt.Appendf(nil, started+started, 25000000, 30000001), Agent: journal(t, "kimage-agent.service", "50 phase ready\n")})
	check(t, shown(c, "units"), "slow.mount: 5.5-7", "once: 6-9", "kimage-grow: 10-12", "kubelet: 25-25 30-30 30-52")
	if want := "This machine's firmware does not tell its times: 0 is the kernel's start. Left out: 1 other services and mounts, of which none took more than 0.1 s."; !slices.Contains(c.notes, want) {
		t.Errorf("%q lack %q", c.notes, want)
	}
	if got := names(texts(t, c.draw())); !slices.Contains(got, "at 25.0 s, again at 30.0 s") {
		t.Errorf("no second start of the kubelet in %q", got)
	}
	if d := cmp.Diff([]string{"Ready", "multi-user"}, []string{c.marks[0].name, c.marks[1].name}); d != "" {
		t.Error(d)
	}
}

func TestPods(t *testing.T) {
	line := func(at, message string) string {
		return at + ` time="2026-11-25T21:12:00.000000000Z" level=info msg=` + strconv.Quote(message) + "\n"
	}
	c := chartOf(t, Facts{Now: 100 * time.Second, Others: journal(t, containerdUnit,
		"9 starting\n"+
			line("10", `RunPodSandbox for name:"dns-1"  uid:"u"  namespace:"kube-system"`)+
			line("12", `RunPodSandbox for name:"dns-1"  uid:"u"  namespace:"kube-system" returns sandbox id "aa"`)+
			line("13", `CreateContainer within sandbox "aa" for name:"install" returns container id "c1"`)+
			line("14", `StartContainer for "c1" returns successfully`)+
			line("15", `RunPodSandbox for &PodSandboxMetadata{Name:old,Uid:u,Namespace:n,Attempt:0,}`)+
			line("15", `CreateContainer within sandbox "aa" for name:"dns" returns container id "c2"`)+
			line("16", `StartContainer for "c2" returns successfully`)+
			line("16", `RunPodSandbox for &PodSandboxMetadata{Name:old,Uid:u,Namespace:n,Attempt:0,} returns sandbox id "bb"`)+
			line("17", `CreateContainer within sandbox "bb" for &ContainerMetadata{Name:o,Attempt:0,} returns container id "c3"`)+
			line("18", `StartContainer for "c3" returns successfully`)+
			line("30", `CreateContainer within sandbox "bb" for &ContainerMetadata{Name:o,Attempt:1,} returns container id "c4"`)+
			line("31", `StartContainer for "c4" returns successfully`)), Agent: journal(t, "kimage-agent.service", "50 phase joined\n")})
	check(t, shown(c, "pods"), "dns-1: 10-16", "old: 15-18")
}

func TestBefore(t *testing.T) {
	for _, test := range []struct {
		name, manager, agent, title, boot string
	}{
		{"firmware", "FirmwareTimestampMonotonic=8000000\nLoaderTimestampMonotonic=3000000\nInitRDTimestampMonotonic=2000000\nUserspaceTimestampMonotonic=5000000\nFinishTimestampMonotonic=20000000\n",
			"42 phase ready\n", "Ready 50.0 s after power-on", "firmware: -8--3, loader: -3-0, kernel: 0-2, initrd: 2-5, userspace: 5-20"},
		{"nobody told it", manager1, "", "booted 20.0 s after the kernel's start; its agent has told nothing", "kernel, initrd: 0-5, userspace: 5-20"},
		{"still booting", "UserspaceTimestampMonotonic=5000000\nFinishTimestampMonotonic=0\n", "", "not booted 99.0 s after the kernel's start", "kernel, initrd: 0-5, userspace: 5-99"},
		{"waiting", manager1, "30 phase waiting\n", "not Ready 99.0 s after the kernel's start, phase waiting", "kernel, initrd: 0-5, userspace: 5-20"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := chartOf(t, Facts{Node: "a", Now: 99 * time.Second, Manager: []byte(test.manager), Agent: journal(t, "kimage-agent.service", test.agent)})
			if want := "a: " + test.title; c.title != want {
				t.Errorf("%q, not %q", c.title, want)
			}
			if got := strings.Join(shown(c, "boot"), ", "); got != test.boot {
				t.Errorf("%q, not %q", got, test.boot)
			}
		})
	}
}

// TestHostile: what a machine wrote is shown, and never means anything.
func TestHostile(t *testing.T) {
	const message = "waiting: </text><script>alert(\"1\")</script>&amp;"
	agent := append(journal(t, "kimage-agent.service", "10 phase waiting\n10 "+message+"\n"),
		// "waiting: \x00\xff<", as journalctl prints what is not UTF-8; and a line that is too long for it
		`{"__MONOTONIC_TIMESTAMP":"40000000","__REALTIME_TIMESTAMP":"1","MESSAGE":[119,97,105,116,105,110,103,58,32,0,255,60]}
{"__MONOTONIC_TIMESTAMP":"41000000","__REALTIME_TIMESTAMP":"1","MESSAGE":null}
`...)
	f := Facts{Node: "<a>\x1b", Now: 90 * time.Second, Manager: []byte(manager1), Agent: agent}
	svg, err := SVG(f)
	if err != nil {
		t.Fatal(err)
	}
	got := names(texts(t, svg))
	for _, want := range []string{"30.0 s: </text><script>alert(\"1\")</script>&amp;", "50.0 s:  \ufffd<"} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not among %q", want, got)
		}
	}
	for _, broken := range []Facts{{Manager: []byte("UserspaceTimestampMonotonic=x")}, {}, {Manager: f.Manager, Agent: []byte("{")}, {Manager: f.Manager, Others: []byte(`{"MESSAGE":"x"}`)}} {
		if svg, err := SVG(broken); err == nil {
			t.Errorf("%+v makes a picture:\n%s", broken, svg)
		}
	}
}

func TestTicks(t *testing.T) {
	for _, test := range []struct {
		span time.Duration
		want string
	}{{12 * time.Second, "1 s"}, {143 * time.Second, "20 s"}, {8 * time.Minute, "1 min"}, {3 * time.Hour, "20 min"}, {50 * 24 * time.Hour, "96 h"}} {
		step := tickStep(test.span)
		if got := tickName(step, step); got != test.want || test.span/step > maxTicks {
			t.Errorf("%s: %s, not %s", test.span, got, test.want)
		}
	}
}
