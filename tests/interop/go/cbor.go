package ac

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
	"unicode/utf8"
)

// Values of the CBOR profile are uint64 (or int when encoding), NegInt, []byte,
// string, []any, map[string]any, bool and nil.

// NegInt is the CBOR negative integer -1 - n.
type NegInt uint64

// Limits of the profile (cbor.md).
const (
	maxDepth = 4
	maxArray = 4096
	maxMap   = 32
	maxItems = 65536
)

var errCBOR = errors.New("not in the CBOR profile")

func cborErr(format string, a ...any) error {
	return fmt.Errorf("%w: %s", errCBOR, fmt.Sprintf(format, a...))
}

func appendHead(b []byte, major byte, n uint64) []byte {
	m := major << 5
	switch {
	case n < 24:
		return append(b, m|byte(n))
	case n <= 0xff:
		return append(b, m|24, byte(n))
	case n <= 0xffff:
		return binary.BigEndian.AppendUint16(append(b, m|25), uint16(n))
	case n <= 0xffffffff:
		return binary.BigEndian.AppendUint32(append(b, m|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, m|27), n)
}

// EncodeCBOR appends the deterministic encoding of v to b. It does not check
// the limits of depth and size; messages are built within them.
func EncodeCBOR(b []byte, v any) ([]byte, error) { return encodeCBOR(b, v, 1) }

func encodeCBOR(b []byte, v any, depth int) ([]byte, error) {
	var err error
	switch x := v.(type) {
	case nil:
		return append(b, 0xf6), nil
	case bool:
		if x {
			return append(b, 0xf5), nil
		}
		return append(b, 0xf4), nil
	case uint64:
		return appendHead(b, 0, x), nil
	case int:
		if x < 0 {
			return appendHead(b, 1, uint64(-1-x)), nil
		}
		return appendHead(b, 0, uint64(x)), nil
	case int64:
		if x < 0 {
			return appendHead(b, 1, uint64(-1-x)), nil
		}
		return appendHead(b, 0, uint64(x)), nil
	case NegInt:
		return appendHead(b, 1, uint64(x)), nil
	case []byte:
		return append(appendHead(b, 2, uint64(len(x))), x...), nil
	case Key:
		return append(appendHead(b, 2, 32), x[:]...), nil
	case string:
		if !utf8.ValidString(x) {
			return nil, cborErr("text is not UTF-8")
		}
		return append(appendHead(b, 3, uint64(len(x))), x...), nil
	case []any:
		if depth > maxDepth || len(x) > maxArray {
			return nil, cborErr("array too deep or too long")
		}
		b = appendHead(b, 4, uint64(len(x)))
		for _, e := range x {
			if b, err = encodeCBOR(b, e, depth+1); err != nil {
				return nil, err
			}
		}
		return b, nil
	case map[string]any:
		if depth > maxDepth || len(x) > maxMap {
			return nil, cborErr("map too deep or too large")
		}
		keys := make([][]byte, 0, len(x))
		for k := range x {
			e, err := encodeCBOR(nil, k, depth+1)
			if err != nil {
				return nil, err
			}
			keys = append(keys, e)
		}
		sort.Slice(keys, func(i, j int) bool { return bytes.Compare(keys[i], keys[j]) < 0 })
		b = appendHead(b, 5, uint64(len(x)))
		for _, k := range keys {
			b = append(b, k...)
			_, _, _, off, _ := decodeHead(k, 0)
			if b, err = encodeCBOR(b, x[string(k[off:])], depth+1); err != nil {
				return nil, err
			}
		}
		return b, nil
	}
	return nil, cborErr("type %T has no encoding", v)
}

func mustCBOR(v any) []byte {
	b, err := EncodeCBOR(nil, v)
	if err != nil {
		panic(err)
	}
	return b
}

func decodeHead(b []byte, off int) (major byte, info byte, n uint64, next int, err error) {
	if off >= len(b) {
		return 0, 0, 0, 0, cborErr("item is not complete")
	}
	major, info = b[off]>>5, b[off]&31
	off++
	if info < 24 {
		return major, info, uint64(info), off, nil
	}
	if info > 27 {
		return 0, 0, 0, 0, cborErr("indefinite or reserved length")
	}
	size := 1 << (info - 24)
	if len(b)-off < size {
		return 0, 0, 0, 0, cborErr("item is not complete")
	}
	for i := 0; i < size; i++ {
		n = n<<8 | uint64(b[off+i])
	}
	if major != 7 {
		least := [4]uint64{24, 1 << 8, 1 << 16, 1 << 32}[info-24]
		if n < least {
			return 0, 0, 0, 0, cborErr("not in the shortest form")
		}
	}
	return major, info, n, off + size, nil
}

type cborDecoder struct {
	b     []byte
	off   int
	items int
}

// DecodeCBOR decodes exactly one item of the profile. Byte strings alias b.
func DecodeCBOR(b []byte) (any, error) {
	d := &cborDecoder{b: b}
	v, err := d.value(0)
	if err != nil {
		return nil, err
	}
	if d.off != len(b) {
		return nil, cborErr("bytes after the item")
	}
	return v, nil
}

func (d *cborDecoder) value(depth int) (any, error) {
	major, info, n, off, err := decodeHead(d.b, d.off)
	if err != nil {
		return nil, err
	}
	left := uint64(len(d.b) - off)
	d.off = off
	switch major {
	case 0:
		return n, nil
	case 1:
		return NegInt(n), nil
	case 2, 3:
		if n > left {
			return nil, cborErr("string is not complete")
		}
		s := d.b[off : off+int(n) : off+int(n)]
		d.off += int(n)
		if major == 2 {
			return s, nil
		}
		if !utf8.Valid(s) {
			return nil, cborErr("text is not UTF-8")
		}
		return string(s), nil
	case 4:
		depth++
		if depth > maxDepth || n > maxArray || n > left {
			return nil, cborErr("array too deep, too long or not complete")
		}
		if d.items += int(n); d.items > maxItems {
			return nil, cborErr("too many items")
		}
		a := make([]any, n)
		for i := range a {
			if a[i], err = d.value(depth); err != nil {
				return nil, err
			}
		}
		return a, nil
	case 5:
		depth++
		if depth > maxDepth || n > maxMap || 2*n > left {
			return nil, cborErr("map too deep, too large or not complete")
		}
		if d.items += 2 * int(n); d.items > maxItems {
			return nil, cborErr("too many items")
		}
		m := make(map[string]any, n)
		var last []byte
		for i := uint64(0); i < n; i++ {
			start := d.off
			if start < len(d.b) && d.b[start]>>5 != 3 {
				return nil, cborErr("key is not text")
			}
			k, err := d.value(depth)
			if err != nil {
				return nil, err
			}
			raw := d.b[start:d.off]
			if i > 0 && bytes.Compare(last, raw) >= 0 {
				return nil, cborErr("keys out of order or repeated")
			}
			last = raw
			if m[k.(string)], err = d.value(depth); err != nil {
				return nil, err
			}
		}
		return m, nil
	case 7:
		switch info {
		case 20:
			return false, nil
		case 21:
			return true, nil
		case 22:
			return nil, nil
		}
	}
	return nil, cborErr("major type %d with %d", major, info)
}
