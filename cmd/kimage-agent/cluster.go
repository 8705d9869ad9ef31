package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/kimage-project/kimage/bootstrap"
	"github.com/kimage-project/kimage/bootstrap/report"
)

// clusterStatus shows what this master's agent knows of every machine of the
// cluster file, once or until all are well.
func clusterStatus(ctx context.Context, out io.Writer, asJSON, wait bool) error {
	c, err := bootstrap.ObserveCluster(ctx)
	for wait && !c.OK && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Second):
			if now, again := bootstrap.ObserveCluster(ctx); ctx.Err() == nil {
				c, err = now, again
			}
		}
	}
	if err != nil {
		return err
	}
	if asJSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(c)
	} else {
		err = showCluster(out, c, time.Now())
	}
	if err == nil && !c.OK {
		err = errNotReady
	}
	return err
}

func showCluster(out io.Writer, c report.Cluster, now time.Time) error {
	fmt.Fprintf(out, "cluster %s, as %s has heard since %s\n", c.Name, c.Master, c.Since.UTC().Format(time.DateTime))
	w := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tROLES\tPHASE\tFOR\tHEARD\tIMAGE\tWHY")
	ago := func(t time.Time) string { return now.Sub(t).Truncate(time.Second).String() }
	for _, m := range c.Machines {
		roles := strings.Join(m.Roles, ",")
		if m.Report == nil {
			at := ""
			if len(m.Addresses) > 0 {
				at = " (" + strings.Join(m.Addresses, ", ") + ")"
			}
			fmt.Fprintf(w, "%s\t%s\t-\t-\tnever\t-\tis it switched on%s, and told what it is by this cluster's config?\n", m.Name, roles, at)
			continue
		}
		r := *m.Report
		phase, since := r.Phase, "-"
		if phase == "" {
			phase = "starting"
		} else {
			since = r.Time.Sub(r.Since).Truncate(time.Second).String()
		}
		var why []string
		if m.Silent {
			why = append(why, "silent: it is off, cut off, or its agent does not run; it said last:")
		}
		if d := time.Duration(m.ClockAheadSeconds) * time.Second; d.Abs() > report.ClockShown {
			why = append(why, fmt.Sprintf("(its clock is %s from %s's)", d, c.Master))
		}
		if r.Why != "" {
			why = append(why, r.Why)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s ago\t%s\t%s\n", m.Name, roles, phase, since, ago(*m.Heard), r.ImageID, strings.Join(why, " "))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, p := range c.Pools {
		fmt.Fprintf(out, "pool %s: %d of %d machines are heard of\n", p.Name, p.Heard, p.Size)
	}
	return nil
}
