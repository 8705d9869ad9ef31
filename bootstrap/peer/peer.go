// Package peer puts into words, for a person, what stands between this machine
// and another one: why a connection failed, and whether their clocks agree. It
// opens no connection and decides nothing but what to say.
package peer

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"
)

// Why says why a connection to another machine failed. A certificate that is
// not valid now is most often a clock that is wrong, and one of an unknown
// authority another cluster's config: the words name the remedy.
func Why(err error, now time.Time) string {
	var invalid x509.CertificateInvalidError
	var stranger x509.UnknownAuthorityError
	var named x509.HostnameError
	var op *net.OpError
	switch {
	case BadTime(err) && errors.As(err, &invalid) && invalid.Cert != nil:
		return fmt.Sprintf("its certificate is valid from %s to %s, and this machine's clock says %s: set the clock that is wrong",
			invalid.Cert.NotBefore.UTC().Format(time.DateOnly), invalid.Cert.NotAfter.UTC().Format(time.DateOnly), now.UTC().Format(time.DateTime))
	case errors.As(err, &stranger):
		return "its certificate is of another cluster's authority: one of the two machines has another cluster's config"
	case errors.As(err, &named):
		return "its certificate names another address: another machine answers there, or its address changed"
	case errors.As(err, &op) && op.Op == "remote error":
		return "it refuses this machine's certificate (" + op.Err.Error() + "): its clock is wrong, or one of the two machines has another cluster's config"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return "no route to it: it is off, or not on this network"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused: nothing listens there yet"
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return "no answer: it is off, cut off, or still starting"
	}
	return innermost(err)
}

// BadTime says whether a certificate is not valid at this machine's time.
func BadTime(err error) bool {
	var invalid x509.CertificateInvalidError
	return errors.As(err, &invalid) && invalid.Reason == x509.Expired
}

// Unreachable says whether the other machine did not answer at all: it may be
// off, cut off or starting, which alone is no news.
func Unreachable(err error) bool {
	var timeout net.Error
	return errors.Is(err, syscall.EHOSTUNREACH) || errors.Is(err, syscall.ENETUNREACH) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.EOF) || errors.As(err, &timeout) && timeout.Timeout()
}

// innermost is the error without the addresses around it.
func innermost(err error) string {
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return "no answer: it is off, cut off, or still starting"
	}
	for {
		next := errors.Unwrap(err)
		if next == nil {
			return err.Error()
		}
		err = next
	}
}
