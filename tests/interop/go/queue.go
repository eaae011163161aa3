package ac

import "slices"

const (
	wholeUpTo = 17408
	chunkSize = 16320
)

// item is a frame that waits to be sent.
type item struct {
	seq     uint64
	kind    uint64
	class   int
	room    string // of JOIN, PUBLISH and ANYCAST
	dest    string // "r" + room or "p" + key; of messages
	barrier bool
	segment bool          // belongs to reliable mode, which sends again by itself
	build   func() []byte // made late; nil result: not to be sent any more
	data    []byte        // the array
	size    int           // counted against the high-water mark
	off     int           // bytes that have left in fragments
	charged bool
	leaves  int64 // eligibility time

	onSent    func() // last byte handed to the transport (or the frame's, for control)
	onReject  func(code Code, retryMS uint64, late bool)
	onAccept  func()
	onUnknown func()
	accepted  bool
}

func (i *item) message() bool { return i.kind == kPublish || i.kind == kSend || i.kind == kAnycast }

// lane holds messages of one class that are shaped together.
type lane struct {
	room  string // "": the connection's
	items []*item
}

type classQueue struct {
	lanes []*lane
	open  *item // of which fragments have left
	bytes int
}

// sendQueue holds what waits; the messages in it survive a connection.
type sendQueue struct {
	seq     uint64
	ctl     []*item
	classes [7]classQueue
}

func (q *sendQueue) push(it *item, hasLane func(room string, class int) bool) {
	q.seq++
	it.seq = q.seq
	if it.class == control {
		q.ctl = append(q.ctl, it)
		return
	}
	q.classes[it.class].bytes += it.size
	q.place(it, hasLane)
}

func (q *sendQueue) place(it *item, hasLane func(room string, class int) bool) {
	name := ""
	if it.room != "" && hasLane(it.room, it.class) {
		name = it.room
	}
	cq := &q.classes[it.class]
	for _, l := range cq.lanes {
		if l.room == name {
			l.items = append(l.items, it)
			return
		}
	}
	cq.lanes = append(cq.lanes, &lane{name, []*item{it}})
}

// relane sorts the waiting messages anew after contracts of a room changed.
func (q *sendQueue) relane(hasLane func(room string, class int) bool) {
	for c := range q.classes {
		cq := &q.classes[c]
		var all []*item
		for _, l := range cq.lanes {
			all = append(all, l.items...)
		}
		slices.SortFunc(all, func(a, b *item) int { return int(int64(a.seq - b.seq)) })
		cq.lanes = nil
		for _, it := range all {
			q.place(it, hasLane)
		}
	}
}

// oldest returns the lowest sequence number among the messages.
func (q *sendQueue) oldest() uint64 {
	low := ^uint64(0)
	for c := range q.classes {
		if o := q.classes[c].open; o != nil {
			low = min(low, o.seq)
		}
		for _, l := range q.classes[c].lanes {
			if len(l.items) > 0 {
				low = min(low, l.items[0].seq)
			}
		}
	}
	return low
}

// nextControl takes the control frame that may leave now.
func (q *sendQueue) nextControl() *item {
	blocked := false
	oldest := q.oldest()
	for i, it := range q.ctl {
		if it.barrier {
			if i > 0 || it.seq > oldest {
				blocked = true
				continue
			}
		} else if blocked && (it.kind == kJoin || it.kind == kMembers) {
			continue
		}
		q.ctl = slices.Delete(q.ctl, i, i+1)
		return it
	}
	return nil
}

// remove takes an item out of its lane.
func (q *sendQueue) remove(l *lane, i int) *item {
	it := l.items[i]
	if i == 0 {
		l.items[0] = nil
		l.items = l.items[1:]
	} else {
		l.items = slices.Delete(l.items, i, i+1)
	}
	return it
}

// reset prepares the queue for a new connection: control frames and segments
// go, messages stay.
func (q *sendQueue) reset() {
	q.ctl = nil
	for c := range q.classes {
		cq := &q.classes[c]
		if o := cq.open; o != nil {
			cq.open = nil
			back := &lane{"", []*item{o}}
			cq.lanes = append([]*lane{back}, cq.lanes...)
		}
		for _, l := range cq.lanes {
			l.items = slices.DeleteFunc(l.items, func(it *item) bool {
				it.off, it.charged, it.leaves = 0, false, 0
				if it.segment {
					cq.bytes -= it.size
				}
				return it.segment
			})
		}
	}
	q.relane(func(string, int) bool { return false })
}

// takeAll empties the queue and returns its messages.
func (q *sendQueue) takeAll() (all []*item) {
	q.reset()
	for c := range q.classes {
		for _, l := range q.classes[c].lanes {
			all = append(all, l.items...)
		}
		q.classes[c] = classQueue{}
	}
	return
}

// shaping holds the contracts of one connection.
type shaping struct {
	conn  [7]*Scheduler
	rooms map[string]*[7]*Scheduler
}

func (s *shaping) hasLane(room string, class int) bool {
	r := s.rooms[room]
	return r != nil && r[class] != nil
}

func apply(t *[7]*Scheduler, cs []Contract, now int64) {
	var listed [7]bool
	for _, c := range cs {
		listed[c.Class] = true
		if old := t[c.Class]; old != nil {
			old.SetRate(now, c.CIR, c.CBS)
		} else {
			t[c.Class] = NewScheduler(c.CIR, c.CBS, 0, &SchedulerGroup{MaxResidence: -1}, now)
		}
	}
	for i := range t {
		if !listed[i] {
			t[i] = nil
		}
	}
}

func (s *shaping) setConn(cs []Contract, now int64) { apply(&s.conn, cs, now) }

func (s *shaping) setRoom(room string, cs []Contract, now int64) {
	if s.rooms == nil {
		s.rooms = map[string]*[7]*Scheduler{}
	}
	if len(cs) == 0 {
		delete(s.rooms, room)
		return
	}
	if s.rooms[room] == nil {
		s.rooms[room] = &[7]*Scheduler{}
	}
	apply(s.rooms[room], cs, now)
}

func (s *shaping) through(it *item) (t []*Scheduler) {
	if c := s.conn[it.class]; c != nil {
		t = append(t, c)
	}
	if r := s.rooms[it.room]; it.room != "" && r != nil && r[it.class] != nil {
		t = append(t, r[it.class])
	}
	return
}

// burst returns the smallest CBS that a message has to fit, 0 for none.
func (s *shaping) burst(it *item) (b uint64) {
	for _, sc := range s.through(it) {
		if b == 0 || sc.cbs < b {
			b = sc.cbs
		}
	}
	return
}
