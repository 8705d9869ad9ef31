package gce

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/kimage-project/kimage/pkg/run"
)

// firstRule is the priority of the first rule: before the kernel's own (32766), and where no
// network plugin has any.
const firstRule = 7440

// rules let only this machine itself, and whoever wants to know a name, talk to the metadata
// server: user data and the tokens of the service account are there for every pod otherwise.
// They are routing rules and no firewall's, because runtimes and network plugins write their
// own tables anew whenever they like, and because a pod's packet is looked at where the
// address is the one that it really goes to, also behind a Service. UDP stays: names and
// time are asked for there.
var rules = [][]string{
	{"iif", "lo", "lookup", "main"}, // this machine's own
	{"ipproto", "tcp", "dport", "53", "lookup", "main"},
	{"ipproto", "tcp", "prohibit"},
}

// Close closes the metadata server to pods. Pods in the machine's own network are not held
// back: who may make those owns the machine. It can be repeated.
func Close(ctx context.Context) error {
	for i, rule := range rules {
		argv := slices.Concat([]string{"ip", "rule", "add", "priority", strconv.Itoa(firstRule + i), "to", server}, rule)
		_, err := run.Output(ctx, run.Cmd{Argv: argv})
		if err != nil && !strings.Contains(err.Error(), "File exists") {
			return fmt.Errorf("closing the metadata server to pods: %w", err)
		}
	}
	return nil
}
