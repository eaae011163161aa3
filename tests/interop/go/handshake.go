package ac

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"

	"filippo.io/edwards25519"
	"golang.org/x/crypto/chacha20poly1305"
)

// Errors of the handshake.
var (
	ErrHandshake = errors.New("handshake failed")
	ErrWrongKey  = errors.New("relay proved another key than the one in its address")
)

const (
	act1Size  = 36
	act2Size  = 128
	act3Size  = 96
	noiseName = "Noise_XX_25519_ChaChaPoly_SHA256"
)

var preface = []byte{'A', 'W', 'C', 1}

// Identity is an Ed25519 key pair with its X25519 image.
type Identity struct {
	Key  Key // public
	seed [32]byte
	x    *ecdh.PrivateKey
}

// NewIdentity makes the identity of a seed.
func NewIdentity(seed []byte) (*Identity, error) {
	if len(seed) != 32 {
		return nil, errors.New("a seed has 32 bytes")
	}
	id := &Identity{}
	copy(id.seed[:], seed)
	copy(id.Key[:], ed25519.NewKeyFromSeed(seed).Public().(ed25519.PublicKey))
	d := sha512.Sum512(seed)
	d[0] &= 248
	d[31] = d[31]&127 | 64
	x, err := ecdh.X25519().NewPrivateKey(d[:32])
	if err != nil {
		return nil, err
	}
	id.x = x
	return id, nil
}

// GenerateIdentity makes a new identity.
func GenerateIdentity() (*Identity, error) {
	seed := make([]byte, 32)
	rand.Read(seed)
	return NewIdentity(seed)
}

// lMinus1 is the order of the prime-order subgroup less one.
var lMinus1 = func() *edwards25519.Scalar {
	one := make([]byte, 32)
	one[0] = 1
	s, _ := edwards25519.NewScalar().SetCanonicalBytes(one)
	return edwards25519.NewScalar().Negate(s)
}()

// image checks an identity key and returns its X25519 image.
func image(k []byte) ([]byte, error) {
	if len(k) != 32 {
		return nil, errors.New("a key has 32 bytes")
	}
	p, err := new(edwards25519.Point).SetBytes(k)
	if err != nil {
		return nil, errors.New("identity is not a point")
	}
	if subtle.ConstantTimeCompare(p.Bytes(), k) != 1 {
		return nil, errors.New("identity is not canonical")
	}
	neutral := edwards25519.NewIdentityPoint()
	if p.Equal(neutral) == 1 {
		return nil, errors.New("identity is the neutral element")
	}
	// [L-1]P + P is neutral exactly for the points of the prime-order subgroup.
	q := new(edwards25519.Point).ScalarMult(lMinus1, p)
	if q.Add(q, p).Equal(neutral) != 1 {
		return nil, errors.New("identity is not in the prime-order subgroup")
	}
	return p.BytesMontgomery(), nil
}

// checkIdentity applies "Checking an identity" of handshake.md.
func checkIdentity(own *Identity, identity, static []byte) error {
	u, err := image(identity)
	if err != nil {
		return err
	}
	if subtle.ConstantTimeCompare(u, static) != 1 {
		return errors.New("identity does not belong to the static key")
	}
	if subtle.ConstantTimeCompare(u, own.x.PublicKey().Bytes()) == 1 {
		return errors.New("identity is our own")
	}
	return nil
}

func hkdf(ck, x []byte) (a, b [32]byte) {
	mac := func(k []byte, parts ...[]byte) (r [32]byte) {
		m := hmac.New(sha256.New, k)
		for _, p := range parts {
			m.Write(p)
		}
		m.Sum(r[:0])
		return
	}
	t := mac(ck, x)
	a = mac(t[:], []byte{1})
	b = mac(t[:], a[:], []byte{2})
	return
}

func nonce(n uint64) []byte {
	b := make([]byte, 12)
	binary.LittleEndian.PutUint64(b[4:], n)
	return b
}

type noise struct {
	h, ck, k [32]byte
	n        uint64
	trace    func(name string, v []byte) // tests only
}

func newNoise() *noise {
	s := &noise{}
	copy(s.h[:], noiseName)
	s.ck = s.h
	s.mixHash(preface)
	return s
}

func (s *noise) note(name string) {
	if s.trace != nil {
		s.trace("h "+name, s.h[:])
		s.trace("ck "+name, s.ck[:])
		s.trace("k "+name, s.k[:])
	}
}

func (s *noise) mixHash(x []byte) {
	d := sha256.New()
	d.Write(s.h[:])
	d.Write(x)
	d.Sum(s.h[:0])
}

func (s *noise) mixKey(x []byte) {
	s.ck, s.k = hkdf(s.ck[:], x)
	s.n = 0
}

func (s *noise) dh(priv *ecdh.PrivateKey, pub []byte) error {
	p, err := ecdh.X25519().NewPublicKey(pub)
	if err != nil {
		return err
	}
	x, err := priv.ECDH(p) // refuses an all-zero result
	if err != nil {
		return err
	}
	s.mixKey(x)
	return nil
}

func (s *noise) encrypt(x []byte) []byte {
	a, _ := chacha20poly1305.New(s.k[:])
	c := a.Seal(nil, nonce(s.n), x, s.h[:])
	s.n++
	s.mixHash(c)
	return c
}

func (s *noise) decrypt(c []byte) ([]byte, error) {
	a, _ := chacha20poly1305.New(s.k[:])
	x, err := a.Open(nil, nonce(s.n), c, s.h[:])
	if err != nil {
		return nil, err
	}
	s.n++
	s.mixHash(c)
	return x, nil
}

func (s *noise) split() (k1, k2 [32]byte) {
	k1, k2 = hkdf(s.ck[:], nil)
	s.ck, s.k = [32]byte{}, [32]byte{}
	return
}

// clientHandshake is the side that dials.
type clientHandshake struct {
	*noise
	id     *Identity
	pinned Key
	e      *ecdh.PrivateKey
}

func newClientHandshake(id *Identity, pinned Key, ephemeral []byte) (*clientHandshake, error) {
	if ephemeral == nil {
		ephemeral = make([]byte, 32)
		rand.Read(ephemeral)
	}
	e, err := ecdh.X25519().NewPrivateKey(ephemeral)
	if err != nil {
		return nil, err
	}
	return &clientHandshake{newNoise(), id, pinned, e}, nil
}

func (c *clientHandshake) act1() []byte {
	c.note("preface")
	e := c.e.PublicKey().Bytes()
	c.mixHash(e)
	c.mixHash(nil)
	c.note("act1")
	return append(append([]byte{}, preface...), e...)
}

// act2 takes act 2 and returns act 3 and the keys of both directions.
func (c *clientHandshake) act2(b []byte) (act3 []byte, k1, k2 [32]byte, err error) {
	fail := func(err error) ([]byte, [32]byte, [32]byte, error) {
		c.e, c.ck, c.k = nil, [32]byte{}, [32]byte{}
		return nil, [32]byte{}, [32]byte{}, err
	}
	if len(b) != act2Size {
		return fail(ErrHandshake)
	}
	re := b[:32]
	c.mixHash(re)
	if err := c.dh(c.e, re); err != nil {
		return fail(fmt.Errorf("%w: %v", ErrHandshake, err))
	}
	c.note("ee")
	rs, err := c.decrypt(b[32:80])
	if err != nil {
		return fail(fmt.Errorf("%w: act 2: %v", ErrHandshake, err))
	}
	if err := c.dh(c.e, rs); err != nil {
		return fail(fmt.Errorf("%w: %v", ErrHandshake, err))
	}
	c.note("es")
	identity, err := c.decrypt(b[80:])
	if err != nil {
		return fail(fmt.Errorf("%w: act 2: %v", ErrHandshake, err))
	}
	if subtle.ConstantTimeCompare(identity, c.pinned[:]) != 1 {
		return fail(ErrWrongKey)
	}
	if err := checkIdentity(c.id, identity, rs); err != nil {
		return fail(fmt.Errorf("%w: %v", ErrHandshake, err))
	}
	c.note("act2")
	c3 := c.encrypt(c.id.x.PublicKey().Bytes())
	if err := c.dh(c.id.x, re); err != nil {
		return fail(fmt.Errorf("%w: %v", ErrHandshake, err))
	}
	c.note("se")
	c4 := c.encrypt(c.id.Key[:])
	c.note("act3")
	k1, k2 = c.split()
	c.e = nil
	return append(c3, c4...), k1, k2, nil
}

// relayHandshake is the other side; used by the tests.
type relayHandshake struct {
	*noise
	id *Identity
	e  *ecdh.PrivateKey
}

func newRelayHandshake(id *Identity, ephemeral []byte) (*relayHandshake, error) {
	if ephemeral == nil {
		ephemeral = make([]byte, 32)
		rand.Read(ephemeral)
	}
	e, err := ecdh.X25519().NewPrivateKey(ephemeral)
	if err != nil {
		return nil, err
	}
	return &relayHandshake{newNoise(), id, e}, nil
}

// checkPreface says whether b can be the beginning of act 1.
func checkPreface(b []byte) bool {
	n := min(len(b), len(preface))
	return string(b[:n]) == string(preface[:n])
}

func (r *relayHandshake) act1(b []byte) ([]byte, error) {
	if len(b) != act1Size || !checkPreface(b) {
		return nil, ErrHandshake
	}
	ce := b[4:]
	r.mixHash(ce)
	r.mixHash(nil)
	e := r.e.PublicKey().Bytes()
	r.mixHash(e)
	if err := r.dh(r.e, ce); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrHandshake, err)
	}
	c1 := r.encrypt(r.id.x.PublicKey().Bytes())
	if err := r.dh(r.id.x, ce); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrHandshake, err)
	}
	c2 := r.encrypt(r.id.Key[:])
	return append(append(append([]byte{}, e...), c1...), c2...), nil
}

func (r *relayHandshake) act3(b []byte) (client Key, k1, k2 [32]byte, err error) {
	if len(b) != act3Size {
		return client, k1, k2, ErrHandshake
	}
	s, err := r.decrypt(b[:48])
	if err != nil {
		return client, k1, k2, fmt.Errorf("%w: act 3: %v", ErrHandshake, err)
	}
	if err = r.dh(r.e, s); err != nil {
		return client, k1, k2, fmt.Errorf("%w: %v", ErrHandshake, err)
	}
	identity, err := r.decrypt(b[48:])
	if err != nil {
		return client, k1, k2, fmt.Errorf("%w: act 3: %v", ErrHandshake, err)
	}
	if err = checkIdentity(r.id, identity, s); err != nil {
		return client, k1, k2, fmt.Errorf("%w: %v", ErrHandshake, err)
	}
	copy(client[:], identity)
	k1, k2 = r.split()
	return client, k1, k2, nil
}
