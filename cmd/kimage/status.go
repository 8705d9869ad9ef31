package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/bootstrap/report"
	"github.com/kimage-project/kimage/pkg/cluster"
	"github.com/kimage-project/kimage/pkg/kubeapi"
	"github.com/kimage-project/kimage/pkg/local"
	"github.com/kimage-project/kimage/pkg/qemu"
)

// machineLine is one machine of the cluster file, or of a pool.
type machineLine struct {
	Name  string   `json:"name"`
	Roles []string `json:"roles,omitempty"`
	On    bool     `json:"on"`
	Phase string   `json:"phase"`           // empty: nothing was heard of it
	Since string   `json:"since,omitempty"` // of the phase
	Why   string   `json:"why,omitempty"`   // what it waits for, and what to do about it
	From  string   `json:"from"`            // who says so: a master's name, or its console
}

func newStatus() *cobra.Command {
	var file string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "List the machines of a cluster, and how far each is",
		Long: `Lists every machine of the cluster: whether it is on, how far it is, since
when, why, and what to do about it. A master's agent is asked, which hears from all
others; of machines that none has heard of, the console shows how far they are.
Exits with 1 unless all are ready.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			l, err := openLocal(file)
			if err != nil {
				return err
			}
			lines, err := l.lines(cmd.Context())
			if err != nil {
				return err
			}
			ready := !slices.ContainsFunc(lines, func(m machineLine) bool { return !m.On || m.Phase != local.PhaseReady })
			if asJSON {
				err = writeJSON(cmd, map[string]any{"apiVersion": cluster.APIVersion, "machines": lines, "ok": ready})
			} else {
				err = tellLines(cmd.OutOrStdout(), lines)
			}
			if err == nil && !ready {
				err = errNo
			}
			return err
		},
	}
	clusterFlag(cmd, &file)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func tellLines(w io.Writer, lines []machineLine) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "NAME\tROLES\tPOWER\tPHASE\tSINCE\tWHY")
	for _, m := range lines {
		power := map[bool]string{true: "on", false: "off"}[m.On]
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\n", m.Name, strings.Join(m.Roles, ","), power, cmp.Or(m.Phase, "not heard of"), cmp.Or(m.Since, "-"), cmp.Or(m.Why, "-"))
	}
	return t.Flush()
}

// lines are all machines. It works with none of them on.
func (l *localCluster) lines(ctx context.Context) ([]machineLine, error) {
	spec, err := l.Spec()
	if err != nil {
		return nil, err
	}
	st, err := l.Status(ctx)
	if err != nil && !errors.Is(err, local.ErrNotRunning) {
		return nil, err
	}
	on := map[string]local.MachineStatus{}
	for _, m := range st.Machines {
		on[m.Name] = m
	}
	heard, master := l.heard(ctx, spec, on)
	var out []machineLine
	for _, m := range spec.Machines {
		line := machineLine{Name: m.Name, Roles: m.Roles, On: on[m.Name].On, From: "console"}
		if s := l.Screen(m.Name); line.On {
			line.Phase, line.Since, line.Why = s.Phase, s.Since, s.Why
		} else {
			line.Why = "it is off: kimage replace " + m.Name + " boots it fresh"
		}
		// A report from before the machine was switched on is of the one before it.
		if h, ok := heard[m.Name]; ok && line.On && !h.Silent && h.Heard.After(on[m.Name].Since) {
			line.Phase, line.Since, line.Why, line.From = h.Report.Phase, h.Report.Since.UTC().Format(time.DateTime+" MST"), h.Report.Why, master
		}
		out = append(out, line)
	}
	return out, nil
}

// heard asks the masters that are on what they have heard, by name; the first answer
// counts.
func (l *localCluster) heard(ctx context.Context, spec local.Spec, on map[string]local.MachineStatus) (all map[string]report.Machine, master string) {
	const budget = 15 * time.Second // of an emulated one
	ctx, cancel := context.WithTimeout(ctx, budget)
	defer cancel()
	asked := 0
	answers := make(chan *report.Cluster, len(spec.Machines))
	for _, m := range spec.Machines {
		if !m.API || !on[m.Name].On {
			continue
		}
		asked++
		go func() {
			r, err := l.ask(ctx, on[m.Name], "sudo kimage-agent status --cluster --json")
			var c report.Cluster
			if err != nil || json.Unmarshal([]byte(r), &c) != nil || len(c.Machines) == 0 {
				answers <- nil
				return
			}
			answers <- &c
		}()
	}
	for range asked {
		if c := <-answers; c != nil {
			all = map[string]report.Machine{}
			for _, x := range c.Machines {
				all[x.Name] = x
			}
			return all, c.Master
		}
	}
	return nil, ""
}

// ask runs a command in a machine and returns what it prints.
func (l *localCluster) ask(ctx context.Context, m local.MachineStatus, command string) (string, error) {
	key, err := l.key()
	if err != nil {
		return "", err
	}
	spec, err := l.Spec()
	if err != nil {
		return "", err
	}
	r, err := (&qemu.Machine{SSHPort: m.SSHPort}).SSH(ctx, spec.User, key, command)
	return r.Stdout, err
}

// AwaitReady waits until all machines are Ready, and tells how far they are.
func (l *localCluster) AwaitReady(ctx context.Context, out io.Writer) error {
	w := local.Wait{Set: l.Set, Out: out, Ask: func(ctx context.Context, m local.MachineStatus) (s local.Screen, err error) {
		text, err := l.ask(ctx, m, "cat /run/kimage/phase.json")
		if err == nil {
			err = json.Unmarshal([]byte(text), &s)
		}
		return s, err
	}}
	return w.Ready(ctx)
}

// nodes shows the Nodes as the API server has them.
func (l *localCluster) nodes(ctx context.Context, out io.Writer) error {
	conf, err := kubeapi.ReadKubeconfig(l.in("kubeconfig"))
	if err != nil {
		return err
	}
	conf.Timeout = time.Minute
	c, err := kubeapi.New(conf)
	if err != nil {
		return err
	}
	defer c.Close()
	var list struct{ Items []kubeapi.Object }
	if err := c.Get(ctx, "/api/v1/nodes", url.Values{}, &list); err != nil {
		return fmt.Errorf("asking the API server for its Nodes: %w", err)
	}
	t := tabwriter.NewWriter(out, 0, 8, 3, ' ', 0)
	fmt.Fprintln(t, "NAME\tSTATUS\tROLES\tVERSION\tINTERNAL-IP")
	for _, n := range list.Items {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", kubeapi.Text(n, "metadata", "name"), condition(n, "Ready"), rolesOf(n), kubeapi.Text(n, "status", "nodeInfo", "kubeletVersion"), internalIP(n))
	}
	return t.Flush()
}

func condition(n kubeapi.Object, kind string) string {
	all, _ := kubeapi.Field(n, "status", "conditions").([]any)
	for _, x := range all {
		if c, _ := x.(kubeapi.Object); kubeapi.Text(c, "type") == kind && kubeapi.Text(c, "status") == "True" {
			return kind
		}
	}
	return "Not" + kind
}

func rolesOf(n kubeapi.Object) string {
	labels, _ := kubeapi.Field(n, "metadata", "labels").(kubeapi.Object)
	var roles []string
	for k := range labels {
		if role, ok := strings.CutPrefix(k, "node-role.kubernetes.io/"); ok {
			roles = append(roles, role)
		}
	}
	slices.Sort(roles)
	return cmp.Or(strings.Join(roles, ","), "<none>")
}

func internalIP(n kubeapi.Object) string {
	all, _ := kubeapi.Field(n, "status", "addresses").([]any)
	for _, x := range all {
		if a, _ := x.(kubeapi.Object); kubeapi.Text(a, "type") == "InternalIP" {
			return kubeapi.Text(a, "address")
		}
	}
	return "-"
}
