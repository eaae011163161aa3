package ac

import (
	"syscall"
	"testing"
	"time"
)

// A receiver that pauses a class: GAP for broadcasts, REJECT for unicasts, PAUSE to the publisher.
func TestLiveGap(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	room := roomName()
	x := start(t, Config{Relays: []Address{a}, IgnorePause: true})
	y := dialRaw(t, a, nil).open([]any{room, 0, nil})
	if m := y.next(); m[0] != uint64(kJoined) {
		t.Fatal(m)
	}
	y.msg(kPause, nil, 0, 0)
	y.msg(kPing, 0, []byte("p"))
	y.next()
	const n, size = 120, 100_000
	for i := 0; i < n; i++ {
		if _, err := x.Publish(ctx, room, Bulk, make([]byte, size)); err != nil {
			t.Fatal(err)
		}
	}
	if err := x.Flush(ctx); err != nil {
		t.Fatal(err)
	}
	x.mu.Lock()
	if len(x.s.pauses) != 1 {
		t.Errorf("told to pause: %d", len(x.s.pauses))
	}
	x.mu.Unlock()
	r, _ := x.Send(ctx, y.id.Key, Bulk, make([]byte, size))
	if o, _ := r.Wait(ctx); o != Rejected || r.Code != ReceiverCongested {
		t.Errorf("%v %v", o, r.Code)
	}
	r, _ = x.Anycast(ctx, room, Bulk, make([]byte, size))
	if o, _ := r.Wait(ctx); o != Rejected || r.Code != ReceiverCongested {
		t.Errorf("%v %v", o, r.Code)
	}
	r, _ = x.Send(ctx, y.id.Key, Urgent, []byte("urgent"))
	x.Flush(ctx)
	if o, _ := r.Wait(ctx); o != Accepted {
		t.Errorf("%v %v", o, r.Code)
	}
	if m := y.next(); m[0] != uint64(kDeliver) || m[4] != uint64(5) {
		t.Errorf("%v", m)
	}
	y.msg(kResume, nil, 0)
	y.conn.SetDeadline(time.Now().Add(5 * time.Second))
	got, lost := 0, uint64(0)
	var gapBytes uint64
	for got+int(lost) < n {
		switch m := y.next(); {
		case m == nil:
			t.Fatal("end after ", got, lost)
		case m[0] == uint64(kDeliver):
			t.Fatal("whole frame")
		case m[0] == uint64(kFragment) && m[2] == uint64(1):
			got++
		case m[0] == uint64(kGap):
			lost += m[4].(uint64)
			gapBytes += m[5].(uint64)
		}
	}
	frame := uint64(len(mustCBOR([]any{9, 0, x.Key(), room, 0, 0, make([]byte, size)})) + 4)
	if gapBytes != lost*frame {
		t.Errorf("GAP of %d bytes for %d messages of %d", gapBytes, lost, frame)
	}
	t.Log("delivered", got, "lost", lost, "bytes", gapBytes)
	if x.want(EventRejected).Code != ReceiverCongested {
		t.Error("no event")
	}
}

// Messages that wait for a connection that ends come back as a late REJECT.
func TestLiveReceiverGone(t *testing.T) {
	a := relayAddr(t)
	ctx := ctxOf(t)
	{
		x := start(t, Config{Relays: []Address{a}})
		y := dialRaw(t, a, nil).open()
		y.msg(kPause, nil, 0, 0)
		y.msg(kPing, 0, []byte("p"))
		y.next()
		r, _ := x.Send(ctx, y.id.Key, Bulk, []byte("waits"))
		if err := x.Flush(ctx); err != nil {
			t.Fatal(err)
		}
		if o, _ := r.Wait(ctx); o != Accepted {
			t.Fatal(o)
		}
		y.conn.Close()
		if e := x.want(EventRejected); e.Code != ReceiverGone || !e.Late || e.Message != r.ID {
			t.Errorf("%+v", e)
		}
	}
}

func TestLiveMove(t *testing.T) {
	command(t)
	ctx := ctxOf(t)
	a, first := ownRelay(t, "127.0.0.1:0", t.TempDir()+"/k")
	b, _ := ownRelay(t, "127.0.0.1:0", t.TempDir()+"/k")
	x := start(t, Config{Relays: []Address{a, b}})
	room := roomName()
	x.join(room, JoinOptions{})
	x.want(EventConnected)
	first.Process.Signal(syscall.SIGTERM)
	if e := x.want(EventGoaway); e.Code != Draining {
		t.Errorf("%+v", e)
	}
	if e := x.want(EventConnected); e.Relay != b || !e.NewEpoch {
		t.Errorf("%+v", e)
	}
	x.want(EventJoined)
	if _, err := x.Ping(ctx); err != nil {
		t.Error(err)
	}
}
