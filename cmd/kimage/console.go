package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// leave is Ctrl-], as of telnet and virsh.
const leave = 0x1d

func newConsole() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "console NODE",
		Short: "Connect this terminal with a machine's serial console",
		Long:  "Connects this terminal with the serial console of a machine of kimage up. Ctrl-] ends it.",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := openLocal(cmd, file)
			if err != nil {
				return err
			}
			m, err := l.machine(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			conn, err := net.Dial("unix", m.Console)
			if err != nil {
				return err
			}
			defer conn.Close()
			fmt.Fprintf(cmd.ErrOrStderr(), "the console of %s; Ctrl-] ends this\n%s\n", args[0], l.ConsoleTail(args[0], 20))
			return attach(conn)
		},
	}
	clusterFlag(cmd, &file)
	return cmd
}

// attach joins the terminal and a console until either ends.
func attach(conn io.ReadWriter) error {
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
	return <-ended
}
