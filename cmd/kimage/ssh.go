package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/kimage-project/kimage/pkg/local"
)

func newSSH() *cobra.Command {
	cmd := forMachine(&cobra.Command{
		Use:     "ssh NODE [COMMAND...]",
		Short:   "Log in to a machine of kimage up, or run a command there",
		Example: "  kimage ssh k8s-01\n  kimage ssh k8s-01 sudo kimage-agent status",
		Args:    cobra.MinimumNArgs(1),
	}, func(_ *cobra.Command, l *localCluster, m local.MachineStatus, args []string) error {
		return l.ssh(m, args)
	})
	cmd.Flags().SetInterspersed(false) // what follows the machine's name is the command's
	return cmd
}

// ssh becomes the ssh program, and so gives its status.
func (l *localCluster) ssh(m local.MachineStatus, command []string) error {
	spec, err := l.Spec()
	if err != nil {
		return err
	}
	program, err := exec.LookPath("ssh")
	if err != nil {
		return fmt.Errorf("package openssh-client: %w", err)
	}
	// Host keys are made at first boot and the port is local: there is nothing to
	// compare them with.
	argv := []string{"ssh", "-q", "-i", l.in("key"), "-p", strconv.Itoa(m.SSHPort), "-o", "IdentitiesOnly=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		spec.User + "@127.0.0.1"}
	return syscall.Exec(program, append(argv, command...), os.Environ())
}
