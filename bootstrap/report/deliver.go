package report

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/kimage-project/kimage/bootstrap/nodeconf"
)

// A machine that was off while every master that it knows was replaced has nobody
// left to ask. The masters know its address, and bring it the roster. That needs no
// secret and no encryption: who takes a roster verifies the operator's signature,
// and that it is higher than its own; more is not said, and nothing is answered.

const rosterPath = "/v1/roster"

// deliverBudget is for one delivery, on either side.
const deliverBudget = 10 * time.Second

// Deliver brings a roster to the machine at an address; port 0 is Port. It is an
// error when nobody is there, or nobody who listens for one.
func Deliver(ctx context.Context, address string, port int, signed nodeconf.SignedRoster) error {
	if port == 0 {
		port = Port
	}
	data, err := json.Marshal(signed)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, deliverBudget)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+net.JoinHostPort(address, strconv.Itoa(port))+rosterPath, bytes.NewReader(data))
	if err != nil {
		return err
	}
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusNoContent {
		return fmt.Errorf("%s refuses the roster: %s", address, resp.Status)
	}
	return nil
}

// Receive listens on port, 0 is Port, of all addresses for rosters until ctx ends,
// and hands them to take, unverified, with the address they came from.
func Receive(ctx context.Context, port int, take func(s nodeconf.SignedRoster, from string)) error {
	if port == 0 {
		port = Port
	}
	ln, err := net.Listen("tcp", net.JoinHostPort("", strconv.Itoa(port)))
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+rosterPath, func(w http.ResponseWriter, r *http.Request) {
		var s nodeconf.SignedRoster
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxMessageBytes)).Decode(&s); err != nil {
			http.Error(w, "no roster", http.StatusBadRequest)
			return
		}
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		take(s, from)
		w.WriteHeader(http.StatusNoContent)
	})
	server := &http.Server{Handler: mux, ReadTimeout: deliverBudget, WriteTimeout: deliverBudget, MaxHeaderBytes: 8 << 10, ErrorLog: log.New(io.Discard, "", 0)}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { server.Close() })
	defer stop()
	const strangers = 8 // at once
	err = server.Serve(&bounded{ln, make(chan struct{}, strangers)})
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}
