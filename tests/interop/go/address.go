package ac

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
)

// Key is an Ed25519 public key: the name of a node or relay.
type Key [32]byte

func (k Key) String() string { return hex.EncodeToString(k[:]) }

// ParseKey reads 64 lower-case hexadecimal digits.
func ParseKey(s string) (Key, error) {
	var k Key
	if len(s) != 64 || strings.ToLower(s) != s {
		return k, errors.New("a key is 64 lower-case hexadecimal digits")
	}
	if _, err := hex.Decode(k[:], []byte(s)); err != nil {
		return k, errors.New("a key is 64 lower-case hexadecimal digits")
	}
	return k, nil
}

// DefaultPort is the port of an address that names none.
const DefaultPort = 7420

// Address says where a relay is and which key it must prove.
type Address struct {
	Key     Key
	Network string // "tcp" or "unix"
	Addr    string // host:port, or the path
}

func (a Address) String() string { return "ac://" + a.Key.String() + "@" + a.Addr }

// ParseAddress reads ac://KEY@host[:port], ac://KEY@[v6][:port] and ac://KEY@/path.
func ParseAddress(s string) (Address, error) {
	bad := func(why string) (Address, error) {
		return Address{}, fmt.Errorf("bad relay address %q: %s", s, why)
	}
	rest, ok := strings.CutPrefix(s, "ac://")
	if !ok {
		return bad("it does not begin with ac://")
	}
	ks, where, ok := strings.Cut(rest, "@")
	if !ok {
		return bad("it names no key")
	}
	key, err := ParseKey(ks)
	if err != nil {
		return bad(err.Error())
	}
	if strings.HasPrefix(where, "/") {
		if len(where) < 2 {
			return bad("empty path")
		}
		return Address{key, "unix", where}, nil
	}
	host, port := where, strconv.Itoa(DefaultPort)
	switch {
	case strings.HasPrefix(where, "["):
		i := strings.IndexByte(where, ']')
		if i < 0 {
			return bad("no ]")
		}
		host = where[1:i]
		if net.ParseIP(host) == nil || !strings.Contains(host, ":") {
			return bad("not an IPv6 address")
		}
		if tail := where[i+1:]; tail != "" {
			if tail[0] != ':' {
				return bad("text after ]")
			}
			port = tail[1:]
		}
	case strings.Contains(where, ":"):
		host, port, _ = strings.Cut(where, ":")
	}
	if host == "" || strings.ContainsAny(host, "/@? #") {
		return bad("no host")
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || strconv.FormatUint(n, 10) != port {
		return bad("bad port")
	}
	return Address{key, "tcp", net.JoinHostPort(host, port)}, nil
}
