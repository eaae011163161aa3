package ac

import (
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"io"
	"math"

	"golang.org/x/crypto/chacha20poly1305"
)

const (
	maxPlain     = 65519
	minRecord    = 17
	recordsOfKey = 1024
)

// protocolError is a fault of the other side that is answered with CLOSE code.
type protocolError struct {
	code Code
	text string
}

func (e *protocolError) Error() string { return e.code.String() + ": " + e.text }

func fault(code Code, text string) error { return &protocolError{code, text} }

// recordCipher is one direction of the record layer.
type recordCipher struct {
	k    [32]byte
	n    uint64
	aead cipher.AEAD
}

func newRecordCipher(k [32]byte) *recordCipher {
	c := &recordCipher{k: k}
	c.aead, _ = chacha20poly1305.New(k[:])
	return c
}

// advance counts a record and changes the key after every 1,024th.
func (c *recordCipher) advance() {
	if c.n%recordsOfKey == recordsOfKey-1 {
		var zero [32]byte
		copy(c.k[:], c.aead.Seal(nil, nonce(math.MaxUint64), zero[:], nil))
		c.aead, _ = chacha20poly1305.New(c.k[:])
	}
	c.n++
}

// seal appends one record with plaintext x (1 to 65,519 bytes) to b.
func (c *recordCipher) seal(b, x []byte) ([]byte, error) {
	if len(x) < 1 || len(x) > maxPlain {
		return nil, errors.New("record with an illegal length")
	}
	if c.n == math.MaxUint64 {
		return nil, errors.New("record counter is used up")
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(x)+16))
	b = c.aead.Seal(b, nonce(c.n), x, nil)
	c.advance()
	return b, nil
}

func (c *recordCipher) open(ct []byte) ([]byte, error) {
	x, err := c.aead.Open(ct[:0], nonce(c.n), ct, nil)
	if err != nil {
		return nil, fault(ProtocolError, "record does not decrypt")
	}
	c.advance()
	return x, nil
}

// recordReader turns a stream of records into the stream of their plaintexts.
type recordReader struct {
	r    io.Reader
	c    *recordCipher
	buf  []byte
	rest []byte
	err  error
}

func newRecordReader(r io.Reader, k [32]byte) *recordReader {
	return &recordReader{r: r, c: newRecordCipher(k), buf: make([]byte, 65535)}
}

func (r *recordReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	if len(r.rest) == 0 {
		if r.err = r.next(); r.err != nil {
			return 0, r.err
		}
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

func (r *recordReader) next() error {
	var head [2]byte
	if _, err := io.ReadFull(r.r, head[:]); err != nil {
		return err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if n < minRecord {
		return fault(ProtocolError, "record too short")
	}
	if _, err := io.ReadFull(r.r, r.buf[:n]); err != nil {
		return err
	}
	var err error
	r.rest, err = r.c.open(r.buf[:n])
	return err
}

// readFrame reads one frame and returns its array.
func readFrame(r io.Reader, limit uint64) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 {
		return nil, fault(ProtocolError, "frame of length 0")
	}
	if uint64(n) > limit {
		return nil, fault(FrameTooLarge, "frame too long")
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, err
	}
	return b, nil
}

func appendFrame(b, array []byte) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(array))), array...)
}
