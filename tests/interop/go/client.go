// Package ac is a client of the AwesomeConnect relay protocol, revision 1,
// written from its specification alone.
package ac

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"sync"
	"time"
)

var began = time.Now()

// mono is a monotonic clock in ns.
func mono() int64 { return int64(time.Since(began)) }

// EventType says what an Event is.
type EventType string

// Types of events.
const (
	EventConnected    EventType = "connected"
	EventDisconnected EventType = "disconnected"
	EventMessage      EventType = "message"
	EventJoined       EventType = "joined"
	EventLeft         EventType = "left"
	EventPresence     EventType = "presence"
	EventContract     EventType = "contract"
	EventGap          EventType = "gap"
	EventRejected     EventType = "rejected"  // a message was refused
	EventDelivered    EventType = "delivered" // reliable message
	EventExpired      EventType = "expired"   // reliable message
	EventUnknown      EventType = "unknown"   // outcome of a message
	EventGoaway       EventType = "goaway"
	EventEnded        EventType = "ended" // no reconnection follows
)

// Event is what the client tells its application.
type Event struct {
	Type         EventType
	Room         string
	Sender       Key
	Class        Class
	Mode         uint64 // 0 broadcast, 1 unicast, 2 anycast
	Reliable     bool
	Payload      []byte
	Code         Code
	RetryAfterMS uint64
	Count, Bytes uint64 // gap
	Local        bool   // gap made by this client
	Message      uint64 // ID of the Receipt
	Late         bool   // rejected after it was accepted
	Version      uint64
	MemberCount  uint64
	MessageCount uint64
	Gone         []Key
	New          []Member
	Contracts    []Contract
	Relay        Address
	Epoch        [8]byte
	NewEpoch     bool
	Limits       Limits
	Alternates   []string
	WindowMS     uint64
	Err          error
	size         int
	counted      bool
	taken        func()
	mayTake      func() bool
}

// Outcome of a message.
type Outcome string

// Outcomes.
const (
	Accepted  Outcome = "accepted"
	Rejected  Outcome = "rejected"
	Delivered Outcome = "delivered" // reliable
	Expired   Outcome = "expired"   // reliable
	Refused   Outcome = "refused"   // reliable
	Unknown   Outcome = "unknown"
)

// Receipt tells what became of a message.
type Receipt struct {
	ID           uint64
	Done         chan struct{}
	Outcome      Outcome // after Done
	Code         Code    // of a rejection or refusal
	RetryAfterMS uint64
	over         bool
}

func (r *Receipt) finish(o Outcome, code Code, retry uint64) bool {
	if r.over {
		return false
	}
	r.over, r.Outcome, r.Code, r.RetryAfterMS = true, o, code, retry
	close(r.Done)
	return true
}

// Wait waits for the outcome.
func (r *Receipt) Wait(ctx context.Context) (Outcome, error) {
	select {
	case <-r.Done:
		return r.Outcome, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// JoinOptions are the flags of a membership.
type JoinOptions struct {
	Watch, Observe bool
	Capability     []byte
}

func (o JoinOptions) flags() (f uint64) {
	if o.Watch {
		f |= 1
	}
	if o.Observe {
		f |= 2
	}
	return
}

// Request is a request of another node.
type Request struct {
	Sender   Key
	Room     string
	Class    Class
	Body     []byte
	Reliable bool
}

// Config of a Client.
type Config struct {
	Relays     []Address
	Identity   *Identity
	Attributes map[string]any
	// NoReconnect ends the client with its first connection.
	NoReconnect bool
	// IgnorePause lets publishers go on although the relay asked them to wait.
	IgnorePause bool
	// NoReliable answers reliable messages with a refusal.
	NoReliable bool
	// Serve answers requests; an error becomes a failed response. It runs in a goroutine of its own.
	Serve func(Request) ([]byte, error)
}

type roomState struct {
	opts   JoinOptions
	in     bool
	joined *joinedMsg
}

type roomOp struct {
	room  string
	leave bool
	done  chan error // may be nil
	res   *joinedMsg
}

type pageWait struct {
	room string
	ch   chan *membersPageMsg
}

// Client keeps a connection to one of its relays.
type Client struct {
	cfg         Config
	incarnation []any
	events      chan Event
	ctx         context.Context
	cancel      context.CancelFunc
	ended       chan struct{}

	mu         sync.Mutex
	bcast      chan struct{}
	s          *session // the open one, after WELCOME
	q          sendQueue
	connection uint64
	nextID     uint64
	rooms      map[string]*roomState
	order      []string // rooms in the order of joining
	ops        []*roomOp
	pages      []*pageWait
	stats      []chan map[string]any
	requests   map[[8]byte]*pendingRequest
	lastEpoch  [8]byte
	connects   int
	closing    bool
	over       bool
	err        error

	evq     []*Event
	evBytes [7]int
	evWake  chan struct{}

	rel reliable
}

type pendingRequest struct {
	peer *Key
	ch   chan response
}

type response struct {
	body []byte
	err  error
}

// New starts a client, which connects on its own.
func New(cfg Config) (*Client, error) {
	if len(cfg.Relays) == 0 {
		return nil, errors.New("no relay")
	}
	if cfg.Identity == nil {
		id, err := GenerateIdentity()
		if err != nil {
			return nil, err
		}
		cfg.Identity = id
	}
	attrs := map[string]any{}
	if !cfg.NoReliable {
		attrs["ac:reliable"] = uint64(1)
	}
	for k, v := range cfg.Attributes {
		attrs[k] = v
	}
	if err := checkAttributes(attrs); err != nil {
		return nil, err
	}
	cfg.Attributes = attrs
	rnd := make([]byte, 8)
	rand.Read(rnd)
	c := &Client{
		cfg: cfg, incarnation: []any{uint64(time.Now().UnixMilli()), rnd},
		events: make(chan Event), ended: make(chan struct{}), bcast: make(chan struct{}),
		rooms: map[string]*roomState{}, requests: map[[8]byte]*pendingRequest{}, evWake: make(chan struct{}, 1),
	}
	c.rel.init()
	c.ctx, c.cancel = context.WithCancel(context.Background())
	go c.pump()
	go c.manage()
	return c, nil
}

// Key is the client's own key.
func (c *Client) Key() Key { return c.cfg.Identity.Key }

// Events are messages and news. The application has to read them.
func (c *Client) Events() <-chan Event { return c.events }

// Done is closed when the client has ended for good.
func (c *Client) Done() <-chan struct{} { return c.ended }

func (c *Client) broadcast() {
	close(c.bcast)
	c.bcast = make(chan struct{})
}

// await waits with c.mu held until ready says so.
func (c *Client) await(ctx context.Context, ready func() bool) error {
	for {
		if c.over {
			if c.err != nil {
				return c.err
			}
			return ErrClosed
		}
		if ready() {
			return nil
		}
		ch := c.bcast
		c.mu.Unlock()
		select {
		case <-ch:
			c.mu.Lock()
		case <-ctx.Done():
			c.mu.Lock()
			return ctx.Err()
		}
	}
}

// WaitConnected waits for WELCOME.
func (c *Client) WaitConnected(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.await(ctx, func() bool { return c.s != nil })
}

// ---- the life of the client ---------------------------------------------------

func (c *Client) manage() {
	defer close(c.ended)
	attempt, next := 0, 0
	var without time.Time
	var wait time.Duration
	for {
		if attempt > 0 || wait > 0 {
			t := wait
			if attempt > 0 {
				limit := 2500 * time.Millisecond
				if time.Since(without) > time.Minute {
					limit = 30 * time.Second
				}
				back := min(limit, 100*time.Millisecond<<min(attempt, 20))
				t += time.Duration(mrand.Int64N(int64(back) + 1))
			}
			wait = 0
			select {
			case <-time.After(t):
			case <-c.ctx.Done():
			}
		}
		if c.ctx.Err() != nil {
			c.finish(ErrClosed)
			return
		}
		if attempt == 0 {
			without = time.Now()
		}
		attempt++
		s, err := c.dial(c.ctx, c.cfg.Relays[next%len(c.cfg.Relays)])
		var began time.Time
		if err == nil {
			began = time.Now()
			err = s.run()
			c.mu.Lock()
			welcomed := s.welcomed
			c.gone(s, err)
			c.mu.Unlock()
			if welcomed {
				without = time.Now()
				if time.Since(began) >= time.Minute {
					attempt = 1
				}
			}
		}
		c.mu.Lock()
		closing := c.closing
		c.mu.Unlock()
		stop := closing || c.cfg.NoReconnect
		var ce *CloseError
		if errors.As(err, &ce) && !ce.Code.MayRetry() && !(ce.Code == OK && s.moved) {
			stop = true
		}
		if s != nil && s.goaway != nil && (s.goaway.code == Replaced || s.goaway.code == Superseded) {
			stop = true
		}
		var pe *protocolError
		if errors.As(err, &pe) {
			stop = true // we refused the relay; it will do the same again
		}
		if stop {
			c.finish(err)
			return
		}
		if errors.Is(err, ErrWrongKey) {
			if len(c.cfg.Relays) == 1 {
				c.finish(err)
				return
			}
		}
		next++
		if s != nil && s.goaway != nil && len(c.cfg.Relays) == 1 && s.goaway.code != SessionTooOld {
			wait = time.Duration(mrand.Int64N(int64(ms(min(s.goaway.spread, 600000))) + 1))
		}
		if s == nil {
			c.mu.Lock()
			c.emit(Event{Type: EventDisconnected, Err: err, Relay: c.cfg.Relays[(next-1)%len(c.cfg.Relays)]})
			c.mu.Unlock()
		}
	}
}

func (c *Client) helloLocked() []byte {
	rooms := []any{}
	c.ops = nil
	build := func() []byte {
		return mustCBOR([]any{kHello, 1, c.incarnation, c.connection, c.cfg.Attributes, rooms})
	}
	size := len(build()) + 8
	for _, name := range c.order {
		st := c.rooms[name]
		if st == nil {
			continue
		}
		intent := []any{name, st.opts.flags(), bytesOrNull(st.opts.Capability)}
		size += len(mustCBOR(intent))
		if len(rooms) == 256 || size > 65536 {
			break
		}
		rooms = append(rooms, intent)
		c.ops = append(c.ops, &roomOp{room: name})
	}
	return build()
}

// opened is called with WELCOME.
func (c *Client) opened(s *session, w *welcomeMsg) {
	c.s = s
	known := map[string]bool{}
	for _, op := range c.ops {
		known[op.room] = true
		if c.rooms[op.room] == nil { // left since HELLO
			s.control(kLeave, true, op.room, op.room)
		}
	}
	for _, name := range c.order {
		if st := c.rooms[name]; st != nil && !known[name] {
			c.ops = append(c.ops, &roomOp{room: name})
			s.control(kJoin, false, name, name, st.opts.flags(), bytesOrNull(st.opts.Capability))
		}
	}
	c.connects++
	c.emit(Event{Type: EventConnected, Relay: s.addr, Epoch: w.epoch, NewEpoch: c.connects > 1 && w.epoch != c.lastEpoch,
		Limits: w.limits, Contracts: w.contracts, Alternates: w.alternates})
	c.lastEpoch = w.epoch
	if c.closing {
		s.leave()
	}
	c.reliableConnected()
	c.reliableTick(time.Now())
}

// gone is called when a connection has ended.
func (c *Client) gone(s *session, err error) {
	if c.s == s {
		c.s = nil
	}
	s.end()
	for _, st := range c.rooms {
		st.in = false
	}
	for _, op := range c.ops {
		if op.leave && op.done != nil {
			op.done <- nil // a connection that ended is in no room
			op.done = nil
		}
	}
	for _, p := range c.pages {
		close(p.ch)
	}
	c.pages = nil
	for _, ch := range c.stats {
		close(ch)
	}
	c.stats = nil
	c.reliableGone()
	c.emit(Event{Type: EventDisconnected, Err: err, Relay: s.addr})
	c.broadcast()
}

func (c *Client) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	if c.closing {
		err = nil
	}
	c.err = err
	for _, it := range c.q.takeAll() {
		if it.onUnknown != nil {
			it.onUnknown()
		}
	}
	for _, st := range c.rel.out {
		for len(st.msgs) > 0 {
			c.endMessage(st, st.msgs[0], Unknown, 0)
		}
	}
	for id, r := range c.requests {
		r.ch <- response{err: ErrClosed}
		delete(c.requests, id)
	}
	c.cancel()
	c.emit(Event{Type: EventEnded, Err: err})
	c.broadcast()
}

// Close sends what waits, says CLOSE and ends the client.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	if !c.closing {
		c.closing = true
		if c.s != nil && !c.s.closing {
			c.s.leave()
		} else if c.s == nil {
			c.cancel()
		}
	}
	c.mu.Unlock()
	select {
	case <-c.ended:
		return nil
	case <-ctx.Done():
		c.cancel()
		c.mu.Lock()
		if c.s != nil {
			c.s.conn.Close()
		}
		c.mu.Unlock()
		return ctx.Err()
	}
}

// ---- events -------------------------------------------------------------------

const (
	inboxHigh = 1 << 20
	inboxLow  = 1 << 19
	inboxCap  = 64 << 20
)

// emit queues an event for the application.
func (c *Client) emit(e Event) {
	if e.Type == EventMessage {
		e.size, e.counted = len(e.Payload)+256, true
		if c.evBytes[e.Class]+e.size > inboxCap && !e.Reliable {
			if n := len(c.evq); n > 0 && c.evq[n-1].Local && c.evq[n-1].Room == e.Room && c.evq[n-1].Class == e.Class {
				c.evq[n-1].Count++
				c.evq[n-1].Bytes += uint64(len(e.Payload))
				return
			}
			e = Event{Type: EventGap, Room: e.Room, Class: e.Class, Count: 1, Bytes: uint64(len(e.Payload)), Code: ReceiverCongested, Local: true}
		} else {
			c.evBytes[e.Class] += e.size
			if s := c.s; s != nil && c.evBytes[e.Class] > inboxHigh && e.Class != 6 && !s.paused[e.Class] && !s.closing {
				s.paused[e.Class] = true
				s.control(kPause, false, "", nil, e.Class.num(), 0)
			}
		}
	}
	c.evq = append(c.evq, &e)
	select {
	case c.evWake <- struct{}{}:
	default:
	}
}

func (k Class) num() uint64 { return uint64(k) }

func (c *Client) pump() {
	for {
		c.mu.Lock()
		var e *Event
		if len(c.evq) > 0 {
			e = c.evq[0]
			c.evq[0] = nil
			c.evq = c.evq[1:]
			if len(c.evq) == 0 {
				c.evq = nil
			}
		}
		over := c.over
		may := e == nil || e.mayTake == nil || e.mayTake()
		c.mu.Unlock()
		if e == nil {
			if over {
				close(c.events)
				return
			}
			<-c.evWake
			continue
		}
		if may {
			c.events <- *e
		}
		c.mu.Lock()
		if may && e.taken != nil {
			e.taken()
		}
		if e.counted {
			c.evBytes[e.Class] -= e.size
			if s := c.s; s != nil && s.paused[e.Class] && c.evBytes[e.Class] < inboxLow {
				s.paused[e.Class] = false
				if !s.closing {
					s.control(kResume, false, "", nil, e.Class.num())
				}
			}
		}
		c.mu.Unlock()
	}
}

// ---- rooms --------------------------------------------------------------------

// Joined is the answer to a JOIN.
type Joined struct {
	Version, Members, Messages uint64
}

// CodeError is a refusal by a code.
type CodeError struct {
	What string
	Code Code
}

func (e *CodeError) Error() string { return e.What + ": " + e.Code.String() }

// Join joins a room, and joins it again after every reconnection.
func (c *Client) Join(ctx context.Context, room string, o JoinOptions) (Joined, error) {
	if !ValidRoom(room) {
		return Joined{}, &CodeError{"join", BadRoom}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		return Joined{}, ErrClosed
	}
	st := c.rooms[room]
	if st == nil {
		st = &roomState{}
		c.rooms[room] = st
		c.order = append(c.order, room)
	}
	st.opts, st.joined = o, nil
	op := &roomOp{room: room, done: make(chan error, 1)}
	if c.s != nil {
		c.ops = append(c.ops, op)
		c.s.control(kJoin, false, room, room, o.flags(), bytesOrNull(o.Capability))
	} else {
		// a HELLO will carry it
		if err := c.await(ctx, func() bool { return st.in || c.rooms[room] != st }); err != nil {
			return Joined{}, err
		}
		if st.joined == nil {
			return Joined{}, &CodeError{"join", Evicted}
		}
		return Joined{st.joined.version, st.joined.members, st.joined.messageCount}, nil
	}
	var got bool
	var err error
	if e := c.await(ctx, func() bool {
		select {
		case err = <-op.done:
			got = true
		default:
			got = st.in && st.joined != nil // rejoined on a newer connection
		}
		return got || c.rooms[room] != st
	}); e != nil {
		return Joined{}, e
	}
	if err != nil {
		return Joined{}, err
	}
	j := op.res
	if j == nil {
		j = st.joined
	}
	if j == nil {
		return Joined{}, &CodeError{"join", Evicted}
	}
	return Joined{j.version, j.members, j.messageCount}, nil
}

// Leave leaves a room.
func (c *Client) Leave(ctx context.Context, room string) error {
	c.mu.Lock()
	c.forget(room)
	if c.s == nil {
		c.mu.Unlock()
		return nil
	}
	op := &roomOp{room: room, leave: true, done: make(chan error, 1)}
	c.ops = append(c.ops, op)
	c.s.control(kLeave, true, room, room)
	c.mu.Unlock()
	select {
	case err := <-op.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-c.ended:
		return ErrClosed
	}
}

func (c *Client) forget(room string) {
	delete(c.rooms, room)
	for i, n := range c.order {
		if n == room {
			c.order = append(c.order[:i:i], c.order[i+1:]...)
			break
		}
	}
}

func (c *Client) popOp(room string, leave bool) *roomOp {
	for i, op := range c.ops {
		if op.room == room && op.leave == leave {
			c.ops = append(c.ops[:i:i], c.ops[i+1:]...)
			return op
		}
	}
	return nil
}

func (c *Client) joined(m *joinedMsg) {
	op := c.popOp(m.room, false)
	if st := c.rooms[m.room]; st != nil {
		st.in, st.joined = true, m
	}
	if op != nil {
		op.res = m
		if op.done != nil {
			op.done <- nil
		}
	}
	c.emit(Event{Type: EventJoined, Room: m.room, Version: m.version, MemberCount: m.members, MessageCount: m.messageCount, Contracts: m.contracts})
}

func (c *Client) left(m *leftMsg) {
	st := c.rooms[m.room]
	wasIn := st != nil && st.in
	if m.code == OK {
		if op := c.popOp(m.room, true); op != nil && op.done != nil {
			op.done <- nil
		}
	} else {
		var op *roomOp
		if m.code != Evicted {
			op = c.popOp(m.room, false)
		}
		if op != nil && op.done != nil {
			op.done <- &CodeError{"join", m.code}
		}
		switch {
		case st == nil:
		case m.code.MayRetry() && op != nil && op.done == nil:
			// a rejoin of ours: try again later
			time.AfterFunc(2*time.Second, func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				if s := c.s; s != nil && c.rooms[m.room] == st && !st.in && !s.closing {
					c.ops = append(c.ops, &roomOp{room: m.room})
					s.control(kJoin, false, m.room, m.room, st.opts.flags(), bytesOrNull(st.opts.Capability))
				}
			})
		case m.code.MayRetry() && wasIn || m.code == BadRoom && wasIn:
			// a change of flags was refused; the membership stays
		default:
			c.forget(m.room)
		}
	}
	if st != nil && (m.code == OK || m.code == Evicted || m.code == CapabilityRequired || m.code == CapabilityInvalid) {
		st.in = false
	}
	c.emit(Event{Type: EventLeft, Room: m.room, Code: m.code})
}

func (c *Client) page(m *membersPageMsg) {
	for i, p := range c.pages {
		if p.room == m.room {
			c.pages = append(c.pages[:i:i], c.pages[i+1:]...)
			p.ch <- m
			return
		}
	}
}

func (c *Client) presence(m *presenceMsg) {
	c.emit(Event{Type: EventPresence, Room: m.room, Version: m.version, Gone: m.left, New: m.joined})
}

// Members fetches the member list of a room that the client is in.
func (c *Client) Members(ctx context.Context, room string) (all []Member, version uint64, err error) {
	var after uint64
	for {
		c.mu.Lock()
		if err := c.await(ctx, func() bool { return c.s != nil }); err != nil {
			c.mu.Unlock()
			return nil, 0, err
		}
		w := &pageWait{room, make(chan *membersPageMsg, 1)}
		c.pages = append(c.pages, w)
		c.s.control(kMembers, false, room, room, after)
		c.mu.Unlock()
		select {
		case p, ok := <-w.ch:
			if !ok {
				return nil, 0, errOutcomeUnknown
			}
			if p.code != OK {
				return nil, 0, &CodeError{"members", p.code}
			}
			all, version, after = append(all, p.page...), p.version, p.next
			if !p.more {
				return all, version, nil
			}
		case <-ctx.Done():
			return nil, 0, ctx.Err()
		}
	}
}

// Stats fetches the counters of the session.
func (c *Client) Stats(ctx context.Context) (map[string]any, error) {
	c.mu.Lock()
	if err := c.await(ctx, func() bool { return c.s != nil }); err != nil {
		c.mu.Unlock()
		return nil, err
	}
	ch := make(chan map[string]any, 1)
	c.stats = append(c.stats, ch)
	c.s.control(kStats, false, "")
	c.mu.Unlock()
	select {
	case m, ok := <-ch:
		if !ok {
			return nil, errOutcomeUnknown
		}
		return m, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ---- messages -----------------------------------------------------------------

const outboxHigh = 1 << 20

// Publish sends a message to all other members of a room.
func (c *Client) Publish(ctx context.Context, room string, class Class, payload []byte) (*Receipt, error) {
	return c.message(ctx, kPublish, room, Key{}, class, contentApp, payload)
}

// Anycast sends a message to any one other member of a room.
func (c *Client) Anycast(ctx context.Context, room string, class Class, payload []byte) (*Receipt, error) {
	return c.message(ctx, kAnycast, room, Key{}, class, contentApp, payload)
}

// Send sends a message to one peer.
func (c *Client) Send(ctx context.Context, peer Key, class Class, payload []byte) (*Receipt, error) {
	return c.message(ctx, kSend, "", peer, class, contentApp, payload)
}

func (c *Client) message(ctx context.Context, kind uint64, room string, peer Key, class Class, content uint64, payload []byte) (*Receipt, error) {
	if class > 6 {
		return nil, fmt.Errorf("class %d is not 0 to 6", class)
	}
	if kind != kSend && !ValidRoom(room) {
		return nil, &CodeError{"publish", BadRoom}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.newItem(kind, room, peer, class, content, payload)
	err := c.await(ctx, func() bool {
		if c.closing {
			return true
		}
		if s := c.s; s != nil && !c.cfg.IgnorePause && content != contentResponse && content != contentControl {
			if t, ok := s.pauses[it.dest+string(rune(class))]; ok && time.Now().Before(t) {
				return false
			}
		}
		q := &c.q.classes[class]
		return q.bytes == 0 || q.bytes+it.size <= outboxHigh
	})
	if err != nil {
		return nil, err
	}
	if c.closing {
		return nil, ErrClosed
	}
	if s := c.s; s != nil {
		if uint64(len(payload)) > s.limits.PayloadBytes {
			return nil, &CodeError{"payload", PayloadTooLarge}
		}
		if b := s.shape.burst(it); b > 0 && uint64(it.size) > b {
			return nil, &CodeError{"message is longer than its contract's burst", PayloadTooLarge}
		}
	}
	return c.enqueue(it), nil
}

// newItem makes the frame of a message.
func (c *Client) newItem(kind uint64, room string, peer Key, class Class, content uint64, payload []byte) *item {
	var to any = room
	dest := "r" + room
	if kind == kSend {
		to, dest = peer, "p"+string(peer[:])
	}
	it := &item{kind: kind, class: int(class), room: room, dest: dest}
	it.data = mustCBOR([]any{kind, to, class.num(), content, payload})
	if payload == nil {
		it.data = mustCBOR([]any{kind, to, class.num(), content, []byte{}})
	}
	it.size = len(it.data) + 4
	return it
}

// enqueue queues a message and makes its receipt.
func (c *Client) enqueue(it *item) *Receipt {
	c.nextID++
	r := &Receipt{ID: c.nextID, Done: make(chan struct{})}
	it.onReject = func(code Code, retry uint64, late bool) {
		r.finish(Rejected, code, retry)
		c.emit(Event{Type: EventRejected, Message: r.ID, Code: code, RetryAfterMS: retry, Late: late})
	}
	it.onAccept = func() { r.finish(Accepted, 0, 0) }
	it.onUnknown = func() {
		if r.finish(Unknown, 0, 0) {
			c.emit(Event{Type: EventUnknown, Message: r.ID})
		}
	}
	c.push(it)
	return r
}

func (c *Client) push(it *item) {
	c.q.push(it, func(room string, class int) bool { return c.s != nil && c.s.shape.hasLane(room, class) })
	if c.s != nil {
		c.s.poke()
	}
}

// Flush waits until the relay has decided about every message before it.
func (c *Client) Flush(ctx context.Context) error {
	p, err := c.ping(ctx, 1)
	if err != nil {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Ping measures the round trip to the relay.
func (c *Client) Ping(ctx context.Context) (time.Duration, error) {
	p, err := c.ping(ctx, 0)
	if err != nil {
		return 0, err
	}
	select {
	case <-p.done:
		return p.rtt, p.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (c *Client) ping(ctx context.Context, kind uint64) (*ping, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.await(ctx, func() bool { return c.s != nil && len(c.s.pings) < maxPings }); err != nil {
		return nil, err
	}
	return c.s.pingLocked(kind), nil
}

// ---- incoming messages --------------------------------------------------------

func (c *Client) deliver(m *deliverMsg) {
	switch m.content {
	case contentApp:
		c.emit(Event{Type: EventMessage, Room: m.room, Sender: m.sender, Class: m.class, Mode: m.mode, Payload: m.payload})
	case contentSegment:
		if m.mode != 2 {
			c.segment(m)
		}
	case contentControl:
		if m.mode != 2 {
			c.controlPayload(m)
		}
	case contentRequest:
		c.request(m, false)
	case contentResponse:
		c.response(m)
	}
}

func (c *Client) request(m *deliverMsg, reliable bool) {
	if len(m.payload) < 8 || m.mode == 0 {
		return
	}
	serve := c.cfg.Serve
	go func() {
		out := append([]byte{}, m.payload[:8]...)
		var body []byte
		err := errors.New("this node serves no requests")
		if serve != nil {
			body, err = serve(Request{m.sender, m.room, m.class, m.payload[8:], reliable})
		}
		if err != nil {
			out, body = append(out, 1), []byte(err.Error())
		} else {
			out = append(out, 0)
		}
		out = append(out, body...)
		ctx, cancel := context.WithTimeout(c.ctx, 30*time.Second)
		defer cancel()
		if reliable {
			c.sendReliable(ctx, m.sender, m.class, contentResponse, out, 0)
		} else {
			c.message(ctx, kSend, "", m.sender, m.class, contentResponse, out)
		}
	}()
}

func (c *Client) response(m *deliverMsg) {
	if len(m.payload) < 9 || m.mode != 1 {
		return
	}
	var id [8]byte
	copy(id[:], m.payload)
	p := c.requests[id]
	if p == nil || p.peer != nil && *p.peer != m.sender {
		return
	}
	delete(c.requests, id)
	r := response{body: m.payload[9:]}
	if st := m.payload[8]; st != 0 {
		r = response{err: fmt.Errorf("request failed: %q", string([]rune(string(m.payload[9:]))))}
	}
	p.ch <- r
}

// Request asks one peer and waits for its response.
func (c *Client) Request(ctx context.Context, peer Key, class Class, body []byte) ([]byte, error) {
	return c.ask(ctx, &peer, func(p []byte) (*Receipt, error) {
		return c.message(ctx, kSend, "", peer, class, contentRequest, p)
	}, body)
}

// RequestAny asks any one member of a room and waits for its response.
func (c *Client) RequestAny(ctx context.Context, room string, class Class, body []byte) ([]byte, error) {
	return c.ask(ctx, nil, func(p []byte) (*Receipt, error) {
		return c.message(ctx, kAnycast, room, Key{}, class, contentRequest, p)
	}, body)
}

// RequestReliable is Request across broken connections.
func (c *Client) RequestReliable(ctx context.Context, peer Key, class Class, body []byte) ([]byte, error) {
	return c.ask(ctx, &peer, func(p []byte) (*Receipt, error) {
		return c.sendReliable(ctx, peer, class, contentRequest, p, 0)
	}, body)
}

func (c *Client) ask(ctx context.Context, peer *Key, send func([]byte) (*Receipt, error), body []byte) ([]byte, error) {
	var id [8]byte
	rand.Read(id[:])
	p := &pendingRequest{peer, make(chan response, 2)}
	c.mu.Lock()
	c.requests[id] = p
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.requests, id)
		c.mu.Unlock()
	}()
	r, err := send(append(id[:], body...))
	if err != nil {
		return nil, err
	}
	done := r.Done
	for {
		select {
		case resp := <-p.ch:
			return resp.body, resp.err
		case <-done:
			if r.Outcome == Rejected || r.Outcome == Refused || r.Outcome == Expired {
				return nil, &CodeError{"request " + string(r.Outcome), r.Code}
			}
			done = nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }
