package instancepool

import "encoding/binary"

// The parts of a WebSocket frame's header that matter here. Source: RFC 6455,
// section 5.2.
const (
	opcodeBits  = 0x0f
	opcodeClose = 0x8
	maskBit     = 0x80
	lengthBits  = 0x7f
	// From these values of the length on, it is in the next two or eight bytes.
	length16 = 126
	length64 = 127
)

// frames follows one direction of a WebSocket: it knows where frames end, and
// reads nothing but their headers.
type frames struct {
	head   [2 + 8 + 4]byte // of the frame that is passing, as far as it has come
	got    int             // bytes of head; 0 between two frames
	left   uint64          // bytes of the payload that are still to come
	closed bool            // a close frame has passed, whole
}

// between reports whether no frame has been cut.
func (f *frames) between() bool { return f.got == 0 }

// pass lets p by.
func (f *frames) pass(p []byte) {
	for len(p) > 0 {
		p = p[f.passOne(p):]
	}
}

// passOne lets p by up to the end of the first frame in it, and returns how many
// bytes that is.
func (f *frames) passOne(p []byte) int {
	n := 0
	for ; !f.headed(); n++ {
		if n == len(p) {
			return n
		}
		f.head[f.got] = p[n]
		f.got++
		if f.headed() {
			f.left = f.length()
		}
	}
	payload := min(f.left, uint64(len(p)-n))
	f.left -= payload
	if f.left == 0 {
		f.closed = f.closed || f.head[0]&opcodeBits == opcodeClose
		f.got = 0
	}
	return n + int(payload)
}

// headed reports whether the header is whole.
func (f *frames) headed() bool {
	if f.got < 2 {
		return false
	}
	size := 2
	switch f.head[1] & lengthBits {
	case length16:
		size += 2
	case length64:
		size += 8
	}
	if f.head[1]&maskBit != 0 {
		size += 4
	}
	return f.got == size
}

// length is that of the payload, by a whole header.
func (f *frames) length() uint64 {
	switch n := f.head[1] & lengthBits; n {
	case length16:
		return uint64(binary.BigEndian.Uint16(f.head[2:]))
	case length64:
		return binary.BigEndian.Uint64(f.head[2:])
	default:
		return uint64(n)
	}
}
