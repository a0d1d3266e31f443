package instancepool

import (
	"bytes"
	"encoding/binary"
	"net"
	"slices"
	"syscall"
	"testing"
)

// frame is a WebSocket frame.
func frame(first byte, masked bool, payload []byte) []byte {
	var mask byte
	if masked {
		mask = maskBit
	}
	b := []byte{first}
	switch n := len(payload); {
	case n < length16:
		b = append(b, mask|byte(n))
	case n < 1<<16:
		b = binary.BigEndian.AppendUint16(append(b, mask|length16), uint16(n))
	default:
		b = binary.BigEndian.AppendUint64(append(b, mask|length64), uint64(n))
	}
	if masked {
		b = append(b, 1, 2, 3, 4)
	}
	return append(b, payload...)
}

// ends are the positions in b at which a frame ends, and closed is whether one of
// those is a close frame.
func ends(b []byte) (at []int, closed bool) {
	for begin := 0; ; {
		rest := b[begin:]
		if len(rest) < 2 {
			return at, closed
		}
		size, length := 2, uint64(rest[1]&0x7f)
		switch length {
		case 126:
			if len(rest) < 4 {
				return at, closed
			}
			size, length = 4, uint64(binary.BigEndian.Uint16(rest[2:]))
		case 127:
			if len(rest) < 10 {
				return at, closed
			}
			size, length = 10, binary.BigEndian.Uint64(rest[2:])
		}
		if rest[1]&0x80 != 0 {
			size += 4
		}
		if len(rest) < size || uint64(len(rest)-size) < length {
			return at, closed
		}
		begin += size + int(length)
		at = append(at, begin)
		closed = closed || rest[0]&0xf == 8
	}
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{}, uint8(1))
	f.Add([]byte{0x81, 0, 0x88, 0x80, 1, 2, 3, 4}, uint8(3))
	f.Add(slices.Concat(frame(0x81, true, []byte("hello")), frame(0x82, false, make([]byte, 300)), frame(0x88, true, []byte{3, 232})), uint8(7))
	f.Add(frame(0x02, true, make([]byte, 1<<16)), uint8(200))
	f.Add([]byte{0x81, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2}, uint8(2))
	f.Fuzz(func(t *testing.T, b []byte, step uint8) {
		want, wantClosed := ends(b)

		var one frames
		var got []int
		for n := 0; n < len(b); {
			end := min(len(b), n+int(step)+1)
			took := one.passOne(b[n:end])
			if took == 0 {
				t.Fatalf("at %d nothing passes", n)
			}
			if n += took; one.between() {
				got = append(got, n)
			} else if n < end {
				t.Fatalf("stopped at %d, within a frame", n)
			}
		}
		if !slices.Equal(got, want) || one.closed != wantClosed {
			t.Errorf("frames end at %v, closed %t; want %v, %t", got, one.closed, want, wantClosed)
		}

		var all frames
		for chunk := range slices.Chunk(b, int(step)+1) {
			all.pass(chunk)
		}
		if between := len(b) == 0 || len(want) > 0 && want[len(want)-1] == len(b); all.between() != between || all.closed != wantClosed {
			t.Errorf("between two frames: %t, closed: %t; want %t, %t", all.between(), all.closed, between, wantClosed)
		}
	})
}

// FuzzParting lets the instance go at any moment of what it sends, and end at any
// other: what the client gets is whole frames, and a close frame at the end.
func FuzzParting(f *testing.F) {
	f.Add([]byte("\x00\x05\x81\xff"), 3, 5000, uint8(2), true)
	f.Add([]byte("\x00\x05\x81\xff"), 3, 200, uint8(2), false)
	f.Add([]byte("\x08\x02"), 2, 3, uint8(9), true)
	f.Fuzz(func(t *testing.T, sizes []byte, at, end int, step uint8, part bool) {
		var sent []byte
		for n, size := range sizes[:min(len(sizes), 50)] {
			sent = append(sent, frame(byte(n), false, bytes.Repeat([]byte{0x88}, int(size)*int(step)))...)
		}
		at = min(max(at, 0), len(sent))
		end = min(max(end, at), len(sent))
		conn := &script{chunks: slices.Collect(slices.Chunk(sent[:end], int(step)+1)), closed: make(chan struct{})}
		stop := make(chan struct{})
		var all sockets
		s := all.add(conn, true, stop)
		s.answer() // nobody waits for the client here
		var got []byte
		begun := 0 // where a frame ends that the client has a part of when the instance goes
		for buf := make([]byte, int(step)+2); ; {
			if len(got) >= at && !closed(stop) {
				passed, _ := ends(sent)
				for _, e := range passed {
					if e >= len(got) {
						begun = e
						break
					}
				}
				close(stop)
				if steady := closed(s.hold()); steady != (len(got) == 0 || begun == len(got)) {
					t.Fatalf("after %d of %d bytes: steady: %t", len(got), begun, steady)
				}
				if part {
					s.end()
				}
			}
			n, err := s.Read(buf)
			got = append(got, buf[:n]...)
			if err != nil {
				break
			}
		}
		rest, said := bytes.CutSuffix(got, goodbye)
		if !bytes.HasPrefix(sent, rest) {
			t.Fatalf("got % x of % x", got, sent)
		}
		passed, closed := ends(rest)
		whole := len(rest) == 0 || len(passed) > 0 && passed[len(passed)-1] == len(rest)
		switch {
		case !whole && !said && end < begun: // the app has cut it itself
		case !whole:
			t.Errorf("a frame is cut: % x", got)
		case said == closed: // the app's own is enough
			t.Errorf("close frame of the app's %t, of ours %t: % x", closed, said, got)
		}
	})
}

// script is a connection on which the instance sends these chunks and then ends it.
type script struct {
	chunks [][]byte
	closed chan struct{}
}

func (s *script) Read(p []byte) (int, error) {
	if closed(s.closed) {
		return 0, net.ErrClosed
	}
	if len(s.chunks) == 0 {
		return 0, syscall.ECONNRESET
	}
	n := copy(p, s.chunks[0])
	if s.chunks[0] = s.chunks[0][n:]; len(s.chunks[0]) == 0 {
		s.chunks = s.chunks[1:]
	}
	return n, nil
}

func (s *script) Write(p []byte) (int, error) { return len(p), nil }

func (s *script) Close() error {
	if !closed(s.closed) {
		close(s.closed)
	}
	return nil
}
