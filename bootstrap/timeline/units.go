package timeline

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// manager is systemd's own course, org.freedesktop.systemd1(5). Firmware and
// loader began that long before the kernel; 0: not known, or not yet.
type manager struct {
	firmware, loader          time.Duration
	initrd, userspace, finish time.Duration
}

// unit is when a unit last changed its state; 0: never.
type unit struct {
	inactiveExit, activeEnter, activeExit, inactiveEnter time.Duration

	oneshot bool // or no service: it has no process to run on
}

func parseManager(data []byte) (m manager, err error) {
	err = eachProperty(data, map[string]*time.Duration{"FirmwareTimestampMonotonic": &m.firmware, "LoaderTimestampMonotonic": &m.loader,
		"InitRDTimestampMonotonic": &m.initrd, "UserspaceTimestampMonotonic": &m.userspace, "FinishTimestampMonotonic": &m.finish})
	if err == nil && m.userspace == 0 {
		err = fmt.Errorf("systemctl show does not say when systemd began")
	}
	return m, err
}

// parseUnits reads one block of properties for each unit.
func parseUnits(data []byte) (map[string]unit, error) {
	units := map[string]unit{}
	for block := range strings.SplitSeq(string(data), "\n\n") {
		var u unit
		if err := eachProperty([]byte(block), map[string]*time.Duration{"InactiveExitTimestampMonotonic": &u.inactiveExit, "ActiveEnterTimestampMonotonic": &u.activeEnter,
			"ActiveExitTimestampMonotonic": &u.activeExit, "InactiveEnterTimestampMonotonic": &u.inactiveEnter}); err != nil {
			return nil, err
		}
		id, kind := "", ""
		for line := range strings.Lines(block) {
			switch name, value, _ := strings.Cut(strings.TrimSpace(line), "="); name {
			case "Id":
				id = value
			case "Type":
				kind = value
			}
		}
		if u.oneshot = kind == "oneshot" || !strings.HasSuffix(id, ".service"); id != "" {
			units[id] = u
		}
	}
	return units, nil
}

// eachProperty reads lines of NAME=MICROSECONDS.
func eachProperty(data []byte, into map[string]*time.Duration) error {
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		to := into[name]
		if to == nil || value == "" {
			continue
		}
		us, err := strconv.ParseInt(value, 10, 64)
		if err != nil {
			return fmt.Errorf("reading what systemctl shows: %s: %w", name, err)
		}
		*to = time.Duration(us) * time.Microsecond
	}
	return nil
}

// rows are the stages of a boot. An initrd without systemd tells no time of its own.
func (m manager) rows(to time.Duration) (out []row) {
	stage := func(name string, from, to time.Duration) {
		if from < to {
			out = append(out, row{name: name, bars: []bar{{kindBoot, from, to}}})
		}
	}
	stage("firmware", -m.firmware, -m.loader)
	stage("loader", -m.loader, 0)
	if m.initrd > 0 {
		stage("kernel", 0, m.initrd)
		stage("initrd", m.initrd, m.userspace)
	} else {
		stage("kernel, initrd", 0, m.userspace)
	}
	finish := to
	if m.finish > 0 {
		finish = min(to, m.finish)
	}
	stage("userspace", m.userspace, finish)
	return out
}

// start is when a unit began to start and had started. A one-time service that
// does not stay is never active.
func (u unit) start() (from, to time.Duration, ok bool) {
	from, to = u.inactiveExit, u.activeEnter
	if to < from {
		to = u.inactiveEnter
	}
	return from, to, from > 0 && to >= from
}

// runs is whether its process still does.
func (u unit) runs() bool { return !u.oneshot && u.activeEnter > 0 && u.activeExit < u.activeEnter }

// shownUnits are shown however short they are: people look for them.
var shownUnits = [...]string{"kimage-*.service", "kimage.target", "containerd.service", "crio.service", "docker.service", "kubelet.service",
	"cloud-init*.service", "cloud-config.service", "cloud-final.service", "ignition-*.service", "afterburn.service",
	"systemd-networkd.service", "systemd-networkd-wait-online.service", "NetworkManager.service", "NetworkManager-wait-online.service", "network-online.target",
	"systemd-sysext.service"}

// maxOthers is how many more are shown at most: the longest.
const maxOthers = 8

// startsOf are the moments at which units were started, as far as the journal
// was asked for: systemd's properties tell of the last start alone, and kubeadm
// starts the kubelet twice.
func startsOf(records []record) map[string][]time.Duration {
	out := map[string][]time.Duration{}
	for _, r := range records {
		if r.started {
			out[r.unit] = append(out[r.unit], r.at)
		}
	}
	return out
}

// unitRows are the units by the time at which they began, and what is said of
// those that are left out.
func (c chart) unitRows(units map[string]unit, starts map[string][]time.Duration, least time.Duration) (rows []row, left string) {
	var others []row
	for name, u := range units {
		from, to, ok := u.start()
		// etcd has rows of its own, and a login is no part of the way.
		if !ok || name == etcdUnit || strings.HasPrefix(name, "user@") {
			continue
		}
		r := row{name: strings.TrimSuffix(name, ".service"), bars: []bar{{unitKind(name), from, to}}}
		r.startedBefore(starts[name])
		if from = r.bars[0].from; from > c.to {
			continue
		}
		if u.runs() && to < c.to {
			r.bars = append(r.bars, bar{kindRuns, to, c.to})
		}
		switch {
		case slices.ContainsFunc(shownUnits[:], func(pattern string) bool { ok, _ := path.Match(pattern, name); return ok }):
			rows = append(rows, r)
		case strings.HasSuffix(name, ".service"), strings.HasSuffix(name, ".mount"):
			others = append(others, r)
		}
	}
	slices.SortFunc(others, func(x, y row) int {
		return cmp.Or(cmp.Compare(y.total(), x.total()), cmp.Compare(x.name, y.name))
	})
	long := 0
	for long < min(maxOthers, len(others)) && others[long].total() >= least {
		long++
	}
	if rest := others[long:]; len(rest) > 0 {
		left = fmt.Sprintf("Left out: %d other services and mounts, of which none took more than %s.", len(rest), seconds(rest[0].total()))
	}
	rows = append(rows, others[:long]...)
	slices.SortFunc(rows, func(x, y row) int {
		return cmp.Or(cmp.Compare(x.bars[0].from, y.bars[0].from), cmp.Compare(x.name, y.name))
	})
	return rows, left
}

func unitKind(name string) kind {
	if strings.HasPrefix(name, "kimage") || name == containerdUnit || name == "kubelet.service" {
		return kindKimage
	}
	return kindUnit
}

// startedBefore adds the starts before the last one, which the row has.
func (r *row) startedBefore(all []time.Duration) {
	last := r.bars[0]
	var before []bar
	for _, at := range all {
		if at < last.from {
			before = append(before, bar{last.kind, at, at})
		}
	}
	if len(before) > 0 {
		r.bars = append(before, last)
		r.again = last.from
	}
}
