package ac

import (
	"fmt"
	"math"
	"unicode"
	"unicode/utf8"
)

// Code is an error code of errors.md.
type Code uint64

// The codes of revision 1.
const (
	OK                  Code = 0
	ProtocolError       Code = 1
	FrameTooLarge       Code = 2
	UnexpectedMessage   Code = 3
	UnsupportedRevision Code = 4
	KeepaliveTimeout    Code = 5
	InternalError       Code = 6
	Draining            Code = 7
	Replaced            Code = 8
	Superseded          Code = 9
	SlowReceiver        Code = 10
	Overloaded          Code = 11
	NotAllowed          Code = 12
	SessionTooOld       Code = 13
	NoMembers           Code = 32
	NoSuchPeer          Code = 33
	PayloadTooLarge     Code = 34
	RateExceeded        Code = 35
	ReceiverCongested   Code = 36
	ReceiverGone        Code = 37
	BadRoom             Code = 38
	NotAMember          Code = 39
	CapabilityRequired  Code = 40
	CapabilityInvalid   Code = 41
	TooManyRooms        Code = 42
	RoomFull            Code = 43
	Evicted             Code = 44
)

var codeNames = map[Code]string{
	0: "ok", 1: "protocol_error", 2: "frame_too_large", 3: "unexpected_message", 4: "unsupported_revision",
	5: "keepalive_timeout", 6: "internal_error", 7: "draining", 8: "replaced", 9: "superseded",
	10: "slow_receiver", 11: "overloaded", 12: "not_allowed", 13: "session_too_old",
	32: "no_members", 33: "no_such_peer", 34: "payload_too_large", 35: "rate_exceeded",
	36: "receiver_congested", 37: "receiver_gone", 38: "bad_room", 39: "not_a_member",
	40: "capability_required", 41: "capability_invalid", 42: "too_many_rooms", 43: "room_full", 44: "evicted",
}

func (c Code) String() string {
	if s, ok := codeNames[c]; ok {
		return s
	}
	return fmt.Sprintf("code_%d", uint64(c))
}

// MayRetry says whether the same request, or a new connection, can succeed later.
func (c Code) MayRetry() bool {
	switch c {
	case KeepaliveTimeout, InternalError, Draining, SlowReceiver, Overloaded, SessionTooOld,
		NoMembers, NoSuchPeer, RateExceeded, ReceiverCongested, ReceiverGone, TooManyRooms, RoomFull:
		return true
	}
	return false
}

// Class is a traffic class.
type Class uint8

// Classes that have a name.
const (
	Bulk        Class = 0
	Data        Class = 1
	Interactive Class = 4
	Urgent      Class = 5
	control           = 7
)

// Contents (requests.md).
const (
	contentApp      = 0
	contentSegment  = 1
	contentControl  = 2
	contentSealed   = 3
	contentRequest  = 4
	contentResponse = 5
)

const (
	kHello = iota
	kWelcome
	kJoin
	kJoined
	kLeave
	kLeft
	kPublish
	kSend
	kAnycast
	kDeliver
	kMembers
	kMembersPage
	_
	kPresence
	kPresent
	kContract
	kReject
	kGap
	kPause
	kResume
	kPing
	kPong
	kGoaway
	kFragment
	kStats
	kStatsReport
	kClose
	kExtension = 64
)

// Contract limits what a connection may send in one class.
type Contract struct {
	Class        Class
	CIR, CBS     uint64
	MaxResidence uint64 // ms
}

// Member is one entry of a member list.
type Member struct {
	Key        Key
	Joined     uint64
	Attributes map[string]any
}

// Limits are those of WELCOME.
type Limits struct {
	PayloadBytes, FrameBytes, Rooms, RoomMembers, PageBytes, KeepaliveMS, DropMS uint64
}

func defaultLimits() Limits {
	return Limits{1048576, 1049600, 256, 10000, 49152, 25000, 60000}
}

type welcomeMsg struct {
	revision   uint64
	epoch      [8]byte
	limits     Limits
	contracts  []Contract
	alternates []string
}
type joinedMsg struct {
	room                           string
	version, members, messageCount uint64
	contracts                      []Contract
}
type leftMsg struct {
	room string
	code Code
}
type deliverMsg struct {
	mode    uint64
	sender  Key
	room    string
	class   Class
	content uint64
	payload []byte
}
type membersPageMsg struct {
	room    string
	code    Code
	version uint64
	page    []Member
	next    uint64
	more    bool
}
type presenceMsg struct {
	room          string
	base, version uint64
	left          []Key
	joined        []Member
}
type contractMsg struct {
	room      string
	hasRoom   bool
	code      Code
	contracts []Contract
}
type rejectMsg struct {
	first, count uint64
	code         Code
	retryMS      uint64
}
type gapMsg struct {
	room         string
	sender       *Key
	class        Class
	count, bytes uint64
	code         Code
}
type pauseMsg struct {
	target string // "r" + room or "p" + key
	class  Class
	forMS  uint64
	resume bool
}
type pingMsg struct {
	kind  uint64
	token []byte
}
type pongMsg struct{ token []byte }
type goawayMsg struct {
	code             Code
	windowMS, spread uint64
	alternates       []string
}
type fragmentMsg struct {
	class Class
	end   uint64
	chunk []byte
}
type statsReportMsg map[string]any
type closeMsg struct {
	code   Code
	detail string
}

// fields reads the elements of a message one by one and remembers the first mismatch.
type fields struct {
	a   []any
	bad string
}

func (f *fields) fail(what string) {
	if f.bad == "" {
		f.bad = what
	}
}

func (f *fields) next() any {
	if len(f.a) == 0 {
		f.fail("too few fields")
		return nil
	}
	v := f.a[0]
	f.a = f.a[1:]
	return v
}

func (f *fields) uint() uint64 {
	n, ok := f.next().(uint64)
	if !ok {
		f.fail("not an unsigned integer")
	}
	return n
}

func (f *fields) upto(max uint64) uint64 {
	n := f.uint()
	if n > max {
		f.fail("number too large")
	}
	return n
}

func (f *fields) count() uint64 {
	n := f.uint()
	if n == 0 {
		f.fail("count of 0")
	}
	return n
}

func (f *fields) class() Class { return Class(f.upto(6)) }
func (f *fields) code() Code   { return Code(f.uint()) }

func (f *fields) bytes(least, most int) []byte {
	b, ok := f.next().([]byte)
	if !ok || len(b) < least || len(b) > most {
		f.fail("not a byte string of this size")
		return nil
	}
	return b
}

func (f *fields) text(least, most int) string {
	s, ok := f.next().(string)
	if !ok || len(s) < least || len(s) > most {
		f.fail("not a text of this size")
	}
	return s
}

func (f *fields) room() string { return f.text(1, 128) }

func (f *fields) roomOrNull() (string, bool) {
	if len(f.a) > 0 && f.a[0] == nil {
		f.a = f.a[1:]
		return "", false
	}
	return f.room(), true
}

func (f *fields) key() (k Key) {
	copy(k[:], f.bytes(32, 32))
	return
}

func (f *fields) array(most int) []any {
	a, ok := f.next().([]any)
	if !ok || len(a) > most {
		f.fail("not an array of this length")
		return nil
	}
	return a
}

func (f *fields) sub(v any, n int) *fields {
	a, ok := v.([]any)
	if !ok || len(a) != n {
		f.fail("not an array of this length")
		a = make([]any, n)
	}
	return &fields{a: a}
}

func (f *fields) done(s *fields) {
	if s.bad != "" {
		f.fail(s.bad)
	}
}

func (f *fields) contracts() (cs []Contract) {
	seen := 0
	for _, v := range f.array(7) {
		s := f.sub(v, 4)
		c := Contract{s.class(), s.count(), s.count(), s.uint()}
		if seen&(1<<c.Class) != 0 {
			s.fail("class listed twice")
		}
		seen |= 1 << c.Class
		f.done(s)
		cs = append(cs, c)
	}
	return
}

func (f *fields) alternates() (out []string) {
	for _, v := range f.array(16) {
		s := &fields{a: []any{v}}
		out = append(out, s.text(1, 256))
		f.done(s)
	}
	return
}

func (f *fields) attributes() map[string]any {
	m, ok := f.next().(map[string]any)
	if !ok {
		f.fail("not a map")
		return nil
	}
	if err := checkAttributes(m); err != nil {
		f.fail(err.Error())
	}
	return m
}

func checkAttributes(m map[string]any) error {
	if len(m) > 16 {
		return fmt.Errorf("more than 16 attributes")
	}
	for k, v := range m {
		if len(k) < 1 || len(k) > 64 {
			return fmt.Errorf("attribute name too short or too long")
		}
		switch v.(type) {
		case []any, map[string]any:
			return fmt.Errorf("attribute is neither text, bytes, integer, boolean nor null")
		}
	}
	b, err := EncodeCBOR(nil, m)
	if err != nil {
		return err
	}
	if len(b) > 1024 {
		return fmt.Errorf("attributes longer than 1,024 bytes")
	}
	return nil
}

func (f *fields) members() (ms []Member) {
	for _, v := range f.array(maxArray) {
		s := f.sub(v, 3)
		ms = append(ms, Member{s.key(), s.uint(), s.attributes()})
		f.done(s)
	}
	return
}

// kindOf returns the kind of a decoded item.
func kindOf(v any) (uint64, []any, error) {
	a, ok := v.([]any)
	if !ok || len(a) == 0 {
		return 0, nil, fault(ProtocolError, "frame is not an array with a kind")
	}
	k, ok := a[0].(uint64)
	if !ok {
		return 0, nil, fault(ProtocolError, "kind is not an unsigned integer")
	}
	return k, a[1:], nil
}

// decodeMessage decodes and checks a message of a relay. Extensions give nil.
func decodeMessage(array []byte) (any, error) {
	v, err := DecodeCBOR(array)
	if err != nil {
		return nil, fault(ProtocolError, err.Error())
	}
	kind, rest, err := kindOf(v)
	if err != nil {
		return nil, err
	}
	if kind >= kExtension {
		return nil, nil
	}
	f := &fields{a: rest}
	var m any
	switch kind {
	case kWelcome:
		w := welcomeMsg{revision: f.uint()}
		copy(w.epoch[:], f.bytes(8, 8))
		w.limits = defaultLimits()
		lm, ok := f.next().(map[string]any)
		if !ok {
			f.fail("limits are not a map")
		}
		for k, v := range lm {
			n, ok := v.(uint64)
			if !ok || len(k) < 1 || len(k) > 64 {
				f.fail("bad limit")
				break
			}
			l := &w.limits
			if p := map[string]*uint64{"payload_bytes": &l.PayloadBytes, "frame_bytes": &l.FrameBytes, "rooms": &l.Rooms,
				"room_members": &l.RoomMembers, "page_bytes": &l.PageBytes, "keepalive_ms": &l.KeepaliveMS, "drop_ms": &l.DropMS}[k]; p != nil {
				*p = n
			}
		}
		w.contracts = f.contracts()
		w.alternates = f.alternates()
		m = &w
	case kJoined:
		m = &joinedMsg{f.room(), f.uint(), f.uint(), f.uint(), f.contracts()}
	case kLeft:
		m = &leftMsg{f.room(), f.code()}
	case kDeliver:
		d := &deliverMsg{mode: f.upto(2), sender: f.key()}
		var has bool
		d.room, has = f.roomOrNull()
		if has == (d.mode == 1) {
			f.fail("room does not fit the mode")
		}
		d.class, d.content, d.payload = f.class(), f.upto(23), f.bytes(0, math.MaxInt)
		m = d
	case kMembersPage:
		p := &membersPageMsg{room: f.room(), code: f.code(), version: f.uint(), page: f.members()}
		if len(f.a) > 0 && f.a[0] == nil {
			f.next()
		} else {
			p.next, p.more = f.uint(), true
		}
		m = p
	case kPresence:
		p := &presenceMsg{room: f.room(), base: f.uint(), version: f.uint()}
		for _, v := range f.array(maxArray) {
			s := &fields{a: []any{v}}
			p.left = append(p.left, s.key())
			f.done(s)
		}
		p.joined = f.members()
		m = p
	case kContract:
		c := &contractMsg{}
		c.room, c.hasRoom = f.roomOrNull()
		c.code, c.contracts = f.code(), f.contracts()
		m = c
	case kReject:
		r := &rejectMsg{f.count(), f.count(), f.code(), f.uint()}
		if r.count-1 > math.MaxUint64-r.first {
			f.fail("ordinals beyond 2^64")
		}
		m = r
	case kGap:
		g := &gapMsg{}
		g.room, _ = f.roomOrNull()
		if len(f.a) > 0 && f.a[0] == nil {
			f.next()
		} else {
			k := f.key()
			g.sender = &k
		}
		g.class, g.count, g.bytes, g.code = f.class(), f.count(), f.uint(), f.code()
		m = g
	case kPause, kResume:
		p := &pauseMsg{resume: kind == kResume}
		switch t := f.next().(type) {
		case string:
			if len(t) < 1 || len(t) > 128 {
				f.fail("bad target")
			}
			p.target = "r" + t
		case []byte:
			if len(t) != 32 {
				f.fail("bad target")
			}
			p.target = "p" + string(t)
		default:
			f.fail("bad target") // null is for clients
		}
		p.class = f.class()
		if !p.resume {
			p.forMS = f.uint()
		}
		m = p
	case kPing:
		m = &pingMsg{f.upto(1), f.bytes(0, 32)}
	case kPong:
		m = &pongMsg{f.bytes(0, 32)}
	case kGoaway:
		m = &goawayMsg{f.code(), f.uint(), f.uint(), f.alternates()}
	case kFragment:
		fr := &fragmentMsg{f.class(), f.upto(2), f.bytes(0, 65536)}
		if f.bad == "" {
			n := len(fr.chunk)
			if fr.end == 0 && n < 1024 || fr.end == 1 && n < 1 || fr.end == 2 && n != 0 {
				f.fail("chunk with an illegal length")
			}
		}
		m = fr
	case kStatsReport:
		sm, ok := f.next().(map[string]any)
		if !ok {
			f.fail("not a map")
		}
		for k, v := range sm {
			if len(k) < 1 || len(k) > 64 {
				f.fail("bad name")
			}
			switch x := v.(type) {
			case uint64:
			case []any:
				for _, e := range x {
					if _, ok := e.(uint64); !ok {
						f.fail("bad counter")
					}
				}
			default:
				f.fail("bad counter")
			}
		}
		m = statsReportMsg(sm)
	case kClose:
		m = &closeMsg{f.code(), f.text(0, 256)}
	default:
		return nil, fault(UnexpectedMessage, fmt.Sprintf("kind %d from a relay", kind))
	}
	if len(f.a) > 0 {
		f.fail("too many fields")
	}
	if f.bad != "" {
		return nil, fault(ProtocolError, fmt.Sprintf("kind %d: %s", kind, f.bad))
	}
	return m, nil
}

// ValidRoom says whether name is a valid room name (rooms.md).
func ValidRoom(name string) bool {
	if len(name) < 1 || len(name) > 128 || !utf8.ValidString(name) {
		return false
	}
	if name[0] == '@' {
		if len(name) < 67 || name[65] != '/' {
			return false
		}
		if _, err := ParseKey(name[1:65]); err != nil {
			return false
		}
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}

func roomValue(room string, has bool) any {
	if has {
		return room
	}
	return nil
}

func bytesOrNull(b []byte) any {
	if b == nil {
		return nil
	}
	return b
}
