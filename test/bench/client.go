package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// requestTimeout is longer than any request may take.
const requestTimeout = time.Minute

// local is a transport to sites of this machine, whatever their host is called.
var local = &http.Transport{
	DisableKeepAlives: true,
	DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(address)
		if err != nil {
			return nil, err
		}
		return new(net.Dialer).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
	},
}

// firstByte sends a request to a site and returns how long the first byte of the
// answer took. It uses a new connection.
func firstByte(ctx context.Context, host string) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	began := time.Now()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+host+"/", nil)
	if err != nil {
		return 0, err
	}
	resp, err := local.RoundTrip(req)
	took := time.Since(began)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("GET http://%s/: %s: %s", host, resp.Status, text)
	}
	return took, nil
}

// conn is a connection that is kept between requests. It is not net/http's, which
// sends a request again by itself when a connection breaks: here that is a
// request that has failed.
type conn struct {
	net.Conn

	in *bufio.Reader
}

func dialSite(ctx context.Context) (*conn, error) {
	c, err := new(net.Dialer).DialContext(ctx, "tcp", siteAddr)
	if err != nil {
		return nil, err
	}
	return &conn{c, bufio.NewReader(c)}, nil
}

// get sends a request and reads the answer, which must be 200.
func (c *conn) get(host, path string) error {
	if err := c.SetDeadline(time.Now().Add(requestTimeout)); err != nil {
		return err
	}
	if _, err := fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", path, host); err != nil {
		return err
	}
	resp, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("GET http://%s%s: %s: %s", host, path, resp.Status, text)
	}
	return nil
}

// atOnce sends a request to each of the hosts in the same moment, over
// connections that are open, and returns what each took, and how long it was from
// the first request to the last answer.
func atOnce(ctx context.Context, hosts []string, path string) (each []time.Duration, all time.Duration, err error) {
	conns := make([]*conn, len(hosts))
	for i := range conns {
		if conns[i], err = dialSite(ctx); err != nil {
			return nil, 0, err
		}
		defer conns[i].Close()
	}
	each = make([]time.Duration, len(hosts))
	errs := make([]error, len(hosts))
	start := make(chan struct{})
	var began time.Time // before start is closed
	var group sync.WaitGroup
	for i, c := range conns {
		group.Go(func() {
			<-start
			errs[i] = c.get(hosts[i], path)
			each[i] = time.Since(began)
		})
	}
	began = time.Now()
	close(start)
	group.Wait()
	all = time.Since(began)
	failed := 0
	for _, e := range errs {
		if e != nil {
			failed++
			err = e
		}
	}
	if failed > 0 {
		return nil, 0, fmt.Errorf("%d of %d requests failed, such as %w", failed, len(hosts), err)
	}
	return each, all, nil
}
