package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/local"
)

// machineLine is one machine of the cluster file, or of a pool.
type machineLine struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles,omitempty"`
	Power string   `json:"power,omitempty"` // on or off; empty: only machines of this computer are known by it
	Phase string   `json:"phase"`           // empty: nothing was heard of it
	Since string   `json:"since,omitempty"` // of the phase
	Why   string   `json:"why,omitempty"`   // what it waits for, and what to do about it
	From  string   `json:"from,omitempty"`  // who says so: a master's name, or its console
}

func (m machineLine) ready() bool { return m.Power != powerOff && m.Phase == local.PhaseReady }

const powerOn, powerOff = "on", "off"

// heardAs is a report as it is shown.
func (m *machineLine) heardAs(r *report.Report, from string) {
	m.Phase, m.Since, m.Why, m.From = r.Phase, r.Since.UTC().Format(time.DateTime+" MST"), r.Why, from
}

func newStatus() *cobra.Command {
	var file, identity string
	var asJSON, wait bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List the machines of a cluster, and how far each is",
		Long: `Lists every machine of the cluster: how far it is, since when, why, and what to do
about it. The masters' agents are asked, which hear from all others: on port 7443,
with the secrets beside the cluster file. Machines of kimage up show by their console
how far they are as long as no master has heard of them.
Exits with 1 unless all are ready, and with 2 when no master could be asked.`,
		Example: `  kimage status
  kimage status --wait --timeout 30m`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("timeout") && !wait {
				return errors.New("--timeout says how long to --wait, which was not asked for")
			}
			look, err := statusOf(cmd, file, identity)
			if err != nil {
				return err
			}
			if !wait {
				timeout = 0
			}
			lines, unknown := awaitLines(cmd.Context(), look, timeout, map[bool]io.Writer{true: cmd.ErrOrStderr(), false: io.Discard}[wait])
			if unknown != nil && lines == nil {
				return unknown
			}
			ready := !slices.ContainsFunc(lines, func(m machineLine) bool { return !m.ready() })
			if asJSON {
				err = writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "machines": lines, "ok": ready})
			} else {
				err = tellLines(cmd.OutOrStdout(), lines)
			}
			if err = errors.Join(err, unknown); err == nil && !ready {
				if err = errNo; wait {
					fmt.Fprintf(cmd.ErrOrStderr(), "not all are ready after %s\n", timeout)
				}
			}
			return err
		},
	}
	clusterFlag(cmd, &file)
	identityFlag(cmd, &identity)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until all are ready, and tell what changes")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Hour, "how long to wait")
	return cmd
}

// looker says how far all machines are. An error beside lines: nobody could be asked
// about those.
type looker func(context.Context) ([]machineLine, error)

// statusOf finds out where the cluster of -f runs.
func statusOf(cmd *cobra.Command, file, identity string) (looker, error) {
	l, err := localOf(file)
	if err != nil {
		return nil, err
	}
	if l.exists() {
		return l.lines, nil
	}
	r, err := openRemote(cmd, file, identity)
	if err != nil {
		return nil, err
	}
	return r.lines, nil
}

// awaitLines looks until all machines are ready or the time is over, at least once, and
// tells every change once.
func awaitLines(ctx context.Context, look looker, timeout time.Duration, w io.Writer) (lines []machineLine, err error) {
	const pause = 5 * time.Second
	told := map[string]bool{}
	for started := time.Now(); ; {
		if lines, err = look(ctx); lines == nil {
			return nil, err
		}
		for _, m := range lines {
			text := fmt.Sprintf("%s  %s", m.Name, cmp.Or(m.Phase, "not heard of"))
			if m.Why != "" && !m.ready() && m.Phase != "" {
				text += ": " + m.Why
			}
			if !told[text] {
				told[text] = true
				fmt.Fprintf(w, "%6s  %s\n", time.Since(started).Round(time.Second), text)
			}
		}
		if err == nil && !slices.ContainsFunc(lines, func(m machineLine) bool { return !m.ready() }) {
			return lines, nil
		}
		if time.Since(started)+pause > timeout {
			return lines, err
		}
		select {
		case <-ctx.Done():
			return lines, ctx.Err()
		case <-time.After(pause):
		}
	}
}

func tellLines(w io.Writer, lines []machineLine) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tROLES\tPOWER\tPHASE\tSINCE\tWHY")
	for _, m := range lines {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, strings.Join(m.Roles, ","), cmp.Or(m.Power, "-"), cmp.Or(m.Phase, "not heard of"), cmp.Or(m.Since, "-"), cmp.Or(m.Why, "-"))
	}
	return t.Flush()
}
