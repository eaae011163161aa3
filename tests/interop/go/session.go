package ac

import (
	"bufio"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"time"
)

const (
	closingDeadline = 5 * time.Second
	welcomeDeadline = 10 * time.Second
	flushMessages   = 256
	flushBytes      = 1 << 20
	rememberSent    = 8192
	maxPings        = 8
)

// ErrClosed is returned after the client was closed.
var ErrClosed = errors.New("client is closed")

// CloseError is the CLOSE of a relay.
type CloseError struct {
	Code   Code
	Detail string
}

func (e *CloseError) Error() string {
	return fmt.Sprintf("relay closed the connection: %v %q", e.Code, e.Detail)
}

type ping struct {
	kind    uint64
	token   string
	sent    bool
	ordinal uint64 // messages sent before it
	at      time.Time
	done    chan struct{}
	err     error
	rtt     time.Duration
}

func (p *ping) finish(err error) {
	p.err = err
	close(p.done)
}

// session is one connection. All fields are guarded by Client.mu, apart from
// what only the reader or only the writer uses.
type session struct {
	c    *Client
	addr Address
	conn net.Conn
	out  *recordCipher
	in   *recordReader
	id   uint64

	welcomed  bool
	epoch     [8]byte
	limits    Limits
	shape     shaping
	ordinal   uint64
	settled   uint64
	sent      map[uint64]*item
	unMsgs    int
	unBytes   int
	pings     []*ping
	frags     [7][]byte
	fragOpen  [7]bool
	pauses    map[string]time.Time // target + class
	refusals  map[string]int64     // dest + class: not before
	paused    [7]bool              // towards us, by our PAUSE
	goaway    *goawayMsg
	lastRecv  time.Time
	pingAt    time.Time
	final     []byte // CLOSE that leaves before anything else
	closing   bool   // CLOSE is queued or under way
	closeSent bool
	closeRecv bool
	moved     bool // we said CLOSE in order to connect elsewhere
	failed    error
	deadline  time.Time
	wake      chan struct{}
	gone      chan struct{}
}

func (c *Client) dial(ctx context.Context, a Address) (*session, error) {
	ctx, cancel := context.WithTimeout(ctx, welcomeDeadline)
	defer cancel()
	var d net.Dialer
	conn, err := d.DialContext(ctx, a.Network, a.Addr)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	hs, err := newClientHandshake(c.cfg.Identity, a.Key, nil)
	if err != nil {
		conn.Close()
		return nil, err
	}
	if _, err := conn.Write(hs.act1()); err != nil {
		conn.Close()
		return nil, err
	}
	b := make([]byte, act2Size)
	if _, err := io.ReadFull(conn, b); err != nil {
		conn.Close()
		return nil, fmt.Errorf("%w: %v", ErrHandshake, err)
	}
	act3, k1, k2, err := hs.act2(b)
	if err != nil {
		conn.Close()
		return nil, err
	}
	s := &session{
		c: c, addr: a, conn: conn, out: newRecordCipher(k1),
		in:     newRecordReader(bufio.NewReaderSize(conn, 1<<16), k2),
		limits: defaultLimits(), sent: map[uint64]*item{}, pauses: map[string]time.Time{}, refusals: map[string]int64{},
		lastRecv: time.Now(), wake: make(chan struct{}, 1), gone: make(chan struct{}),
	}
	c.mu.Lock()
	c.connection++
	s.id = c.connection
	hello := c.helloLocked()
	c.mu.Unlock()
	first := append([]byte{}, act3...)
	for plain := appendFrame(nil, hello); len(plain) > 0; {
		n := min(len(plain), maxPlain)
		first, _ = s.out.seal(first, plain[:n])
		plain = plain[n:]
	}
	if _, err := conn.Write(first); err != nil {
		conn.Close()
		return nil, err
	}
	s.deadline = time.Now().Add(welcomeDeadline)
	return s, nil
}

func (s *session) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run serves the connection until it is gone and says why it ended.
func (s *session) run() error {
	writer := make(chan struct{})
	go func() { defer close(writer); s.write() }()
	go s.watch()
	err := s.read()
	s.c.mu.Lock()
	if s.failed == nil {
		s.failed = err
	}
	err = s.failed
	s.c.mu.Unlock()
	// a CLOSE that waits gets the chance to leave
	s.poke()
	timer := time.AfterFunc(200*time.Millisecond, func() { s.conn.Close() })
	s.c.mu.Lock()
	leave := s.final != nil && !s.closeSent
	s.c.mu.Unlock()
	if leave {
		select {
		case <-writer:
		case <-time.After(200 * time.Millisecond):
		}
	}
	timer.Stop()
	s.conn.Close()
	close(s.gone)
	s.poke()
	<-writer
	return err
}

// watch keeps the deadlines.
func (s *session) watch() {
	t := time.NewTicker(200 * time.Millisecond)
	defer t.Stop()
	for {
		select {
		case <-s.gone:
			return
		case now := <-t.C:
			s.c.mu.Lock()
			silent := now.Sub(s.lastRecv)
			switch {
			case !s.deadline.IsZero() && now.After(s.deadline):
				if s.failed == nil && !s.closing {
					s.failed = errors.New("deadline passed")
				}
				s.conn.Close()
			case !s.welcomed || s.closing:
			case silent >= ms(s.limits.KeepaliveMS) && s.pingAt.Before(s.lastRecv):
				s.pingAt = now
				s.pingLocked(0)
			case !s.pingAt.Before(s.lastRecv) && now.Sub(s.pingAt) >= ms(s.limits.DropMS):
				s.failed = errors.New("relay is silent")
				s.conn.Close()
			}
			s.c.reliableTick(now)
			s.c.mu.Unlock()
		}
	}
}

func ms(n uint64) time.Duration {
	return time.Duration(min(n, 1<<40)) * time.Millisecond
}

// control queues a control frame.
func (s *session) control(kind uint64, barrier bool, room string, fields ...any) *item {
	it := &item{kind: kind, class: control, barrier: barrier, room: room,
		data: mustCBOR(append([]any{kind}, fields...))}
	s.c.q.push(it, s.shape.hasLane)
	s.poke()
	return it
}

func (s *session) pingLocked(kind uint64) *ping {
	tok := make([]byte, 8)
	rand.Read(tok)
	p := &ping{kind: kind, token: string(tok), done: make(chan struct{})}
	s.pings = append(s.pings, p)
	it := s.control(kPing, kind == 1, "", kind, tok)
	it.onSent = func() {
		p.sent, p.ordinal, p.at = true, s.ordinal, time.Now()
	}
	if kind == 1 {
		s.unMsgs, s.unBytes = 0, 0
	}
	return p
}

// fail answers a fault of the relay with CLOSE.
func (s *session) fail(code Code, err error) {
	s.c.mu.Lock()
	defer s.c.mu.Unlock()
	if s.failed == nil {
		s.failed = err
	}
	if s.closing && s.closeSent || s.final != nil {
		return
	}
	text := err.Error()
	if len(text) > 256 {
		text = text[:256]
	}
	s.final = appendFrame(nil, mustCBOR([]any{kClose, uint64(code), text}))
	s.closing = true
	s.deadline = time.Now().Add(closingDeadline)
	s.poke()
}

// fill assembles the plaintext of the next record. It returns the time at which
// a shaped message becomes eligible if there is nothing else to do.
func (s *session) fill() (plain []byte, wake int64) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.closeSent {
		return nil, 0
	}
	if s.final != nil {
		s.closeSent = true
		return s.final, 0
	}
	if !s.welcomed {
		return nil, 0
	}
	for len(plain) < maxPlain-chunkSize {
		if it := c.q.nextControl(); it != nil {
			plain = appendFrame(plain, it.data)
			if it.onSent != nil {
				it.onSent()
			}
			if it.kind == kClose {
				s.closeSent = true
				break
			}
			continue
		}
		b, w := s.pick(plain)
		if b == nil {
			wake = w
			break
		}
		plain = b
	}
	c.broadcast()
	return plain, wake
}

// pick appends the next frame of a message.
func (s *session) pick(plain []byte) ([]byte, int64) {
	now := mono()
	var wake int64
	later := func(t int64) {
		if wake == 0 || t < wake {
			wake = t
		}
	}
	q := &s.c.q
	if s.ordinal-s.settled >= rememberSent-1 {
		return nil, 0 // wait for the PONG to a flush
	}
	for class := 6; class >= 0; class-- {
		cq := &q.classes[class]
		if cq.open != nil {
			return s.emit(plain, cq, cq.open), 0
		}
		for {
			var best *lane
			var at int
			for _, l := range cq.lanes {
				for i, it := range l.items {
					if t := s.refusals[it.dest+string(rune(class))]; t > now {
						later(t)
						continue
					}
					if best == nil || it.seq < best.items[at].seq {
						if it.charged && it.leaves > now {
							later(it.leaves)
							break
						}
						best, at = l, i
					}
					break
				}
			}
			if best == nil {
				break
			}
			it := best.items[at]
			if it.build != nil {
				it.data = it.build()
				if it.data == nil {
					cq.bytes -= q.remove(best, at).size
					continue
				}
			}
			l := uint64(len(it.data) + 4)
			if uint64(len(it.data)) > s.limits.FrameBytes {
				cq.bytes -= q.remove(best, at).size
				it.onReject(PayloadTooLarge, 0, false)
				continue
			}
			if !it.charged {
				if t := s.shape.through(it); len(t) > 0 {
					v := Process(t, now, l)
					if v.TooLarge {
						cq.bytes -= q.remove(best, at).size
						it.onReject(PayloadTooLarge, 0, false)
						continue
					}
					it.leaves = v.Eligible
				}
				it.charged = true
				if it.leaves > now {
					later(it.leaves)
					continue
				}
			}
			q.remove(best, at)
			cq.open = it
			return s.emit(plain, cq, it), 0
		}
	}
	return nil, wake
}

// emit appends the whole frame or the next fragment of it.
func (s *session) emit(plain []byte, cq *classQueue, it *item) []byte {
	if it.off == 0 && len(it.data)+4 <= wholeUpTo {
		plain = appendFrame(plain, it.data)
	} else {
		n := min(chunkSize, len(it.data)-it.off)
		end := 0
		if it.off+n == len(it.data) {
			end = 1
		}
		f := mustCBOR([]any{kFragment, it.class, end, it.data[it.off : it.off+n]})
		plain = appendFrame(plain, f)
		it.off += n
		if end == 0 {
			return plain
		}
	}
	cq.open = nil
	cq.bytes -= it.size
	s.ordinal++
	s.sent[s.ordinal] = it
	delete(s.sent, s.ordinal-rememberSent) // forgotten; settled long ago
	if it.onSent != nil {
		it.onSent()
	}
	s.unMsgs++
	s.unBytes += len(it.data)
	if s.unMsgs >= flushMessages || s.unBytes >= flushBytes {
		n := 0
		for _, p := range s.pings {
			if p.kind == 1 {
				n++
			}
		}
		if n < maxPings-2 {
			s.pingLocked(1)
		}
	}
	return plain
}

func (s *session) write() {
	var buf []byte
	for {
		plain, wake := s.fill()
		for len(plain) > 0 {
			n := min(len(plain), maxPlain)
			var err error
			if buf, err = s.out.seal(buf[:0], plain[:n]); err == nil {
				_, err = s.conn.Write(buf)
			}
			if err != nil {
				s.conn.Close()
				return
			}
			plain = plain[n:]
			if len(plain) == 0 {
				plain, wake = s.fill()
			}
		}
		s.c.mu.Lock()
		over := s.closeSent
		recv := s.closeRecv
		s.c.mu.Unlock()
		if over && recv {
			s.conn.Close()
			return
		}
		var timer <-chan time.Time
		if wake != 0 {
			timer = time.After(time.Duration(wake - mono()))
		}
		select {
		case <-s.gone:
			return
		case <-s.wake:
		case <-timer:
		}
	}
}

type aliveReader struct {
	s *session
}

func (a aliveReader) Read(p []byte) (int, error) {
	n, err := a.s.in.Read(p)
	if n > 0 {
		a.s.c.mu.Lock()
		a.s.lastRecv = time.Now()
		a.s.c.mu.Unlock()
	}
	return n, err
}

func (s *session) read() error {
	limit := uint64(65536)
	r := bufio.NewReaderSize(aliveReader{s}, 1<<16)
	for {
		array, err := readFrame(r, limit)
		if err == nil {
			err = s.handle(array)
		}
		s.c.mu.Lock()
		if s.welcomed {
			limit = s.limits.FrameBytes
		}
		over := s.closeRecv
		failed := s.failed
		s.c.mu.Unlock()
		if over {
			return err
		}
		var pe *protocolError
		if errors.As(err, &pe) {
			s.fail(pe.code, err)
			// go on reading, so that no RST destroys our CLOSE
			s.conn.SetReadDeadline(time.Now().Add(closingDeadline))
			io.Copy(io.Discard, s.conn)
			return err
		}
		if err != nil {
			if failed != nil {
				return failed
			}
			return fmt.Errorf("connection is broken: %w", err)
		}
	}
}

// handle takes one frame.
func (s *session) handle(array []byte) error {
	m, err := decodeMessage(array)
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.broadcast()
	if err != nil {
		return err
	}
	if m == nil {
		if !s.welcomed {
			return fault(UnexpectedMessage, "extension before WELCOME")
		}
		return nil
	}
	if !s.welcomed {
		switch m.(type) {
		case *welcomeMsg, *goawayMsg, *closeMsg:
		default:
			return fault(UnexpectedMessage, "first frame is not WELCOME")
		}
	}
	switch m := m.(type) {
	case *fragmentMsg:
		return s.fragment(m)
	case *deliverMsg:
		if s.fragOpen[m.class] {
			return fault(ProtocolError, "DELIVER while a fragmented frame of its class is open")
		}
		c.deliver(m)
		return nil
	}
	return s.take(m)
}

func (s *session) fragment(m *fragmentMsg) error {
	cl := m.class
	if m.end == 2 {
		if !s.fragOpen[cl] {
			return fault(ProtocolError, "abort without an open frame")
		}
		s.frags[cl], s.fragOpen[cl] = nil, false
		return nil
	}
	s.fragOpen[cl] = true
	s.frags[cl] = append(s.frags[cl], m.chunk...)
	if uint64(len(s.frags[cl])) > s.limits.FrameBytes {
		return fault(FrameTooLarge, "fragments too long")
	}
	if m.end == 0 {
		return nil
	}
	whole := s.frags[cl]
	s.frags[cl], s.fragOpen[cl] = nil, false
	inner, err := decodeMessage(whole)
	if err != nil {
		return err
	}
	d, ok := inner.(*deliverMsg)
	if !ok {
		return fault(ProtocolError, "fragmented message is no DELIVER")
	}
	if d.class != cl {
		return fault(ProtocolError, "class of the inner message differs")
	}
	s.c.deliver(d)
	return nil
}

func (s *session) take(m any) error {
	c := s.c
	switch m := m.(type) {
	case *welcomeMsg:
		if s.welcomed {
			return fault(UnexpectedMessage, "second WELCOME")
		}
		if m.revision != 1 {
			return fault(UnsupportedRevision, "WELCOME of another revision")
		}
		s.welcomed, s.epoch, s.limits = true, m.epoch, m.limits
		s.deadline = time.Time{}
		s.shape.setConn(m.contracts, mono())
		c.opened(s, m)
		s.poke()
	case *joinedMsg:
		s.shape.setRoom(m.room, m.contracts, mono())
		c.q.relane(s.shape.hasLane)
		c.joined(m)
	case *leftMsg:
		c.left(m)
	case *contractMsg:
		if m.code == OK {
			if m.hasRoom {
				s.shape.setRoom(m.room, m.contracts, mono())
			} else {
				s.shape.setConn(m.contracts, mono())
			}
			c.q.relane(s.shape.hasLane)
			s.poke()
		}
		c.emit(Event{Type: EventContract, Room: m.room, Code: m.code, Contracts: m.contracts})
	case *membersPageMsg:
		c.page(m)
	case *presenceMsg:
		c.presence(m)
	case *rejectMsg:
		last := m.first + m.count - 1
		if last > s.ordinal {
			return fault(ProtocolError, "REJECT of an ordinal that was not sent")
		}
		first := m.first
		if s.ordinal > rememberSent {
			first = max(first, s.ordinal-rememberSent+1)
		}
		for o := first; o <= last; o++ {
			if it := s.sent[o]; it != nil {
				delete(s.sent, o)
				if m.retryMS > 0 && m.code == RateExceeded {
					s.refusals[it.dest+string(rune(it.class))] = mono() + int64(ms(m.retryMS))
				}
				it.onReject(m.code, m.retryMS, it.accepted)
			}
		}
	case *gapMsg:
		c.emit(Event{Type: EventGap, Room: m.room, Sender: deref(m.sender), Class: m.class, Count: m.count, Bytes: m.bytes, Code: m.code})
	case *pauseMsg:
		k := m.target + string(rune(m.class))
		if m.resume || m.forMS == 0 {
			delete(s.pauses, k)
		} else {
			s.pauses[k] = time.Now().Add(ms(m.forMS))
			time.AfterFunc(ms(m.forMS)+time.Millisecond, func() { c.mu.Lock(); c.broadcast(); c.mu.Unlock() })
		}
	case *pingMsg:
		s.control(kPong, false, "", m.token)
	case *pongMsg:
		s.pong(string(m.token))
	case *goawayMsg:
		s.goaway = m
		c.emit(Event{Type: EventGoaway, Code: m.code, WindowMS: min(m.windowMS, 600000)})
		if m.code == Draining || m.code == Overloaded || m.code == SessionTooOld {
			s.planMove(m)
		}
	case statsReportMsg:
		for _, ch := range c.stats {
			ch <- m
		}
		c.stats = nil
	case *closeMsg:
		s.closeRecv = true
		ce := &CloseError{m.code, m.detail}
		if s.failed == nil {
			s.failed = ce
		}
		if !s.closeSent {
			s.final = appendFrame(nil, mustCBOR([]any{kClose, uint64(OK), ""}))
			s.closing = true
			s.deadline = time.Now().Add(closingDeadline)
		} else if m.code == OK {
			s.settle(s.ordinal)
		}
		s.poke()
	}
	return nil
}

func deref(k *Key) Key {
	if k == nil {
		return Key{}
	}
	return *k
}

func (s *session) pong(token string) {
	at := -1
	for i, p := range s.pings {
		if p.sent && p.token == token {
			at = i
		}
	}
	if at < 0 {
		return
	}
	hit := s.pings[at]
	var rest []*ping
	for i, p := range s.pings {
		if p.kind == hit.kind && i <= at {
			p.rtt = time.Since(p.at)
			if p.kind == 1 {
				s.settle(p.ordinal)
			}
			p.finish(nil)
		} else {
			rest = append(rest, p)
		}
	}
	s.pings = rest
	s.poke()
}

// settle takes all messages up to an ordinal that were not refused as accepted.
func (s *session) settle(to uint64) {
	for ; s.settled < to; s.settled++ {
		if it := s.sent[s.settled+1]; it != nil && !it.accepted {
			it.accepted = true
			if it.onAccept != nil {
				it.onAccept()
			}
		}
	}
}

// planMove leaves in time when there is another way to go.
func (s *session) planMove(m *goawayMsg) {
	c := s.c
	if m.code != SessionTooOld && len(c.cfg.Relays) < 2 {
		return // stay until CLOSE
	}
	d := sha256.Sum256(append(append([]byte{}, c.cfg.Identity.Key[:]...), s.epoch[:]...))
	x := new(big.Int).SetBytes(d[:])
	x.Mul(x, new(big.Int).SetUint64(min(m.windowMS, 600000)*3/4))
	x.Rsh(x, 256)
	time.AfterFunc(ms(x.Uint64()), func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.s == s && !s.closing {
			s.moved = true
			s.leave()
		}
	})
}

// leave queues CLOSE 0 behind all that waits.
func (s *session) leave() {
	s.c.sendAcks()
	s.closing = true
	s.deadline = time.Now().Add(closingDeadline)
	s.control(kClose, true, "", uint64(OK), "")
}

// end settles what is open when the connection is gone.
func (s *session) end() {
	c := s.c
	for _, p := range s.pings {
		p.finish(errOutcomeUnknown)
	}
	s.pings = nil
	for o := s.settled + 1; o <= s.ordinal; o++ {
		if it := s.sent[o]; it != nil && !it.accepted && it.onUnknown != nil {
			it.onUnknown()
		}
	}
	c.q.reset()
}

var errOutcomeUnknown = errors.New("connection ended before the relay answered")
