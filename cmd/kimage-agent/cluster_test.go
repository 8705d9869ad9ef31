package main

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kimage-project/kimage/bootstrap/report"
)

func TestShowCluster(t *testing.T) {
	now := time.Date(2026, 11, 25, 12, 0, 0, 0, time.UTC)
	heard := func(ago time.Duration) *time.Time { t := now.Add(-ago); return &t }
	c := report.Cluster{Name: "demo", Master: "m1", Since: now.Add(-time.Hour), Machines: []report.Machine{
		{Name: "m1", Roles: []string{"etcd", "master"}, Heard: heard(5 * time.Second), Report: &report.Report{Phase: "ready", Since: now.Add(-time.Hour), Time: now, ImageID: "0123456789ab"}},
		{Name: "w1", Roles: []string{"worker"}, Heard: heard(8 * time.Second), ClockAheadSeconds: -7200, Report: &report.Report{Phase: "stopped", Since: now.Add(-3 * time.Hour), Time: now.Add(-2 * time.Hour), ImageID: "0123456789ab", Why: "set the clock"}},
		{Name: "w2", Roles: []string{"worker"}, Addresses: []string{"10.0.0.5"}, Silent: true},
		{Name: "w3", Roles: []string{"worker"}, Heard: heard(10 * time.Minute), Silent: true, Report: &report.Report{Phase: "join", Since: now.Add(-11 * time.Minute), Time: now.Add(-10 * time.Minute), ImageID: "cafe", Why: "an API server answers"}},
		{Name: "w4", Roles: []string{"worker"}, Heard: heard(time.Second), Report: &report.Report{Time: now}},
	}, Pools: []report.Pool{{Name: "crowd", Size: 2, Heard: 1}}}
	want := strings.TrimPrefix(`
cluster demo, as m1 has heard since 2026-11-25 11:00:00
NAME  ROLES        PHASE     FOR     HEARD      IMAGE         WHY
m1    etcd,master  ready     1h0m0s  5s ago     0123456789ab  
w1    worker       stopped   1h0m0s  8s ago     0123456789ab  (its clock is -2h0m0s from m1's) set the clock
w2    worker       -         -       never      -             is it switched on (10.0.0.5), and told what it is by this cluster's config?
w3    worker       join      1m0s    10m0s ago  cafe          silent: it is off, cut off, or its agent does not run; it said last: an API server answers
w4    worker       starting  -       1s ago                   
pool crowd: 1 of 2 machines are heard of
`, "\n")
	var b strings.Builder
	if err := showCluster(&b, c, now); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Error(diff)
	}
}
