package instancepool

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"
)

// partPatience is how long a client may take to answer that it has heard that
// its instance goes. It is part of what Caddy's exit takes.
const partPatience = 500 * time.Millisecond

// goodbye is a close frame: 1001, going away (RFC 6455, section 7.4.1).
var goodbye = []byte{maskBit | opcodeClose, 2, 1001 >> 8, 1001 & 0xff}

var errParted = errors.New("the instance has gone")

// socket is an instance's end of a connection that was upgraded, such as a
// WebSocket. Bytes pass as they are. When the instance goes, the client of a
// WebSocket is told so, unless the app has done it: by a close frame between two
// frames of the app's own, never within one.
type socket struct {
	conn    io.ReadWriteCloser
	of      *sockets
	framed  bool            // it is a WebSocket
	stopped <-chan struct{} // closed when the instance is asked to stop

	rest  []byte // of goodbye, of which nothing is left at the end; only Read has it
	leave bool   // there is nothing to read any more but rest; only Read has it

	mu       sync.Mutex // guards all below
	out      frames     // to the client
	in       frames     // from the client
	parting  bool       // part was called
	answered chan struct{}
	heard    bool // answered is closed
}

// Read reads what the instance sends, and then, if it has to go, goodbye.
func (s *socket) Read(p []byte) (int, error) {
	if s.leave {
		return s.readGoodbye(p)
	}
	n, err := s.conn.Read(p)
	if !s.framed {
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.parting && n > 0 {
		if s.out.between() { // what comes now would only be cut
			n = 0
		} else {
			n = s.out.passOne(p[:n])
		}
	} else {
		s.out.pass(p[:n])
	}
	// What has ended between two frames can still be ended by a close frame.
	going := s.parting || err != nil && closed(s.stopped)
	if !going || !s.out.between() {
		return n, err
	}
	s.leave = true
	if !s.out.closed {
		s.rest = goodbye
	}
	return n, nil
}

// readGoodbye reads the close frame, and ends when the client has answered that, or
// the app's own, or may be taken not to: if the connection ended before, the
// client could lose the frame with it.
func (s *socket) readGoodbye(p []byte) (int, error) {
	if len(s.rest) > 0 {
		n := copy(p, s.rest)
		s.rest = s.rest[n:]
		return n, nil
	}
	patience := time.NewTimer(partPatience)
	defer patience.Stop()
	select {
	case <-s.answered:
	case <-patience.C:
	}
	return 0, errParted
}

// Write passes on what the client sends. To an instance that goes it is lost.
func (s *socket) Write(p []byte) (int, error) {
	n, err := s.conn.Write(p)
	if !s.framed {
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.in.pass(p)
	if s.in.closed {
		s.answer()
	}
	if err != nil && (s.parting || closed(s.stopped)) {
		return len(p), nil
	}
	return n, err
}

// CloseWrite passes on that the client sends no more.
func (s *socket) CloseWrite() error {
	s.mu.Lock()
	s.answer()
	s.mu.Unlock()
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		return c.CloseWrite()
	}
	return fmt.Errorf("closing one direction: %w", errors.ErrUnsupported)
}

// answer notes that no more is expected from the client. The caller holds mu.
func (s *socket) answer() {
	if !s.heard {
		s.heard = true
		close(s.answered)
	}
}

// Close ends the connection to the instance.
func (s *socket) Close() error {
	err := s.conn.Close()
	s.mu.Lock()
	s.answer()
	s.mu.Unlock()
	s.of.remove(s)
	return err
}

// part ends the connection: at once between two frames, else with the one that
// is passing.
func (s *socket) part() {
	s.mu.Lock()
	s.parting = true
	idle := !s.framed || s.out.between()
	s.mu.Unlock()
	if idle {
		_ = s.conn.Close() // ends Read
	}
}

func closed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// sockets are the upgraded connections of one instance.
type sockets struct {
	mu     sync.Mutex // guards all below
	open   map[*socket]bool
	parted bool
	none   chan struct{} // closed when there are none; nil unless somebody waits for that
}

// take makes the connection of a response part of the instance: it ends with it.
func (o *sockets) take(resp *http.Response, stopped <-chan struct{}) {
	conn, ok := resp.Body.(io.ReadWriteCloser)
	if !ok {
		return
	}
	resp.Body = o.add(conn, strings.EqualFold(resp.Header.Get("Upgrade"), "websocket"), stopped)
}

func (o *sockets) add(conn io.ReadWriteCloser, framed bool, stopped <-chan struct{}) *socket {
	s := &socket{conn: conn, of: o, framed: framed, stopped: stopped, answered: make(chan struct{})}
	o.mu.Lock()
	if o.open == nil {
		o.open = make(map[*socket]bool)
	}
	o.open[s] = true
	parted := o.parted
	o.mu.Unlock()
	if parted {
		s.part()
	}
	return s
}

func (o *sockets) remove(s *socket) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.open, s)
	if len(o.open) == 0 && o.none != nil {
		close(o.none)
		o.none = nil
	}
}

// all has f called for each connection there is, and returns what is closed when
// there is none any more. What is taken later is parted from at once.
func (o *sockets) all(f func(*socket)) <-chan struct{} {
	o.mu.Lock()
	o.parted = true
	none := o.none
	if none == nil {
		none = make(chan struct{})
		if len(o.open) == 0 {
			close(none)
		} else {
			o.none = none
		}
	}
	open := make([]*socket, 0, len(o.open))
	for s := range o.open {
		open = append(open, s)
	}
	o.mu.Unlock()
	for _, s := range open {
		f(s)
	}
	return none
}

// part ends all connections and returns when their clients have heard of it, or
// could have.
func (o *sockets) part() {
	none := o.all((*socket).part)
	patience := time.NewTimer(2 * partPatience) // for a frame to end, and for the answer
	defer patience.Stop()
	select {
	case <-none:
	case <-patience.C:
		o.cut()
	}
}

// cut ends all connections at once.
func (o *sockets) cut() { o.all(func(s *socket) { _ = s.conn.Close() }) }
