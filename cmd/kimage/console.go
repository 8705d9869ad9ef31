package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/kimage-project/kimage/pkg/local"
)

// leave is Ctrl-], as of telnet and virsh.
const leave = 0x1d

func newConsole() *cobra.Command {
	return forMachine(&cobra.Command{
		Use:   "console NODE",
		Short: "Connect this terminal with a machine's serial console",
		Long:  "Connects this terminal with the serial console of a machine of kimage up. Ctrl-] ends it.\nIt has room for one: a second one waits until the first has ended.",
		Args:  cobra.ExactArgs(1),
	}, func(cmd *cobra.Command, l *localCluster, m local.MachineStatus, _ []string) error {
		conn, err := net.Dial("unix", m.Console)
		if err != nil {
			return err
		}
		defer conn.Close()
		fmt.Fprintf(cmd.ErrOrStderr(), "the console of %s; Ctrl-] ends this\n%s\n", m.Name, l.ConsoleTail(m.Name, 20))
		return attach(cmd.Context(), conn)
	})
}

// attach joins the terminal and a console until either ends, or ctx does.
func attach(ctx context.Context, conn io.ReadWriter) error {
	if in := int(os.Stdin.Fd()); term.IsTerminal(in) {
		before, err := term.MakeRaw(in)
		if err != nil {
			return err
		}
		defer term.Restore(in, before)
	}
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(os.Stdout, conn)
		ended <- err
	}()
	go func() {
		buf := make([]byte, 1024)
		for {
			n, err := os.Stdin.Read(buf)
			typed := buf[:n]
			i := bytes.IndexByte(typed, leave)
			if i >= 0 {
				typed, err = typed[:i], io.EOF
			}
			if _, writeErr := conn.Write(typed); err == nil {
				err = writeErr
			}
			if err != nil {
				if errors.Is(err, io.EOF) {
					err = nil
				}
				ended <- err
				return
			}
		}
	}()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return nil
	}
}
