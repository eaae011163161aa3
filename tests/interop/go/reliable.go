package ac

import (
	"bytes"
	"context"
	"crypto/rand"
	"slices"
	"time"
)

// Limits of reliable mode (reliable.md).
const (
	relExpires    = 60 * time.Second
	relMaxExpires = 24 * time.Hour
	relOutbox     = 8 << 20
	relWindow     = 1 << 20
	relWindowMsgs = 1024
	relBuffer     = 4 << 20
	relAhead      = 4096
	relStreams    = 16384
	rtoFirst      = time.Second
	rtoLeast      = 400 * time.Millisecond
	rtoMost       = 5 * time.Second
)

type relState int

const (
	relQueued relState = iota
	relSent
	relHeld
)

// relMessage is a message at its sender.
type relMessage struct {
	seq      uint64
	content  uint64
	payload  []byte
	deadline time.Time
	state    relState
	pending  bool // a segment waits in the send queue
	order    uint64
	at       time.Time
	segments int // sent so far
	refused  int // of them, refused by the relay
	others   bool
	receipt  *Receipt
}

// outStream is a unicast stream at its sender.
type outStream struct {
	peer     Key
	class    Class
	next     uint64
	base     uint64
	msgs     []*relMessage // in order of sequence
	inflight int
	receiver []byte
	rto      time.Duration
	srtt     time.Duration
	probe    bool // one segment until an ack comes
	wait     time.Time
	acted    time.Time // last segment, mark or ack
	used     time.Time
}

type outKey struct {
	peer  Key
	class Class
}

// inStream is a stream at its receiver.
type inStream struct {
	inc     []byte
	base    uint64
	arrived uint64          // everything below has arrived or is gone
	next    uint64          // everything below was handed over or is gone
	taken   map[uint64]bool // from next on
	buffer  map[uint64]*buffered
	bytes   int
	longest time.Duration
	last    time.Time
	ackDue  bool
	held    time.Time // when to tell that messages wait for the application
	dead    bool
}

type buffered struct {
	content  uint64
	payload  []byte
	deadline time.Time
}

type inKey struct {
	sender Key
	room   string // "": unicast
	class  Class
}

type scopeKey struct {
	sender Key
	room   string
}

type reliable struct {
	inc      []byte
	out      map[outKey]*outStream
	in       map[inKey]*inStream
	greatest map[scopeKey][]byte
	refusals map[Key]time.Time
	bytes    int
	order    uint64
	floor    uint64 // sequences of forgotten streams are below
	ackTimer bool
}

func (r *reliable) init() {
	r.inc = append(u64(uint64(time.Now().UnixMilli())), make([]byte, 8)...)
	rand.Read(r.inc[8:])
	r.out, r.in = map[outKey]*outStream{}, map[inKey]*inStream{}
	r.greatest, r.refusals = map[scopeKey][]byte{}, map[Key]time.Time{}
}

// ---- sender -------------------------------------------------------------------

// SendReliable sends a message to one peer until its application took it.
// expires 0 means 60 s.
func (c *Client) SendReliable(ctx context.Context, peer Key, class Class, payload []byte, expires time.Duration) (*Receipt, error) {
	return c.sendReliable(ctx, peer, class, contentApp, payload, expires)
}

func (c *Client) sendReliable(ctx context.Context, peer Key, class Class, content uint64, payload []byte, expires time.Duration) (*Receipt, error) {
	if class > 6 {
		return nil, &CodeError{"class", ProtocolError}
	}
	if expires <= 0 {
		expires = relExpires
	}
	expires = min(max(expires, time.Millisecond), relMaxExpires)
	c.mu.Lock()
	defer c.mu.Unlock()
	r := &c.rel
	size := len(payload) + 128
	if err := c.await(ctx, func() bool { return c.closing || r.bytes == 0 || r.bytes+size <= relOutbox }); err != nil {
		return nil, err
	}
	if c.closing {
		return nil, ErrClosed
	}
	if s := c.s; s != nil && uint64(size) > s.limits.PayloadBytes {
		return nil, &CodeError{"payload", PayloadTooLarge}
	}
	k := outKey{peer, class}
	st := r.out[k]
	if st == nil {
		if len(r.out) >= relStreams {
			r.forgetIdle()
		}
		st = &outStream{peer: peer, class: class, next: r.floor + 1, base: r.floor + 1, rto: rtoFirst, probe: false}
		r.out[k] = st
	}
	c.nextID++
	m := &relMessage{seq: st.next, content: content, payload: append([]byte{}, payload...), deadline: time.Now().Add(expires),
		receipt: &Receipt{ID: c.nextID, Done: make(chan struct{})}}
	st.next++
	st.msgs = append(st.msgs, m)
	st.used = time.Now()
	r.bytes += size
	c.pumpStream(st, time.Now())
	return m.receipt, nil
}

func (r *reliable) forgetIdle() {
	var oldest *outStream
	for _, st := range r.out {
		if len(st.msgs) == 0 && (oldest == nil || st.used.Before(oldest.used)) {
			oldest = st
		}
	}
	if oldest != nil {
		r.floor = max(r.floor, oldest.next-1)
		delete(r.out, outKey{oldest.peer, oldest.class})
	}
}

// endMessage takes a message out of its stream.
func (c *Client) endMessage(st *outStream, m *relMessage, o Outcome, code Code) {
	i := slices.Index(st.msgs, m)
	if i < 0 {
		return
	}
	if i == 0 {
		st.msgs[0] = nil
		st.msgs = st.msgs[1:]
	} else {
		st.msgs = slices.Delete(st.msgs, i, i+1)
	}
	c.rel.bytes -= len(m.payload) + 128
	if m.state != relQueued {
		st.inflight -= len(m.payload)
	}
	st.base = st.next
	if len(st.msgs) > 0 {
		st.base = st.msgs[0].seq
	}
	if m.receipt.finish(o, code, 0) {
		t := map[Outcome]EventType{Delivered: EventDelivered, Expired: EventExpired, Refused: EventRejected, Unknown: EventUnknown}[o]
		c.emit(Event{Type: t, Message: m.receipt.ID, Code: code, Reliable: true})
	}
	c.broadcast()
}

func (st *outStream) requeue(m *relMessage) {
	if m.state != relQueued {
		st.inflight -= len(m.payload)
		m.state = relQueued
	}
}

// pumpStream sends what the window allows.
func (c *Client) pumpStream(st *outStream, now time.Time) {
	if c.s == nil || c.s.closing || now.Before(st.wait) {
		return
	}
	count := 0
	for _, m := range st.msgs {
		if m.state != relQueued {
			count++
		}
	}
	unheld := 0
	for _, m := range st.msgs {
		if m.state == relSent {
			unheld++
		}
	}
	for _, m := range st.msgs {
		if m.state != relQueued || m.pending {
			continue
		}
		if st.probe && unheld > 0 {
			return
		}
		if st.inflight > 0 && st.inflight+len(m.payload) > relWindow || count >= relWindowMsgs {
			return
		}
		st.inflight += len(m.payload)
		m.state, m.pending, m.at = relSent, true, now
		count++
		unheld++
		c.sendSegment(st, m)
	}
}

func (c *Client) sendSegment(st *outStream, m *relMessage) {
	it := c.newItem(kSend, "", st.peer, st.class, contentSegment, nil)
	it.segment = true
	it.size = len(m.payload) + 128
	it.build = func() []byte {
		left := time.Until(m.deadline).Milliseconds()
		if left < 1 || m.receipt.over {
			m.pending = false
			st.requeue(m)
			return nil
		}
		seg := mustCBOR([]any{c.rel.inc, m.seq, min(st.base, m.seq), left, m.content, m.payload})
		return mustCBOR([]any{kSend, st.peer, st.class.num(), contentSegment, seg})
	}
	it.onSent = func() {
		m.pending = false
		m.segments++
		c.rel.order++
		m.order, m.at = c.rel.order, time.Now()
		st.acted = m.at
	}
	it.onReject = func(code Code, retry uint64, late bool) {
		m.pending = false
		m.refused++
		if m.receipt.over {
			return
		}
		if !code.MayRetry() {
			c.endMessage(st, m, Refused, code)
			return
		}
		st.requeue(m)
		st.probe = true
		st.wait = time.Now().Add(max(ms(retry), st.rto/4))
		st.rto = min(st.rto*2, rtoMost)
	}
	c.push(it)
}

func (c *Client) sendControl(peer Key, payload any) {
	if c.s == nil || c.s.closing {
		return
	}
	it := c.newItem(kSend, "", peer, 6, contentControl, mustCBOR(payload))
	it.segment = true
	it.onReject = func(Code, uint64, bool) {}
	c.push(it)
}

func (c *Client) sendMark(st *outStream) {
	st.acted = time.Now()
	c.sendControl(st.peer, []any{2, nil, c.rel.inc, []any{[]any{st.class.num(), st.base, st.next}}})
}

// reliableTick does what is due.
func (c *Client) reliableTick(now time.Time) {
	for _, st := range c.rel.out {
		for _, m := range slices.Clone(st.msgs) {
			if now.After(m.deadline) && m.state != relHeld || now.After(m.deadline.Add(time.Second)) {
				if m.segments == m.refused && m.state != relHeld {
					c.endMessage(st, m, Expired, 0)
				} else {
					c.endMessage(st, m, Unknown, 0)
				}
			}
		}
		if len(st.msgs) == 0 || c.s == nil {
			continue
		}
		late, waiting, held := false, 0, 0
		for _, m := range st.msgs {
			switch m.state {
			case relSent:
				waiting++
				if !m.pending && now.Sub(m.at) > st.rto {
					late = true
				}
			case relHeld:
				held++
			}
		}
		if late {
			for _, m := range st.msgs {
				if m.state == relSent && !m.pending {
					st.requeue(m)
				}
			}
			st.probe = true
			st.rto = min(st.rto*2, rtoMost)
		} else if waiting == 0 && held > 0 && now.Sub(st.acted) > st.rto {
			st.rto = min(st.rto*2, rtoMost)
			c.sendMark(st)
		}
		c.pumpStream(st, now)
	}
	for k, in := range c.rel.in {
		if k.room == "" && !in.held.IsZero() && now.After(in.held) {
			in.held = time.Time{}
			c.ackSoon(in)
		}
		for seq, b := range in.buffer {
			if now.After(b.deadline) {
				in.bytes -= len(b.payload)
				delete(in.buffer, seq)
			}
		}
		if now.Sub(in.last) > 2*in.longest+time.Minute && len(in.buffer) == 0 {
			in.dead = true
			delete(c.rel.in, k)
		}
	}
}

// reliableGone forgets what was under way on a connection that ended.
func (c *Client) reliableGone() {
	for _, st := range c.rel.out {
		for _, m := range st.msgs {
			m.pending = false
			if m.state == relSent {
				st.requeue(m)
			}
		}
	}
}

func (c *Client) reliableConnected() {
	for _, st := range c.rel.out {
		st.probe, st.wait, st.rto = true, time.Time{}, rtoFirst
	}
	for _, in := range c.rel.in {
		in.ackDue = false
	}
}

// ---- control payloads -----------------------------------------------------------

type seqRange struct{ first, last uint64 }

func (f *fields) ranges() (rs []seqRange) {
	for _, v := range f.array(32) {
		s := f.sub(v, 2)
		rs = append(rs, seqRange{s.count(), s.count()})
		f.done(s)
	}
	return
}

func within(rs []seqRange, seq uint64) bool {
	for _, r := range rs {
		if r.first <= seq && seq <= r.last {
			return true
		}
	}
	return false
}

func parsePayload(b []byte) *fields {
	v, err := DecodeCBOR(b)
	a, ok := v.([]any)
	if err != nil || !ok {
		return &fields{bad: "not an array of the profile"}
	}
	return &fields{a: a}
}

func (f *fields) fine() bool { return f.bad == "" && len(f.a) == 0 }

func (c *Client) controlPayload(d *deliverMsg) {
	f := parsePayload(d.payload)
	switch f.uint() {
	case 0:
		recv, inc, class := f.bytes(16, 16), f.bytes(16, 16), f.class()
		next, taken, held := f.count(), f.ranges(), f.ranges()
		if f.fine() && d.mode == 1 && bytes.Equal(inc, c.rel.inc) {
			c.ack(d.sender, class, recv, next, taken, held)
		}
	case 1:
		inc, class, reason := f.bytes(16, 16), f.class(), f.uint()
		st := c.rel.out[outKey{d.sender, class}]
		if !f.fine() || d.mode != 1 || !bytes.Equal(inc, c.rel.inc) || st == nil {
			return
		}
		for _, m := range slices.Clone(st.msgs) {
			if m.others {
				c.endMessage(st, m, Unknown, 0)
			} else {
				c.endMessage(st, m, Refused, Code(1000+reason))
			}
		}
	case 2:
		room, hasRoom := f.roomOrNull()
		inc := f.bytes(16, 16)
		marks := f.array(7)
		type mark struct {
			class      Class
			base, next uint64
		}
		var ms []mark
		for _, v := range marks {
			s := f.sub(v, 3)
			ms = append(ms, mark{s.class(), s.count(), s.count()})
			f.done(s)
		}
		if !f.fine() || len(ms) == 0 || hasRoom || room != "" || d.mode != 1 || c.cfg.NoReliable {
			return // marks of rooms tell of repairs, for which this client does not ask
		}
		for _, m := range ms {
			if in := c.inStream(inKey{d.sender, "", m.class}, inc, m.base); in != nil {
				in.last = time.Now()
				c.raiseBase(inKey{d.sender, "", m.class}, in, m.base)
				c.ackSoon(in)
			}
		}
	}
}

func (c *Client) ack(peer Key, class Class, recv []byte, next uint64, taken, held []seqRange) {
	st := c.rel.out[outKey{peer, class}]
	if st == nil {
		return
	}
	now := time.Now()
	st.acted = now
	if st.receiver != nil && !bytes.Equal(st.receiver, recv) {
		for _, m := range st.msgs {
			m.others = m.others || m.segments > 0
			if m.state == relHeld {
				st.requeue(m)
			}
		}
	}
	st.receiver = bytes.Clone(recv)
	var newest uint64
	for _, m := range slices.Clone(st.msgs) {
		done := m.seq < next || within(taken, m.seq)
		if !done && !within(held, m.seq) {
			if m.state == relHeld {
				// the receiver dropped it
				st.requeue(m)
			}
			continue
		}
		if m.segments == 0 {
			continue // never sent: not for this ack to say
		}
		newest = max(newest, m.order)
		if m.segments == 1 && !m.at.IsZero() && m.state == relSent {
			rtt := now.Sub(m.at)
			if st.srtt == 0 {
				st.srtt = rtt
			} else {
				st.srtt = (7*st.srtt + rtt) / 8
			}
		}
		if done {
			c.endMessage(st, m, Delivered, 0)
		} else {
			if m.state == relQueued {
				st.inflight += len(m.payload)
			}
			m.state = relHeld
		}
	}
	if newest > 0 {
		st.probe = false
		st.rto = rtoFirst
		if st.srtt > 0 {
			st.rto = min(max(2*st.srtt, rtoLeast), rtoMost)
		}
	}
	for _, m := range st.msgs {
		if m.state == relSent && !m.pending && m.order < newest {
			st.requeue(m)
		}
	}
	if next < st.base && len(held) > 0 {
		c.sendMark(st)
	}
	c.pumpStream(st, now)
}

// ---- receiver -------------------------------------------------------------------

// inStream finds or begins a stream; nil: the incarnation is an old one.
func (c *Client) inStream(k inKey, inc []byte, base uint64) *inStream {
	r := &c.rel
	scope := scopeKey{k.sender, k.room}
	if g := r.greatest[scope]; g != nil {
		switch bytes.Compare(inc, g) {
		case -1:
			return nil
		case 1:
			for ik, in := range r.in {
				if ik.sender == k.sender && ik.room == k.room {
					in.dead = true
					delete(r.in, ik)
				}
			}
		}
	}
	r.greatest[scope] = bytes.Clone(inc)
	in := r.in[k]
	if in == nil {
		in = &inStream{inc: bytes.Clone(inc), base: base, arrived: base, next: base, taken: map[uint64]bool{}, buffer: map[uint64]*buffered{}, last: time.Now()}
		r.in[k] = in
	}
	return in
}

func (c *Client) raiseBase(k inKey, in *inStream, base uint64) {
	if base <= in.base {
		return
	}
	in.base = base
	for seq, b := range in.buffer {
		if seq < base {
			in.bytes -= len(b.payload)
			delete(in.buffer, seq)
		}
	}
	for seq := range in.taken {
		if seq < base {
			delete(in.taken, seq)
		}
	}
	in.next = max(in.next, base)
	in.arrived = max(in.arrived, base)
	c.advance(k, in)
}

// advance queues for the application what is complete.
func (c *Client) advance(k inKey, in *inStream) {
	for {
		b := in.buffer[in.arrived]
		if b == nil {
			break
		}
		delete(in.buffer, in.arrived)
		in.bytes -= len(b.payload)
		seq := in.arrived
		in.arrived++
		c.offer(k, in, seq, b)
	}
	in.settleTaken()
}

func (in *inStream) settleTaken() {
	for in.taken[in.next] {
		delete(in.taken, in.next)
		in.next++
	}
}

func (c *Client) offer(k inKey, in *inStream, seq uint64, b *buffered) {
	if b.content != contentApp {
		d := &deliverMsg{mode: 1, sender: k.sender, room: k.room, class: k.class, payload: b.payload}
		switch {
		case k.room != "":
		case b.content == contentRequest:
			c.request(d, true)
		case b.content == contentResponse:
			c.response(d)
		}
		c.tookOne(k, in, seq)
		return
	}
	mode := uint64(1)
	if k.room != "" {
		mode = 0
	}
	if in.held.IsZero() {
		in.held = time.Now().Add(100 * time.Millisecond)
	}
	c.emit(Event{Type: EventMessage, Room: k.room, Sender: k.sender, Class: k.class, Mode: mode, Reliable: true, Payload: b.payload,
		mayTake: func() bool { return !in.dead && seq >= in.base && time.Now().Before(b.deadline) },
		taken:   func() { c.tookOne(k, in, seq) }})
}

func (c *Client) tookOne(k inKey, in *inStream, seq uint64) {
	if seq >= in.next {
		in.taken[seq] = true
	}
	in.settleTaken()
	if k.room == "" {
		if in.next == in.arrived {
			in.held = time.Time{}
		}
		c.ackSoon(in)
	}
}

// ackSoon lets one ack stand for all that is taken in a short time.
func (c *Client) ackSoon(in *inStream) {
	in.ackDue = true
	if c.rel.ackTimer {
		return
	}
	c.rel.ackTimer = true
	time.AfterFunc(3*time.Millisecond, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.rel.ackTimer = false
		c.sendAcks()
	})
}

func (c *Client) sendAcks() {
	for k, in := range c.rel.in {
		if in.ackDue {
			in.ackDue = false
			c.sendAck(k, in)
		}
	}
}

func toRanges(seqs []uint64) []any {
	slices.Sort(seqs)
	out := []any{}
	for i := 0; i < len(seqs); {
		j := i
		for j+1 < len(seqs) && seqs[j+1] == seqs[j]+1 {
			j++
		}
		if len(out) == 32 {
			break
		}
		out = append(out, []any{seqs[i], seqs[j]})
		i = j + 1
	}
	return out
}

func (c *Client) sendAck(k inKey, in *inStream) {
	var taken, held []uint64
	for seq := range in.taken {
		taken = append(taken, seq)
	}
	for seq := in.next; seq < in.arrived; seq++ {
		if !in.taken[seq] {
			held = append(held, seq)
		}
	}
	for seq := range in.buffer {
		held = append(held, seq)
	}
	c.sendControl(k.sender, []any{0, c.rel.inc, in.inc, k.class.num(), in.next, toRanges(taken), toRanges(held)})
}

func (c *Client) refuse(d *deliverMsg, inc []byte, reason uint64) {
	if d.mode != 1 || time.Since(c.rel.refusals[d.sender]) < time.Second {
		return
	}
	if len(c.rel.refusals) > 1024 {
		clear(c.rel.refusals)
	}
	c.rel.refusals[d.sender] = time.Now()
	c.sendControl(d.sender, []any{1, inc, d.class.num(), reason})
}

func (c *Client) segment(d *deliverMsg) {
	f := parsePayload(d.payload)
	inc, seq, base := f.bytes(16, 16), f.count(), f.count()
	expires, content, payload := f.count(), f.upto(5), f.bytes(0, len(d.payload))
	if !f.fine() || expires > uint64(relMaxExpires/time.Millisecond) || content == 1 || content == 2 || base > seq {
		return
	}
	if c.cfg.NoReliable {
		c.refuse(d, inc, 0)
		return
	}
	if content == contentSealed {
		return // this client opens no sealed messages: never acknowledged
	}
	k := inKey{d.sender, d.room, d.class}
	if c.rel.in[k] == nil && len(c.rel.in) >= relStreams {
		c.refuse(d, inc, 2)
		return
	}
	first := seq
	if d.mode == 1 {
		first = base
	}
	in := c.inStream(k, inc, first)
	if in == nil {
		c.refuse(d, inc, 1)
		return
	}
	now := time.Now()
	in.last = now
	in.longest = max(in.longest, ms(expires))
	b := &buffered{content, payload, now.Add(ms(expires))}
	if d.mode == 0 {
		// Best effort in rooms: in order and at most once; what is missing is reported at once.
		if seq < in.arrived {
			return
		}
		if n := seq - in.arrived; n > 0 {
			c.emit(Event{Type: EventGap, Room: d.room, Sender: d.sender, Class: d.class, Count: n, Code: ReceiverCongested, Local: true, Reliable: true})
		}
		in.arrived, in.next = seq+1, seq
		c.offer(k, in, seq, b)
		return
	}
	c.raiseBase(k, in, base)
	switch {
	case seq < in.arrived || in.buffer[seq] != nil:
		c.ackSoon(in)
	case seq == in.arrived:
		in.buffer[seq] = b
		in.bytes += len(payload)
		c.advance(k, in)
	case seq-in.arrived < relAhead && in.bytes+len(payload) <= relBuffer:
		in.buffer[seq] = b
		in.bytes += len(payload)
		c.ackSoon(in)
	}
}
