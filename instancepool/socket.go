package instancepool

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// partPatience is how long a client may take to answer that it has heard that
// its instance goes. It is part of what Caddy's exit takes.
const partPatience = 500 * time.Millisecond

// mostKept is how much of a frame is kept until it is whole; a larger one passes as
// it comes.
const mostKept = 1 << 20

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

	rest  []byte // what the client gets before anything else; only Read has it
	part  []byte // of a frame that is kept until it is whole; only Read has it
	leave bool   // there is nothing to read any more but rest; only Read has it

	mu       sync.Mutex // guards all below
	out      frames     // to the client
	in       frames     // from the client
	whole    bool       // the client gets no frame that is not whole, see hold
	begun    bool       // it has got a part of one
	parting  bool       // end was called
	steady   chan struct{}
	calm     bool // steady is closed: the client has no part of a frame, nor will it get one
	answered chan struct{}
	heard    bool // answered is closed
}

// Read reads what the instance sends, and then, if it has to go, goodbye.
func (s *socket) Read(p []byte) (int, error) {
	if len(s.rest) > 0 {
		n := copy(p, s.rest)
		s.rest = s.rest[n:]
		return n, nil
	}
	if s.leave {
		return 0, s.awaitAnswer()
	}
	n, err := s.conn.Read(p)
	if !s.framed {
		return n, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.whole {
		n = s.keep(p[:n])
	} else {
		s.out.pass(p[:n])
		s.begun = !s.out.between()
	}
	switch {
	case s.begun, err == nil && !s.parting:
	case s.out.closed && err != nil: // the app has said it
		s.leave = true
		return n, nil
	case !s.out.closed && (s.parting || closed(s.stopped)):
		s.leave = true
		s.rest = append(s.rest, goodbye...)
		return n, nil
	}
	if errors.Is(err, io.EOF) {
		// Nothing of a WebSocket goes on when one of its directions has ended.
		err = io.ErrUnexpectedEOF
	}
	return n, err
}

// keep returns how many bytes at the beginning of p the client gets now, and
// puts into rest what comes next: whole frames, and the one that it has a part of. The caller
// holds mu.
func (s *socket) keep(p []byte) int {
	now := 0
	for took := 0; took < len(p); {
		n := s.out.passOne(p[took:])
		if s.begun && took == 0 {
			now = n
		} else {
			s.part = append(s.part, p[took:took+n]...)
		}
		took += n
		if s.out.between() || len(s.part) > mostKept {
			s.rest = append(s.rest, s.part...)
			s.part = nil
			s.begun = !s.out.between()
		}
	}
	s.settle()
	return now
}

// settle notes that the client has no part of a frame. The caller holds mu.
func (s *socket) settle() {
	if s.whole && !s.begun && !s.calm {
		s.calm = true
		close(s.steady)
	}
}

// hold sees to it that from the end of the present frame on the client gets whole
// ones only. Then the app may end at any moment. It returns what is closed
// from that end on.
func (s *socket) hold() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.whole = true
	s.settle()
	return s.steady
}

// awaitAnswer returns when the client has answered the close frame, or may be taken
// not to: if the connection ended before, it could lose the frame with it.
func (s *socket) awaitAnswer() error {
	patience := time.NewTimer(partPatience)
	defer patience.Stop()
	select {
	case <-s.answered:
	case <-patience.C:
	}
	return errParted
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
	s.whole, s.begun = true, false
	s.settle()
	s.mu.Unlock()
	s.of.remove(s)
	return err
}

// end ends the connection: at once between two frames, else with the one that
// is passing.
func (s *socket) end() {
	s.mu.Lock()
	s.parting, s.whole = true, true
	s.settle()
	idle := !s.framed || !s.begun
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
	held   bool          // hold was called
	parted bool          // part or cut was
	none   chan struct{} // closed when there are none; nil before all
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
	s := &socket{conn: conn, of: o, framed: framed, stopped: stopped, steady: make(chan struct{}), answered: make(chan struct{})}
	o.mu.Lock()
	if o.open == nil {
		o.open = make(map[*socket]bool)
	}
	o.open[s] = true
	s.whole, s.parting = o.held, o.parted
	o.mu.Unlock()
	if s.parting {
		s.end()
	}
	return s
}

func (o *sockets) remove(s *socket) {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.open, s)
	if len(o.open) == 0 && o.none != nil && !closed(o.none) {
		close(o.none)
	}
}

// hold returns when no client has a part of a frame, nor will get one, unless that
// takes too long.
func (o *sockets) hold() {
	o.mu.Lock()
	o.held = true
	open := slices.Collect(maps.Keys(o.open))
	o.mu.Unlock()
	patience := time.NewTimer(partPatience)
	defer patience.Stop()
	for _, s := range open {
		select {
		case <-s.hold():
		case <-patience.C:
			patience.Reset(0) // the others are to hold all the same
		}
	}
}

// part ends all connections and returns when their clients have heard of it, or
// could have.
func (o *sockets) part() {
	none := o.all((*socket).end)
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

// all has f called for each connection there is, and returns what is closed when
// there is none any more. What is taken later ends at once.
func (o *sockets) all(f func(*socket)) <-chan struct{} {
	o.mu.Lock()
	o.parted = true
	if o.none == nil {
		o.none = make(chan struct{})
		if len(o.open) == 0 {
			close(o.none)
		}
	}
	none, open := o.none, slices.Collect(maps.Keys(o.open))
	o.mu.Unlock()
	for _, s := range open {
		f(s)
	}
	return none
}
